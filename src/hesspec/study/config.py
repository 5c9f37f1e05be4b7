"""Settings of a study, validated: data sets, networks, training and measurement."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hesspec.backend.memory import parse_memory
from hesspec.backend.numbers import is_whole
from hesspec.backend.suggest import unknown
from hesspec.matrices import DEFAULT_MATRICES, matrix_names
from hesspec.spectra.study_names import SCRATCH, SGD, SPLITS
from hesspec.study.config_model import MOST_EPOCHS, DataName, StudyModel, one_of
from hesspec.study.losses import CROSS_ENTROPY, LOSSES
from hesspec.study.networks import NETWORKS
from hesspec.study.optimizers import FAST_GAUSS_NEWTON, MONITORED, OPTIMIZERS, check_options
from hesspec.study.settings import TrainingSettings
from hesspec.study.start_config import StartConfig
from hesspec.study.text_files import is_text

__all__ = [
    "END",
    "DataConfig",
    "LogGrid",
    "MeasureConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "SharesConfig",
    "StudyConfig",
    "TrainingConfig",
]

END: Final = "end"
"""In a list of epochs, the last one of the training, whatever its number."""

# A larger study is a mistake or an attack; the largest one has about a thousand trainings.
MOST_TRAININGS: Final = 100_000
MOST_SAMPLES: Final = 2**40


class DataConfig(StudyModel):
    """Data set of a study, with its own training settings where they differ from those of the study.

    Attributes
    ----------
    name : str
        Name, as in `load_dataset`.
    folder : Path or None
        Folder of its files; a relative path is relative to the folder where the study is started.
    size : int or None
        Height and width to pad images to, in pixels; of text, tokens in a sequence.
    pool : int
        Height and width of the blocks of pixels over which images are averaged before; 1 leaves them as they are.
    tokenizer : Path or None
        Folder of a tokenizer of transformers, for text; None for bytes.
    epochs : int or None
        Number of training epochs, instead of the study's.
    samples_per_class : list of int or None
        Sample sizes, instead of the study's; `sequences` is another name of it, for text.
    """

    name: DataName
    folder: Path | None = None
    size: int | None = Field(None, ge=1)
    pool: int = Field(1, ge=1)
    tokenizer: Path | None = None
    epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    samples_per_class: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, validation_alias=AliasChoices("samples_per_class", "sequences")
    )

    @model_validator(mode="after")
    def _tokens_of_text(self) -> Self:
        if self.tokenizer is not None and not is_text(self.name):
            raise ValueError(f"tokenizer belongs to text, but {self.name!r} is another kind of data set")
        return self


class LogGrid(StudyModel):
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
        if number == word or is_whole(number, lowest):
            return number
        raise ValueError(f"it must be an integer of at least {lowest}, or {word!r}")

    return BeforeValidator(check)


def _one_or_several(value: object) -> object:
    return [value] if isinstance(value, int | float | str) else value


def _some(value: list[float] | LogGrid | None) -> list[float] | LogGrid | None:
    if value is not None and not value:
        raise ValueError("it is empty; name at least one learning rate")
    return value


LearningRates = Annotated[Rates, BeforeValidator(_one_or_several), AfterValidator(_some)]


def _rates(rates: list[float] | LogGrid) -> list[float]:
    """Return all learning rates, each once."""
    return list(dict.fromkeys(rates.values() if isinstance(rates, LogGrid) else rates))


class OptimizerConfig(StudyModel):
    """Optimiser of a study, with its own training settings where they differ from those of the study.

    Attributes
    ----------
    name : str
        Name in `hesspec.study.optimizers.OPTIMIZERS`.
    learning_rates : list of float, LogGrid or None
        Initial learning rates, instead of the study's.
    weight_decay : float or None
        Weight decay, instead of the study's.
    options : dict
        Further arguments of the optimiser, by name.
    """

    name: Annotated[str, one_of("optimiser", OPTIMIZERS)]
    learning_rates: LearningRates | None = None
    weight_decay: float | None = Field(None, ge=0)
    options: dict[str, bool | int | float | str] = Field({})

    @model_validator(mode="after")
    def _accepted(self) -> Self:
        check_options(
            TrainingSettings(epochs=1, learning_rate=1.0, optimizer=self.name, options=tuple(self.options.items()))
        )
        return self


class TrainingConfig(StudyModel):
    """Training, by default by SGD with momentum in the protocol of arXiv 1811.07062.

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
    schedule : "steps" or "cosine"
        See `TrainingSettings`.
    warmup : float
        Fraction of all steps in which the learning rate rises.
    loss : str
        Name in `hesspec.study.losses.LOSSES`, of what is minimised and measured.
    """

    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    learning_rates: LearningRates
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: Annotated[int | Literal["full"], _number_or("full", 1)] = 128
    loss: Annotated[str, one_of("loss", LOSSES)] = CROSS_ENTROPY
    drops: list[Annotated[float, BeforeValidator(_fraction), Field(gt=0, lt=1)]] = Field([1 / 3, 2 / 3])
    drop_factor: float = Field(10.0, gt=1)
    schedule: Literal["steps", "cosine"] = "steps"
    warmup: Annotated[float, BeforeValidator(_fraction), Field(ge=0, lt=1)] = 0.0

    @field_validator("drops")
    @classmethod
    def _ascending(cls, drops: list[float]) -> list[float]:
        if drops != sorted(drops):
            raise ValueError(f"they must ascend, but are {', '.join(f'{drop:.3g}' for drop in drops)}")
        return drops

    @property
    def step_samples(self) -> int:
        """Samples in a step; a number that no data set reaches for all of them."""
        return MOST_SAMPLES if self.batch_size == "full" else self.batch_size

    @property
    def rates(self) -> list[float]:
        """All initial learning rates, each once."""
        return _rates(self.learning_rates)


class MonitorConfig(StudyModel):
    """Monitor of the sharpness and its threshold during every training; see `hesspec.stability.monitor`.

    Attributes
    ----------
    every : int
        Interval of measurements, in steps.
    samples : int or None
        Number of training samples that it measures with, the first ones; None for all.
    tolerance : float
        Residual, relative to the eigenvalue, at which a measurement stops.
    """

    every: int = Field(10, ge=1)
    samples: int | None = Field(None, ge=1)
    tolerance: float = Field(0.02, gt=0, lt=1)


class SharesConfig(StudyModel):
    """Shares of gradients, momenta and updates in the top eigenspace of the Hessian, during every training.

    Attributes
    ----------
    every : int
        Interval of measurements, in steps.
    eigenvectors : int
        Number of eigenvectors, those of the largest absolute eigenvalues.
    samples : int or None
        Number of training samples of the Hessian, the first ones; None for all.
    products : int
        Number of products with the Hessian in a measurement.
    """

    every: int = Field(10, ge=1)
    eigenvectors: int = Field(10, ge=1)
    samples: int | None = Field(None, ge=1)
    products: int = Field(64, ge=1)


class MeasureConfig(StudyModel):
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
    samples : int or None
        Number of samples to measure with, the first ones of each split; None for all.
    params : list of str or None
        Names or patterns of parameters, as in `hesspec.Hessian`.
    memory : str or None
        Memory for a measurement, such as "8GB".
    structure : bool or "end"
        Whether to measure the class structure of G as well; "end" for the last of the epochs only.
    laplace : bool
        Whether to compute the evidence of the Laplace approximation from the spectra of G on the training set.
    """

    epochs: list[Annotated[int | Literal["end"], _number_or(END, 0)]] = Field(min_length=1)
    matrices: list[str] = Field(list(DEFAULT_MATRICES))
    splits: list[Literal["train", "test"]] = Field(list(SPLITS), min_length=1)
    steps: Annotated[int | Literal["auto"], _number_or("auto", 1)] = 64
    probes: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, lt=2**64)
    batch_size: int = Field(256, ge=1)
    samples: int | None = Field(None, ge=1)
    params: list[str] | None = None
    memory: str | None = None
    structure: bool | Literal["end"] = False
    laplace: bool = False

    @field_validator("matrices")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("it is empty; name at least one matrix")
        return matrix_names(names)

    @field_validator("structure", mode="before")
    @classmethod
    def _whether_or_where(cls, value: object) -> object:
        if not isinstance(value, bool) and value != END:
            raise ValueError(f"it must be true, false or {END!r}")
        return value

    @field_validator("memory")
    @classmethod
    def _readable(cls, memory: str | None) -> str | None:
        if memory is not None:
            parse_memory(memory)
        return memory


class StudyConfig(StudyModel):
    """Study: every network is trained on every data set at every sample size, and measured during training.

    Attributes
    ----------
    datasets : list of DataConfig
        Data sets.
    networks : list of str
        Networks, named as in `build_network`.
    samples_per_class : list of int
        Sizes of the training sets; smaller sets are subsets of larger ones. For text, which has no classes, the number
        of sequences; `sequences` is another name of it.
    test_samples_per_class : int or None
        Size of the test set, for its error and for measurement; None for all samples. Another name is `test_sequences`.
    seeds : list of int
        Seeds of initialisation, choice and order of the samples; everything is repeated for each.
    training : TrainingConfig
        Training.
    measure : MeasureConfig
        Measurements.
    optimizers : list of OptimizerConfig
        Optimisers; everything is trained with each.
    start : list of StartConfig
        Starts; everything is trained from each.
    monitor : MonitorConfig or None
        Monitor of the sharpness during every training.
    shares : SharesConfig or None
        Shares of steps in the top eigenspace during every training.
    """

    datasets: list[DataConfig] = Field(min_length=1)
    networks: list[str] = Field(min_length=1)
    samples_per_class: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, validation_alias=AliasChoices("samples_per_class", "sequences")
    )
    test_samples_per_class: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("test_samples_per_class", "test_sequences")
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**64)]] = Field([0], min_length=1)
    training: TrainingConfig
    measure: MeasureConfig
    optimizers: list[OptimizerConfig] = Field([OptimizerConfig.model_validate({"name": SGD})], min_length=1)
    start: list[StartConfig] = Field([StartConfig.model_validate({"name": SCRATCH})], min_length=1)
    monitor: MonitorConfig | None = None
    shares: SharesConfig | None = None

    @field_validator("start", mode="before")
    @classmethod
    def _by_word(cls, value: object) -> object:
        items = value if isinstance(value, list) else [value]
        return [StartConfig.named(item) if isinstance(item, str) else item for item in items]

    @field_validator("datasets", "optimizers", mode="before")
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

    @field_validator("datasets", "networks", "optimizers", "start", "samples_per_class", "seeds")
    @classmethod
    def _each_once(cls, values: list[Any], info: ValidationInfo) -> list[Any]:
        # Results are identified by the names of data sets, regardless of their folder and padding.
        names = set()
        for value in values:
            name = value.name if isinstance(value, DataConfig | OptimizerConfig | StartConfig) else value
            if name in names:
                named = info.field_name in ("datasets", "optimizers", "start")
                hint = "; use a separate study for the other form of it" if named else ""
                raise ValueError(f"{name!r} is among the {info.field_name} twice{hint}")
            names.add(name)
        return values

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        sizes = sum(len(data.samples_per_class or self.samples_per_class) for data in self.datasets)
        rates = sum(len(self.rates_of(optimizer)) for optimizer in self.optimizers)
        trainings = sizes * len(self.networks) * len(self.start) * len(self.seeds) * rates
        if trainings > MOST_TRAININGS:
            raise ValueError(f"it requests {trainings:,} trainings, but at most {MOST_TRAININGS:,} are allowed")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.measure.structure and self.training.loss != CROSS_ENTROPY:
            raise ValueError(f"measure.structure belongs to cross-entropy, but training.loss is {self.training.loss!r}")
        texts = [data.name for data in self.datasets if is_text(data.name)]
        if texts and self.training.loss != CROSS_ENTROPY:
            raise ValueError(f"{texts[0]!r} needs cross-entropy, but training.loss is {self.training.loss!r}")
        if self.measure.laplace and self.training.loss != CROSS_ENTROPY:
            raise ValueError(
                f"measure.laplace needs a loss that is a likelihood, cross-entropy, but training.loss is "
                f"{self.training.loss!r}"
            )
        if self.measure.laplace and not ("GaussNewton" in self.measure.matrices and "train" in self.measure.splits):
            raise ValueError(
                "measure.laplace needs the spectra of G on the training set: add g to measure.matrices and train to "
                "measure.splits"
            )
        others = [optimizer.name for optimizer in self.optimizers if optimizer.name not in MONITORED]
        if self.monitor is not None and others:
            raise ValueError(
                f"monitor needs an optimiser whose threshold of stability is known ({', '.join(MONITORED)}), but the "
                f"optimizers have {others[0]!r}"
            )
        loss = self.training.loss
        if loss != CROSS_ENTROPY and any(optimizer.name == FAST_GAUSS_NEWTON for optimizer in self.optimizers):
            raise ValueError(f"{FAST_GAUSS_NEWTON} needs cross-entropy, but training.loss is {loss!r}")
        return self

    def rates_of(self, optimizer: OptimizerConfig) -> list[float]:
        """Return all initial learning rates of an optimiser, each once."""
        return self.training.rates if optimizer.learning_rates is None else _rates(optimizer.learning_rates)

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
