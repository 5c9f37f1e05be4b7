"""Base of the settings of studies: what all of them refuse."""

from __future__ import annotations

from typing import Final, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["MOST_EPOCHS", "StudyModel"]

MOST_EPOCHS: Final = 1_000_000


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
