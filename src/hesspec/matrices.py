"""Table of the curvature matrices: names, symbols, units, modules of the operators, and costs in formulas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hesspec.backend.suggest import unknown

__all__ = ["CURVATURE", "DEFAULT_MATRICES", "MATRICES", "Matrix", "matrix_names", "symbol_of", "unit_of"]

CURVATURE: Final = "loss per squared parameter"
"""Unit of the eigenvalues of a Hessian and of its parts."""


@dataclass(frozen=True)
class Matrix:
    """One curvature matrix.

    Attributes
    ----------
    name : str
        Name of the operator's class, and of the matrix in `Spectrum.attributes`.
    symbol : str
        Symbol in figures and tables.
    title : str
        Description in sentences.
    aliases : tuple of str
        Other names on the command line and in study files, in lower case.
    module : str
        Module that defines its operator; imported on first use.
    tangent : int
        Cost of a product whose primal passes are cached, in forward passes. `hesspec cost` and progress bars use it;
        `hesspec plan` times products instead. Counted in matrix products: the forward pass Y = X W is one; its tangent
        dX W + X dW is two; the backward pass dY W^T, X^T dY is two, and its tangent four. The Hessian needs six; J v
        and J^T u need two each.
    recomputed : tuple of int
        Cost of recomputing the primal passes, in forward passes, for linear layers and for convolutions. Gradients of
        weights do not enter any tangent: for linear layers they are separate operations and are left out; for
        convolutions one operation computes them together with the others.
    by_class : bool
        Whether every batch must contain samples of all classes.
    unit : str
        Unit of the eigenvalues.
    """

    name: str
    symbol: str
    title: str
    aliases: tuple[str, ...]
    module: str
    tangent: int
    recomputed: tuple[int, int]
    by_class: bool = False
    unit: str = CURVATURE


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
        Matrix(
            "SecondMoment",
            "M",
            "the second moment of the samples' gradients",
            ("second-moment", "m"),
            f"{_OPERATORS}.second_moment",
            4,
            (1, 1),
            unit="squared loss per squared parameter",
        ),
        Matrix(
            "LikelihoodResidual",
            "H_p",
            "the likelihood's residual, M − Hess",
            ("likelihood-residual", "h-p"),
            f"{_OPERATORS}.likelihood_residual",
            6,
            (2, 3),
            # A difference of both: the loss is a negative log-likelihood, in nats.
            unit="nats per squared parameter",
        ),
    )
}
"""Matrices that can be measured by name, in display order."""

DEFAULT_MATRICES: Final = ("Hessian", "GaussNewton", "Residual")
"""Names of the matrices that are measured by default."""


def matrix_names(names: Iterable[str]) -> list[str]:
    """Resolve names and aliases, in any case, to names in `MATRICES`; each once, in the order given.

    Raises
    ------
    ValueError
        If a name is unknown; the message suggests the nearest one.

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
    """Return the symbol of a matrix, or the name itself if it is not in the table."""
    return MATRICES[name].symbol if name in MATRICES else name


def unit_of(names: Iterable[str]) -> str:
    """Return the unit that eigenvalues of matrices have in common, by their names or symbols.

    It is empty if a matrix is not in the table, such as one that is not a curvature of a loss, or if units differ.

    Examples
    --------
    >>> unit_of(["Hessian", "G"]), unit_of(["Covariance"])
    ('loss per squared parameter', '')
    """
    units = {name: matrix.unit for matrix in MATRICES.values() for name in (matrix.name, matrix.symbol)}
    found = {units.get(name, "") for name in names}
    return found.pop() if len(found) == 1 else ""
