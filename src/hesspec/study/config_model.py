"""Base of the settings of studies: what all of them refuse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from hesspec.backend.suggest import unknown
from hesspec.study.datasets import DATASETS

__all__ = ["MOST_EPOCHS", "DataName", "StudyModel", "one_of"]

MOST_EPOCHS: Final = 1_000_000


def one_of(kind: str, known: Collection[str], *, own: bool = False) -> AfterValidator:
    """Refuse names of a kind that are not known; the user's own are "module:callable", if there can be any."""

    def check(name: str) -> str:
        if name not in known and not (own and ":" in name):
            raise ValueError(unknown(kind, name, known))
        return name

    return AfterValidator(check)


DataName = Annotated[str, one_of("data set", DATASETS, own=True)]


class StudyModel(BaseModel):
    """Settings that are fixed once they are read; unknown keys, infinity and NaN are refused."""

    # Numbers in quotes are read as numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false in the place of 1 and 0."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if bool not in (wanted, *get_args(wanted)) and any(
            isinstance(each, bool) for each in (value if isinstance(value, list) else [value])
        ):
            raise ValueError("true and false are not numbers")
        return value
