"""Shares of vectors in the top eigenspace of a matrix and in the bulk, with their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.applications.optim.share_record import DominantShare
from hesspec.applications.optim.trial_step import step_vectors
from hesspec.backend.numbers import is_whole
from hesspec.backend.text import kind_of
from hesspec.errors import InputError
from hesspec.measure.eigenpairs import Eigenpairs
from hesspec.measure.eigenspaces import eigenspace_errors
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.record import Array

__all__ = ["dominant_share"]

# Rows of the eigenvectors that are converted to float64 at a time.
CHUNK = 1 << 16


def dominant_share(
    source: Optimizer | Sequence[Optimizer] | Mapping[str, Tensor] | Tensor,
    pairs: Eigenpairs,
    model: nn.Module | None = None,
    params: ParameterSpec = None,
    *,
    k: int | None = None,
) -> DominantShare:
    r"""Compute the shares of vectors in the top eigenspace of a matrix (dominant) and in its complement (bulk).

    .. math:: r_{dom}(v) = \|P_k v\| / \|v\|, \qquad r_{bulk}(v) = \|v - P_k v\| / \|v\|,

    where P_k projects on the eigenvectors of the k largest eigenvalues. For an optimiser the vectors are gradient,
    momentum and update of the step that it would make now, see `step_vectors`; model and optimiser are left as they
    are. The squares of the two shares sum to 1. The share of an isotropic random vector is about sqrt(k/p).

    Parameters
    ----------
    source : torch.optim.Optimizer, a sequence of them, mapping of str to Tensor (p,), or Tensor (p,)
        Any optimiser, after `backward()` and before its step; several if they train different parameters; or vectors in
        the order of `model.named_parameters()`.
    pairs : Eigenpairs
        Result of `hesspec.eigenpairs`, for the same parameters at their current values.
    model : torch.nn.Module, optional
        Model that the optimiser trains; not used for vectors.
    params : None, str, Module, Parameter, or an iterable of them
        Parameters of the matrix, if not all; see `hesspec.Hessian`.
    k : int, optional
        Number of eigenvectors, those with the largest absolute eigenvalues. By default all in `pairs`.

    Returns
    -------
    DominantShare
        Shares for 1, ..., k eigenvectors, with bounds.

    Raises
    ------
    ValueError
        If `k` is out of range, `pairs` has no vectors, a vector has another length or is not finite, or for the reasons
        of `step_vectors`.

    Notes
    -----
    The definition is that of Kim et al. (arXiv 2605.22432), as others report it. The bounds are ours. The angle between
    a vector and the computed subspace, with cosine r_dom, differs from that to the true one by at most the largest
    angle between the subspaces (`hesspec.measure.eigenspaces.eigenspace_errors`). Where nothing is known of it, as for
    a k between two equal eigenvalues, the bounds are 0 and 1. They hold if no eigenvalue in the gap was missed. For
    updates, the angle that the rounding of parameters may cause is added.

    Examples
    --------
    >>> import torch, hesspec
    >>> matrix = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
    >>> pairs = hesspec.eigenpairs(matrix, count=2, steps=32)
    >>> vector = torch.zeros(302)
    >>> vector[[0, 300, 301]] = torch.tensor([12.0, 3.0, 4.0])
    >>> found = hesspec.optim.dominant_share(vector, pairs)
    >>> found.dominant().values.round(4), found.bulk().values.round(4)  # 5/13 and 12/13
    (array([0.3846]), array([0.9231]))
    """
    count = pairs.values.size
    if not count:
        raise InputError("The eigenpairs contain no vectors: no eigenvalue was resolved; use more steps.")
    if k is None:
        k = count
    elif not is_whole(k, 1) or k > count:
        raise InputError(f"k is {k!r}; it must be an integer from 1 to {count}, the number of eigenvectors.")
    vectors, rounding, optimizer = _vectors_of(source, model, params)
    p = pairs.vectors.shape[0]
    for name, vector in vectors.items():
        if vector.shape != (p,):
            raise InputError(
                f"The vector {name!r} has shape {tuple(vector.shape)}, but the eigenvectors have {p} entries. "
                "Vectors and matrix must be of the same parameters; select them with params=[...]."
            )
        if not bool(torch.isfinite(vector).all()):
            raise InputError(f"The vector {name!r} contains NaN or infinity.")
    basis = pairs.vectors[:, : int(k)]
    coefficients, rest, norms = _project(basis, list(vectors.values()))
    subspace = np.arcsin(eigenspace_errors(pairs, int(k)))
    allowed = np.array([rounding.get(name, 0.0) for name in vectors])
    # The angle between an exact vector and one with an error of this norm.
    own = np.arcsin(np.minimum(np.divide(allowed, norms, out=np.zeros(norms.size), where=norms > 0), 1.0))
    known = pairs.spectrum.attributes
    return DominantShare(
        names=np.array(list(vectors)),
        norms=norms,
        coefficients=coefficients,
        rests=rest,
        eigenvalues=pairs.values[: int(k)],
        eigenvalue_bounds=pairs.residuals[: int(k)],
        angle_errors=np.minimum(own[:, None] + subspace[None, :], np.pi / 2),
        dimension=int(p),
        optimizer=optimizer,
        attributes={name: known[name] for name in ("matrix", "loss", "risk", "samples") if name in known},
    )


def _vectors_of(
    source: Any, model: nn.Module | None, params: ParameterSpec
) -> tuple[Mapping[str, Tensor], Mapping[str, float], str]:
    """Vectors by name, bounds on the norm of their rounding errors, and the names of the optimisers."""
    if isinstance(source, Tensor):
        return {"vector": source.detach()}, {}, ""
    if isinstance(source, Mapping):
        for name, vector in source.items():
            if not isinstance(vector, Tensor):
                raise InputError(f"The vector {name!r} is {kind_of(vector)}; it must be a tensor (p,).")
        if not source:
            raise InputError("There are no vectors: the mapping is empty.")
        return {str(name): vector.detach() for name, vector in source.items()}, {}, ""
    if model is None:
        raise InputError("Pass the model that the optimiser trains, which has the order of its parameters.")
    return step_vectors(source, model, params)


def _project(basis: Tensor, vectors: Sequence[Tensor]) -> tuple[Array, Array, Array]:
    """Components of unit vectors in a subspace and norms of the rest, in float64; nan for vectors that are zero.

    Returns
    -------
    coefficients : array (n, k)
        Inner products with the columns of Q in basis = Q R.
    rest : array (n,)
        Norms of the components orthogonal to the basis.
    norms : array (n,)
        Norms of the vectors that are given.
    """
    device = basis.device
    # Each vector divided by its largest entry, so that squares neither overflow nor underflow.
    scales = [float(vector.abs().max()) or 1.0 for vector in vectors]
    k, n = basis.shape[1], len(vectors)
    gram = torch.zeros(k, k, dtype=torch.float64, device=device)
    cross = torch.zeros(k, n, dtype=torch.float64, device=device)

    def pieces(begin: int) -> tuple[Tensor, Tensor]:
        rows = slice(begin, begin + CHUNK)
        scaled = [vector[rows].to(device).double() / s for vector, s in zip(vectors, scales, strict=True)]
        return basis[rows].double(), torch.stack(scaled, 1)

    for begin in range(0, basis.shape[0], CHUNK):
        part, values = pieces(begin)
        gram += part.T @ part
        cross += part.T @ values
    factor = torch.linalg.cholesky(gram)
    coefficients = torch.linalg.solve_triangular(factor, cross, upper=False)
    weights = torch.linalg.solve_triangular(factor.T, coefficients, upper=True)
    rest = torch.zeros(n, dtype=torch.float64, device=device)
    for begin in range(0, basis.shape[0], CHUNK):
        part, values = pieces(begin)
        rest += (values - part @ weights).square().sum(0)
    inside, outside = coefficients.T.cpu().numpy(), rest.sqrt().cpu().numpy()
    lengths = np.hypot(np.linalg.norm(inside, axis=1), outside)
    unit = np.where(lengths > 0, lengths, np.nan)
    return inside / unit[:, None], outside / unit, lengths * np.array(scales)
