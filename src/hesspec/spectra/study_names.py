"""Names in the folder and the results of a study, for all that read them, with or without the code of studies."""

from __future__ import annotations

from typing import Final

__all__ = ["HISTORY_FILE", "REQUESTED_FILE", "SCRATCH", "SGD", "SPLITS", "STUDY_FILE"]

STUDY_FILE: Final = "study.yaml"
"""Name of the file of a study in its folder."""

REQUESTED_FILE: Final = "requested.json"
"""Name of the file in which a study writes what it will measure."""

HISTORY_FILE: Final = "training.json"
"""Name of the file with the records of a training."""

SPLITS: Final = ("train", "test")

SGD: Final = "sgd"
"""The optimiser of a study that names none, and of spectra without the attribute "optimizer"."""

SCRATCH: Final = "scratch"
"""The start of a study that names none, and of spectra without the attribute "start": the network's initialisation."""
