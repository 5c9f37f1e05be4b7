"""Study files: settings of training and measurement, read from YAML and validated."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hesspec.backend.memory import parse_memory
from hesspec.backend.presets import preset_file, presets
from hesspec.backend.suggest import unknown
from hesspec.backend.yaml import LARGEST_YAML, parse_yaml
from hesspec.matrices import DEFAULT_MATRICES, matrix_names
from hesspec.study.datasets import DATASETS, SPLITS
from hesspec.study.networks import NETWORKS

__all__ = [
    "DataConfig",
    "LogGrid",
    "MeasureConfig",
    "StudyConfig",
    "TrainingConfig",
    "load_study",
    "parse_study",
    "presets",
    "study_text",
]

END: Final = "end"
"""In a list of epochs, the last one of the training, whatever its number."""

# A larger study is a mistake or an attack; the largest one has about a thousand trainings.
MOST_TRAININGS: Final = 100_000
MOST_EPOCHS: Final = 1_000_000


class _Model(BaseModel):
    # Numbers in quotes are read as numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false in the place of 1 and 0."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if wanted is not bool and any(
            isinstance(each, bool) for each in (value if isinstance(value, list) else [value])
        ):
            raise ValueError("true and false are not numbers")
        return value


class DataConfig(_Model):
    """Data set of a study, with its own training settings where they differ from those of the study.

    Attributes
    ----------
    name : str
        Name, as in `load_dataset`.
    folder : Path or None
        Folder of its files; a relative path is relative to the folder where the study is started.
    size : int or None
        Height and width to pad images to, in pixels.
    epochs : int or None
        Number of training epochs, instead of the study's.
    samples_per_class : list of int or None
        Sample sizes, instead of the study's.
    """

    name: str
    folder: Path | None = None
    size: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    samples_per_class: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if ":" not in name and name not in DATASETS:
            raise ValueError(unknown("data set", name, DATASETS))
        return name


class LogGrid(_Model):
    """Learning rates that are evenly spaced in the logarithm, both ends included."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    count: int = Field(ge=1, le=1000)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be smaller")
        return self

    def values(self) -> list[float]:
        """Learning rates, ascending, to six digits, as they are part of folder names."""
        return [float(f"{value:.6g}") for value in np.geomspace(self.low, self.high, self.count)]


def _kind(value: object) -> str:
    return "grid" if isinstance(value, dict | LogGrid) else "list"


Rates = Annotated[
    Annotated[list[Annotated[float, Field(gt=0)]], Tag("list")] | Annotated[LogGrid, Tag("grid")],
    Discriminator(_kind),
]


def _fraction(value: object) -> object:
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError("it is not a fraction; write 1/3 or 0.333") from error


def _number_or(word: str, lowest: int) -> BeforeValidator:
    """Type of an integer of at least `lowest` or a word, with a single error message for both."""

    def check(value: object) -> object:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if number == word or (isinstance(number, int) and not isinstance(number, bool) and number >= lowest):
            return number
        raise ValueError(f"it must be an integer of at least {lowest}, or {word!r}")

    return BeforeValidator(check)


class TrainingConfig(_Model):
    """Training by SGD with momentum in the protocol of arXiv 1811.07062.

    Attributes
    ----------
    epochs : int
        Number of epochs.
    learning_rates : list of float or LogGrid
        Initial learning rates. A network is trained with each, and the one with the lowest final test error is
        measured.
    momentum, weight_decay, batch_size
        See `TrainingSettings`.
    drops : list of float
        Fractions of the epochs at which the learning rate is divided by `drop_factor`, ascending, in (0, 1).
    drop_factor : float
        Divisor of the learning rate at each drop.
    """

    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    learning_rates: Rates
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(128, ge=1)
    drops: list[Annotated[float, BeforeValidator(_fraction), Field(gt=0, lt=1)]] = [1 / 3, 2 / 3]
    drop_factor: float = Field(10.0, gt=1)

    @field_validator("drops")
    @classmethod
    def _ascending(cls, drops: list[float]) -> list[float]:
        if drops != sorted(drops):
            raise ValueError(f"they must ascend, but are {', '.join(f'{drop:.3g}' for drop in drops)}")
        return drops

    @field_validator("learning_rates", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, int | float | str) else value

    @field_validator("learning_rates")
    @classmethod
    def _some(cls, value: list[float] | LogGrid) -> list[float] | LogGrid:
        if not value:
            raise ValueError("it is empty; name at least one learning rate")
        return value

    @property
    def rates(self) -> list[float]:
        """All initial learning rates, each once."""
        rates = self.learning_rates
        return list(dict.fromkeys(rates.values() if isinstance(rates, LogGrid) else rates))


class MeasureConfig(_Model):
    """Measurements of every trained network.

    Attributes
    ----------
    epochs : list of int or "end"
        Epochs after which the network is saved and measured; 0 is the initialisation.
    matrices : list of str
        Names in `hesspec.matrices.MATRICES`, or aliases.
    splits : list of str
        Splits: "train", "test".
    steps : int or "auto"; probes, seed : int
        See `hesspec.spectrum`.
    batch_size : int
        Number of samples in a pass, which affects the result only by rounding.
    params : list of str or None
        Names or patterns of parameters, as in `hesspec.Hessian`.
    memory : str or None
        Memory for a measurement, such as "8GB".
    structure : bool
        Whether to measure the class structure of G as well.
    """

    epochs: list[Annotated[int | Literal["end"], _number_or(END, 0)]] = Field(min_length=1)
    matrices: list[str] = list(DEFAULT_MATRICES)
    splits: list[Literal["train", "test"]] = Field(list(SPLITS), min_length=1)
    steps: Annotated[int | Literal["auto"], _number_or("auto", 1)] = 64
    probes: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, lt=2**64)
    batch_size: int = Field(256, ge=1)
    params: list[str] | None = None
    memory: str | None = None
    structure: bool = False

    @field_validator("matrices")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("it is empty; name at least one matrix")
        return matrix_names(names)

    @field_validator("memory")
    @classmethod
    def _readable(cls, memory: str | None) -> str | None:
        if memory is not None:
            parse_memory(memory)
        return memory


class StudyConfig(_Model):
    """Study: every network is trained on every data set at every sample size, and measured during training.

    Attributes
    ----------
    datasets : list of DataConfig
        Data sets.
    networks : list of str
        Networks, named as in `build_network`.
    samples_per_class : list of int
        Sizes of the training sets; smaller sets are subsets of larger ones.
    test_samples_per_class : int or None
        Size of the test set, for its error and for measurement; None for all samples.
    seeds : list of int
        Seeds of initialisation, choice and order of the samples; everything is repeated for each.
    training : TrainingConfig
        Training.
    measure : MeasureConfig
        Measurements.
    """

    datasets: list[DataConfig] = Field(min_length=1)
    networks: list[str] = Field(min_length=1)
    samples_per_class: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    test_samples_per_class: int | None = Field(None, ge=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**64)]] = Field([0], min_length=1)
    training: TrainingConfig
    measure: MeasureConfig

    @field_validator("datasets", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        items = value if isinstance(value, list) else [value]
        return [{"name": item} if isinstance(item, str) else item for item in items]

    @field_validator("networks", "samples_per_class", "seeds", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, int | str) else value

    @field_validator("networks")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if ":" not in name and name not in NETWORKS:
                raise ValueError(unknown("network", name, NETWORKS))
        return names

    @field_validator("datasets", "networks", "samples_per_class", "seeds")
    @classmethod
    def _each_once(cls, values: list[Any], info: ValidationInfo) -> list[Any]:
        # Results are identified by the names of data sets, regardless of their folder and padding.
        names = set()
        for value in values:
            name = value.name if isinstance(value, DataConfig) else value
            if name in names:
                hint = "; use a separate study for the other form of it" if info.field_name == "datasets" else ""
                raise ValueError(f"{name!r} is among the {info.field_name} twice{hint}")
            names.add(name)
        return values

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        sizes = sum(len(data.samples_per_class or self.samples_per_class) for data in self.datasets)
        trainings = sizes * len(self.networks) * len(self.seeds) * len(self.training.rates)
        if trainings > MOST_TRAININGS:
            raise ValueError(f"it requests {trainings:,} trainings, but at most {MOST_TRAININGS:,} are allowed")
        return self

    @model_validator(mode="after")
    def _epochs_exist(self) -> Self:
        for data in self.datasets:
            last = data.epochs or self.training.epochs
            beyond = [epoch for epoch in self.measure.epochs if epoch != END and epoch > last]
            if beyond:
                raise ValueError(
                    f"measure.epochs has {beyond[0]}, but {data.name} is trained for {last} epochs only; "
                    "'end' denotes the last one"
                )
        return self


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "training": TrainingConfig,
    "measure": MeasureConfig,
    "datasets": DataConfig,
}


def load_study(path: str | os.PathLike[str]) -> StudyConfig:
    """Read a study file, or a preset by its name.

    Parameters
    ----------
    path
        A YAML file with the fields of `StudyConfig`, or a name in `presets()`.

    Returns
    -------
    StudyConfig

    Raises
    ------
    FileNotFoundError
        If the file or preset does not exist.
    ValueError
        If it is not YAML, or not as described; the message has every fault with its line, and the nearest valid key for
        an unknown one.

    Examples
    --------
    >>> load_study("papyan2019").networks
    ['vgg11_bn', 'resnet18', 'densenet40']
    """
    name = os.fspath(path)
    if name in presets():
        return parse_study(preset_file(name).read_text(encoding="utf-8"), f"preset {name}")
    if not Path(name).is_file():
        nearest = difflib.get_close_matches(name, presets(), n=1)
        hint = f"did you mean the preset {nearest[0]!r}?" if nearest else f"presets are {', '.join(presets())}."
        raise FileNotFoundError(f"There is no study file {name!r}; {hint}")
    return parse_study(study_text(Path(name)), name)


def study_text(file: Path) -> str:
    """Read the text of a study file; raises ValueError, with its name, if it is not a text or is too large."""
    size = file.stat().st_size
    if size > LARGEST_YAML:
        raise ValueError(f"The study file {str(file)!r} has {size:,} bytes, but may have at most {LARGEST_YAML:,}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"The study file {str(file)!r} is not a text in UTF-8: {error}.") from error


def parse_study(text: str, name: str) -> StudyConfig:
    """Parse the YAML text of a study; `name` is used in error messages."""
    try:
        tree, content = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {str(error).rstrip('.')}.") from error
    if not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{name} should have the keys {', '.join(StudyConfig.model_fields)}, but is not a mapping.")
    twice = list(_repeated(tree))
    if twice:
        key, line = twice[0]
        raise ValueError(f"{name}, line {line}: the key {key!r} occurs twice.")
    try:
        return StudyConfig.model_validate(content)
    except ValidationError as error:
        items = error.errors()
        # A misspelt key is also missing: it is reported only once.
        meant = {(*item["loc"][:-1], _nearest_key(item["loc"])) for item in items if item["type"] == "extra_forbidden"}
        faults = [_fault(item, tree) for item in items if item["type"] != "missing" or item["loc"] not in meant]
        raise ValueError(" ".join(f"{name}, line {line}: {text}" for line, text in sorted(faults))) from error


def _repeated(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Yield duplicate keys of mappings, and their lines."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _fault(item: Any, tree: yaml.Node) -> tuple[int, str]:
    """Return the line and a sentence for one of pydantic's errors."""
    path: tuple[str | int, ...] = item["loc"]
    node, reached = _descend(tree, path)
    line = node.start_mark.line + 1
    where = ".".join(map(str, reached)) or "the study"
    last = str(path[-1]) if path else ""
    if item["type"] == "extra_forbidden":
        return line, f"there is no key {last!r}; {_hint(path)}"
    if item["type"] == "missing":
        return line, f"{where} lacks the key {last!r}."
    message = str(item["msg"]).removeprefix("Value error, ").rstrip(".?")
    given = item["input"]
    # Values that the message contains already are not repeated.
    shown = f" is {given!r}" if isinstance(given, str | int | float) and repr(given) not in message else ""
    return line, f"{where}{shown}: {message[:1].lower()}{message[1:]}{'?' if item['msg'].endswith('?') else '.'}"


def _hint(path: Sequence[str | int]) -> str:
    """Suggest where an unknown key may belong, or which key was meant."""
    nearest = _nearest_key(path)
    if nearest:
        return f"did you mean {nearest!r}?"
    sections = [name for name, model in _SECTIONS.items() if path[-1] in model.model_fields]
    if sections and len(path) == 1:
        return f"it belongs under {' or '.join(sections)}."
    return f"known are {', '.join(_keys_at(path[:-1]))}."


def _nearest_key(path: Sequence[str | int]) -> str:
    """Return the key that was probably meant; empty if there is none like it."""
    return next(iter(difflib.get_close_matches(str(path[-1]), _keys_at(path[:-1]), n=1)), "")


def _descend(node: yaml.Node, path: Sequence[str | int]) -> tuple[yaml.Node, list[str | int]]:
    """Follow a path as far as possible; return the node, at its key, and that part of the path."""
    reached: list[str | int] = []
    place = node
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if not found:
                continue  # pydantic's names of alternatives
            place, node = found[0]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            place = node = node.value[step]
        else:
            continue
        reached.append(step)
    return place, reached


def _keys_at(path: Sequence[str | int]) -> list[str]:
    """Return the keys of the model at a path."""
    model = _SECTIONS.get(str(path[0]), StudyConfig) if path else StudyConfig
    return list((LogGrid if "grid" in path else model).model_fields)
