"""What the rule for outliers, a person and the class means say of the spectra of trained networks.

Usage: python benchmarks/outliers_networks.py measure FOLDER    trains and measures, a few minutes
       python benchmarks/outliers_networks.py pictures FOLDER   numbered figures in random order, without names
       python benchmarks/outliers_networks.py table FOLDER      the table; a person's readings are in PERSON

The figures show all eigenvalues and quadrature nodes in one manner, so that they do not give away what the rule says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import hesspec
from hesspec.spectra.spectrum import Spectrum
from hesspec.study.datasets import load_dataset
from hesspec.study.settings import TrainingSettings
from hesspec.study.training import EpochRecord, train

EPOCHS = (2, 6, 15, 30)
SAMPLES, CLASSES, STEPS = 30, 10, 128
MATRICES = ("Hessian", "GaussNewton")
PANELS = 8  # of a figure

# Read from the figures before the rule was asked: negative, positive, by number of the figure's panel.
PERSON: dict[int, tuple[int, int]] = {
    0: (0, 9),
    1: (0, 6),
    2: (0, 9),
    3: (0, 9),
    4: (0, 6),
    5: (0, 3),
    6: (0, 9),
    7: (0, 4),
    8: (0, 9),
    9: (0, 8),
    10: (0, 4),
    11: (0, 9),
    12: (0, 9),
    13: (0, 10),
    14: (0, 9),
    15: (0, 9),
    16: (0, 4),
    17: (0, 3),
    18: (0, 8),
    19: (0, 3),
    20: (0, 8),
    21: (0, 3),
    22: (0, 4),
    23: (0, 3),
    24: (0, 9),
    25: (0, 9),
    26: (0, 9),
    27: (0, 10),
    28: (0, 9),
    29: (0, 9),
    30: (0, 3),
    31: (0, 10),
}


def convolutional(*, norm: bool, stride: int) -> nn.Sequential:
    """Two convolutions, with or without batch norm, for one channel."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 8), (8, 16)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] * norm + [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, CLASSES))


def dense(inputs: int, *, norm: bool) -> nn.Sequential:
    """Two hidden layers of 20 units."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in ((inputs, 20), (20, 20)):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] * norm), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(20, CLASSES))


NETWORKS = {
    "cnn, digits": ("digits", lambda: convolutional(norm=False, stride=1)),
    "cnn+bn, digits": ("digits", lambda: convolutional(norm=True, stride=1)),
    "mlp, FashionMNIST": ("fashion-mnist", lambda: dense(1024, norm=False)),
    "cnn+bn, FashionMNIST": ("fashion-mnist", lambda: convolutional(norm=True, stride=2)),
}


def measure(folder: Path) -> None:
    """Train each network, and save its spectra and class structures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (dataset, build)) in enumerate(NETWORKS.items()):
        sets = [
            load_dataset(dataset, split, samples_per_class=count) for split, count in (("train", SAMPLES), ("test", 30))
        ]
        torch.manual_seed(0)
        model = build()
        data = [(sets[0].inputs, sets[0].targets)]
        settings = TrainingSettings(epochs=max(EPOCHS), learning_rate=0.05, batch_size=50)

        def at(network: nn.Module, record: EpochRecord, *, number: int = number, name: str = name, data=data) -> None:
            about = {"network": name, "epoch": record.epoch, "loss": record.train_loss, "classes": CLASSES}

            def keep(matrix: str, spectrum: Spectrum) -> None:
                known = replace(spectrum, attributes={**spectrum.attributes, **about})
                known.save(folder / f"{number}-{record.epoch:02}-{matrix}.nc")

            found = hesspec.class_structure(
                network,
                nn.CrossEntropyLoss(),
                data,
                matrices=MATRICES,
                cross=False,
                knockout=False,
                steps=STEPS,
                on_spectrum=keep,
            )
            found.save(folder / f"{number}-{record.epoch:02}-structure.nc")
            print(name, record.epoch, f"{record.train_loss:.3g}", flush=True)

        train(model, *sets, settings, checkpoint_epochs=EPOCHS, on_checkpoint=at)


def order(folder: Path) -> list[Path]:
    """Files of spectra, in the order of the numbers of their panels."""
    files = sorted(path for path in folder.glob("*.nc") if "structure" not in path.name)
    return [files[k] for k in np.random.default_rng(0).permutation(len(files))]


def pictures(folder: Path) -> None:
    """Draw the numbered figures."""
    files = order(folder)
    for begin in range(0, len(files), PANELS):
        figure = Figure(figsize=(22, 24), layout="constrained")
        for axes, number in zip(figure.subplots(PANELS // 2, 2).flat, range(begin, begin + PANELS), strict=True):
            spectrum = hesspec.load(files[number])
            largest = max(spectrum.norm, 1e-12)
            axes.set_title(f"{number}")
            for sign, colour, height in ((1, "#0072B2", 1.0), (-1, "#D55E00", -1.0)):
                draw(axes, spectrum, sign, largest, colour, height)
            axes.set(xscale="log", xlim=(1e-3 * largest, 1.3 * largest), yticks=[], xlabel="|λ|: above +, below −")
        figure.savefig(folder / f"pictures-{begin // PANELS}.png", dpi=60)


def draw(axes: Axes, spectrum: Spectrum, sign: int, largest: float, colour: str, height: float) -> None:
    """Draw one side: a tick for each point of the measure, and the density per decade on a logarithmic height."""
    mine = sign * spectrum.nodes > 1e-3 * largest
    logs, weights = np.log10(sign * spectrum.nodes[mine]), spectrum.weights[mine] * spectrum.dimension
    if not logs.size:
        return
    grid = np.linspace(np.log10(1e-3 * largest), np.log10(1.3 * largest), 1000)
    width = 0.02
    density = (weights * np.exp(-(((grid[:, None] - logs) / width) ** 2) / 2)).sum(1) / (width * np.sqrt(2 * np.pi))
    axes.fill_between(10**grid, 0.25 * height, height * (0.25 + 0.25 * np.log10(1 + density)), color=colour, alpha=0.4)
    axes.vlines(10**logs, 0, 0.22 * height, color=colour, linewidth=1.3)


def rows(folder: Path) -> Iterator[str]:
    """Rows of the table."""
    number = {path: k for k, path in enumerate(order(folder))}
    for path in sorted(number):
        spectrum = hesspec.load(path)
        stem = path.name.rsplit("-", 1)[0]
        structure = hesspec.load(path.with_name(f"{stem}-structure.nc"))
        matrix = str(spectrum.attributes["matrix"])
        mine = structure.outlier_matrix == matrix
        values = structure.outliers[mine][:CLASSES]
        of_classes = int((structure.outlier_in_class[mine][:CLASSES] > 0.5).sum())
        outlier = spectrum.is_outlier
        signs = [int((spectrum.eigenvalues[outlier] * sign > 0).sum()) for sign in (-1, 1)]
        person = PERSON.get(number[path])
        about = spectrum.attributes
        yield " | ".join(
            [
                str(about["network"]),
                f"{spectrum.dimension:,}",
                str(about["epoch"]),
                f"{about['loss']:.2g}",
                "Hess" if matrix == "Hessian" else "G",
                f"{spectrum.eigenvalues[0]:.3g}",
                "–" if person is None else f"{person[0]} + {person[1]}",
                f"{signs[0]} + {signs[1]}",
                f"{spectrum.outlier_p_values[:CLASSES].min():.1g}",
                f"{of_classes} of {values.size}",
            ]
        )


def table(folder: Path) -> None:
    """Print the table."""
    print(
        "| network | p | epoch | loss | matrix | largest | person, − and + | rule, − and + | smallest p-value | "
        "of the 10 largest, in the class means |\n" + "|---" * 10 + "|"
    )
    for row in rows(folder):
        print(f"| {row} |")


def main() -> None:
    """Measure, draw or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "pictures", "table"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"measure": measure, "pictures": pictures, "table": table}[given.what](given.folder)


if __name__ == "__main__":
    main()
