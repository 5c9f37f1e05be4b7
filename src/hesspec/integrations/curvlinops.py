"""Operators of hesspec in the interface of curvlinops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesspec.algebra import SymmetricOperator, check_operator
from hesspec.integrations.required import required

with required("curvlinops", "curvlinops-for-pytorch"):
    from curvlinops import PyTorchLinearOperator

__all__ = ["CurvlinopsOperator", "to_curvlinops"]


class CurvlinopsOperator(PyTorchLinearOperator):  # type: ignore[misc]  # curvlinops is untyped
    """Symmetric operator as a `curvlinops.PyTorchLinearOperator`; created by `to_curvlinops`, which documents it."""

    SELF_ADJOINT = True

    def __init__(self, operator: SymmetricOperator, shapes: list[tuple[int, ...]]) -> None:
        super().__init__(shapes, shapes)
        self._operator, self._shapes = operator, shapes

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return torch.device(self._operator.device)

    def _matmat(self, X: list[Tensor]) -> list[Tensor]:  # noqa: N803 - curvlinops passes it by this name
        """Product with k vectors, as one tensor (*shape, k) for each parameter."""
        count = X[0].shape[-1]
        flat = torch.cat([part.reshape(-1, count) for part in X])
        product = self._operator @ flat
        parts = product.split([part.shape[:-1].numel() for part in X])
        return [part.reshape(*shape, count) for part, shape in zip(parts, self._shapes, strict=True)]


def to_curvlinops(operator: Any) -> CurvlinopsOperator:
    """Return an operator in the interface of curvlinops, for its estimators, inverses and submatrices.

    Conversely, `hesspec.spectrum` takes curvlinops' operators as they are.

    Parameters
    ----------
    operator : SymmetricOperator
        Operator of hesspec, or any that `hesspec.spectrum` takes.

    Returns
    -------
    CurvlinopsOperator
        It multiplies vectors (p,), matrices (p, k), and lists with a tensor for each parameter, in the order of
        `named_parameters()`; of an operator that does not name its parameters, lists of one tensor.

    Raises
    ------
    ModuleNotFoundError
        If curvlinops is not installed.
    ValueError
        If it is no operator.

    Examples
    --------
    >>> import torch, hesspec
    >>> from hesspec.integrations import to_curvlinops
    >>> model, loss = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
    >>> hessian = hesspec.Hessian(model, loss, [(torch.randn(8, 3), torch.randint(2, (8,)))])
    >>> [part.shape for part in to_curvlinops(hessian) @ [torch.ones(2, 3), torch.ones(2)]]
    [torch.Size([2, 3]), torch.Size([2])]
    """
    p = check_operator(operator)
    named = operator.to_named(torch.zeros(p, dtype=operator.dtype)) if hasattr(operator, "to_named") else {}
    shapes = [tuple(part.shape) for part in named.values()] or [(p,)]
    return CurvlinopsOperator(operator, shapes)
