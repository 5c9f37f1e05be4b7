"""Settings of where trainings start: from scratch, from a file of weights, or from a training on other data."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Final, Self

from pydantic import Field, field_validator, model_validator

from hesspec.spectra.study_names import SCRATCH
from hesspec.study.config_model import MOST_EPOCHS, DataName, StudyModel

__all__ = ["StartConfig"]

WEIGHTS_SUFFIX: Final = ".safetensors"
# What a name of a file of weights may contain in braces.
PLACES: Final = ("network", "seed")
# Keys of a training on other data, which is described by the first three at least.
NEEDED: Final = ("dataset", "samples_per_class", "epochs")
FURTHER: Final = ("folder", "size", "pool", "tokenizer", "learning_rate")


class StartConfig(StudyModel):
    """Start of trainings: scratch, a file of weights, or pre-training on another data set, which the study does once.

    Attributes
    ----------
    name : str
        Name in results; "scratch" is the network's own initialisation, and takes no other keys.
    weights : str or None
        Safetensors file; `{network}` and `{seed}` are replaced. A relative path is relative to the folder where the
        study is started.
    dataset : str or None
        Data set of the pre-training, as in `load_dataset`; its optimiser and other settings are those of the training.
    folder, size, pool, tokenizer
        Of the data set, as for those of the study.
    samples_per_class, epochs : int or None
        Size of its training set, and number of its epochs.
    learning_rate : float or None
        Its initial learning rate; by default the first of the study.
    new_head : bool
        Whether the last layer keeps its random initialisation even if the number of classes is the same.
    """

    name: str = Field(min_length=1)
    weights: str | None = None
    dataset: DataName | None = None
    folder: Path | None = None
    size: int | None = Field(None, ge=1)
    pool: int = Field(1, ge=1)
    tokenizer: Path | None = None
    samples_per_class: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    learning_rate: float | None = Field(None, gt=0)
    new_head: bool = False

    @classmethod
    def named(cls, text: str) -> dict[str, str]:
        """Return the keys of "scratch", or of a file, whose name the start takes without what is in braces."""
        if text == SCRATCH:
            return {"name": text}
        stem = Path(text).stem
        return {"name": re.sub(r"[-_.]?\{\w+\}", "", stem) or stem, "weights": text}

    @field_validator("weights")
    @classmethod
    def _is_file_name(cls, weights: str | None) -> str | None:
        if weights is None:
            return weights
        if not weights.endswith(WEIGHTS_SUFFIX):
            raise ValueError(f"a start is {SCRATCH!r} or a file that ends with {WEIGHTS_SUFFIX!r}, not {weights!r}")
        try:
            parts = [part for part in string.Formatter().parse(weights) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"its braces do not match: {error}") from error
        for _, name, form, conversion in parts:
            # A width in the form could ask for any amount of memory.
            if name not in PLACES or form or conversion:
                raise ValueError(f"it may contain {{network}} and {{seed}} as they are, but has {name!r} in braces")
        return weights

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        # Files that a study writes name defaults as well.
        fields = {name: item.default for name, item in type(self).model_fields.items() if name != "name"}
        given = {name for name, default in fields.items() if getattr(self, name) != default}
        if self.name == SCRATCH:
            if given:
                raise ValueError(
                    f"{SCRATCH} takes no other keys, but has {', '.join(sorted(given))}; choose another name"
                )
            return self
        if (self.weights is None) == (self.dataset is None):
            raise ValueError(f"the start {self.name!r} needs either weights or dataset")
        if self.weights is not None and given & {*NEEDED, *FURTHER}:
            raise ValueError(f"{min(given & {*NEEDED, *FURTHER})} belongs to pre-training, but weights are given")
        missing = [key for key in NEEDED if self.dataset is not None and getattr(self, key) is None]
        if missing:
            raise ValueError(f"the pre-training of {self.name!r} lacks {' and '.join(missing)}")
        return self

    @property
    def is_scratch(self) -> bool:
        """Whether this is the network's own initialisation."""
        return self.name == SCRATCH

    def file(self, network: str, seed: int) -> Path | None:
        """File of weights for a network and a seed; None if there is none."""
        return None if self.weights is None else Path(self.weights.format(network=network, seed=seed))
