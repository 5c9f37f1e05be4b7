"""Result of a measurement: spectral measure, resolved eigenvalues with error bounds, and a record of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.matrices import symbol_of
from hesspec.spectra.consistency import check_spectrum
from hesspec.spectra.densities import density, log_density
from hesspec.spectra.distribution import bulk_edge_estimates, bulk_range, cdf, cdf_bracket, count_negative
from hesspec.spectra.logged import Logged
from hesspec.spectra.outliers import LEVEL, outlier_p_values
from hesspec.spectra.record import Array, Integers, Record, Sketches
from hesspec.spectra.sampling import Estimate, bulk_bounds, interval, mean_bounds, samples, standard_error
from hesspec.spectra.views import dataframe_of, summary_of, tables_of, units_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hesspec.backend.shown import TextTable

__all__ = ["Spectrum"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Spectrum(Logged, Record):
    """Spectral measure of a symmetric operator on R^p, from one Krylov run.

    The measure is (1/p) sum_i delta(x - lambda_i). Its estimate has one atom for every resolved eigenvalue and the
    Gauss quadrature nodes of the bulk; their weights sum to 1. Arrays are float64 and must not be modified.

    Parameters
    ----------
    dimension : int
        Dimension p of the space.
    eigenvalues : array (k,)
        Resolved eigenvalues, largest absolute value first.
    error_bounds : array (k,)
        Error bounds, |true - given| <= bound, in a one-to-one pairing with eigenvalues of the operator that the
        products define; rounding in a float32 forward pass of a network changes that operator itself. For n known
        copies of an eigenvalue, the bound holds for each, and 1/sqrt(n) of it for the root mean square of their
        distances.
    eigenvalue_weights : array (k,)
        Their shares of the measure: 1/p each, or a multiple of it if the multiplicity is known (`exact`).
    eigenvalue_sampled : array (k,)
        Weights that the first probe measured for eigenvalues that may have further copies, which it cannot see; 0 for
        those whose copies are all known.
    eigenvector_sketches : float32 array (s, d)
        Random projections to d numbers, the same in every run, of the unit eigenvectors of the first s `eigenvalues`,
        by which `eigenvector_overlaps` compares spectra (see `hesspec.krylov.sketch`). Empty if there are none.
    bulk_nodes, bulk_weights : array (b,)
        Quadrature of the rest of the measure, averaged over probes.
    bulk_probe : int array (b,)
        Probe of each bulk node.
    ritz_values, ritz_weights, ritz_bounds : array (r,)
        Raw Ritz values, quadrature weights (sum 1 for each probe) and residual bounds of every probe. Probes after the
        first start orthogonal to the resolved eigenvectors and sample the deflated operator.
    ritz_probe : int array (r,)
        Probe of each Ritz value.
    norm : float
        Largest absolute Ritz value, the estimate of the spectral norm ||A||.
    rounding : float
        Rounding floor of eigenvalues, absolute, which is included in every bound.
    probes, steps, matvecs : int
        Number of probes, Lanczos steps of the first probe, and total number of products with the operator.
    exact : bool
        Whether the Krylov spaces filled R^p, so that this is the whole spectrum with its multiplicities.
    stopped : str
        Why the run ended, as text.
    xtrace, xtrace_error : float
        Estimate of the trace by further products (XTrace), and its standard error, if it was asked for.
    xtrace_matvecs : int
        Number of these products, which are not part of `matvecs`; 0 without such an estimate.
    attributes : mapping of str to str, int, float or bool
        Description of the measurement: matrix, seed, dtype, seconds and so on.

    Notes
    -----
    The variance-reduced (deflated) form of stochastic Lanczos quadrature: Bhattacharjee, Jayaram, C. Musco, C. Musco
    and Ray, "Improved Spectral Density Estimation via Explicit and Implicit Deflation" (2024).
    """

    KIND: ClassVar = "spectrum"
    FORMAT_ATTRIBUTE: ClassVar = "hesspec_format"
    FORMAT: ClassVar = 2
    DIMENSIONS: ClassVar = {
        "eigenvalues": ("resolved",),
        "error_bounds": ("resolved",),
        "eigenvalue_weights": ("resolved",),
        "eigenvalue_sampled": ("resolved",),
        "eigenvector_sketches": ("sketched", "sketch"),
        "bulk_nodes": ("bulk",),
        "bulk_weights": ("bulk",),
        "bulk_probe": ("bulk",),
        "ritz_values": ("ritz",),
        "ritz_weights": ("ritz",),
        "ritz_bounds": ("ritz",),
        "ritz_probe": ("ritz",),
    }
    FINITE: ClassVar = (
        "eigenvalues",
        "eigenvalue_weights",
        "eigenvector_sketches",
        "bulk_nodes",
        "bulk_weights",
        "ritz_values",
        "ritz_weights",
    )
    NOT_NEGATIVE: ClassVar = (
        "error_bounds",
        "eigenvalue_weights",
        "bulk_weights",
        "ritz_weights",
        "ritz_bounds",
        "norm",
        "rounding",
        "xtrace_error",
    )

    dimension: int
    eigenvalues: Array
    error_bounds: Array
    eigenvalue_weights: Array
    bulk_nodes: Array
    bulk_weights: Array
    bulk_probe: Integers
    ritz_values: Array
    ritz_weights: Array
    ritz_bounds: Array
    ritz_probe: Integers
    norm: float
    rounding: float
    probes: int
    steps: int
    matvecs: int
    exact: bool
    stopped: str
    xtrace: float = 0.0
    xtrace_error: float = 0.0
    xtrace_matvecs: int = 0
    eigenvector_sketches: Sketches = field(default_factory=lambda: np.empty((0, 0), np.float32))
    eigenvalue_sampled: Array = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        """Treat all resolved eigenvalues as sampled if nothing is stored, as in files of earlier versions."""
        if self.eigenvalue_sampled.shape != self.eigenvalues.shape:
            object.__setattr__(self, "eigenvalue_sampled", self._measured_weights())

    def _measured_weights(self) -> Array:
        """Weights of resolved eigenvalues from the first probe, by its nearest Ritz values; 0 if exact."""
        first = self.ritz_probe == 0
        if self.exact or not first.any():
            return np.zeros(self.eigenvalues.size)
        nearest = np.abs(self.ritz_values[first] - self.eigenvalues[:, None]).argmin(axis=1)
        return np.asarray(self.ritz_weights[first][nearest])

    def check(self) -> None:
        """Raise ValueError if values are inconsistent; shapes and signs have been checked before."""
        check_spectrum(self)

    def _derived(self) -> dict[str, tuple[str, npt.NDArray[np.generic]]]:
        return {"is_outlier": ("resolved", self.is_outlier), "outlier_p_values": ("resolved", self.outlier_p_values)}

    def _units(self) -> dict[str, str]:
        return units_of(self)

    # The measure ------------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Array:
        """Atoms of the whole estimated measure, ascending, shape (k + b,)."""
        return self._measure()[0]

    @property
    def weights(self) -> Array:
        """Weights of `nodes`, shape (k + b,); they sum to 1."""
        return self._measure()[1]

    def _measure(self) -> tuple[Array, Array]:
        nodes = np.concatenate([self.eigenvalues, self.bulk_nodes])
        order = np.argsort(nodes, kind="stable")
        return nodes[order], np.concatenate([self.eigenvalue_weights, self.bulk_weights])[order]

    @property
    def outliers(self) -> Array:
        """Resolved eigenvalues that stand apart from the bulk, largest absolute value first."""
        return self.eigenvalues[self.is_outlier]

    @property
    def is_outlier(self) -> npt.NDArray[np.bool_]:
        """Whether each of `eigenvalues` is an outlier, shape (k,): its `outlier_p_values` is at most 0.05 (`LEVEL`)."""
        return self.outlier_p_values <= LEVEL

    @cached_property
    def outlier_p_values(self) -> Array:
        """P-values of `eigenvalues`, shape (k,): how often a bulk without outliers shows one as clear.

        The rule of `hesspec.spectra.outliers` compares the gap between the eigenvalue and the bulk with the spacings of
        the adjacent bulk. For another level, the outliers are those with `spectrum.outlier_p_values <= level`. Spectra
        from `hesspec.steady_outliers` have those of three checkpoints together.
        """
        return outlier_p_values(self)

    def with_outlier_p_values(self, p_values: Array) -> Spectrum:
        """Return the same spectrum with these p-values, shape (k,), from which outliers, bulk and density follow.

        They are not saved: a file has the measurement, from which its own p-values are computed again.
        """
        copy = replace(self)
        copy.__dict__["outlier_p_values"] = np.asarray(p_values, dtype=np.float64)
        return copy

    @property
    def bulk_edges(self) -> tuple[float, float]:
        """Quantiles that enclose 99% of the bulk, see `bulk_edge_estimates`; (nan, nan) if there is no bulk."""
        low, high = self.bulk_edge_estimates
        return low.value, high.value

    @property
    def bulk_edge_estimates(self) -> tuple[Estimate, Estimate]:
        """Quantiles of 0.5% and 99.5% of the bulk (the measure without outliers), with their intervals.

        They hardly depend on whether one eigenvalue or ten are outliers. Intervals are the 95% intervals of
        `cdf_bracket` for the operator; if a quantile is beyond its range, they end at the outermost point of the bulk.
        """
        return bulk_edge_estimates(self)

    @property
    def bulk_range(self) -> tuple[float, float]:
        """Smallest and largest point of the bulk, the range of `density`; (nan, nan) if there is no bulk.

        A smallest point that is zero up to rounding is replaced by zero, as for a positive semi-definite operator.
        """
        return bulk_range(self)

    def expectation(self, function: Callable[[Array], Array]) -> tuple[float, float]:
        """Compute the mean of a function of the eigenvalues under the measure, and its standard error.

        Parameters
        ----------
        function : callable
            Maps an array of eigenvalues to an array of the same shape.

        Returns
        -------
        mean, standard_error : float
            For a probe that is uniform on the sphere of R^q, Var[v^T f(A) v] = 2 Var_mu(f) / (q + 2) with the spectral
            measure mu; here q = p - k, as resolved eigenvalues are not sampled. The standard error does not need a
            second probe, decreases like 1/sqrt(p), and is zero if the spectrum is exact. It does not include the error
            of the quadrature.
        """
        mean = self.eigenvalue_weights @ function(self.eigenvalues) + self.bulk_weights @ function(self.bulk_nodes)
        return float(mean), float(standard_error(samples(self, doubtful=False), function))

    # Densities and distribution ---------------------------------------------------------------------------------------

    def density(self, grid: Array | None = None, width: float | None = None) -> xr.Dataset:
        """Compute the density of the bulk (the measure without outliers), with a Gaussian for each of its points.

        It integrates to the share of the bulk and is zero outside `bulk_range`: the parts of Gaussians beyond are
        reflected.

        Parameters
        ----------
        grid : array (n,), optional
            Where to evaluate, in units of eigenvalues. By default 1,024 points over the bulk.
        width : float, optional
            Standard deviation of the Gaussians, in units of eigenvalues. By default each is 2 / sqrt(8 ln 1.25) = 1.5
            times as wide as the distance to its neighbours (twice the ratio of arXiv 1811.07062), but at least as wide
            as the grid. Points that may be zero are at most as wide as their residual bound, so that zero eigenvalues
            form a peak.

        Returns
        -------
        xarray.Dataset
            `density` and `standard_error` over `eigenvalue`, infinite where they exceed float64. Attributes:
            `width`, the median width; `zero_share`, the share of all eigenvalues that may be zero within their bounds,
            and `zero_reach`, the largest such bound. A spectrum without a bulk (all eigenvalues are outliers) has
            density zero.
        """
        return density(self, grid, width)

    def log_density(self) -> xr.Dataset:
        """Compute the density of log10 |lambda| of the bulk, in total and for each sign, as far down as it is resolved.

        Kernels are those of `density`, or 5% of |lambda| wide if that is more, up to the end of `bulk_range`. Nothing
        is known below the width of the point closest to zero.

        Returns
        -------
        xarray.Dataset
            `density`, its parts `positive` and `negative`, and `standard_error`, all in shares of the eigenvalues per
            decade, over `log10_magnitude` (512 points; none if there is no bulk).
        """
        return log_density(self)

    def cdf(self, x: Array | None = None) -> xr.Dataset:
        """Compute the cumulative distribution of the estimated measure, F(x) = share of eigenvalues <= x.

        Parameters
        ----------
        x : array (n,), optional
            Points of evaluation; `nodes` by default.

        Returns
        -------
        xarray.Dataset
            `cdf` and its `standard_error` over `eigenvalue`.
        """
        return cdf(self, x)

    def cdf_bracket(self, x: Array | None = None) -> xr.Dataset:
        """Compute a rigorous bracket of the CDF of the first probe's spectral measure, v^T 1[A <= x] v.

        Chebyshev-Markov-Stieltjes: between Ritz values i and i + 1 the CDF is at least the sum of the weights before i
        and at most that up to i + 1 (Szego, Orthogonal Polynomials, 3.41). With rounding, the run is that of A + E with
        ||E|| <= `rounding`; by Davis and Kahan this moves the spectral projector of a half-line by at most ||E|| /
        delta outside a shift delta, so nodes are shifted by delta = sqrt(rounding ||A||) and sums by 2 s + s^2, s =
        ||E|| / delta.

        Parameters
        ----------
        x : array (n,), optional
            Points of evaluation; the first probe's Ritz values by default.

        Returns
        -------
        xarray.Dataset
            `lower` and `upper` over `eigenvalue`; `operator_lower` and `operator_upper`, which enclose the CDF of the
            operator itself at each point with a probability of 95%, whatever the multiplicities: v^T 1[A <= x] v is a
            Beta(k/2, (p - k)/2) variable if k eigenvalues are at most x.
        """
        return cdf_bracket(self, x)

    # Functionals ------------------------------------------------------------------------------------------------------

    def moment(self, order: int) -> float:
        """Compute the mean of lambda^order over all p eigenvalues, in units of eigenvalues to that power.

        Infinite, or zero, if that power of an eigenvalue is outside the range of float64.
        """
        nodes, weights = self._measure()
        # Powers of numbers up to 1: infinities of both signs would sum to NaN.
        exponent = int(np.frexp(np.abs(nodes).max())[1])
        mean = weights @ np.ldexp(nodes, -exponent) ** order
        with np.errstate(over="ignore"):
            return float(np.ldexp(mean, exponent * order))

    @property
    def trace(self) -> float:
        """Sum of all p eigenvalues: `xtrace`, or else p times the mean of the measure.

        Infinite if it exceeds the largest float64.
        """
        if self.xtrace_matvecs:
            return self.xtrace
        return self.dimension * self.moment(1)

    @property
    def trace_standard_error(self) -> float:
        """Standard error of `trace`: `xtrace_error`, or else that over probes; zero if the spectrum is exact.

        It is defined by the 95% interval of the trace, as half of the larger distance from `trace` to its ends. It
        agrees with that of `expectation` if many eigenvalues contribute. It is larger if resolved eigenvalues may have
        further copies, which one probe cannot see, and if only a few eigenvalues determine the error (Student's t).
        Rounding, at most p times `rounding`, is not included. Infinite if it exceeds the largest float64.
        """
        if self.xtrace_matvecs:
            return self.xtrace_error
        if self.exact:
            return 0.0
        mean = self.moment(1)
        lower, upper = interval(samples(self, doubtful=True), lambda values: values)
        return self.dimension * max(mean - lower, upper - mean) / 2

    @property
    def trace_error(self) -> float:
        """Error of `trace`: that of the 95% interval, or, if the spectrum is exact, p times the largest error bound."""
        if self.exact and not self.xtrace_matvecs:
            return float(self.dimension * max(self.rounding, *self.error_bounds))
        return 2 * self.trace_standard_error

    @property
    def effective_rank(self) -> float:
        """Sum of |lambda| over the largest |lambda| (Koltchinskii and Lounici 2017); 0 for the zero operator."""
        nodes, weights = self._measure()
        largest = np.abs(nodes).max()
        return float(self.dimension * (weights @ (np.abs(nodes) / largest))) if largest > 0 else 0.0

    @property
    def is_positive(self) -> bool:
        """Whether the operator is positive semi-definite by construction.

        That is the case if its attribute "positive_semidefinite" says so, as that of `GaussNewton` for a convex loss
        does, and no eigenvalue is negative beyond its error.
        """
        declared = self.attributes.get("positive_semidefinite") is True
        return declared and not bool((self.eigenvalues < -self.error_bounds).any())

    @property
    def num_negative(self) -> Estimate:
        """Number of negative eigenvalues, with its interval; none if the operator `is_positive`.

        The interval is wide if many eigenvalues are zero, or closer to zero than the quadrature resolves, as their sign
        is unknown.
        """
        return count_negative(self)

    # Bounds of the whole measure --------------------------------------------------------------------------------------

    @property
    def wasserstein_bound(self) -> float:
        """Bound on the Wasserstein-1 distance to the true spectral measure, in units of eigenvalues, at 95% confidence.

        It is the sum of three terms: resolved eigenvalues, sum_i bound_i / p; quadrature of the bulk, by
        Chebyshev-Markov-Stieltjes between its nodes (Chen, Trogdon and Ubaru, arXiv 2105.06595); sampling by the
        probes, the mean integral of sqrt(Var F_v) dx with Levy's inequality for the deviation from it. Conditions: no
        eigenvalue of the bulk lies beyond its outermost node by more than that node's residual bound, and resolved
        eigenvalues are simple.
        """
        resolved = float(self.eigenvalue_weights @ mean_bounds(self))
        return resolved + bulk_bounds(self)[0]

    @property
    def kolmogorov_smirnov_bound(self) -> float:
        """Bound on sup |F_true - F_estimated| away from resolved eigenvalues, at 95% confidence; dimensionless.

        The quadrature term is that of `wasserstein_bound`; sampling is bounded by the sub-Gaussian tail of Beta
        variables (Marchal and Arbel 2017), over all eigenvalues at once. The conditions are the same; within the error
        bound of a resolved eigenvalue, the uncertainty of the CDF is larger by 1/p.
        """
        return bulk_bounds(self)[1]

    # Views ------------------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """Return every atom of the measure as a row.

        Returns
        -------
        pandas.DataFrame
            Columns `eigenvalue`, `error_bound` (NaN for quadrature nodes), `weight` and `kind` ("outlier", "resolved"
            or "bulk"); resolved eigenvalues first, largest absolute value first, then the bulk ascending.
        """
        return dataframe_of(self)

    def summary(self) -> dict[str, str]:
        """Names and values as text, for `repr`, notebooks, the terminal and the report."""
        return summary_of(self)

    def tables(self) -> list[TextTable]:
        """Table of the outliers with their error bounds."""
        return tables_of(self)

    def plot(
        self,
        kind: Literal["overview", "linear", "log", "scree", "cdf"] = "overview",
        *,
        ax: Axes | None = None,
        width: float | None = None,
        title: str | None = None,
    ) -> Figure:
        """Plot the spectrum: bulk, resolved eigenvalues, and outliers with error bars.

        Notebooks display the figure; in a script, import `matplotlib.pyplot` as plt before and call `plt.show()`, or
        save it: `spectrum.plot("scree", width=3.25).savefig("scree.pdf")`.

        Parameters
        ----------
        kind, ax, width, title
            See `hesspec.plot.plot_spectrum`: density on a linear and on a logarithmic axis ("overview"), one of these,
            |lambda| against its rank ("scree"), or the distribution function ("cdf").

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If an argument is out of range.
        """
        from hesspec.plot import literal, plot_spectrum  # noqa: PLC0415 - the layer above, asked only here

        label = literal(symbol_of(str(self.attributes.get("matrix", "operator"))))
        return plot_spectrum({label: self}, kind=kind, ax=ax, width=width, title=title)
