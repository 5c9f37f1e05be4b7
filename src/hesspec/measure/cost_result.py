"""Result of `hesspec.measure.cost.cost`, and the device rates that it is based on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hesspec.backend.memory import in_words
from hesspec.backend.number_text import duration
from hesspec.backend.shown import Shown

__all__ = ["H100", "Cost", "Device", "Way"]

Way = Literal["whole", "sharded"]

DAY: Final = 86_400.0


@dataclass(frozen=True)
class Device:
    """Rates of a device.

    Attributes
    ----------
    flops : float
        Sustained floating-point operations per second in a pass.
    bandwidth : float
        Bytes per second that it receives from other devices; it sends at the same rate at the same time.
    memory_bandwidth : float
        Bandwidth of its own memory, in bytes per second.
    note : str
        Source of the rates.
    """

    flops: float
    bandwidth: float
    memory_bandwidth: float
    note: str = "as given"


# NVIDIA H100 SXM, data sheet: 67 TFLOP/s in float32, 3.35 TB/s of memory. One port of 400 Gbit/s each, as in a DGX
# H100. Sustaining half of the peak is an assumption: nothing has been measured on a GPU.
PEAK: Final = 67e12
EFFICIENCY: Final = 0.5
H100: Final = Device(PEAK * EFFICIENCY, 50e9, 3.35e12, f"assumed: {EFFICIENCY:.0%} of an H100's float32 peak")


@dataclass(frozen=True, repr=False)
class Cost(Shown):
    """Estimated time, communication and memory of a spectrum, from the formulas of `cost`.

    Attributes
    ----------
    matrix : str
        "Hessian", "GaussNewton" or "Residual".
    params : int
        Number of parameters, p.
    samples : int
        Number of samples; sequences for a language model.
    tokens : int or None
        Number of tokens, for a language model.
    devices, steps : int
        Number of devices; number of Lanczos steps, which is also that of products.
    way : "whole" or "sharded"
        "whole" if each device holds the whole model and processes its share of the data; "sharded" if parameters are
        sharded and products are central differences of gradients.
    basis : "full" or "half"
        Precision in which the Krylov basis is stored.
    fits : bool
        Whether it fits into the memory of a device. If not, the other attributes are given as if it did.
    kept : float
        Share of the data whose primal passes are cached from one product to the next.
    flops_forward : float
        Floating-point operations of a forward pass over all data; a multiply-add counts as two.
    flops_matvec : float
        Floating-point operations of a product, on all devices together.
    bytes_communicated : float
        Bytes that a device receives per product; it sends as many.
    seconds_compute, seconds_communicate : float
        Seconds of computation and of communication per product.
    seconds_step : float
        Seconds of the rest of a Lanczos step, on average.
    seconds_setup : float
        Seconds of the primal passes before the first product.
    bytes_parameters, bytes_vectors, bytes_basis, bytes_passes : float
        Memory that a device needs, in bytes, for parameters (whole and in slices), vectors, the Krylov basis, and
        passes (cached and in progress).
    memory : int
        Memory that a device has for them, in bytes.
    least_devices : int or None
        Smallest number of devices on which it fits, whole or sharded; None if no number is enough.
    full_from : int or None
        Smallest number of devices on which it fits with a full-precision basis; None if no number is enough.
    activations_known : bool
        Whether the memory includes the passes.
    device : Device
        Rates of a device.
    """

    matrix: str
    params: int
    samples: int
    tokens: int | None
    devices: int
    steps: int
    way: Way
    basis: str
    fits: bool
    kept: float
    flops_forward: float
    flops_matvec: float
    bytes_communicated: float
    seconds_compute: float
    seconds_communicate: float
    seconds_step: float
    seconds_setup: float
    bytes_parameters: float
    bytes_vectors: float
    bytes_basis: float
    bytes_passes: float
    memory: int
    least_devices: int | None
    full_from: int | None
    activations_known: bool
    device: Device

    @property
    def seconds_matvec(self) -> float:
        """Seconds of a product: computation, then communication, assumed not to overlap."""
        return self.seconds_compute + self.seconds_communicate

    @property
    def seconds(self) -> float:
        """Seconds of the whole measurement."""
        return self.seconds_setup + self.steps * (self.seconds_matvec + self.seconds_step)

    @property
    def bytes(self) -> float:
        """Memory that a device needs, in bytes."""
        return self.bytes_parameters + self.bytes_vectors + self.bytes_basis + self.bytes_passes

    @property
    def share_in_a_day(self) -> float:
        """Amount of data for which the spectrum takes a day, relative to that given; 0 if no amount is small enough."""
        grows = self.seconds_setup + self.steps * self.seconds_compute
        stays = self.steps * self.seconds_step
        if self.way == "sharded":
            grows += self.steps * self.seconds_communicate
        else:
            stays += self.steps * self.seconds_communicate
        return max(0.0, (DAY - stays) / grows)

    @property
    def obstacle(self) -> str:
        """Reason why it cannot be run, as a sentence; empty if it can."""
        if self.fits:
            return ""
        needed = f"It needs {in_words(self.bytes)} of each device, which has {in_words(self.memory)}"
        if self.least_devices is not None:
            return f"{needed}; with {self.least_devices:,} devices it fits."
        if self.matrix == "Hessian":
            return f"{needed}, and no number of devices is enough."
        return (
            f"{needed}, and more devices do not help, as each holds the whole model: parameters can be sharded for the "
            "Hessian only, by central differences of gradients, in place of the second derivatives that PyTorch does "
            "not have through FSDP2."
        )

    def summary(self) -> dict[str, str]:
        """Names and values as text, for `repr` and the command line; without times if it cannot be run."""

        def time(words: str) -> str:
            return words if self.fits else "–"

        unit = "samples" if self.tokens is None else "tokens"
        data = self.samples if self.tokens is None else self.tokens
        passes = in_words(self.bytes_passes) if self.activations_known else "unknown; give the bytes of a sample"
        return {
            "matrix": self.matrix,
            "can be run": "yes" if self.fits else "no",
            "parameters": f"{self.params:,}",
            "data": f"{data:,} {unit}" + ("" if self.tokens is None else f", {self.samples:,} sequences"),
            "devices": f"{self.devices:,}",
            "way": {
                "whole": "whole model",
                "sharded": "sharded parameters",
            }[self.way],
            "products": "central differences" if self.way == "sharded" else "exact",
            "primal passes cached": "no use" if self.way == "sharded" else f"{self.kept:.0%} of the data",
            "Lanczos steps": f"{self.steps}",
            "FLOP of a forward pass": _in_flop(self.flops_forward),
            "FLOP of a matvec": _in_flop(self.flops_matvec),
            "computation of a matvec": time(duration(self.seconds_compute)),
            "communication of a matvec": time(
                f"{duration(self.seconds_communicate)}, {_in_bytes(self.bytes_communicated)}"
            ),
            "rest of a step": time(duration(self.seconds_step)),
            "set-up": time(duration(self.seconds_setup)),
            "spectrum": time(duration(self.seconds)),
            f"{unit} for one in a day": time(f"{data * self.share_in_a_day:.2g}"),
            "memory: parameters": in_words(self.bytes_parameters),
            "memory: vectors": in_words(self.bytes_vectors),
            "memory: basis": f"{in_words(self.bytes_basis)}, {self.basis} width",
            "memory: passes": passes,
            "memory of a device": f"{in_words(self.bytes)} of {in_words(self.memory)}",
            "devices needed": _number(self.least_devices),
            "for a full-width basis": _number(self.full_from),
            "a device computes": f"{_in_flop(self.device.flops)}/s, {self.device.note}",
            "a device receives": f"{in_words(self.device.bandwidth)}/s",
        }


def _number(devices: int | None) -> str:
    return "none is enough" if devices is None else f"{devices:,}"


def _in_bytes(size: float) -> str:
    return in_words(size) if size < 1e12 else f"{size / 1e12:,.4g} TB"


def _in_flop(count: float) -> str:
    for letter in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {letter}FLOP"
        count /= 1000
    return f"{count:.3g} EFLOP"
