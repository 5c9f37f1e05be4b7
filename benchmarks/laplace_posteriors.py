"""Compare posteriors of laplace-torch with hesspec's on small networks, by accuracy, calibration and seconds.

    python benchmarks/laplace_posteriors.py digits fashion-mnist [--seeds 3] [--quick]
    python benchmarks/laplace_posteriors.py --resnet18 [--per-class 500] [--steps 64] [--inputs 1000]

Networks are trained by Adam, without weight decay. Each posterior chooses one prior precision by its own evidence (100
steps of Adam, laplace-torch's default), and predicts by probit. Inputs from elsewhere are the test images, rotated by
90 degrees, and normal noise of the mean and deviation of the test pixels; the score is the largest probability. Writes
a table into docs/guide/laplace-compared.md. Takes two minutes for the digits, and five for FashionMNIST with --seeds 1,
most of them for the posteriors `full` and `diag`.

With --resnet18, times one run on ResNet18 (11.2 million parameters) against the run with the evidence for 50 priors and
the predictive variances of inputs on top.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesspec
from _tables import ROOT, Block, console, counted, markdown, processor, rewrite, spread
from hesspec.study.datasets import load_dataset
from hesspec.study.networks import build_network

PAGE = ROOT / "docs/guide/laplace-compared.md"
# Training images per class and epochs.
TRAININGS = {"digits": (90, 60), "fashion-mnist": (100, 40)}
TEST_PER_CLASS = 30
RANK = 64


def network(size: int) -> nn.Module:
    """A CNN so small that the whole Gauss-Newton matrix fits: some 700 parameters."""
    halved = nn.AvgPool2d(2) if size > 8 else nn.Identity()
    left = (size // 2 if size > 8 else size) // 4
    return nn.Sequential(
        halved,
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * left * left, 10)),
    )


def trained(inputs: Tensor, targets: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train a network."""
    torch.manual_seed(seed)
    model = network(inputs.shape[-1])
    optimiser = torch.optim.Adam(model.parameters(), 0.005)
    for _ in range(epochs):
        for part in torch.randperm(len(targets)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[part]), targets[part]).backward()
            optimiser.step()
    return model.eval()


def posteriors() -> dict[str, Callable[[nn.Module], Any]]:
    """Posteriors by name, all with the interface of laplace-torch."""
    import laplace  # noqa: PLC0415 - imports a dozen libraries

    def of(subset: str, structure: str, **options: Any) -> Callable[[nn.Module], Any]:
        return lambda model: laplace.Laplace(model, "classification", subset, structure, **options)

    assert hesspec.laplace.KrylovLaplace  # known from now on
    return {
        f"hesspec, rank {RANK}": of("all", "hesspec", rank=RANK, steps=2 * RANK),
        "full": of("all", "full"),
        "kron": of("all", "kron"),
        "diag": of("all", "diag"),
        "last layer, full": of("last_layer", "full"),
    }


def inputs_of(test: Tensor) -> dict[str, Tensor]:
    """Test images, the same rotated by 90 degrees, and noise."""
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    return {"test": test, "rotated": test.rot90(1, (2, 3)), "noise": test.mean() + test.std() * noise}


def scores(predictions: dict[str, Tensor], targets: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood, expected calibration error, and areas under ROC curves."""
    given = predictions["test"].double()
    sure = given.amax(1).numpy()
    found = {
        "accuracy": 100 * float((given.argmax(1) == targets).double().mean()),
        "nll": -float(given[torch.arange(len(targets)), targets].clamp(min=1e-12).log().mean()),
        "ece": 100 * hesspec.language.calibration(given, targets, equal_counts=False).ece,
    }
    for name in ("rotated", "noise"):
        labels = np.repeat([1, 0], len(targets))
        others = predictions[name].double().amax(1).numpy()
        found[name] = 100 * roc_auc_score(labels, np.concatenate([sure, others]))
    return found


def probit(logits: Tensor, variance: Tensor) -> Tensor:
    """Class probabilities from logits (m, C) and their covariances (m, C, C), as laplace-torch computes them."""
    return torch.softmax(logits / torch.sqrt(1 + np.pi / 8 * variance.diagonal(dim1=1, dim2=2)), 1)


def compare(name: str, seeds: int, epochs: int | None) -> Block:
    """Train and compare on one data set."""
    per_class, usual = TRAININGS[name]
    train, test = (
        load_dataset(name, split, samples_per_class=count)
        for split, count in (("train", per_class), ("test", None if name == "digits" else TEST_PER_CLASS))
    )
    loader = DataLoader(TensorDataset(train.inputs, train.targets), batch_size=300)
    rows: dict[str, list[dict[str, float]]] = {}
    jacobians: list[float] = []
    count = 0
    for seed in range(seeds):
        model = trained(train.inputs, train.targets, epochs or usual, seed)
        count = sum(value.numel() for value in model.parameters())
        given = inputs_of(test.inputs)
        with torch.no_grad():
            plain = {what: model(images).softmax(1) for what, images in given.items()}
        rows.setdefault("network", []).append(scores(plain, test.targets))
        # Jacobians are the same for all posteriors of all parameters.
        start = time.perf_counter()
        backend = hesspec.laplace.KrylovLaplace(model, "classification").backend
        rows_of = {what: [backend.jacobians(part) for part in images.split(100)] for what, images in given.items()}
        jacobians.append(time.perf_counter() - start)
        for title, make in posteriors().items():
            start = time.perf_counter()
            found = make(model)
            found.fit(loader)
            fitted = time.perf_counter()
            found.optimize_prior_precision(pred_type="glm", method="marglik", prior_structure="scalar")
            best = time.perf_counter()

            if title.startswith("last layer"):
                predictions = {
                    what: found(images, pred_type="glm", link_approx="probit").detach()
                    for what, images in given.items()
                }
            else:
                predictions = {
                    what: torch.cat(
                        [probit(logits, found.functional_variance(part)).detach() for part, logits in parts]
                    )
                    for what, parts in rows_of.items()
                }
            result = scores(predictions, test.targets)
            result |= {
                "evidence": float(found.log_marginal_likelihood()),
                "prior": float(found.prior_precision),
                "fit": fitted - start,
                "choose": best - fitted,
                "predict": time.perf_counter() - best,
            }
            rows.setdefault(title, []).append(result)
            console.print(name, seed, title, {key: round(value, 3) for key, value in result.items()})
    columns = {
        "accuracy": ("accuracy, %", "{:.1f}"),
        "nll": ("NLL", "{:.3f}"),
        "ece": ("ECE, %", "{:.1f}"),
        "rotated": ("AUROC rotated, %", "{:.1f}"),
        "noise": ("AUROC noise, %", "{:.1f}"),
        "evidence": ("log evidence", "{:.0f}"),
        "prior": ("prior precision", "{:.2g}"),
        "fit": ("fit, s", "{:.2f}"),
        "choose": ("choose the prior, s", "{:.2f}"),
        "predict": ("variances, s", "{:.2f}"),
    }
    cells = [
        (
            title,
            *(spread([run[key] for run in runs], form) if key in runs[0] else "" for key, (_, form) in columns.items()),
        )
        for title, runs in rows.items()
    ]
    note = (
        f"{name}: CNN of {count:,} parameters, {len(train):,} training and {len(test):,} test images; "
        f"{counted(seeds, 'seed')}: median (smallest–largest). Variances are of three times the "
        f"test images, whose Jacobians take {spread(jacobians, '{:.0f}')} s (for the last layer, with them). "
        f"{processor()}, {counted(torch.get_num_threads(), 'thread')}, torch {torch.__version__}."
    )
    return Block(f"Posteriors on {name}", note, ("posterior", *(title for title, _ in columns.values())), cells)


def large(name: str, per_class: int, steps: int, inputs: int, threads: int) -> None:
    """Time the run, the evidence and the predictive variances of a network on FashionMNIST."""
    torch.set_num_threads(threads)
    train = load_dataset("fashion-mnist", "train", samples_per_class=per_class)
    test = load_dataset("fashion-mnist", "test", samples_per_class=-(-inputs // 10)).inputs[:inputs]
    torch.manual_seed(0)
    model = build_network(name, channels=1, classes=10, size=32)
    optimiser = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for part in torch.randperm(len(train)).split(64):  # one epoch: the times do not depend on the point
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train.inputs[part]), train.targets[part]).backward()
        optimiser.step()
    model.eval()
    begin = time.perf_counter()
    posterior = hesspec.laplace.Laplace(
        model, nn.CrossEntropyLoss(), train.batches(250), prior_precision=10.0, rank=steps, steps=steps
    )
    run = posterior.pairs.spectrum
    fitted = time.perf_counter()
    evidence = posterior.evidence()
    priors = time.perf_counter()
    found = posterior.covariance(test)
    end = time.perf_counter()
    p, alone = posterior.theta.numel(), float(run.attributes.get("seconds", np.nan))
    products, seconds = posterior.pairs.matvecs, end - begin
    rows = [
        ("parameters, training images, steps", f"{p:,}, {len(train):,}, {steps}"),
        ("products of the run, and in all", f"{run.matvecs}, {products}: {products / run.matvecs - 1:+.0%}"),
        ("seconds of the run alone", f"{alone:.1f}"),
        (
            "seconds before it (reading, tracing, verifying) and after it (eigenvectors, check)",
            f"{fitted - begin - alone:.1f}",
        ),
        ("eigenpairs resolved", str(len(posterior.pairs.values))),
        (
            "bound of the other eigenvalues, relative to the smallest of these",
            f"{posterior.pairs.rest / float(posterior.pairs.values[-1]):.3g}",
        ),
        (f"seconds of the evidence for {len(evidence.prior_precision)} priors", f"{priors - fitted:.2f}"),
        (f"seconds of the variances of {len(test):,} images", f"{end - priors:.1f}"),
        ("seconds of everything, and relative to the run", f"{seconds:.1f}, {seconds / alone:.2f}"),
        (f"basis of {steps} vectors in float32", f"{steps * p * 4 / 1e9:.2f} GB"),
        ("peak memory of the process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"),
        ("log evidence at the best prior", str(posterior.log_evidence(evidence.best))),
        (
            "largest relative error bound of a variance",
            f"{float((found.error / found.values.diagonal(dim1=1, dim2=2).sum(1)).max()):.3g}",
        ),
    ]
    for title, value in rows:
        console.print(f"{title}: {value}")


def main() -> None:
    """Compare, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="*", choices=[*TRAININGS, []])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs; writes nothing")
    parser.add_argument("--resnet18", action="store_true")
    parser.add_argument("--network", default="resnet18", help="another network of the study, to try --resnet18")
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.resnet18:
        large(options.network, options.per_class, options.steps, options.inputs, options.threads)
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries that laplace-torch imports
    for name in options.data:
        block = compare(name, 1 if options.quick else options.seeds, 2 if options.quick else None)
        console.print(markdown(block), markup=False)
        if not options.quick:
            rewrite(f"laplace {name}", markdown(block), PAGE)


if __name__ == "__main__":
    main()
