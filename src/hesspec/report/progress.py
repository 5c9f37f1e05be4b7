"""How much of a study is there, told from its file alone: the study's own code is a layer of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hesspec.backend.yaml import parse_yaml
from hesspec.matrices import DEFAULT_MATRICES, symbol_of
from hesspec.report.collection import Member

__all__ = ["progress", "trainings"]

SPLITS = ("train", "test")
# Trainings, and spectra, of a study: the largest one has some ten thousand.
MOST = 1_000_000
# What reading a text that is no study file raises.
UNCLEAR = (AttributeError, KeyError, TypeError, ValueError, OverflowError)


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
        wanted = _wanted(parse_yaml(text)[1])
    except UNCLEAR:
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


def trainings(text: str) -> tuple[int, list[int]] | None:
    """Number of the trainings that a study file asks for, and their epochs.

    Parameters
    ----------
    text : str
        As for `progress`.

    Returns
    -------
    wanted : int
        None for both where the text does not say.
    epochs : list of int
        Those that a training may have, ascending: one number unless data sets have numbers of their own.
    """
    try:
        study = parse_yaml(text)[1]
        rates = study["training"]["learning_rates"]
        count = int(rates["count"]) if isinstance(rates, dict) else len(set(_listed(rates)))
        networks = [(data, last) for data, last, *_ in _networks(study)]
        return count * len(networks), sorted({last for _, last in networks})
    except UNCLEAR:
        return None


def _networks(study: Any) -> Iterator[tuple[str, int, str, Any, Any]]:
    """Data set, epochs, network, seed and sample size of all that is to be trained and measured.

    Raises
    ------
    ValueError
        If that is more than a study can be of.
    """
    left = MOST
    for item in _listed(study["datasets"]):
        data = {"name": item} if isinstance(item, str) else item
        last = int(data.get("epochs") or study["training"]["epochs"])
        for network in _listed(study["networks"]):
            for seed in _listed(study.get("seeds", 0)):
                for size in _listed(data.get("samples_per_class") or study["samples_per_class"]):
                    left -= 1
                    if left < 0:
                        raise ValueError("It asks for more trainings than a study can have.")
                    yield str(data["name"]), last, str(network), seed, size


def _wanted(study: Any) -> set[tuple[Any, ...]]:
    measure = study["measure"]
    networks = list(_networks(study))
    each = len(measure["epochs"]) * len(measure.get("splits", SPLITS)) * len(measure.get("matrices", DEFAULT_MATRICES))
    if len(networks) * each > MOST:
        raise ValueError("It asks for more spectra than a study can have.")
    return {
        (data, network, seed, size, float(last if epoch == "end" else epoch), split, symbol_of(matrix))
        for data, last, network, seed, size in networks
        for epoch in measure["epochs"]
        for split in measure.get("splits", SPLITS)
        for matrix in measure.get("matrices", DEFAULT_MATRICES)
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
