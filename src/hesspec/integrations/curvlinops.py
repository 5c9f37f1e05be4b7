"""Operators of hesspec in the interface of curvlinops."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator, check_operator
from hesspec.backend.extras import require

__all__ = ["to_curvlinops"]


def to_curvlinops(operator: SymmetricOperator) -> Any:
    """Return an operator in the interface of curvlinops, for its estimators, inverses and algebra.

    Conversely, `hesspec.spectrum` accepts operators of curvlinops without conversion.

    Parameters
    ----------
    operator : SymmetricOperator
        Operator of hesspec, or any that `hesspec.spectrum` accepts, except NumPy arrays and SciPy matrices.

    Returns
    -------
    curvlinops.PyTorchLinearOperator
        It multiplies vectors (p,), matrices (p, k), and lists with a tensor for each parameter, in the order of
        `named_parameters()`; for an operator that does not name its parameters, lists of one tensor.

    Raises
    ------
    ModuleNotFoundError
        If curvlinops is not installed.
    ValueError
        If it is not an operator.

    Examples
    --------
    With a tensor for each parameter of a model that is a single linear layer::

        product = to_curvlinops(hessian) @ [torch.ones(2, 3), torch.ones(2)]
        trace = curvlinops.xtrace(to_curvlinops(hessian), num_matvecs=20)
    """
    p = check_operator(operator)
    named = (
        operator.to_named(torch.zeros(p, dtype=operator.dtype, device="cpu")) if hasattr(operator, "to_named") else {}
    )
    return _class()(operator, [tuple(part.shape) for part in named.values()] or [(p,)])


@cache
def _class() -> type[Any]:
    """Return the class of these operators, whose base class takes seconds to import."""
    require("to_curvlinops", "curvlinops-for-pytorch", "curvlinops")
    from curvlinops._torch_base import PyTorchLinearOperator  # noqa: PLC0415 - an optional dependency

    class HesspecLinearOperator(PyTorchLinearOperator):  # type: ignore[misc]  # curvlinops is untyped
        """Symmetric operator of hesspec."""

        SELF_ADJOINT = True

        def __init__(self, operator: SymmetricOperator, shapes: list[tuple[int, ...]]) -> None:
            super().__init__(shapes, shapes)
            self._operator = operator

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
            products = (self._operator @ flat).split([part.shape[:-1].numel() for part in X])
            return [product.reshape(part.shape) for product, part in zip(products, X, strict=True)]

    return HesspecLinearOperator
