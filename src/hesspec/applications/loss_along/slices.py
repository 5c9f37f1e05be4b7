"""The loss along directions through the weights of a model, and its expansion to second order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hesspec.applications.loss_along.record import LossAlong
from hesspec.backend.numbers import is_whole
from hesspec.backend.text import kind_of
from hesspec.errors import InputError
from hesspec.measure.eigenpairs import Eigenpairs
from hesspec.operators import Hessian
from hesspec.operators.model.ambient import differentiable_kernels, neutral, preserved_randomness
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.sample_gradients import mean_gradient
from hesspec.spectra.record import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["loss_along", "plot_loss_along"]


def loss_along(
    hessian: Hessian,
    directions: Eigenpairs | Tensor,
    *,
    reach: float | Sequence[float] | None = None,
    points: int = 33,
    plane: bool = False,
) -> LossAlong:
    r"""Compute the loss along directions, next to the quadratic that it follows near the weights.

    For each unit direction d and displacements t in [-reach, reach],

    .. math:: L(\theta + t d) = L(\theta) + t\, g^\top d + \frac{t^2}{2} d^\top \mathrm{Hess}\, d + O(t^3),

    with the gradient g of the loss on all data. All terms are computed: the loss by `points` passes over the data for
    each direction, the slope by one gradient, the curvature by one product with the Hessian. The model is not changed:
    the loss is evaluated on a copy, as products are.

    Parameters
    ----------
    hessian : Hessian
        Hessian of the loss, which knows the model, the data and the parameters.
    directions : Eigenpairs or Tensor (p, k)
        Result of `hesspec.eigenpairs`, whose eigenvectors are the directions, or directions as columns, which are
        scaled to unit length; a vector (p,) is one direction.
    reach : float or sequence of k floats, optional
        Largest displacement, in units of the parameters. By default, for each direction that at which slope and
        curvature, if they have the same sign, change the loss by as much as its own absolute value.
    points : int
        Odd number of displacements, at least 3.
    plane : bool
        Whether to compute the loss on the plane of the first two directions too, at `points` squared points.

    Returns
    -------
    LossAlong

    Raises
    ------
    ValueError
        If the matrix is not a Hessian; if directions have another length than the parameters, are zero or not finite;
        if `points` or `reach` is out of range, or no reach can be chosen as the loss is zero or constant; if a plane is
        requested with fewer than two directions.
    NonFiniteError
        If gradient or product contain NaN or infinity. A loss that is not finite away from the weights is kept.

    Notes
    -----
    Slices of the loss of a network are shown by Goodfellow, Vinyals and Saxe (arXiv 1412.6544) and Li et al.
    (arXiv 1712.09913); drawing the quadratic with the gradient's term next to them, and the default reach, are
    ours. In float32, differences of the loss below about 1e-7 of it are rounding.

    Examples
    --------
    >>> import torch, hesspec
    >>> _ = torch.manual_seed(0)
    >>> data = [(torch.randn(50, 4), torch.randn(50, 1))]
    >>> hessian = hesspec.Hessian(torch.nn.Linear(4, 1).double(), torch.nn.MSELoss(), data)
    >>> pairs = hesspec.eigenpairs(hessian, count=2)
    >>> found = hesspec.loss_along(hessian, pairs)  # the loss of a linear model is quadratic
    >>> bool(found.departures.max() < 1e-12)
    True
    """
    if not isinstance(hessian, Hessian):
        raise InputError(
            f"The matrix is {kind_of(hessian)}; the quadratic that a loss follows is that of its Hessian. Pass "
            "a hesspec.Hessian."
        )
    if not is_whole(points, 3) or points % 2 == 0:
        raise InputError(f"points is {points!r}; it must be an odd integer of at least 3, so that 0 is among them.")
    units = _units(directions, hessian)
    k = units.shape[1]
    if plane and k < 2:
        raise InputError("A plane needs two directions, and there is one.")
    risk = hessian._risk  # noqa: SLF001 - shares the operator's risk, as in class_structure
    hessian.expect_products(k)
    with neutral():
        slopes = (units.double().T @ mean_gradient(risk).double()).cpu().numpy()
        curvatures = (units.double().T @ (hessian @ units).double()).cpu().numpy()
        centre = _loss_at(risk, torch.zeros_like(units[:, 0]))
        reaches = _reaches(reach, centre, slopes, np.diag(curvatures))
        grid = np.linspace(-1, 1, points)
        displacements = reaches[:, None] * grid

        def loss(*entries: float) -> float:
            columns = units[:, : len(entries)].double() @ torch.tensor(entries, dtype=torch.float64).to(units.device)
            return _loss_at(risk, columns)

        losses = np.array(
            [[_loss_at(risk, float(t) * units[:, j].double()) for t in displacements[j]] for j in range(k)]
        )
        on_plane = np.empty((0, 0))
        if plane:
            on_plane = np.array([[loss(float(s), float(t)) for t in displacements[1]] for s in displacements[0]])
    known = hessian.attributes
    return LossAlong(
        risk=centre,
        displacements=displacements,
        losses=losses,
        slopes=slopes,
        curvatures=(curvatures + curvatures.T) / 2,
        plane_losses=on_plane,
        attributes={name: known[name] for name in ("loss", "samples", "dtype") if name in known},
    )


def plot_loss_along(hessian: Hessian, directions: Eigenpairs | Tensor, **options: Any) -> Figure:
    """Plot the loss along directions with the quadratic that it should follow; see `loss_along`.

    Parameters
    ----------
    hessian, directions
        See `loss_along`.
    **options
        Further arguments of `loss_along`: `reach`, `points`, `plane`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, NonFiniteError
        See `loss_along`.
    """
    return loss_along(hessian, directions, **options).plot()


def _units(directions: Eigenpairs | Tensor, hessian: Hessian) -> Tensor:
    """Directions of unit length as columns, (p, k)."""
    given = directions.vectors if isinstance(directions, Eigenpairs) else directions
    if not isinstance(given, Tensor):
        raise InputError(f"directions is {kind_of(given)}; pass the result of hesspec.eigenpairs, or a tensor (p, k).")
    columns = given.detach()
    columns = (columns[:, None] if columns.dim() == 1 else columns).to(hessian.device, hessian.dtype)
    p = hessian.shape[0]
    if columns.dim() != 2 or columns.shape[0] != p or not columns.shape[1]:
        raise InputError(f"directions has shape {tuple(given.shape)}; it must be (p, k) with p = {p:,} parameters.")
    # In units of the largest entry, as squares of tiny or huge ones are zero or infinite.
    largest = columns.abs().amax(0)
    if not bool(torch.isfinite(largest).all()) or bool((largest == 0).any()):
        raise InputError("A direction is zero, or contains NaN or infinity.")
    scaled = columns / largest
    lengths: Tensor = torch.linalg.vector_norm(scaled, dim=0)
    return scaled / lengths


def _reaches(reach: float | Sequence[float] | None, risk: float, slopes: Array, curvatures: Array) -> Array:
    """Largest displacement of each direction, (k,)."""
    k = slopes.size
    if reach is not None:
        given = np.broadcast_to(np.asarray(reach, dtype=float), (k,)) if np.ndim(reach) == 0 else np.asarray(reach)
        if given.shape != (k,) or not (np.isfinite(given) & (given > 0)).all():
            raise InputError(
                f"reach is {reach!r}; it must be a positive number, or {k} of them, one for each direction."
            )
        return np.array(given, dtype=float)
    slope, level = np.abs(slopes), abs(risk)
    # The positive root of slope t + |curvature| t^2 / 2 = level, in the form that does not cancel.
    below = slope + np.sqrt(slope**2 + 2 * np.abs(curvatures) * level)
    if not math.isfinite(level) or level == 0 or not (below > 0).all():
        raise InputError(
            f"The loss is {risk:g} and its slopes and curvatures are as small as {below.min():g}, which says nothing "
            "about how far to look; pass reach=."
        )
    return np.asarray(2 * level / below)


def _loss_at(risk: EmpiricalRisk, displacement: Tensor) -> float:
    """Loss on all data of all ranks with the parameters displaced by a vector (p,)."""
    own = risk.parameters
    # In float64, as float32 would round the displacement once more.
    here = torch.cat([value.reshape(-1) for value in own.values])
    moved = own.split((here.double() + displacement.double()).to(own.dtype))
    place = risk.at(moved)
    values, total = [], 0.0

    def add() -> None:
        nonlocal total
        for batch in place.batches:
            predict, loss = place.functions(place.fixed, batch.inputs, batch.targets)
            # Some models differentiate within their forward pass.
            with torch.enable_grad(), preserved_randomness(), differentiable_kernels():
                named = place.leaves()
                values.append(batch.share * loss(predict(named), named).detach().double())
        # Each number that is read waits for the device: one for all batches.
        total = sum(torch.stack(values).tolist()) if values else 0.0

    place.ranks.together(add)
    return place.ranks.total(total)
