"""Compare AMUSE with Muon, SGD with momentum and AdamW: loss against epochs and seconds, and where their steps go.

    python benchmarks/optimisers.py digits|fashion-mnist [--seeds 3] [--quick]

Each method's learning rate is that with the lowest training loss at the end, out of a grid with a factor of about 3, by
a seed that is not used again. SGD, AdamW and Muon run with a constant rate and with a cosine that ends at 0; AMUSE has
its constant rate after warm-up, and is evaluated at its average x. No weight decay. The runs of all methods with one
seed come one after another, in a random order. Seconds are those of training steps alone. Those to a loss are medians
over seeds, to the largest of the methods' median losses at the end.

Dominant shares are those of a seed's runs with constant rates, with the eigenvectors of the Hessian at the same point
on the first 2,874 training samples: means over five batches. Writes tables into docs/guide/optimisers.md, and a figure.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import hesspec
from _tables import ROOT, Block, console, counted, markdown, processor, rewrite, spread
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.style import DASHES
from hesspec.plot.ticks import number_ticks
from hesspec.study.datasets import load_dataset

PAGE = ROOT / "docs/guide/optimisers.md"
BATCH, TUNING_SEED, K, OBSERVED = 128, 100, 10, 5
# Samples of a batch of the Hessian: all training digits.
HALF = 1_437
COLOURS = {"SGD": OKABE_ITO[4], "AdamW": OKABE_ITO[2], "Muon": OKABE_ITO[0], "AMUSE": OKABE_ITO[1]}


@dataclass(frozen=True)
class Problem:
    """A network, its data, and how long it is trained."""

    what: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    network: Callable[[], nn.Module]
    epochs: int
    rates: tuple[float, ...]


@dataclass
class Run:
    """One training: after each epoch the seconds, losses and test error; shares by epoch."""

    seconds: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    shares: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """Training loss at the end; infinite if it diverged."""
        return self.train[-1] if np.isfinite(self.train[-1]) else float("inf")


def problem(name: str) -> Problem:
    """Digits, or a tenth of FashionMNIST, with a small network."""
    per_class = {"digits": None, "fashion-mnist": 600}[name]
    train, test = (
        load_dataset(name, split, samples_per_class=count)
        for split, count in (("train", per_class), ("test", per_class and 100))
    )
    data = [(each.inputs, each.targets) for each in (train, test)]
    if name == "digits":
        layers = [nn.Flatten, lambda: nn.Linear(64, 32), nn.Tanh, lambda: nn.Linear(32, 32), nn.Tanh]
        layers.append(lambda: nn.Linear(32, 10))
        what, epochs, rates = (
            "1,437 digits, tanh network 64-32-32-10 (p = 3,466)",
            40,
            (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        )
    else:
        # Without convolutions, which torch.optim.Muon does not train.
        layers = [nn.Flatten, lambda: nn.Linear(1024, 64), nn.GELU, lambda: nn.Linear(64, 64), nn.GELU]
        layers.append(lambda: nn.Linear(64, 10))
        what = "6,000 images of FashionMNIST, 32x32, GELU network 1024-64-64-10 (p = 70,410)"
        epochs, rates = 20, (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    return Problem(what, data[0], data[1], lambda: nn.Sequential(*(make() for make in layers)), epochs, rates)


def optimizers(method: str, model: nn.Module, rate: float, steps: int) -> list[torch.optim.Optimizer]:
    """The optimisers of a method; each has one learning rate for all parameters."""
    everything = list(model.parameters())
    if method == "SGD":
        # Gradients have other units than the steps of the other methods: ten times the rate.
        return [torch.optim.SGD(everything, lr=10 * rate, momentum=0.9)]
    if method == "AdamW":
        return [torch.optim.AdamW(everything, lr=rate, weight_decay=0.0)]
    groups = hesspec.optim.muon_groups(model)
    if method == "AMUSE":
        warmup = max(1, round(0.05 * steps))
        return [hesspec.optim.AMUSE(groups, lr=rate, warmup_steps=warmup, beta=0.8, rho=0.3)]
    muon, rest = ([parameter for _, parameter in group["params"]] for group in groups)
    # As AMUSE: updates with the size of those of AdamW.
    matrices = torch.optim.Muon(muon, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [matrices, torch.optim.AdamW(rest, lr=rate, weight_decay=0.0)]


def batches(data: tuple[Tensor, Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a random order, without the last, short batch."""
    order = torch.randperm(len(data[1]), generator=generator)
    for begin in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[begin : begin + BATCH]
        yield data[0][chosen], data[1][chosen]


def train(given: Problem, method: str, rate: float, seed: int, *, cosine: bool, observed: tuple[int, ...] = ()) -> Run:
    """Train and evaluate after each epoch; measure shares after the epochs in `observed`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, loss_fn, run = given.network(), nn.CrossEntropyLoss(), Run()
    steps = given.epochs * (len(given.train[1]) // BATCH)
    used = optimizers(method, model, rate, steps)
    schedulers = [CosineAnnealingLR(each, steps) for each in used] if cosine else []
    spent = 0.0
    for epoch in range(1, given.epochs + 1):
        begin = time.perf_counter()
        for inputs, targets in batches(given.train, generator):
            for each in used:
                each.zero_grad()
            loss_fn(model(inputs), targets).backward()
            for each in (*used, *schedulers):
                each.step()
        spent += time.perf_counter() - begin
        run.seconds.append(spent)
        evaluate(given, model, used, run)
        if epoch in observed:
            run.shares[epoch] = measure_shares(given, model, used, seed)
    return run


def evaluate(given: Problem, model: nn.Module, used: list[Any], run: Run) -> None:
    """Append losses and the test error; of the average for AMUSE."""
    for each in used:
        if isinstance(each, hesspec.optim.AMUSE):
            each.eval()
    with torch.no_grad():
        losses = []
        for inputs, targets in (given.train, given.test):
            outputs = model(inputs)
            losses.append(float(nn.functional.cross_entropy(outputs, targets)))
    run.train.append(losses[0])
    run.test.append(losses[1])
    run.error.append(float((outputs.argmax(1) != targets).double().mean()))
    for each in used:
        if isinstance(each, hesspec.optim.AMUSE):
            each.train()


def measure_shares(given: Problem, model: nn.Module, used: list[Any], seed: int) -> dict[str, float]:
    """Mean dominant shares over a few batches at the point of the gradients; for AMUSE also of gradients at x and z."""
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(seed + 1_000)
    data = [sample for sample, _ in zip(batches(given.train, generator), range(OBSERVED), strict=False)]
    pairs = top_pairs(given, model)
    for inputs, targets in data:
        differentiate(model, inputs, targets)
        shares = hesspec.optim.dominant_share(used, pairs, model)
        vectors = hesspec.optim.step_vectors(used, model).vectors
        for name, value in zip(shares.names, shares.dominant().values, strict=True):
            found.setdefault(str(name), []).append(float(value))
        # What Muon would make of these vectors.
        for name in vectors.keys() & {"gradient", "momentum"}:
            polar = orthogonalised(model, vectors[name])
            value = hesspec.optim.dominant_share(polar, pairs).dominant().values[0]
            found.setdefault(f"orthogonalised {name}", []).append(float(value))
    if isinstance(used[0], hesspec.optim.AMUSE):
        for sequence in ("x", "y", "z"):
            with used[0].at(sequence):
                pairs = top_pairs(given, model)
                for inputs, targets in data:
                    differentiate(model, inputs, targets)
                    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
                    share = hesspec.optim.dominant_share(gradient, pairs).dominant().values[0]
                    found.setdefault(f"gradient at {sequence}", []).append(float(share))
    return {name: statistics.mean(values) for name, values in found.items()}


def top_pairs(given: Problem, model: nn.Module) -> hesspec.Eigenpairs:
    """Top eigenvectors of the Hessian on the first training samples, at the current weights of the model."""
    inputs, targets = given.train
    data = [(inputs[i : i + HALF], targets[i : i + HALF]) for i in range(0, min(len(targets), 2 * HALF), HALF)]
    hessian = hesspec.Hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), data)
    pairs = hesspec.eigenpairs(hessian, count=K, steps=60, progress=False)
    if pairs.values.size < K:
        raise ValueError(f"Only {pairs.values.size} eigenvectors were resolved.")
    return pairs


def differentiate(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Gradients of one batch."""
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()


def orthogonalised(model: nn.Module, vector: Tensor) -> Tensor:
    """Orthogonalise the parts of a vector that belong to hidden matrices; zero for the others."""
    hidden = {id(parameter) for _, parameter in hesspec.optim.muon_groups(model)[0]["params"]}
    parts, place = [], 0
    for parameter in model.parameters():
        part = vector[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
        if id(parameter) in hidden:
            matrix = part.flatten(1)
            part = hesspec.optim.orthogonalise(matrix) * max(matrix.shape) ** 0.5
        else:
            part = torch.zeros_like(part)
        parts.append(part.reshape(-1))
    return torch.cat(parts)


# Tables and figure ----------------------------------------------------------------------------------------------------


def tables(
    given: Problem, runs: dict[tuple[str, bool], list[Run]], rates: dict[tuple[str, bool], float]
) -> list[Block]:
    """Losses and times; shares."""
    # The largest of the median losses at the end, which every method reaches in half of its runs.
    wanted = max(statistics.median(run.train[-1] for run in found) for found in runs.values())
    rows = []
    for (method, cosine), found in runs.items():
        reached = [next((i for i, loss in enumerate(run.train) if loss <= wanted), len(run.train)) for run in found]
        # Runs that do not reach it count as longer than any number.
        epochs = statistics.median_low(reached)
        times = statistics.median_low(
            [run.seconds[i] if i < len(run.seconds) else np.inf for i, run in zip(reached, found, strict=True)]
        )
        rows.append(
            (
                f"{method}, cosine" if cosine else method,
                f"{rates[method, cosine] * (10 if method == 'SGD' else 1):g}",
                spread([run.train[len(run.train) // 4 - 1] for run in found], "{:.3g}"),
                spread([run.train[-1] for run in found], "{:.3g}"),
                spread([run.test[-1] for run in found], "{:.3g}"),
                spread([100 * run.error[-1] for run in found], "{:.2f}"),
                spread([run.seconds[-1] for run in found], "{:.2f}"),
                str(epochs + 1),
                f"{times:.2f}",
            )
        )
    quarter = max(given.epochs // 4, 1)
    columns = ("optimiser", "rate", f"train loss, epoch {quarter}", "train loss, end", "test loss", "test error, %")
    columns += ("seconds", f"epochs to {wanted:.3g}", "seconds to it")
    count = counted(len(runs["AMUSE", False]), "seed")
    note = f"{given.what}; {given.epochs} epochs, batches of {BATCH}; {count}: median (smallest–largest). {machine()}"
    losses = Block("Loss", note, columns, rows)
    shared = []
    for (method, cosine), found in runs.items():
        if cosine:
            continue
        for epoch in found[0].shares:
            means = {
                name: statistics.mean(run.shares[epoch][name] for run in found if epoch in run.shares)
                for name in found[0].shares[epoch]
            }
            names = ("gradient", "momentum", "update", "update of z", "orthogonalised momentum")
            names += ("gradient at x", "gradient at y", "gradient at z")
            shared.append((method, str(epoch), *(f"{means[name]:.2f}" if name in means else "" for name in names)))
    columns = ("optimiser", "epoch", "gradient", "momentum", "update", "update of z", "orth. momentum")
    columns += ("gradient at x", "gradient at y", "gradient at z")
    note = f"k = {K}, constant rates; means over {OBSERVED} batches and {count}."
    return [losses, Block("Dominant share", note, columns, shared)]


def machine() -> str:
    """Where the seconds were measured."""
    return f"{processor()}, 1 thread, torch {torch.__version__}."


def draw(given: Problem, runs: dict[tuple[str, bool], list[Run]], path: Any) -> None:
    """Training loss against epochs and against seconds: medians, and the range over seeds."""
    with styled():
        figure = new_figure(10, 4.4)
        left, right = figure.subplots(1, 2, sharey=True)
        for (method, cosine), found in runs.items():
            losses = np.array([run.train for run in found])
            middle = np.median(losses, axis=0)
            look = {"color": COLOURS[method], "linestyle": DASHES[1] if cosine else "-", "linewidth": 1.6}
            label = f"{method}, cosine" if cosine else method
            epochs = np.arange(1, given.epochs + 1)
            left.plot(epochs, middle, label=label, **look)
            left.fill_between(epochs, losses.min(0), losses.max(0), color=COLOURS[method], alpha=FILL, linewidth=0)
            right.plot(np.median([run.seconds for run in found], axis=0), middle, **look)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set(xlabel="epoch", ylabel="training loss", yscale="log")
        right.set(xlabel="seconds of training")
        number_ticks(left.yaxis)
        left.legend(fontsize=9)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Tune, train, measure, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", choices=("digits", "fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, one rate, few epochs; writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = problem(options.data)
    if options.quick:
        given = Problem(given.what, given.train, given.test, given.network, 4, given.rates[1:2])
    methods = [(method, cosine) for method in ("SGD", "AdamW", "Muon") for cosine in (False, True)]
    methods.append(("AMUSE", False))
    seeds = range(1 if options.quick else options.seeds)
    rates = {}
    for method, cosine in methods:
        tried = {rate: train(given, method, rate, TUNING_SEED, cosine=cosine).final for rate in given.rates}
        rates[method, cosine] = min(tried, key=lambda rate: tried[rate])
        console.print(method, cosine, {rate: round(loss, 5) for rate, loss in tried.items()})
    observed = (max(given.epochs // 10, 1), given.epochs // 2, given.epochs)
    runs: dict[tuple[str, bool], list[Run]] = {method: [] for method in methods}
    for seed in seeds:
        order = list(methods)
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret
        for method, cosine in order:
            at = () if cosine else observed
            runs[method, cosine].append(train(given, method, rates[method, cosine], seed, cosine=cosine, observed=at))
    blocks = tables(given, runs, rates)
    text = "\n".join(markdown(block).replace("#### ", "#### " + options.data + ": ") for block in blocks)
    print(text)
    if not options.quick:
        draw(given, runs, ROOT / f"docs/optimisers-{options.data}.png")
        rewrite(f"optimisers {options.data}", "\n" + text, PAGE)


if __name__ == "__main__":
    main()
