"""How much of a study is there, told from its file alone: the study's own code is a layer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from hesspec.plot import DISPLAY_NAMES
from hesspec.report.collection import Member

__all__ = ["progress"]

MATRICES = ("Hessian", "GaussNewton", "Residual")
SPLITS = ("train", "test")


def progress(text: str, members: Sequence[Member]) -> tuple[int, int] | None:
    """Number of the spectra that a study file asks for and that are there, and of all that it asks for.

    Parameters
    ----------
    text : str
        YAML, as `hesspec study` keeps it in the folder.
    members : sequence of Member

    Returns
    -------
    present, wanted : int
        None where the text does not say what is wanted.
    """
    try:
        wanted = _wanted(yaml.safe_load(text))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    present = {
        (
            str(member.spectrum.attributes.get("dataset", "")),
            str(member.spectrum.attributes.get("network", "")),
            member.spectrum.attributes.get("training_seed", 0),
            member.samples,
            member.epoch,
            member.split,
            member.matrix,
        )
        for member in members
    }
    return len(present & wanted), len(wanted)


def _wanted(study: Any) -> set[tuple[Any, ...]]:
    measure, training = study["measure"], study["training"]
    found = set()
    for item in _listed(study["datasets"]):
        data = {"name": item} if isinstance(item, str) else item
        last = data.get("epochs") or training["epochs"]
        epochs = {float(last if epoch == "end" else epoch) for epoch in measure["epochs"]}
        for network in _listed(study["networks"]):
            for seed in _listed(study.get("seeds", 0)):
                for size in _listed(data.get("samples_per_class") or study["samples_per_class"]):
                    found |= {
                        (str(data["name"]), str(network), seed, size, epoch, split, DISPLAY_NAMES.get(matrix, matrix))
                        for epoch in epochs
                        for split in measure.get("splits", SPLITS)
                        for matrix in measure.get("matrices", MATRICES)
                    }
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
