"""Diagonal of an operator: `hesspec.diagonal`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator, check_operator, expect_products
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.numbers import check_counts, check_seed
from hesspec.backend.shown import Shown
from hesspec.errors import NonFiniteError
from hesspec.matrices import symbol_of
from hesspec.measure.arrays import as_operator
from hesspec.measure.eigenpairs import Eigenpairs

__all__ = ["Diagonal", "diagonal"]

# Probes that are multiplied together, so that batches whose primal passes are not cached are read once for all of them.
TOGETHER = 8


@dataclass(frozen=True, repr=False)
class Diagonal(Shown):
    """Estimated diagonal of a matrix, from `hesspec.diagonal`.

    Attributes
    ----------
    values : Tensor (p,)
        Estimates, float64, in the order of the parameters.
    standard_errors : Tensor (p,)
        Their standard errors, each estimated from its own probes; nan with a single probe.
    resolved : Tensor (p,)
        Part of the eigenpairs, sum of value v^2, which is not estimated; 0 without eigenpairs.
    probes : int
        Number of probes, each of which took one product.
    matrix : str
        Symbol of the matrix.
    """

    values: Tensor
    standard_errors: Tensor
    resolved: Tensor
    probes: int
    matrix: str

    @property
    def relative_error(self) -> float:
        """Root of the sum of squared standard errors, relative to the norm of the diagonal; nan with one probe."""
        return float(self.standard_errors.norm() / self.values.norm())

    @property
    def trace(self) -> float:
        """Sum of the estimates, an estimate of the trace; `Spectrum.trace` is more accurate."""
        return float(self.values.sum())

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        error = "unknown, there is one probe" if self.probes == 1 else f"{self.relative_error:.2g} of its norm"
        return {
            "diagonal of": f"{self.matrix}, {self.values.numel():,} entries",
            "entries": f"{float(self.values.min()):.4g} to {float(self.values.max()):.4g}",
            "error": error,
            "resolved part": f"{float(self.resolved.norm() / self.values.norm()):.2g} of its norm",
            "probes": f"{self.probes}",
        }


@full_float32()
def diagonal(operator: SymmetricOperator, probes: int, *, deflate: Eigenpairs | None = None, seed: int = 0) -> Diagonal:
    r"""Estimate the diagonal of a symmetric matrix from its products with random vectors of signs.

    Parameters
    ----------
    operator : SymmetricOperator
        Matrix A, shape (p, p); see `hesspec.spectrum`.
    probes : int
        Number m of random vectors, one product each.
    deflate : Eigenpairs, optional
        Eigenpairs of A, from `hesspec.eigenpairs`. Their part B = sum of value v v^T of the diagonal is computed
        exactly, and only that of A - B is estimated. The estimate has no bias, however accurate the eigenpairs are.
    seed : int
        Seed of the random vectors.

    Returns
    -------
    Diagonal

    Raises
    ------
    ValueError
        If `probes` or the seed is out of range, or the eigenvectors are of another size.
    NonFiniteError
        If a product contains NaN or infinity.

    Notes
    -----
    With signs z, entry i of z * (C z) is C_ii + sum_{j != i} C_ij z_i z_j (Bekas, Kokiopoulou and Saad 2007), with the
    variance :math:`\sum_{j \ne i} C_{ij}^2`: for C = A - B the outliers, which are most of it, are gone. The standard
    error of a mean over m probes is its root over sqrt(m); it is estimated from the spread over the probes.

    Examples
    --------
    >>> import torch, hesspec
    >>> operator = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> hesspec.diagonal(operator, probes=1).values
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    p = check_operator(operator := as_operator(operator))
    check_counts(probes=probes)
    if deflate is not None and len(deflate.vectors) != p:
        raise ValueError(
            f"The eigenvectors have {len(deflate.vectors):,} entries, and the operator is of size {p:,}; use "
            "eigenpairs of the same operator."
        )
    generator = torch.Generator().manual_seed(check_seed(seed))
    expect_products(operator, int(probes))
    device = torch.device(operator.device)
    mean, squares = (torch.zeros(p, dtype=torch.float64, device=device) for _ in range(2))
    done = 0
    vectors = values = None
    if deflate is not None:
        vectors = deflate.vectors.to(device, torch.float64)
        values = torch.as_tensor(deflate.values, device=device)
    while done < probes:
        count = min(TOGETHER, probes - done)
        signs = (2 * torch.randint(2, (p, count), generator=generator, device="cpu") - 1).to(device, operator.dtype)
        # Operators need not support products with matrices for a single probe.
        products = operator @ signs if count > 1 else (operator @ signs[:, 0])[:, None]
        samples = signs.double() * products.double()
        if not bool(samples.isfinite().all()):
            raise NonFiniteError("A product with a vector of signs contains NaN or infinity.")
        if vectors is not None and values is not None:
            known = signs.double()
            samples -= known * (vectors @ (values[:, None] * (vectors.T @ known)))
        for sample in samples.T:
            # Welford's update, without cancellation.
            done += 1
            shift = sample - mean
            mean += shift / done
            squares += shift * (sample - mean)
    resolved = torch.zeros_like(mean) if vectors is None or values is None else (vectors.square() * values).sum(1)
    errors = (squares / (probes * (probes - 1))).sqrt() if probes > 1 else torch.full_like(mean, math.nan)
    name = str(getattr(operator, "attributes", {}).get("matrix", "an operator"))
    return Diagonal(mean + resolved, errors, resolved, int(probes), symbol_of(name))
