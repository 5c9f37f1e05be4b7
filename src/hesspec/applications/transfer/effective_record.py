"""Effective data of fine-tuned networks by one quantity, as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from hesspec.applications.transfer.law import earned_transfer_law
from hesspec.applications.transfer.law_record import TransferLaw
from hesspec.backend.number_text import three_digits
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record, Strings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EffectiveData"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class EffectiveData(Record):
    """Effective data D_E of fine-tuned networks by the loss or a statistic of the spectrum: `hesspec.study.transfer`.

    A network that was fine-tuned on D_F has the value that one from scratch, of the same size, has with D_E; the
    transferred data is D_T = D_E - D_F. By the loss that is the definition of "Scaling Laws for Transfer" (arXiv
    2102.01293); by statistics of the spectrum it is ours, and asks whether the minimum that fine-tuning finds is as
    curved as one that is trained from scratch on D_E.

    Attributes
    ----------
    statistic : str
        What was inverted: "loss", "outlier1", "bulk edge" or "trace".
    of : str
        Where it was measured, such as "Hessian, test split, epoch 30".
    start : str
        Name of the start of the fine-tuned networks.
    unit : str
        Unit of the sizes of training sets.
    networks : str array (n,)
        Network of each point.
    parameters : array (n,)
        Its number of parameters N.
    sizes, values : array (n,)
        D_F, and the value of the fine-tuned network, the geometric mean over seeds.
    effective, lower, upper : array (n,)
        D_E and its 95% interval, from `hesspec.effective_data`; NaN where it is refused.
    reasons : str array (n,)
        Why D_E is refused; empty where it is not.
    scratch_networks : str array (m,)
    scratch_sizes, scratch_values : array (m,)
        The monotone curves of networks from scratch.
    pooled : int array (m,)
        1 where the mean over seeds was out of order, within the noise, and was pooled with its neighbours.
    """

    KIND: ClassVar[str] = "effective data"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_effective_data_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **dict.fromkeys(
            ("networks", "parameters", "sizes", "values", "effective", "lower", "upper", "reasons"), ("point",)
        ),
        **dict.fromkeys(("scratch_networks", "scratch_sizes", "scratch_values", "pooled"), ("scratch",)),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("parameters", "sizes", "scratch_sizes", "scratch_values")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("parameters", "scratch_sizes", "pooled")

    statistic: str
    of: str
    start: str
    unit: str
    networks: Strings
    parameters: Array
    sizes: Array
    values: Array
    effective: Array
    lower: Array
    upper: Array
    reasons: Strings
    scratch_networks: Strings
    scratch_sizes: Array
    scratch_values: Array
    pooled: Integers

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        known = np.isfinite(self.effective)
        inside = (self.lower <= self.effective) & (self.effective <= self.upper)
        refuse_unless(inside[known].all(), "Its effective data are outside of their intervals.")
        refuse_unless((self.sizes > 0).all() and (self.effective[known] > 0).all(), "Its sizes are not positive.")
        refuse_unless(
            bool(((self.reasons == "") == known).all()), "It has points without a value and without a reason."
        )

    @property
    def transferred(self) -> Array:
        """Transferred data D_T = D_E - D_F, (n,), in the unit of the sizes; negative where scratch is better."""
        return np.asarray(self.effective - self.sizes)

    @property
    def multiplier(self) -> Array:
        """D_E / D_F, (n,): below 1 where the network from scratch is better."""
        return np.asarray(self.effective / self.sizes)

    @property
    def law(self) -> TransferLaw | str:
        """The power law of D_T, or why the points do not support one: see `hesspec.fit_transfer_law`.

        It takes at least three different D_F and three sizes of the network with D_T > 0, and exponents that are known
        to +-1.
        """
        return earned_transfer_law(self.sizes, self.parameters, self.transferred, unit=self.unit)

    @property
    def certain(self) -> npt.NDArray[np.bool_]:
        """Where the interval of D_E excludes D_F, (n,): pre-training is known to be worth data, or to cost some."""
        return np.asarray((self.lower > self.sizes) | (self.upper < self.sizes))

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        known = np.isfinite(self.effective)
        found = self.multiplier[known]
        reach = f"{three_digits(found.min())} to {three_digits(found.max())} times D_F" if found.size else "none"
        law = self.law
        shown = {
            "by": f"{self.statistic} ({self.of})",
            "start": self.start,
            "effective data": f"{reach}, at {known.sum()} of {known.size} points",
            "transfer": f"positive at {int((found > 1).sum())} points, negative at {int((found < 1).sum())}; "
            f"known to be so at {int(self.certain.sum())}",
        }
        if isinstance(law, str):
            return {**shown, "transfer law": f"none: {law}"}
        exponents = f"alpha {law.alpha}, beta {law.beta}, k {law.k}"
        return {**shown, "transfer law": exponents + (f"; {law.left_out} points left out" if law.left_out else "")}

    def tables(self) -> list[TextTable]:
        """Points with their intervals, and reasons."""
        rows = [
            (
                str(network),
                f"{size:g}",
                f"{value:.4g}",
                three_digits(effective) if not reason else "–",
                _interval(low, high) if not reason else "–",
                three_digits(effective - size) if not reason else "–",
            )
            for network, size, value, effective, low, high, reason in zip(
                self.networks,
                self.sizes,
                self.values,
                self.effective,
                self.lower,
                self.upper,
                self.reasons,
                strict=True,
            )
        ]
        columns = ("network", "D_F", self.statistic, "D_E", "95%", "D_T")
        pooled = int(self.pooled.sum())
        notes = [
            *self._refused(),
            *([f"{pooled} means of the curves from scratch were out of order within the noise."] if pooled else []),
        ]
        return [TextTable(f"Effective data, in {self.unit}", columns, rows, notes)]

    def _refused(self) -> list[str]:
        """Reasons, each with its points."""
        points: dict[str, dict[str, list[str]]] = {}
        for network, size, reason in zip(self.networks, self.sizes, self.reasons, strict=True):
            if reason:
                points.setdefault(str(reason), {}).setdefault(str(network), []).append(f"{size:g}")
        return [
            "; ".join(f"{network}, D_F = {', '.join(sizes)}" for network, sizes in where.items()) + f": {reason}"
            for reason, where in points.items()
        ]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the curves from scratch with the inversions, and D_E / D_F against D_F.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes for D_E / D_F alone; by default a new figure with both.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If D_E is refused at all points.
        """
        from hesspec.applications.transfer.figure import plot_effective  # noqa: PLC0415 - asked only here

        if not math.isfinite(np.nanmax([*self.effective, -math.inf])):
            raise ValueError(f"There is no effective data to draw: {'; '.join(dict.fromkeys(map(str, self.reasons)))}")
        return plot_effective(self, ax)


def _interval(low: float, high: float) -> str:
    """An interval of sizes, whose ends may be unknown."""
    if low == 0 and math.isinf(high):
        return "unknown"
    if math.isinf(high):
        return f"above {three_digits(low)}"
    return f"below {three_digits(high)}" if low == 0 else f"{three_digits(low)} to {three_digits(high)}"
