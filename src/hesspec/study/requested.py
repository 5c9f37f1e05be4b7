"""What a study requests, as data that the report reads without the study's own code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hesspec.study.config import END, DataConfig, OptimizerConfig, StudyConfig
from hesspec.study.start_config import StartConfig

__all__ = ["Axes", "axes_of", "requested"]

Axes = tuple[DataConfig, str, OptimizerConfig, StartConfig, int, int]
"""Data set, network, optimiser, start, seed and sample size."""


def axes_of(config: StudyConfig) -> Iterator[Axes]:
    """Iterate over what is trained with each learning rate, and measured with the best one."""
    axes = itertools.product(config.datasets, config.networks, config.optimizers, config.start, config.seeds)
    for data, network, optimizer, start, seed in axes:
        for count in data.samples_per_class or config.samples_per_class:
            yield data, network, optimizer, start, seed, count


def requested(config: StudyConfig) -> dict[str, Any]:
    """Return the content of `requested.json`: the number of trainings, and all spectra, by what they share.

    Returns
    -------
    dict
        "trainings": int, without those of starts; "splits", "matrices": lists of str; "epochs": the last epochs of
        trainings, ascending; "measured": a list of [data set, network, optimiser, start, seed, sample size, epochs].
    """
    measured, trainings, last = [], 0, set()
    for data, network, optimizer, start, seed, count in axes_of(config):
        end = data.epochs or config.training.epochs
        epochs = sorted({end if epoch == END else epoch for epoch in config.measure.epochs})
        measured.append([data.name, network, optimizer.name, start.name, seed, count, epochs])
        trainings += len(config.rates_of(optimizer))
        last.add(end)
    how = config.measure
    return {
        "trainings": trainings,
        "epochs": sorted(last),
        "splits": how.splits,
        "matrices": how.matrices,
        "measured": measured,
    }
