"""Trained networks whose exact eigenvalues are known, and the score of an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from torch import nn

from _tables import ROOT
from methods import Array, Matrix, Problem, largest

sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import exact_networks

__all__ = ["NETWORKS", "load_network", "relative_error"]

NETWORKS = exact_networks.NAMES + exact_networks.FASHION


def relative_error(given: Array, exact: Array) -> float:
    """The greatest of the ten eigenvalues of largest absolute value."""
    true = np.sort(largest(exact))
    return float((np.abs(np.sort(given) - true) / np.abs(true)).max())


def load_network(name: str) -> tuple[Callable[[Matrix], Problem], dict[str, Array]]:
    """Problems of a network by matrix, and its exact eigenvalues."""
    file = exact_networks.FOLDER / f"{name}.safetensors"
    if not file.exists():
        raise SystemExit(
            f"There is no {file.relative_to(ROOT)}: `python tests/scripts/make_exact_spectra.py {name}` makes it."
        )
    network = exact_networks.load(name)
    return lambda matrix: Problem(network.model, network.data, matrix, nn.CrossEntropyLoss()), network.eigenvalues
