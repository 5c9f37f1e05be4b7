"""Names that a shell completes. They are known here without PyTorch, which takes seconds to import."""

from collections.abc import Callable, Iterable
from typing import Final

from hesspec.backend.presets import presets
from hesspec.matrices import MATRICES

__all__ = ["BLOCKS", "DATA", "NETWORKS", "completing", "matrix_aliases", "study_presets"]

NETWORKS: Final = (
    "small_cnn",
    "tanh_mlp",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet40",
    "gpt_tiny",
    "gpt_small",
    "torchvision:",
    "timm:",
    "transformers:",
)
"""Built-in networks, and the prefixes of those of libraries."""

DATA: Final = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "python-stdlib", "text:")
"""Built-in data sets, and the prefix of texts by path."""

BLOCKS: Final = ("layer", "projection", "head", "module", "parameter")
"""Kinds of diagonal blocks."""


def completing(names: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function from the begin of a word to the names that complete it."""

    def complete(incomplete: str) -> list[str]:
        known = names() if callable(names) else names
        return [name for name in known if name.startswith(incomplete.lower())]

    return complete


def matrix_aliases() -> list[str]:
    """Names of matrices on the command line, the long ones."""
    return [matrix.aliases[0] for matrix in MATRICES.values()]


def study_presets() -> list[str]:
    """Names of the studies that come with the package; files are completed by the shell."""
    return presets()
