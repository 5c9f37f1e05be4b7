"""The result of a measurement: a spectral measure with resolved eigenvalues, their error bounds, and what was run."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec import _fields
from hesspec._netcdf import format_of, read_dataset, sealed, write_dataset
from hesspec._outliers import outlier_mask
from hesspec._text import printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Estimate", "Spectrum", "load"]

Array = npt.NDArray[np.float64]

GRID_POINTS = 1024
MARGIN = 0.05
# Half-way between two nodes of equal weight the kernels of width `spacing / sqrt(8 ln KAPPA)` have fallen to 1 / KAPPA
# of their peak; 1.25 is the value of the code released with arXiv 1811.07062 (its text has 3, which leaves ripples).
KAPPA = 1.25
# On the logarithmic axis: points, narrowest kernel relative to |lambda|, and spacing relative to ||A|| below which
# nodes are taken for one.
LOG_POINTS = 512
RELATIVE_WIDTH = 0.05
LOG_FLOOR = 1e-8
CONFIDENCE = 0.95
FORMAT = 2


class Estimate(NamedTuple):
    """A number that was estimated, with the interval in which the true one lies.

    The interval is the rigorous bracket of the quadrature, widened by two standard errors of the probes' sampling.
    """

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """Value and interval to four digits."""
        return f"{self.value:.4g} [{self.lower:.4g}, {self.upper:.4g}]"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Spectrum:
    """Spectral measure of a symmetric operator on R^p, as one Krylov run gives it.

    The measure is (1/p) sum_i delta(x - lambda_i). Its estimate has one atom for every resolved eigenvalue and the
    Gauss quadrature nodes of the bulk; together their weights are 1. Arrays are float64 and are not to be written to.

    Parameters
    ----------
    dimension : int
        p.
    eigenvalues : array (k,)
        Resolved eigenvalues, largest absolute value first.
    error_bounds : array (k,)
        |true - given| <= bound for each of them, in a one-to-one pairing with eigenvalues of the operator as its
        products are computed; what a float32 forward pass rounds off a network changes the operator itself.
    eigenvalue_weights : array (k,)
        Their shares of the measure: 1/p each; multiples of it where the multiplicity is known (`exact`).
    eigenvector_sketches : float32 array (s, d)
        Of the first s of `eigenvalues`: random projections of their unit eigenvectors to d numbers, the same in every
        run, by which `overlaps` compares spectra (see `hesspec.krylov.sketch`). Empty where there are none.
    bulk_nodes, bulk_weights : array (b,)
        Quadrature of the rest of the measure, averaged over probes.
    bulk_probe : int array (b,)
        The probe that each bulk node comes from.
    ritz_values, ritz_weights, ritz_bounds : array (r,)
        Raw Ritz values, quadrature weights (sum 1 for each probe) and residual bounds of every probe. Probes after the
        first start orthogonal to the resolved eigenvectors and see the operator deflated.
    ritz_probe : int array (r,)
        The probe that each belongs to.
    norm : float
        Largest absolute Ritz value, the estimate of the spectral norm ||A||.
    rounding : float
        Rounding floor of eigenvalues, absolute: what the arithmetic adds to every bound.
    probes, steps, matvecs : int
        Number of probes, Lanczos steps of the first probe, products with the operator in all.
    exact : bool
        Whether the Krylov spaces filled R^p, so that this is the whole spectrum with its multiplicities.
    stopped : str
        Why the run ended, in words.
    attributes : mapping of str to str, int, float or bool
        What was measured: matrix, seed, dtype, seconds and so on.

    Notes
    -----
    The variance-reduced (deflated) form of stochastic Lanczos quadrature: Bhattacharjee, Jayaram, C. Musco, C. Musco
    and Ray, "Improved Spectral Density Estimation via Explicit and Implicit Deflation" (2024).
    """

    dimension: int
    eigenvalues: Array
    error_bounds: Array
    eigenvalue_weights: Array
    bulk_nodes: Array
    bulk_weights: Array
    bulk_probe: npt.NDArray[np.int64]
    ritz_values: Array
    ritz_weights: Array
    ritz_bounds: Array
    ritz_probe: npt.NDArray[np.int64]
    norm: float
    rounding: float
    probes: int
    steps: int
    matvecs: int
    exact: bool
    stopped: str
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    eigenvector_sketches: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

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
        """Resolved eigenvalues that a gap separates from the bulk, largest absolute value first."""
        return self.eigenvalues[self.is_outlier]

    @property
    def is_outlier(self) -> npt.NDArray[np.bool_]:
        """Which of `eigenvalues` are outliers, shape (k,); the rule is that of `hesspec._outliers.outlier_mask`."""
        edges = (0.0, 0.0)
        # Further copies of a resolved eigenvalue are in the bulk at the same place, and are no edge of it.
        bulk = self.bulk_nodes[~np.isin(self.bulk_nodes, self.eigenvalues)]
        if bulk.size:
            low, high = float(bulk.min()), float(bulk.max())
            edges = (low - self._residual_bound(low), high + self._residual_bound(high))
        return outlier_mask(self.eigenvalues, self.error_bounds, edges, self.dimension)

    def _residual_bound(self, node: float) -> float:
        """Residual bound of the Ritz value that a bulk node is."""
        return float(self.ritz_bounds[np.argmin(np.abs(self.ritz_values - node))])

    @property
    def bulk_edges(self) -> tuple[float, float]:
        """Smallest and largest point of the measure that is no outlier; (nan, nan) where every point is one."""
        rest = np.concatenate([self.eigenvalues[~self.is_outlier], self.bulk_nodes])
        return (float(rest.min()), float(rest.max())) if rest.size else (np.nan, np.nan)

    def expectation(self, function: Callable[[Array], Array]) -> tuple[float, float]:
        """Mean of a function of the eigenvalues under the measure, and its standard error.

        Parameters
        ----------
        function : callable
            From an array of eigenvalues to an array of the same shape.

        Returns
        -------
        mean, standard_error : float
            For a probe uniform on the sphere of R^q, Var[v^T f(A) v] = 2 Var_mu(f) / (q + 2), mu being the spectral
            measure; here q = p - k, as resolved eigenvalues are not sampled. It needs no second probe, falls like
            1/sqrt(p), and is zero where the spectrum is exact. The quadrature's own error is not in it.
        """
        bulk = function(self.bulk_nodes)
        mean = self.eigenvalue_weights @ function(self.eigenvalues) + self.bulk_weights @ bulk
        return float(mean), float(self._standard_error(bulk[None])[0])

    def _standard_error(self, bulk: Array) -> Array:
        """Standard error of the bulk's share of means of functions given at `bulk_nodes`, shape (functions, b)."""
        mass = self.bulk_weights.sum()
        if not mass > 0:
            return np.zeros(len(bulk))
        share = self.bulk_weights / mass
        mean = bulk @ share
        variance = np.maximum((bulk - mean[:, None]) ** 2 @ share, 0)
        return np.asarray(mass * np.sqrt(2 * variance / ((self._bulk_dimension + 2) * self.probes)))

    @property
    def _bulk_dimension(self) -> float:
        return max(self.dimension * float(self.bulk_weights.sum()), 1.0)

    # Densities and distribution ---------------------------------------------------------------------------------------

    def density(self, grid: Array | None = None, width: float | None = None) -> xr.Dataset:
        """Density of the bulk: its quadrature nodes, each a Gaussian.

        It integrates to the bulk's share of the measure; resolved eigenvalues are atoms beside it, at height
        `eigenvalue_weights`.

        Parameters
        ----------
        grid : array (n,), optional
            Where to evaluate, in units of eigenvalues. By default 1,024 points over the bulk.
        width : float, optional
            Standard deviation of the Gaussian, in units of eigenvalues. By default that of arXiv 1811.07062 on the
            range of the bulk: (half range) (2 / (m - 1)) / sqrt(8 ln 1.25), m the number of bulk nodes of a probe.

        Returns
        -------
        xarray.Dataset
            `density` and `standard_error` over `eigenvalue`; the attribute `width`. A spectrum without bulk (all
            eigenvalues resolved) has density zero.
        """
        width = self._width() if width is None else width
        if grid is None:
            grid = self._grid(width)
        density, error = self._smoothed(np.asarray(grid, float), width)
        return xr.Dataset(
            {"density": ("eigenvalue", density), "standard_error": ("eigenvalue", error)},
            coords={"eigenvalue": np.asarray(grid, float)},
            attrs={"width": width},
        )

    def log_density(self) -> xr.Dataset:
        """Density of log10 |lambda| of the bulk, in all and for each sign, down to the smallest that is resolved.

        In the logarithm, quadrature nodes lie far denser at the bulk's edges than near zero, and kernels of one width
        would leave every node near zero as a peak of its own, with gaps that the operator does not have. So the
        Gaussian of each node, in lambda, is as wide as the distance to its neighbours asks for (the ratio is that of
        `density`), or 5% of |lambda| where that is more. Below the width of the node next to zero nothing is known.

        Returns
        -------
        xarray.Dataset
            `density`, `positive`, `negative` (whose sum `density` is) and `standard_error`, all in shares of the
            eigenvalues per decade, over `log10_magnitude` (512 points; none where there is no bulk).
        """
        nodes = self.bulk_nodes
        if not nodes.size or not self.norm > 0:
            logs, positive, negative, error = (np.empty(0) for _ in range(4))
        else:
            widths = self._local_widths()
            resolution, top = widths[np.argmin(np.abs(nodes))], (np.abs(nodes) + 4 * widths).max()
            logs = np.linspace(np.log10(min(resolution, top / 10)), np.log10(top), LOG_POINTS)
            magnitude = 10 ** logs[:, None]
            per_decade = magnitude * np.log(10) / (widths * np.sqrt(2 * np.pi))
            above = np.exp(-0.5 * ((magnitude - nodes) / widths) ** 2) * per_decade
            below = np.exp(-0.5 * ((magnitude + nodes) / widths) ** 2) * per_decade
            positive, negative = above @ self.bulk_weights, below @ self.bulk_weights
            error = self._standard_error(above + below)
        return xr.Dataset(
            {
                "density": ("log10_magnitude", positive + negative),
                "positive": ("log10_magnitude", positive),
                "negative": ("log10_magnitude", negative),
                "standard_error": ("log10_magnitude", error),
            },
            coords={"log10_magnitude": logs},
        )

    def _local_widths(self) -> Array:
        """Standard deviations of the kernels of `log_density`, one for each bulk node."""
        nodes, floor = self.bulk_nodes, LOG_FLOOR * self.norm
        spacing = np.full(nodes.size, floor)
        for probe in np.unique(self.bulk_probe):
            mine = np.flatnonzero(self.bulk_probe == probe)
            mine = mine[np.argsort(nodes[mine], kind="stable")]
            if mine.size > 1:
                spacing[mine] = np.maximum(np.gradient(nodes[mine]), floor)
        return np.asarray(np.maximum(spacing / np.sqrt(8 * np.log(KAPPA)), RELATIVE_WIDTH * np.abs(nodes)))

    def _width(self) -> float:
        nodes = self.bulk_nodes.size / max(self.probes, 1)
        half_range = float(np.ptp(self.bulk_nodes)) / 2 * (1 + MARGIN) if self.bulk_nodes.size else 0.0
        width = half_range * 2 / max(nodes - 1, 1) / np.sqrt(8 * np.log(KAPPA))
        # One node, or nodes that coincide: an atom, drawn as narrow as the picture of the whole spectrum allows.
        return float(width) or (self.norm or 1.0) / GRID_POINTS

    def _grid(self, width: float) -> Array:
        low, high = (self.bulk_nodes.min(), self.bulk_nodes.max()) if self.bulk_nodes.size else (0.0, 0.0)
        margin = MARGIN * (high - low) + 4 * width
        return np.linspace(low - margin, high + margin, GRID_POINTS)

    def _smoothed(self, grid: Array, width: float) -> tuple[Array, Array]:
        scaled = (grid[:, None] - self.bulk_nodes[None]) / width
        kernel = np.exp(-0.5 * scaled**2) / (width * np.sqrt(2 * np.pi))
        return np.asarray(kernel @ self.bulk_weights), self._standard_error(kernel)

    def cdf(self, x: Array | None = None) -> xr.Dataset:
        """Cumulative distribution of the estimated measure, F(x) = share of eigenvalues <= x.

        Parameters
        ----------
        x : array (n,), optional
            Where to evaluate; `nodes` by default.

        Returns
        -------
        xarray.Dataset
            `cdf` and its `standard_error` over `eigenvalue`.
        """
        nodes, weights = self._measure()
        x = nodes if x is None else np.atleast_1d(np.asarray(x, float))
        cumulative = np.concatenate([[0.0], np.cumsum(weights)])
        below = (self.bulk_nodes[None] <= x[:, None]).astype(float)
        return xr.Dataset(
            {
                "cdf": ("eigenvalue", cumulative[np.searchsorted(nodes, x, side="right")]),
                "standard_error": ("eigenvalue", self._standard_error(below)),
            },
            coords={"eigenvalue": x},
        )

    def cdf_bracket(self, x: Array | None = None) -> xr.Dataset:
        """Rigorous bracket of the CDF of the first probe's own spectral measure, v^T 1[A <= x] v.

        Chebyshev-Markov-Stieltjes: between Ritz values i and i + 1 the CDF is at least the sum of the weights before i
        and at most that up to i + 1 (Szego, Orthogonal Polynomials, 3.41). Rounding makes the run that of A + E with
        ||E|| <= `rounding`; by Davis and Kahan that moves a half-line's spectral projector by at most ||E|| / delta
        outside a shift delta, so nodes are shifted by delta = sqrt(rounding ||A||) and sums by 2 s + s^2,
        s = ||E|| / delta.

        Parameters
        ----------
        x : array (n,), optional
            Where to evaluate; the first probe's Ritz values by default.

        Returns
        -------
        xarray.Dataset
            `lower` and `upper` over `eigenvalue`.
        """
        first = self.ritz_probe == 0
        order = np.argsort(self.ritz_values[first], kind="stable")
        nodes, weights = self.ritz_values[first][order], self.ritz_weights[first][order]
        x = nodes if x is None else np.atleast_1d(np.asarray(x, float))
        shift = float(np.sqrt(self.rounding * self.norm))
        leak = self.rounding / shift if shift > 0 else 0.0
        slack = 2 * leak + leak**2
        cumulative = np.concatenate([[0.0], np.cumsum(weights), [np.inf]])
        # i Ritz values are certainly <= x: the sum of all of them but the last is certainly below the CDF.
        certain = np.searchsorted(nodes, x - shift, side="right")
        lower = cumulative[np.maximum(certain - 1, 0)] - slack
        possible = np.searchsorted(nodes, x + shift, side="right")
        upper = cumulative[np.minimum(possible + 1, len(nodes) + 1)] + slack
        return xr.Dataset(
            {
                "lower": ("eigenvalue", np.clip(lower, 0, 1)),
                "upper": ("eigenvalue", np.clip(upper, 0, 1)),
            },
            coords={"eigenvalue": x},
        )

    # Functionals ------------------------------------------------------------------------------------------------------

    def moment(self, order: int) -> float:
        """Mean of lambda^order over all p eigenvalues, in units of eigenvalues to that power."""
        nodes, weights = self._measure()
        return float(weights @ nodes**order)

    @property
    def trace(self) -> float:
        """Sum of all p eigenvalues: p times the measure's mean."""
        return self.dimension * self.moment(1)

    @property
    def trace_standard_error(self) -> float:
        """Standard error of `trace` over probes; zero where the spectrum is exact."""
        return self.dimension * self.expectation(lambda values: values)[1]

    @property
    def effective_rank(self) -> float:
        """Sum of |lambda| over the largest |lambda| (Koltchinskii and Lounici 2017); 0 for the zero operator."""
        nodes, weights = self._measure()
        largest = np.abs(nodes).max()
        return float(self.dimension * (weights @ np.abs(nodes)) / largest) if largest > 0 else 0.0

    @property
    def num_negative(self) -> Estimate:
        """Number of negative eigenvalues, with its interval.

        Where many eigenvalues are zero, or nearer to zero than the quadrature resolves, the interval is wide and says
        so: their sign is not known.
        """
        if self.exact:
            below = float(self.dimension * self.weights[self.nodes < -self.rounding].sum())
            upto = float(self.dimension * self.weights[self.nodes <= self.rounding].sum())
            return Estimate(below, below, upto if self.rounding > 0 else below)
        mean, error = self.expectation(lambda values: (values < -self.rounding).astype(float))
        # The bracket is that of the first probe's measure, so the sampling error is that of one probe.
        error *= float(np.sqrt(self.probes))
        lower = float(self.cdf_bracket(np.array([-self.rounding])).lower[0]) - 2 * error
        upper = float(self.cdf_bracket(np.array([self.rounding])).upper[0]) + 2 * error
        p = self.dimension
        return Estimate(p * mean, p * max(min(lower, mean), 0), p * min(max(upper, mean), 1))

    # Bounds of the whole measure --------------------------------------------------------------------------------------

    @property
    def wasserstein_bound(self) -> float:
        """Bound of the Wasserstein-1 distance to the true spectral measure, in units of eigenvalues, at 95% confidence.

        Sum of three terms: resolved eigenvalues, sum_i bound_i / p; quadrature of the bulk, by
        Chebyshev-Markov-Stieltjes between its nodes (Chen, Trogdon and Ubaru, arXiv 2105.06595); sampling by the
        probes, the mean integral of sqrt(Var F_v) dx with Levy's inequality for the deviation from it. Conditions: no
        eigenvalue of the bulk lies beyond its outermost node by more than that node's residual bound, and resolved
        eigenvalues are simple.
        """
        resolved = float(self.eigenvalue_weights @ self.error_bounds)
        return resolved + self._bulk_bounds()[0]

    @property
    def kolmogorov_smirnov_bound(self) -> float:
        """Bound of sup |F_true - F_estimated| away from resolved eigenvalues, at 95% confidence; dimensionless.

        Quadrature term as in `wasserstein_bound`; sampling by the sub-Gaussian tail of Beta variables (Marchal and
        Arbel 2017), over all eigenvalues at once. The same conditions hold; within its error bound of a resolved
        eigenvalue the CDF is known to within 1/p more.
        """
        return self._bulk_bounds()[1]

    def _bulk_bounds(self) -> tuple[float, float]:
        mass = float(self.bulk_weights.sum())
        if self.exact or not mass > 0:
            return 0.0, 0.0
        dimension, samples = self._bulk_dimension, self.probes
        distance, supremum = 0.0, 0.0
        for probe in range(samples):
            mine = self.bulk_probe == probe
            order = np.argsort(self.bulk_nodes[mine], kind="stable")
            nodes, weights = self.bulk_nodes[mine][order], self.bulk_weights[mine][order]
            ends = [self._residual_bound(node) for node in (nodes[0], nodes[-1])]
            largest = np.maximum(weights[:-1], weights[1:])
            distance += float(np.diff(nodes) @ largest + ends[0] * weights[0] + ends[1] * weights[-1])
            supremum += float(weights.max())
        order = np.argsort(self.bulk_nodes, kind="stable")
        nodes, share = self.bulk_nodes[order], self.bulk_weights[order] / mass
        below = np.clip(np.cumsum(share)[:-1], 0, 1)
        deviation = float(np.sqrt(share @ (nodes - share @ nodes) ** 2))
        risk = 1 - CONFIDENCE
        mean = float(np.diff(nodes) @ np.sqrt(2 * below * (1 - below) / ((dimension + 2) * samples)))
        tail = 2 * deviation * float(np.sqrt(2 * np.log(1 / risk) / (max(dimension - 1, 1) * samples)))
        uniform = float(np.sqrt(np.log(2 * dimension / risk) / ((dimension + 2) * samples)))
        return distance + mass * (mean + tail), supremum + mass * uniform

    # Views ------------------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """Every atom of the measure, a row each.

        Returns
        -------
        pandas.DataFrame
            Columns `eigenvalue`, `error_bound` (NaN for quadrature nodes), `weight` and `kind` ("outlier", "resolved"
            or "bulk"); resolved eigenvalues first, largest absolute value first, then the bulk ascending.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only this needs it

        order = np.argsort(self.bulk_nodes, kind="stable")
        kinds = np.where(self.is_outlier, "outlier", "resolved")
        return pd.DataFrame(
            {
                "eigenvalue": np.concatenate([self.eigenvalues, self.bulk_nodes[order]]),
                "error_bound": np.concatenate([self.error_bounds, np.full(order.size, np.nan)]),
                "weight": np.concatenate([self.eigenvalue_weights, self.bulk_weights[order]]),
                "kind": np.concatenate([kinds, np.full(order.size, "bulk")]),
            }
        )

    def summary(self) -> dict[str, str]:
        """What `repr`, notebooks, the terminal and the report show of it: names and values in words."""
        low, high = self.bulk_edges
        rows = {
            "parameters": f"{self.dimension:,}",
            "Lanczos steps": f"{self.steps} (probes: {self.probes}, matvecs: {self.matvecs})",
            "stopped": self.stopped,
            "largest |eigenvalue|": f"{self.norm:.6g}",
            "resolved eigenvalues": f"{self.eigenvalues.size}, of which {self.outliers.size} are outliers",
            "bulk edges": f"{low:.4g}, {high:.4g}",
            "trace": f"{self.trace:.4g} ± {self.trace_standard_error:.2g}",
            "effective rank": f"{self.effective_rank:.4g}",
            "negative eigenvalues": str(self.num_negative),
            "Wasserstein-1 bound": f"{self.wasserstein_bound:.2g}",
        }
        return {"matrix": str(self.attributes["matrix"]), **rows} if "matrix" in self.attributes else rows

    def __repr__(self) -> str:
        """Summary, a line each."""
        rows = self.summary()
        width = max(map(len, rows))
        return "Spectrum\n" + "\n".join(f"  {name:<{width}}  {printable(value)}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.summary().items()
        )
        return f"<table><caption>Spectrum</caption>{rows}</table>"

    def plot(self) -> Figure:
        """Figure of the spectrum: the bulk's density, resolved eigenvalues and outliers with error bars.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.plot import plot_spectrum  # noqa: PLC0415 - the layer above, asked only here

        return plot_spectrum({str(self.attributes.get("matrix", "operator")): self})

    # Files ------------------------------------------------------------------------------------------------------------

    def to_dataset(self) -> xr.Dataset:
        """All fields as a labelled dataset: dimensions `resolved`, `bulk`, `ritz`, `sketched` and `sketch`.

        Scalars are attributes.
        """
        dimension_of = {
            "eigenvalue": ("resolved",),
            "error_bounds": ("resolved",),
            "bulk": ("bulk",),
            "ritz": ("ritz",),
            "eigenvector_sketches": ("sketched", "sketch"),
        }
        arrays: dict[str, Any] = {}
        scalars: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                dimension = next(d for prefix, d in dimension_of.items() if item.name.startswith(prefix))
                arrays[item.name] = (dimension, value)
            elif item.name != "attributes":
                scalars[item.name] = int(value) if isinstance(value, bool) else value
        scalars |= {"attributes": _fields.attributes_as_text(self.attributes), "hesspec_format": FORMAT}
        return sealed(xr.Dataset(arrays, attrs=scalars))

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Spectrum:
        """Inverse of `to_dataset`.

        Raises
        ------
        ValueError
            If the dataset is not a spectrum, has values that a spectrum cannot have, or is of a later format than this
            version reads.
        """
        _format_of(dataset)
        readers: dict[str, Callable[[str], Any]] = {
            "int": lambda name: _fields.integer(dataset, name, 0),
            "float": lambda name: _fields.real(dataset, name),
            "bool": lambda name: _fields.flag(dataset, name),
            "str": lambda name: _fields.text(dataset, name),
            "Array": lambda name: _fields.array(dataset, name, np.float64),
            "npt.NDArray[np.int64]": lambda name: _fields.array(dataset, name, np.int64),
            "npt.NDArray[np.float32]": lambda name: _fields.array(dataset, name, np.float32, 2),
        }
        values: dict[str, Any] = {
            item.name: readers[str(item.type)](item.name)
            for item in fields(cls)
            # Files of earlier versions lack what has a default.
            if item.name != "attributes" and (item.name in dataset or item.default_factory is MISSING)
        }
        found = cls(**values, attributes=_fields.attributes_of(dataset))
        _refuse_impossible(found)
        return found

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write to a NetCDF file, whole or not at all.

        Parameters
        ----------
        path : path
        overwrite : bool
            Whether a file that is there is replaced.

        Raises
        ------
        FileExistsError
            If there is such a file, and it is not to be replaced.
        OSError
            If the folder cannot be made or written to; the message says how much room the file needs.
        """
        write_dataset(self.to_dataset(), path, overwrite=overwrite)


def _format_of(dataset: xr.Dataset) -> int:
    return format_of(dataset, "hesspec_format", FORMAT, "spectrum")


def _refuse_impossible(spectrum: Spectrum) -> None:
    """Raise ValueError where numbers are not those of a spectrum."""
    for name in ("dimension", "probes", "steps"):
        _fields.refuse_unless(getattr(spectrum, name) >= 1, f"Its {name!r} is {getattr(spectrum, name)}.")
    lengths = {
        "eigenvalues": ("eigenvalues", "error_bounds", "eigenvalue_weights"),
        "bulk nodes": ("bulk_nodes", "bulk_weights", "bulk_probe"),
        "Ritz values": ("ritz_values", "ritz_weights", "ritz_bounds", "ritz_probe"),
    }
    for what, names in lengths.items():
        sizes = [getattr(spectrum, name).size for name in names]
        _fields.refuse_unless(
            len(set(sizes)) == 1, f"Its {' and '.join(names)} are of {what}, but have {sizes} entries."
        )
    for name in ("eigenvalues", "bulk_nodes", "ritz_values", "eigenvector_sketches"):
        _fields.refuse_unless(np.isfinite(getattr(spectrum, name)).all(), f"Its {name} are not all finite.")
    for name in ("eigenvalue_weights", "bulk_weights", "ritz_weights"):
        weights = getattr(spectrum, name)
        _fields.refuse_unless(
            ((weights >= 0) & (weights < np.inf)).all(), f"Its {name} are not all at least zero and finite."
        )
    for name in ("error_bounds", "ritz_bounds"):
        _fields.refuse_unless((getattr(spectrum, name) >= 0).all(), f"Its {name} are not all at least zero.")
    for name in ("bulk_probe", "ritz_probe"):
        probe = getattr(spectrum, name)
        _fields.refuse_unless(
            ((probe >= 0) & (probe < spectrum.probes)).all(),
            f"Its {name} has numbers of probes that are not below {spectrum.probes}.",
        )
    _fields.refuse_unless(spectrum.ritz_values.size > 0, "It has no Ritz values.")
    count = spectrum.eigenvalues.size
    _fields.refuse_unless(
        count <= spectrum.dimension, f"It has {count} eigenvalues, and an operator of dimension {spectrum.dimension}."
    )
    sketched = len(spectrum.eigenvector_sketches)
    _fields.refuse_unless(sketched <= count, f"It has sketches of {sketched} eigenvectors, but fewer eigenvalues.")


def load(path: str | os.PathLike[str]) -> Spectrum:
    """Read a spectrum that `Spectrum.save` wrote, bit for bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a NetCDF file, is damaged, does not hold a spectrum, is of a later version of hesspec, refers
        to other files or asks for more memory than a spectrum takes.
    """
    return read_dataset(path, "spectrum", _format_of, Spectrum.from_dataset)
