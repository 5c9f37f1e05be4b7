"""Progress of a study, determined from its file alone, as this layer does not depend on `hesspec.study`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import PurePath
from typing import Any

from hesspec.backend.yaml import parse_yaml
from hesspec.matrices import DEFAULT_MATRICES, symbol_of
from hesspec.report.member import Member

__all__ = ["progress", "trainings"]

SPLITS = ("train", "test")
SGD, SCRATCH = "sgd", "scratch"
# Largest numbers of trainings and of spectra; the largest study has about ten thousand.
MOST = 1_000_000
# Exceptions from reading a text that is not a study file.
UNCLEAR = (AttributeError, KeyError, TypeError, ValueError, OverflowError)


def progress(text: str, members: Sequence[Member]) -> tuple[int, int] | None:
    """Count the spectra that exist, and those that a study file requests.

    Parameters
    ----------
    text : str
        Text of the study file (YAML), as stored by `hesspec study`.
    members : sequence of Member
        Spectra of the folder.

    Returns
    -------
    present, wanted : int
        Numbers of existing and of requested spectra; None if the text is not valid.
    """
    try:
        wanted = _wanted(parse_yaml(text)[1])
    except UNCLEAR:
        return None
    present = {
        (
            str(member.spectrum.attributes.get("dataset", "")),
            str(member.spectrum.attributes.get("network", "")),
            str(member.spectrum.attributes.get("optimizer", SGD)),
            str(member.spectrum.attributes.get("start", SCRATCH)),
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
    """Count the trainings that a study file requests, and return their epochs.

    Parameters
    ----------
    text : str
        See `progress`.

    Returns
    -------
    wanted : int
        Number of trainings; None for both if the text is not valid.
    epochs : list of int
        Possible numbers of epochs, ascending: a single number unless data sets override it.
    """
    try:
        study = parse_yaml(text)[1]
        networks = list(_networks(study))
        count = sum(_rates(study, optimizer) for _, _, _, optimizer, *_ in networks)
        return count, sorted({last for _, last, *_ in networks})
    except UNCLEAR:
        return None


def _rates(study: Any, name: str) -> int:
    """Number of learning rates of an optimiser."""
    own = (item.get("learning_rates") for item in _optimizers(study) if item["name"] == name)
    rates = next(own, None) or study["training"]["learning_rates"]
    return int(rates["count"]) if isinstance(rates, dict) else len(set(_listed(rates)))


def _optimizers(study: Any) -> list[dict[str, Any]]:
    items = _listed(study.get("optimizers") or SGD)
    return [{"name": item} if isinstance(item, str) else item for item in items]


def _starts(study: Any) -> list[str]:
    items = _listed(study.get("start") or SCRATCH)
    # A file of weights that is named alone gives its name to the start, without what is in braces.
    return [_stem(item) if isinstance(item, str) else str(item["name"]) for item in items]


def _stem(file: str) -> str:
    stem = PurePath(file).stem
    return re.sub(r"[-_.]?\{\w+\}", "", stem) or stem


def _networks(study: Any) -> Iterator[tuple[str, int, str, str, str, Any, Any]]:
    """Data sets, epochs, networks, optimisers, starts, seeds and sample sizes of a study.

    Raises
    ------
    ValueError
        If these are more than a study can have.
    """
    left = MOST
    for item in _listed(study["datasets"]):
        data = {"name": item} if isinstance(item, str) else item
        last = int(data.get("epochs") or study["training"]["epochs"])
        sizes = _listed(data.get("samples_per_class") or study["samples_per_class"])
        networks, seeds = _listed(study["networks"]), _listed(study.get("seeds", 0))
        axes = product(networks, _optimizers(study), _starts(study), seeds, sizes)
        for network, optimizer, start, seed, size in axes:
            left -= 1
            if left < 0:
                raise ValueError("It requests more trainings than a study can have.")
            yield str(data["name"]), last, str(network), str(optimizer["name"]), start, seed, size


def _wanted(study: Any) -> set[tuple[Any, ...]]:
    measure = study["measure"]
    networks = list(_networks(study))
    each = len(measure["epochs"]) * len(measure.get("splits", SPLITS)) * len(measure.get("matrices", DEFAULT_MATRICES))
    if len(networks) * each > MOST:
        raise ValueError("It requests more spectra than a study can have.")
    return {
        (
            data,
            network,
            optimizer,
            start,
            seed,
            size,
            float(last if epoch == "end" else epoch),
            split,
            symbol_of(matrix),
        )
        for data, last, network, optimizer, start, seed, size in networks
        for epoch in measure["epochs"]
        for split in measure.get("splits", SPLITS)
        for matrix in measure.get("matrices", DEFAULT_MATRICES)
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
