"""Studies: data sets, networks, training, measurement during training, and their results."""
# ruff: noqa: E402 - what is missing is named before it is imported

from hesspec.backend.extras import require

require("hesspec.study", "hesspec[study]", "pydantic", "yaml", "sklearn")

from hesspec.spectra.study_names import SPLITS
from hesspec.study.checkpoints import load_weights, read_metadata, save_checkpoint
from hesspec.study.config import StudyConfig
from hesspec.study.datasets import DATASETS, Dataset, load_dataset
from hesspec.study.failures import StudyError
from hesspec.study.imports import load_object
from hesspec.study.networks import (
    GPT,
    NETWORKS,
    build_network,
    densenet40,
    gpt_small,
    gpt_tiny,
    resnet18,
    resnet34,
    resnet50,
    small_cnn,
    tanh_mlp,
    timm_network,
    torchvision_network,
    transformers_network,
    vgg11_bn,
    vgg13_bn,
    vgg16_bn,
    vgg19_bn,
)
from hesspec.study.opening import open_study as open  # noqa: A004 - the public name is study.open()
from hesspec.study.recorder import SpectrumRecorder
from hesspec.study.running import run_study
from hesspec.study.settings import TrainingSettings
from hesspec.study.study_file import load_study, presets
from hesspec.study.training import EpochRecord, evaluate, train
from hesspec.study.transferring import transfer

__all__ = [
    "DATASETS",
    "GPT",
    "NETWORKS",
    "SPLITS",
    "Dataset",
    "EpochRecord",
    "SpectrumRecorder",
    "StudyConfig",
    "StudyError",
    "TrainingSettings",
    "build_network",
    "densenet40",
    "evaluate",
    "gpt_small",
    "gpt_tiny",
    "load_dataset",
    "load_object",
    "load_study",
    "load_weights",
    "open",
    "presets",
    "read_metadata",
    "resnet18",
    "resnet34",
    "resnet50",
    "run_study",
    "save_checkpoint",
    "small_cnn",
    "tanh_mlp",
    "timm_network",
    "torchvision_network",
    "train",
    "transfer",
    "transformers_network",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
]
