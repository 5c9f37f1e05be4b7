"""How time grows: with the number of parameters, with the number of samples, with the number of steps.

    python benchmarks/growth.py [--threads N] [--quick]

Hessians on FashionMNIST images of 32x32, all in one batch, float32, all cores. hesspec's spectrum is everything from
the model to the answer, tracing included; the other libraries' is their own Lanczos process with the same number of
steps, which is less of an answer (curvlinops' does not reorthogonalise, neither tells outliers from the bulk): cost for
cost, not accuracy for accuracy, which `accuracy.py` compares. Products are medians of interleaved repeats; spectra are
measured once, and hesspec's planned beforehand. The widths of VGG11-BN are multiplied for the first curve.

Prints the table, and writes it into benchmarks/README.md, with the picture growth.png. `--quick` has the ends of small
curves, and writes nothing.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from hessian_eigenthings import spectral_density
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import nn

import hesspec
from _matvecs import LABELS, house, interleaved, multiply, real_problem, with_images
from _tables import Block, arguments, begin, console, counted, publish
from hesspec.plot import OKABE_ITO, STYLE
from methods import Problem

PICTURE = Path(__file__).with_name("growth.png")
HOUSES = ("hesspec", "curvlinops", "eigenthings")
NAMES = {"hesspec": "hesspec", "curvlinops": "curvlinops 3.0.1", "eigenthings": "hessian-eigenthings 1.0.0a5"}
LOOKS = {"hesspec": (OKABE_ITO[0], "o"), "curvlinops": (OKABE_ITO[1], "s"), "eigenthings": (OKABE_ITO[2], "^")}
REPEATS = 3
# Of the curves over parameters and samples: enough to divide what is not a product among, few enough to wait for.
STEPS = 32
# Seconds that a spectrum of another library may take.
PATIENCE = 12
VGG = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


@dataclass(frozen=True)
class Point:
    """Seconds of a spectrum (None where it was too long to wait for) and of a product by house, and those planned."""

    x: int
    planned: float
    spectrum: dict[str, float | None]
    product: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """One panel."""

    title: str
    label: str
    steps: int | None
    points: Sequence[Point]


def vgg(width: float) -> Problem:
    """VGG11 with batch norm and all of its widths multiplied, on 8 images; at 1 it is `hesspec.study.vgg11_bn`."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 1
    for layer in VGG:
        if isinstance(layer, int):
            wide = round(layer * width)
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        else:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    hidden = round(4096 * width)
    for before in (channels, hidden):
        layers += [nn.Linear(before, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    layers.append(nn.Linear(hidden, 10))
    return with_images(nn.Sequential(*layers), 8, "Hessian")


def spectrum(name: str, problem: Problem, steps: int) -> float:
    """Seconds from the model to the answer, by each house's own Lanczos process of so many steps."""
    run: dict[str, Callable[[], object]] = {
        "hesspec": lambda: hesspec.spectrum(house("hesspec").operator(problem), steps=steps),
        "curvlinops": lambda: fast_lanczos(house("curvlinops").operator(problem), steps),
        "eigenthings": lambda: spectral_density(
            house("eigenthings").operator(problem), num_runs=1, lanczos_steps=steps, seed=0
        ),
    }
    problem = problem.fresh()
    gc.collect()
    start = time.perf_counter()
    run[name]()
    return time.perf_counter() - start


def point(x: int, problem: Problem, steps: int) -> Point:
    """Products of all houses side by side, then the spectrum of those who need at most `PATIENCE` for it."""
    vector = torch.randn(problem.size)
    operators = {name: house(name).operator(problem.fresh()) for name in HOUSES}
    calls = {name: lambda operator=operator: multiply(operator, vector) for name, operator in operators.items()}
    for call in calls.values():
        call()
    product = {name: statistics.median(seconds) for name, seconds in interleaved(calls, REPEATS).items()}
    planned = hesspec.plan(house("hesspec").operator(problem.fresh()), steps=steps).seconds
    affordable = [name for name in HOUSES if name == "hesspec" or product[name] * steps <= PATIENCE]
    measured = {name: spectrum(name, problem, steps) if name in affordable else None for name in HOUSES}
    console.print(f"{x:,}: {measured}, planned {planned}, a product {product}", style="dim")
    return Point(x, planned, measured, product)


def curves(*, quick: bool) -> list[Curve]:
    """All three."""
    widths = (1 / 32, 1 / 8) if quick else (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    images = (4, 8) if quick else (32, 128, 512)
    lengths = (2, 4) if quick else (16, 32, 64, 128)
    networks = [vgg(width) for width in widths]
    few = real_problem("small_cnn", 4 if quick else 32, "Hessian")
    return [
        Curve(
            f"Parameters (VGG11-BN of any width, 8 images, {STEPS} steps)",
            "number of parameters p",
            STEPS,
            [point(network.size, network, STEPS) for network in networks],
        ),
        Curve(
            f"Samples (small CNN, p = {few.size:,}, {STEPS} steps)",
            "number of images N",
            STEPS,
            [point(count, real_problem("small_cnn", count, "Hessian"), STEPS) for count in images],
        ),
        Curve(
            f"Lanczos steps (small CNN, p = {few.size:,}, {len(few.data[0][1])} images)",
            "Lanczos steps m",
            None,
            [point(steps, few, steps) for steps in lengths],
        ),
    ]


# Picture ----------------------------------------------------------------------------------------------------------


def draw(drawn: Sequence[Curve]) -> Figure:
    """Three panels, both axes logarithmic: spectra as lines, products dashed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 5.4), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True)
        for axes, curve in zip(panels, drawn, strict=True):
            panel(axes, curve)
        panels[0].set_ylabel("time (s)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, columnspacing=4)
    return figure


def panel(axes: Axes, curve: Curve) -> None:
    """One curve for each house and each of spectrum and product."""
    for name in HOUSES:
        colour, marker = LOOKS[name]
        look = {"color": colour, "marker": marker, "markersize": 7, "markeredgecolor": "white", "linewidth": 2}
        known = [(p.x, p.spectrum[name]) for p in curve.points if p.spectrum[name] is not None]
        axes.plot(*zip(*known, strict=True), label=f"{NAMES[name]}: spectrum", **look)
        axes.plot(
            [p.x for p in curve.points],
            [p.product[name] for p in curve.points],
            label=f"{NAMES[name]}: one product",
            **(look | {"linestyle": (0, (4, 2)), "linewidth": 1.4, "markersize": 5}),
        )
    axes.set(xscale="log", yscale="log", xlabel=curve.label, title=curve.title.replace(" (", "\n(", 1))
    if curve.points[-1].x < 10_000:
        axes.set_xticks([p.x for p in curve.points], [f"{p.x:,}" for p in curve.points])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def table(curve: Curve) -> Block:
    """The numbers of a panel."""
    rows = [
        (
            f"{point.x:,}",
            *("–" if point.spectrum[name] is None else f"{point.spectrum[name]:.2f}" for name in HOUSES),
            f"{point.planned:.2f}",
            *(f"{point.product[name]:.4f}" for name in HOUSES),
        )
        for point in curve.points
    ]
    names = [LABELS[name].partition(",")[0] for name in HOUSES]
    columns = (
        curve.label,
        *(f"{name}: spectrum" for name in names),
        "planned",
        *(f"{name}: product" for name in names),
    )
    length = "as many steps as said" if curve.steps is None else counted(curve.steps, "step")
    return Block(
        curve.title,
        f"Seconds; spectra of {length}; –: not waited for; planned: what `hesspec.plan` said of hesspec's.",
        columns,
        rows,
    )


def main() -> None:
    """Measure, print, draw, write."""
    parser = arguments(__doc__, "small curves; README and picture stay as they are")
    options = parser.parse_args()
    begin(options.threads)
    start, load = time.perf_counter(), os.getloadavg()[0]
    measured = curves(quick=options.quick)
    figure = draw(measured)
    if not options.quick:
        figure.savefig(PICTURE, dpi=150)
    publish(
        "growth",
        "Networks as they are initialised",
        [table(curve) for curve in measured],
        load,
        start,
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
