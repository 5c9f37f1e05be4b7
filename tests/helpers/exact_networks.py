"""Trained networks whose whole spectra are known: p of a few thousand, dense float64 matrices diagonalised once.

`tests/scripts/make_exact_spectra.py` wrote the files; each holds the trained weights, the training samples, and the
eigenvalues of Hess and G in float64. `NAMES` have digits of 8x8 pixels, with products that are cheap enough for the
tests; `FASHION` have FashionMNIST's 28x28 and are for `benchmarks/`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "data" / "exact"
NAMES = ("digits-cnn", "digits-mlp")
FASHION = ("fashion-cnn", "fashion-plain")


def build(name: str) -> nn.Module:
    if name == "digits-cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
    if name == "fashion-cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(7),
            nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip
    if name == "fashion-plain":
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 10),
        )  # fmt: skip
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip


def normalise(pixels: Tensor) -> Tensor:
    """Stored pixels, uint8, to inputs: [0, 1] to [-1, 1]."""
    return pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class ExactNetwork:
    model: nn.Module
    data: list[tuple[Tensor, Tensor]]
    eigenvalues: dict[str, np.ndarray]


@functools.cache
def load(name: str) -> ExactNetwork:
    stored = load_file(FOLDER / f"{name}.safetensors")
    model = build(name)
    model.load_state_dict(
        {key.removeprefix("model."): value for key, value in stored.items() if key.startswith("model.")}
    )
    eigenvalues = {matrix: stored[f"eigenvalues.{matrix}"].numpy() for matrix in ("Hessian", "GaussNewton")}
    return ExactNetwork(model.eval(), [(normalise(stored["pixels"]), stored["targets"])], eigenvalues)
