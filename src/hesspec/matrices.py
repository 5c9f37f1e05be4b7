"""Table of the curvature matrices: what each is called, where its operator is, and what a product costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hesspec.backend.suggest import unknown

__all__ = ["DEFAULT_MATRICES", "MATRICES", "Matrix", "matrix_names", "symbol_of"]


@dataclass(frozen=True)
class Matrix:
    """A curvature matrix.

    Attributes
    ----------
    name : str
        Of its operator's class, and of the matrix in `Spectrum.attributes`.
    symbol : str
        In figures and tables.
    title : str
        In sentences.
    aliases : tuple of str
        Other names in the command line and in study files, in lower case.
    module : str
        Module of its operator, which is imported when the operator is used.
    tangent : int
        Cost of a product whose primal passes are cached, in forward passes. A product Y = X W costs a forward pass one
        such operation; its tangent is dX W + X dW, the backward pass dY W^T and X^T dY, whose tangent has four: six for
        the Hessian, and for J v and J^T u two each.
    recomputed : tuple of int
        Cost of recomputing the primal passes, in forward passes: of linear layers, and of convolutions. The gradients
        of weights influence no tangent. Those of linear layers are operations of their own, which are left out; those
        of convolutions come with the others.
    by_class : bool
        Whether every batch must hold samples of all classes.
    """

    name: str
    symbol: str
    title: str
    aliases: tuple[str, ...]
    module: str
    tangent: int
    recomputed: tuple[int, int]
    by_class: bool = False


_OPERATORS: Final = "hesspec.operators"
_PARTS: Final = f"{_OPERATORS}.class_parts"

MATRICES: Final[dict[str, Matrix]] = {
    matrix.name: matrix
    for matrix in (
        Matrix("Hessian", "Hess", "the Hessian of the loss", ("hessian", "hess"), f"{_OPERATORS}.hessian", 6, (2, 3)),
        Matrix(
            "GaussNewton", "G", "its Gauss–Newton part", ("gauss-newton", "g"), f"{_OPERATORS}.gauss_newton", 4, (1, 1)
        ),
        Matrix("Residual", "H", "its residual part", ("residual", "h"), f"{_OPERATORS}.residual", 6, (2, 3)),
        Matrix("GaussNewtonClass", "G_class", "the part of G from class means", ("g-class",), _PARTS, 4, (1, 1), True),
        Matrix(
            "GaussNewtonCross", "G_cross", "the part of G from cross-class means", ("g-cross",), _PARTS, 4, (1, 1), True
        ),
        Matrix(
            "GaussNewtonWithin", "G_within", "the part of G around these means", ("g-within",), _PARTS, 4, (1, 1), True
        ),
        Matrix("GaussNewtonSame", "G_same", "the part of G from true classes", ("g-same",), _PARTS, 4, (1, 1), True),
    )
}
"""All matrices that can be measured by name, in the order in which they are shown."""

DEFAULT_MATRICES: Final = ("Hessian", "GaussNewton", "Residual")
"""Names of those that are measured where none is named."""


def matrix_names(names: Iterable[str]) -> list[str]:
    """Names in `MATRICES` of matrices that may be named by an alias, in capitals or not; each once, in this order.

    Raises
    ------
    ValueError
        If a name is not known; the message gives the nearest one.

    Examples
    --------
    >>> matrix_names(["Hessian", "gauss-newton", "H", "hess"])
    ['Hessian', 'GaussNewton', 'Residual']
    """
    aliases = {alias: matrix.name for matrix in MATRICES.values() for alias in matrix.aliases}
    known = {**{name.lower(): name for name in MATRICES}, **aliases}
    found = []
    for name in names:
        if name.lower() not in known:
            raise ValueError(unknown("matrix", name, aliases))
        found.append(known[name.lower()])
    return list(dict.fromkeys(found))


def symbol_of(name: str) -> str:
    """Symbol of a matrix; the name itself for an operator that is not in the table."""
    return MATRICES[name].symbol if name in MATRICES else name
