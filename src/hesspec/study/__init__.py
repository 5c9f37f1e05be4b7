"""Studies: data sets, networks, their training and its checkpoints."""

from hesspec.study.checkpoints import load_weights, read_metadata, save_checkpoint
from hesspec.study.datasets import DATASETS, SPLITS, Dataset, load_dataset
from hesspec.study.imports import load_object
from hesspec.study.networks import (
    NETWORKS,
    build_network,
    densenet40,
    resnet18,
    small_cnn,
    vgg11_bn,
)
from hesspec.study.training import EpochRecord, TrainingSettings, evaluate, train

__all__ = [
    "DATASETS",
    "NETWORKS",
    "SPLITS",
    "Dataset",
    "EpochRecord",
    "TrainingSettings",
    "build_network",
    "densenet40",
    "evaluate",
    "load_dataset",
    "load_object",
    "load_weights",
    "read_metadata",
    "resnet18",
    "save_checkpoint",
    "small_cnn",
    "train",
    "vgg11_bn",
]
