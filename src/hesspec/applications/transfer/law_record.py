"""The power law of transferred data, as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hesspec.backend.number_text import three_digits
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record
from hesspec.spectra.sampling import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TransferLaw"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TransferLaw(Record):
    r"""Power law of the data that pre-training is worth, from `hesspec.fit_transfer_law`.

    .. math:: D_T = k D_F^\alpha N^\beta

    D_F is the data of fine-tuning, N the number of parameters, and D_T the additional data with which a network of the
    same N from scratch reaches the same loss; equation (1.1) of Hernandez et al., "Scaling Laws for Transfer" (arXiv
    2102.01293). D_E = D_F + D_T is the effective data.

    Attributes
    ----------
    coefficients, lower, upper : array (3,)
        ln k, alpha and beta, and their intervals; those of a given law are equal to it.
    method : str
        "joint" or "fits", as in `fit_transfer_law`; "given" for a law from `TransferLaw.of`.
    confidence : float
        Level of the intervals.
    r_squared : float
        Share of the variance of ln D_T that the law explains.
    unit : str
        Unit of D_F and D_T, such as "samples" or "characters"; k depends on it.
    point_sizes, point_parameters, point_transferred : array (n,)
        D_F, N and D_T of all points, including those with D_T <= 0, which are not in the fit.
    """

    KIND: ClassVar[str] = "transfer law"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_transfer_law_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "coefficients": ("coefficient",),
        "lower": ("coefficient",),
        "upper": ("coefficient",),
        "point_sizes": ("point",),
        "point_parameters": ("point",),
        "point_transferred": ("point",),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("coefficients", "point_sizes", "point_parameters")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("point_sizes", "point_parameters")

    coefficients: Array
    lower: Array
    upper: Array
    method: str
    confidence: float
    r_squared: float
    unit: str
    point_sizes: Array
    point_parameters: Array
    point_transferred: Array

    @classmethod
    def of(cls, k: float, alpha: float, beta: float, *, unit: str = "samples") -> Self:
        """Return a law with known coefficients, such as published ones.

        Parameters
        ----------
        k : float
            Prefactor, positive.
        alpha, beta : float
            Exponents of D_F and of N.
        unit : str
            Unit of D_F and D_T.

        Raises
        ------
        ValueError
            If k is not positive, or beta is 0.

        Examples
        --------
        Text to Python code, as published, in characters:

        >>> import hesspec
        >>> law = hesspec.TransferLaw.of(1.9e4, 0.18, 0.38, unit="characters")
        >>> round(float(law.multiplier(3e5, 4e7)), 1)
        475.6
        """
        if not (k > 0 and math.isfinite(k)) or beta == 0:
            raise ValueError(f"A transfer law has k > 0 and beta other than 0, not k = {k!r} and beta = {beta!r}.")
        given, none = np.array([math.log(k), alpha, beta]), np.empty(0)
        return cls(
            coefficients=given,
            lower=given,
            upper=given,
            method="given",
            confidence=0.95,
            r_squared=1.0,
            unit=unit,
            point_sizes=none,
            point_parameters=none,
            point_transferred=none,
        )

    def _coordinates(self) -> dict[str, Any]:
        return {"coefficient": ["ln k", "alpha", "beta"]}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.coefficients.size == 3, f"It has {self.coefficients.size} coefficients, and should have 3.")
        inside = (self.lower <= self.coefficients) & (self.coefficients <= self.upper)
        refuse_unless(inside.all(), "Its coefficients are outside of their intervals.")
        refuse_unless(0 < self.confidence < 1, f"Its confidence is {self.confidence}.")
        refuse_unless((self.point_sizes > 0).all() and (self.point_parameters > 0).all(), "Its sizes are not positive.")

    @property
    def k(self) -> Estimate:
        """Prefactor with its interval, in units of D_F^(1 - alpha)."""
        with np.errstate(over="ignore"):
            return Estimate(*(float(np.exp(each[0])) for each in (self.coefficients, self.lower, self.upper)))

    @property
    def alpha(self) -> Estimate:
        """Exponent of the data of fine-tuning, with its interval."""
        return self._exponent(1)

    @property
    def beta(self) -> Estimate:
        """Exponent of the number of parameters, with its interval."""
        return self._exponent(2)

    def _exponent(self, place: int) -> Estimate:
        return Estimate(*(float(each[place]) for each in (self.coefficients, self.lower, self.upper)))

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """Which points are in the fit, (n,): those with D_T > 0."""
        return np.isfinite(self.point_transferred) & (self.point_transferred > 0)

    @property
    def left_out(self) -> int:
        """Number of points that are not in the fit, as D_T is not positive or unknown."""
        return int((~self.used).sum())

    def transferred(self, data: npt.ArrayLike, parameters: npt.ArrayLike) -> Array:
        """Return the transferred data D_T.

        Parameters
        ----------
        data : array_like
            D_F, positive.
        parameters : array_like
            N, positive; of a shape that broadcasts.

        Returns
        -------
        array
            D_T, in the unit of D_F.
        """
        return np.asarray(np.exp(self._log_ratio(data, parameters)) * np.asarray(data, np.float64))

    def multiplier(self, data: npt.ArrayLike, parameters: npt.ArrayLike) -> Array:
        """Return (D_F + D_T) / D_F: how many times as much data pre-training amounts to; see `transferred`.

        Equation (1.2) of the paper approximates it by D_T / D_F.
        """
        return np.asarray(1 + np.exp(self._log_ratio(data, parameters)))

    def fraction(self, data: npt.ArrayLike, parameters: npt.ArrayLike) -> Array:
        """Return D_T / D_E, the share of the effective data that is transferred, in [0, 1]; see `transferred`."""
        return np.asarray(1 / (1 + np.exp(-self._log_ratio(data, parameters))))

    def n_star(self, data: npt.ArrayLike) -> Array:
        """Return N*, the number of parameters at which D_T = D_F.

        Parameters
        ----------
        data : array_like
            D_F, positive.
        """
        log_k, alpha, beta = self.coefficients
        return np.asarray(np.exp(((1 - alpha) * np.log(np.asarray(data, np.float64)) - log_k) / beta))

    def _log_ratio(self, data: npt.ArrayLike, parameters: npt.ArrayLike) -> Array:
        """ln(D_T / D_F), the logit of D_T / D_E."""
        sizes, count = np.asarray(data, np.float64), np.asarray(parameters, np.float64)
        for name, given in (("data", sizes), ("parameters", count)):
            if not (given > 0).all():
                raise ValueError(f"{name} must be positive, but it is as low as {given.min():.6g}.")
        log_k, alpha, beta = self.coefficients
        return np.asarray(log_k + (alpha - 1) * np.log(sizes) + beta * np.log(count))

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        law = f"D_T = k D_F^alpha N^beta, in {self.unit}"
        if self.method == "given":
            return {"law": law, **{name: f"{getattr(self, name).value:.4g}" for name in ("k", "alpha", "beta")}}
        left = f" (left out: {self.left_out}, where D_T is not positive)" if self.left_out else ""
        return {
            "law": law,
            **{name: str(getattr(self, name)) for name in ("k", "alpha", "beta")},
            "intervals": f"{100 * self.confidence:g}%, {self.method}",
            "R squared": f"{self.r_squared:.4f}",
            "points": f"{int(self.used.sum())}{left}",
        }

    def tables(self) -> list[TextTable]:
        """Points, and the law at each."""
        if not self.point_sizes.size:
            return []
        law = self.transferred(self.point_sizes, self.point_parameters)
        rows = [
            (
                f"{size:,.10g}",
                f"{count:,.10g}",
                three_digits(found) if math.isfinite(found) else "–",
                three_digits(fitted),
                "" if used else "left out",
            )
            for size, count, found, fitted, used in zip(
                self.point_sizes, self.point_parameters, self.point_transferred, law, self.used, strict=True
            )
        ]
        return [TextTable(f"Points, in {self.unit}", ("D_F", "N", "D_T", "law", ""), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot D_T against D_F for each N, and the law.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If the law was given, not fitted.
        """
        from hesspec.applications.transfer.figure import plot_law  # noqa: PLC0415 - asked only here

        return plot_law(self, ax)
