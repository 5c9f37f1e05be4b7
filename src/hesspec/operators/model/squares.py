"""Squares of norms and absolute values as sums of squares, whose second derivatives are right at zero as well.

A norm has no derivative at zero, and PyTorch returns zero there. Its square has the second derivative 2, but by the
chain rule it would be zero, too: that of `sum(p.norm() ** 2 for p in model.parameters())` for biases that are zero.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

__all__ = ["SQUARES", "of_absolute", "with_square"]

# Attribute of a norm, and of an absolute value, that tells what it is the root of.
ROOT = "_hesspec_root"


@dataclass(frozen=True)
class _Root:
    """What a tensor is the root of: a function of `sources`, distinguished from other functions of them by `form`."""

    square: Callable[[], Tensor]
    sources: tuple[Tensor, ...]
    form: Hashable
    versions: tuple[int, ...]

    def equals(self, other: _Root) -> bool:
        return self.form == other.form and all(map(operator.is_, self.sources, other.sources))


def with_square(result: Tensor, square: Callable[[], Tensor], sources: tuple[Tensor, ...], form: Hashable) -> Tensor:
    """Let a tensor remember how its square is computed from tensors, unless it is a constant."""
    if torch.is_grad_enabled():
        setattr(result, ROOT, _Root(square, sources, form, _versions(result, sources)))
    return result


def _root_of(tensor: Any) -> _Root | None:
    """What a tensor is the root of; None if one was changed or detached in place since, or the square is constant."""
    root: _Root | None = getattr(tensor, ROOT, None) if isinstance(tensor, Tensor) else None
    if root is None or not torch.is_grad_enabled() or root.versions != _versions(tensor, root.sources):
        return None
    return root if tensor.requires_grad == any(source.requires_grad for source in root.sources) else None


def _versions(result: Tensor, sources: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in (result, *sources))  # noqa: SLF001 - there is no public way


def _squares(x: Tensor) -> Tensor:
    """|x|^2 of each entry."""
    return torch.view_as_real(x).square().sum(-1) if x.is_complex() else x * x


def _of_norm(result: Tensor, x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return with_square(result, lambda: _squares(x).sum(dims, keepdim), (x,), (dims, keepdim)) if _dense(x) else result


def _dense(x: Tensor) -> bool:
    """Whether its squares are computed as for any tensor, and its changes are counted."""
    return (x.is_floating_point() or x.is_complex()) and x.layout == torch.strided and not x.is_inference()


def _dims(x: Tensor, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """Dimensions as `vector_norm` takes them: all for None."""
    if dim is None:
        return tuple(range(x.dim()))
    return (dim,) if isinstance(dim, int) else tuple(dim) or tuple(range(x.dim()))


def _any_given(options: Mapping[str, Any]) -> bool:
    """Whether an output tensor or dtype is given."""
    return any(option is not None for option in options.values())


def _entrywise(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.norm`: entrywise for all orders but the nuclear one."""

    def norm(
        input: Tensor,  # noqa: A002 - name of PyTorch's argument
        p: float | str | None = "fro",
        dim: int | Sequence[int] | None = None,
        keepdim: bool = False,
        **others: Any,
    ) -> Tensor:
        result = original(input, p, dim, keepdim, **others)
        if _any_given(others) or p not in ("fro", 2):
            return result
        return _of_norm(result, input, _dims(input, dim), keepdim)

    return norm


def _vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **others: Any) -> Tensor:  # noqa: A002
    """`torch.linalg.vector_norm`."""
    result: Tensor = torch.linalg.vector_norm(x, ord, dim, keepdim, **others)
    return result if _any_given(others) or ord != 2 else _of_norm(result, x, _dims(x, dim), keepdim)


def _matrix_norm(
    A: Tensor,  # noqa: N803
    ord: Any = "fro",  # noqa: A002
    dim: Any = (-2, -1),
    keepdim: bool = False,
    **others: Any,
) -> Tensor:
    """`torch.linalg.matrix_norm`."""
    result: Tensor = torch.linalg.matrix_norm(A, ord, dim, keepdim, **others)
    return result if _any_given(others) or ord != "fro" else _of_norm(result, A, _dims(A, dim), keepdim)


def _linalg_norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **others: Any) -> Tensor:  # noqa: A002, N803
    """`torch.linalg.norm`, for which 2 is the order of vectors, and the spectral norm of matrices."""
    result: Tensor = torch.linalg.norm(A, ord, dim, keepdim, **others)
    of_vectors = isinstance(dim, int) or (dim is None and A.dim() == 1)
    if _any_given(others) or not (ord is None or ord == "fro" or (ord == 2 and of_vectors)):
        return result
    return _of_norm(result, A, _dims(A, dim), keepdim)


def _squared(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def square(input: Tensor) -> Tensor:  # noqa: A002
        root = _root_of(input)
        return original(input) if root is None else root.square()

    return square


def _power(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def power(input: Any, exponent: Any, **others: Any) -> Tensor:  # noqa: A002
        root = _root_of(input) if isinstance(exponent, int | float) and exponent == 2 and not others else None
        return original(input, exponent, **others) if root is None else root.square()

    return power


def _product(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def product(input: Any, other: Any, **others: Any) -> Tensor:  # noqa: A002
        left, right = _root_of(input), _root_of(other)
        if left is None or right is None or others or not left.equals(right):
            return original(input, other, **others)
        return left.square()

    return product


def of_absolute(absolute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let values of a function |x| remember x."""

    def remembering(input: Tensor) -> Tensor:  # noqa: A002
        result = absolute(input)
        return with_square(result, lambda: _squares(input), (input,), "absolute value") if _dense(input) else result

    return remembering


SQUARES: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        torch.norm: _entrywise(torch.norm),
        Tensor.norm: _entrywise(Tensor.norm),
        torch.linalg.vector_norm: _vector_norm,
        torch.linalg.matrix_norm: _matrix_norm,
        torch.linalg.norm: _linalg_norm,
        **{function: _squared(function) for function in (torch.square, Tensor.square)},
        **{function: _power(function) for function in (torch.pow, Tensor.pow, Tensor.__pow__)},
        **{function: _product(function) for function in (torch.mul, Tensor.mul, torch.multiply, Tensor.multiply)},
    }
)
"""Norms that remember what they are the root of, and functions that square."""
