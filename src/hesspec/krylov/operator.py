"""What the Krylov methods ask of an operator."""

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["SymmetricOperator", "check_operator"]


class SymmetricOperator(Protocol):
    """Anything with these four: operators of hesspec or curvlinops, a dense symmetric tensor."""

    @property
    def shape(self) -> Any:
        """(p, p)."""

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64, of the operator and of its vectors."""

    @property
    def device(self) -> torch.device:
        """Of the vectors."""

    def __matmul__(self, vector: Any, /) -> Any:
        """Product with a vector (p,)."""


def check_operator(operator: Any) -> int:
    """p of a usable operator.

    Raises
    ------
    ValueError
        If an attribute is missing, the shape is not (p, p) with p > 0, or the dtype is neither float32 nor float64.
    """
    for name in ("shape", "dtype", "device", "__matmul__"):
        if not hasattr(operator, name):
            raise ValueError(
                f"A {type(operator).__name__} has no {name}; an operator needs shape, dtype, device and @ (a dense "
                "symmetric torch.Tensor has them all)."
            )
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"The operator has shape {shape}; a spectrum needs (p, p) with p > 0.")
    if operator.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The operator, a {type(operator).__name__}, is {operator.dtype}; spectra are measured in torch.float32 or "
            "torch.float64."
        )
    if isinstance(operator, Tensor) and operator.requires_grad:
        raise ValueError("The operator is a tensor that requires a gradient; pass operator.detach().")
    return int(shape[0])
