"""Compare the epoch, prior, learning rate and width that the evidence chooses with those that the test loss chooses.

    python docs/examples/laplace_model_selection.py [FIGURE]

Networks with one hidden layer on 300 of scikit-learn's digits, tested on the other 1,497; three seeds. Each of four
panels changes one thing; the others are 32 hidden units, a learning rate of 0.1, a weight decay of 0.003 and 200
epochs of SGD with momentum 0.9 and batches of 50. The evidence is that at the best prior precision, from a Krylov run
of 64 steps; in the panel of the weight decay w, that at the prior of the training, a precision of 300 w. Takes about
two minutes with one thread.
"""
# ruff: noqa: T201

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.lines import Line2D
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hesspec
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import legend_above, new_figure, styled
from hesspec.plot.ticks import number_ticks

SEEDS = (0, 1, 2)
SAMPLES, BATCH = 300, 50
USUAL = {"epochs": 200, "decay": 0.003, "rate": 0.1, "width": 32}
AXES = {
    "epochs": (1, 3, 10, 30, 100, 300, 1000),
    "decay": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "rate": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "width": (2, 4, 8, 16, 32, 64, 128),
}
TITLES = {"epochs": "epochs", "decay": "weight decay", "rate": "learning rate", "width": "hidden units"}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images and labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.data, dtype=torch.float32)[order] / 8 - 1
    labels = torch.tensor(found.target)[order]
    return images[:SAMPLES], labels[:SAMPLES], images[SAMPLES:], labels[SAMPLES:]


def measured(what: str, value: float, seed: int) -> tuple[float, float, float, float]:
    """Test loss, and log evidence with the ends of its interval, of one training."""
    chosen = {**USUAL, what: value}
    images, labels, test_images, test_labels = digits()
    torch.manual_seed(seed)
    width = int(chosen["width"])
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
    optimiser = torch.optim.SGD(model.parameters(), chosen["rate"], momentum=0.9, weight_decay=chosen["decay"])
    for _ in range(int(chosen["epochs"])):
        for part in torch.randperm(SAMPLES).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimiser.step()
    with torch.no_grad():
        test_loss = float(nn.functional.cross_entropy(model(test_images), test_labels))
    spectrum = hesspec.spectrum(
        hesspec.GaussNewton(model, nn.CrossEntropyLoss(), [(images, labels)]), steps=64, progress=False
    )
    norm = sum(float(parameter.detach().double().square().sum()) for parameter in model.parameters())
    marginal = hesspec.laplace.MarginalLikelihood(spectrum, squared_norm=norm)
    prior = SAMPLES * value if what == "decay" else marginal.optimise_prior().value
    return test_loss, *marginal.log_evidence(prior)


def draw(results: dict[str, np.ndarray], path: Path) -> None:
    """Draw test loss above evidence per sample, against each of the four: medians and ranges over seeds."""
    with styled():
        figure = new_figure(11, 5.2)
        panels = figure.subplots(2, len(results), sharex="col")
        for (above, below), (what, values) in zip(panels.T, results.items(), strict=True):
            places = np.asarray(AXES[what], dtype=float)
            loss, evidence = values[:, :, 0], values[:, :, 1] / SAMPLES
            chosen = np.median(loss, axis=1).argmin(), np.median(evidence, axis=1).argmax()
            for axes, curve, best, colour, mark in (
                (above, loss, chosen[0], OKABE_ITO[1], "o"),
                (below, evidence, chosen[1], OKABE_ITO[0], "s"),
            ):
                middle = np.median(curve, axis=1)
                axes.fill_between(places, curve.min(1), curve.max(1), color=colour, alpha=FILL, linewidth=0)
                axes.plot(places, middle, color=colour, marker=mark, markersize=4, linewidth=1.5)
                axes.plot(places[best], middle[best], mark, color=colour, markersize=10, fillstyle="none")
                for other, line in zip(chosen, (OKABE_ITO[1], OKABE_ITO[0]), strict=True):
                    axes.axvline(places[other], color=line, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
            above.set(xscale="log", yscale="log", title=TITLES[what])
            below.set(xlabel=TITLES[what])
            number_ticks(above.yaxis, below.xaxis)
        panels[0, 0].set_ylabel("test loss (nats)")
        panels[1, 0].set_ylabel("log evidence\nper sample (nats)")
        styles = [{"color": OKABE_ITO[1], "marker": "o"}, {"color": OKABE_ITO[0], "marker": "s"}]
        handles = [Line2D([], [], markersize=10, fillstyle="none", linestyle=(0, (3, 2)), **style) for style in styles]
        legend_above(figure, handles, ["best by test loss", "best by evidence"])
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train, measure, print and draw."""
    torch.set_num_threads(1)
    results = {
        what: np.array([[measured(what, value, seed) for seed in SEEDS] for value in values])
        for what, values in AXES.items()
    }
    for what, values in results.items():
        loss, evidence = np.median(values[:, :, 0], axis=1), np.median(values[:, :, 1], axis=1)
        print(TITLES[what])
        for value, one, other, half in zip(
            AXES[what], loss, evidence, np.median(values[:, :, 3] - values[:, :, 2], axis=1) / 2, strict=True
        ):
            print(f"  {value:<8g} test loss {one:.3f}   log evidence {other:.1f} ± {half:.1f}")
        print(f"  chosen by test loss {AXES[what][loss.argmin()]:g}, by evidence {AXES[what][evidence.argmax()]:g}")
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "laplace-selection.png")
    draw(results, path)
    print(f"Saved {path}.")


if __name__ == "__main__":
    main()
