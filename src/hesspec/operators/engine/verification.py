"""Verification of products against a reference that shares no code with them, before any result is reported.

The reference is a product by central differences of first derivatives (`Differences`) of the user's own module and
loss, run by plain PyTorch, in float64 if the module supports it. It uses a few samples, at a point near that of the
operator, as units may be exactly at a kink at the point itself (a ReLU with input zero). If the gradient is not that of
the loss, the reference may be double backward; see `hesspec.operators.engine.surrogate`. As a trace has a fixed batch
shape, the few samples are repeated to fill it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesspec.backend.bars import phase
from hesspec.backend.memory import is_out_of_memory
from hesspec.errors import InputError
from hesspec.operators.data.structures import map_tensors
from hesspec.operators.engine.differences import DISPLACEMENTS, Differences, length
from hesspec.operators.engine.reference import (
    AGREE,
    Deviation,
    Product,
    Truth,
    largest,
    minus,
    plain_product,
    settled_product,
    truth_of,
)
from hesspec.operators.engine.surrogate import (
    NOT_OF_THE_LOSS,
)
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.inspection import few_samples

if TYPE_CHECKING:
    from hesspec.operators.engine.passes import Passes

__all__ = ["SETTLES", "VERIFICATION_BYTES", "Verdict", "verify"]

logger = logging.getLogger(__name__)

# Bytes per parameter that the reference and the products under comparison hold at most: ten vectors in float64. The
# reference for the Hessian holds the parameters, two gradients and the difference at the last displacement; that for G
# also a copy of the parameters and a pulled vector. Activations of the few samples come on top.
VERIFICATION_BYTES = 10 * 8
# Distance of the verification point relative to the size of the parameters: far enough to avoid exact ties, such as
# zero biases, and near enough to be representative.
NEARBY = 1e-3
# Parameters of a smaller norm are verified at random ones of norm 1.
NEARLY_ZERO = 1e-6
# Sums over n repeated samples accumulate roundings of one sign: sqrt(n) eps for 16,000 samples.
SUMMED = 2.0
# If rounding gives more, in plain double backward of the same precision as well, the error may be this factor larger.
AS_ROUNDED = 4.0
# Differences with a larger relative change are not accepted as products.
SETTLES = 0.1
# Displacements for comparing one-sided differences, and their largest relative distance without a kink: truncation and
# rounding of one-sided differences balance near the square root of eps.
KINK_AT = {torch.float64: (1e-5, 1e-6, 1e-7), torch.float32: (1e-1, 1e-2, 1e-3)}
KINK = {torch.float64: 1e-4, torch.float32: 3e-2}
# Above the first relative change between neighbouring displacements, differences are too inaccurate to compare with; a
# product that they do not contradict must agree with plain double backward. Above the second they are ignored.
TELLS, HINTS = 1e-2, 0.3
# Factor by which errors of differences in float32 exceed their changes: 3.6 was seen, as roundings at two displacements
# are not independent. A product between that and 3 times the changes must agree with plain double backward.
EXCEEDS = 10.0
# Displacements at the parameters themselves, in float64. Differences at h are S + J / h there, with J from gradients
# that jump at the point itself, as those of units at their kinks: at these two they are further apart than `TELLS`
# then, unless J is 1,000 times smaller than 1e-8 S.
AT_THE_POINT = (1e-8, 1e-9)
# At the parameters themselves, products deviate from differences by what differences to both sides are apart if units
# are at their kinks, up to the signs with which these add up. A product is wrong there if it deviates by more.
BEYOND_KINKS = 10.0


@dataclass(frozen=True)
class Verdict:
    """Outcome of a verification.

    Attributes
    ----------
    agrees : bool
        Whether the product agrees with the reference.
    error : float
        Deviation from the reference, relative to its norm.
    text : str
        Description of the comparison and its result.
    worst : tuple of str
        Parameters whose blocks deviate most.
    surrogate : bool
        Whether the gradient is not that of the loss, so that the reference is double backward.
    """

    agrees: bool
    error: float
    text: str
    worst: tuple[str, ...] = ()
    surrogate: bool = False


def verify(passes: Passes, batch: Batch) -> Verdict:
    """Compare a product of one batch, computed in the current mode of the passes, with the reference.

    Parameters
    ----------
    passes : Passes
    batch : Batch
        Batch with the shape of the operator's products.

    Raises
    ------
    NonFiniteError
        If its loss or gradient is NaN or infinite.
    """
    phase("verifying products")
    risk = passes.risk
    few, repeated, ratio = few_samples(risk.batches, batch)
    generator = torch.Generator().manual_seed(0)
    norm, arithmetic = length(risk.parameters.values), torch.float64 if risk.inspection.double else torch.float32
    if passes.mode == "differences" and 0 < norm < torch.finfo(arithmetic).eps / DISPLACEMENTS[arithmetic][0]:
        return Verdict(False, math.inf, f"parameters of norm {norm:.0e} are too small for differences of gradients")
    # Differences are verified at the parameters themselves, as the digits that they keep depend on the norm.
    smallest = 0.0 if passes.mode == "differences" else NEARLY_ZERO
    values, direction = _nearby(risk, generator, smallest), _direction(risk, generator)
    there = passes.at(risk.at(values))
    if passes.mode == "differences":
        verdict = _of_differences(there, truth_of(there, few, direction), few, direction)
        return _at_kinks(passes, batch, direction, verdict) if verdict.agrees else verdict
    given = repeated if passes.mode == "traced" else few
    ratio = given.samples / few.samples if passes.summed else ratio if given is repeated else 1.0
    found = _trial(there, given, direction, ratio)
    truth = truth_of(there, few, direction, found if isinstance(found, Product) else None)
    if not truth.is_finite:
        values = list(risk.parameters.values)
        there = passes.at(risk.at(values))
        found = _trial(there, given, direction, ratio)
        truth = truth_of(there, few, direction, found if isinstance(found, Product) else None)
        if not truth.is_finite and (fault := risk.fault(few)) is not None:
            raise fault
    if isinstance(found, Verdict):
        return found
    verdict = replace(_judge(there, few, direction, found.parts, truth, given.samples), surrogate=truth.surrogate)
    if not verdict.agrees or verdict.surrogate or 0 < norm <= NEARLY_ZERO:
        return verdict
    near = length(truth.product)
    # Their memory is needed for the second comparison.
    del there, values, truth, found
    return _at_the_point(passes, few, direction, verdict, near)


def _trial(passes: Passes, given: Batch, direction: Sequence[Tensor], ratio: float) -> Product | Verdict:
    """Compute the product to be verified, or say why there is none."""
    try:
        parts = [part / ratio for part in passes.trial(given, direction)]
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        logger.info("no product in mode %r", passes.mode, exc_info=error)
        reason = str(error).strip().partition("\n")[0][:200]
        return Verdict(False, math.inf, f"{type(error).__name__}: {reason}")
    return Product(parts, _tolerance(passes, given.samples))


def _tolerance(passes: Passes, summed: int) -> float:
    """Relative deviation up to which a product computed from a number of samples agrees with the reference."""
    dtype = passes.risk.parameters.dtype
    return max(AGREE[dtype], SUMMED * torch.finfo(dtype).eps * math.sqrt(summed))


def _judge(
    passes: Passes, few: Batch, direction: Sequence[Tensor], found: Sequence[Tensor], truth: Truth, summed: int
) -> Verdict:
    """Judge a product that was computed from a number of samples."""
    risk = passes.risk
    size, unsure = length(truth.product), length(truth.changes)
    samples = f"{few.samples} samples" if few.samples > 1 else "1 sample"
    dtype, tolerance = risk.parameters.dtype, _tolerance(passes, summed)
    far = Deviation(found, truth, risk.parameters.names)
    arithmetic = "float64" if risk.inspection.double else str(dtype).removeprefix("torch.")
    against = f"against central differences of first derivatives in {arithmetic}, {samples}"
    if truth.surrogate:
        against = f"against double backward of the model itself in {arithmetic}, {samples}, as {NOT_OF_THE_LOSS}"
    tells = unsure <= TELLS * size
    if tells and far.total <= tolerance * size + 3 * unsure and not far.blocks:
        return Verdict(True, far.relative, f"error {far.relative:.1e} {against}")
    zero = _underflow(truth, found, dtype) or _below_the_loss(passes, few, direction, max(size, length(found)))
    if not (zero or tells):
        zero = _zero_to_rounding(passes, few, direction, far.total, unsure)
    if zero:
        return Verdict(True, 0.0, f"{zero}, {against}")
    # Rounding (or a kink within it) also affects plain double backward; other faults do not.
    other = plain_product(passes, few, direction, double=False)
    if other is None:
        return Verdict(False, far.relative, f"error {far.relative:.1e} {against}", far.worst)
    if tells:
        exact = plain_product(passes, few, direction, double=True) if risk.inspection.double else other
        rounded = Deviation(other, truth, risk.parameters.names)
        right = exact is not None and length(minus(exact, truth.product)) <= 1e-5 * size + 3 * unsure
        if right and far.total <= AS_ROUNDED * rounded.total + tolerance * size and far.total <= 0.1 * size:
            return Verdict(
                True, far.relative, f"error {far.relative:.1e} {against}; plain double backward {rounded.relative:.1e}"
            )
        if risk.inspection.double or not far.total <= EXCEEDS * unsure:
            return Verdict(False, far.relative, f"error {far.relative:.1e} {against}", far.worst)
    apart = length(minus(found, other)) / max(length(other), torch.finfo(torch.float64).tiny)
    words = f"differences are inaccurate here (they change by {unsure / max(size, 1e-300):.0e} of the product)"
    return Verdict(
        apart <= 100 * tolerance and unsure <= HINTS * size and far.total <= (EXCEEDS if tells else 3) * unsure,
        apart,
        f"{apart:.1e} apart from plain double backward of the model itself, {samples}; {words}",
        far.worst,
    )


def _underflow(truth: Truth, found: Sequence[Tensor], dtype: torch.dtype) -> str:
    """Describe a product that is zero, or nearly, because factors underflow, as the reference shows; "" otherwise.

    Such are those of samples whose softmax is saturated. A factor below the smallest normal number is lost, and those
    that it is multiplied by are taken to be at most 1/eps.
    """
    limits = torch.finfo(dtype)
    least = limits.tiny / limits.eps
    if any(part.numel() and not float(part.abs().max()) <= least for part in (*truth.product, *found)):
        return ""
    return f"below {least:.0e}, where {str(dtype).removeprefix('torch.')} underflows"


def _below_the_loss(passes: Passes, few: Batch, direction: Sequence[Tensor], size: float) -> str:
    """Describe a product that is below the rounding of the loss, and with it of the reference; "" otherwise.

    A displacement as large as the parameters themselves, and at least of norm 1, changes the loss by less than its
    rounding. Such is the curvature of samples whose softmax is saturated: it is computed without cancellation, but its
    reference is not.
    """
    risk = passes.risk
    values = risk.parameters.natural(risk.parameters.values)
    plain = risk.plain(double=risk.inspection.double)
    with plain.held(values):
        differences = Differences.of(risk, plain, few)
        rounding = torch.finfo(differences.dtype).eps * differences.size_of_loss()
    if not size * max(length(values), 1.0) ** 2 <= rounding * length(direction):
        return ""
    return f"below the rounding of the loss ({size:.0e})"


def _zero_to_rounding(passes: Passes, few: Batch, direction: Sequence[Tensor], apart: float, unsure: float) -> str:
    """Describe a product that is zero to rounding, like the reference; "" otherwise.

    For a zero matrix, such as the residual of a model that is linear in the selected parameters, differences give the
    rounding of gradients. It is compared with the curvature expected from the sizes of gradients and parameters: that
    of the Hessian, or |gradient| / |theta|.
    """
    risk = passes.risk
    values = risk.parameters.natural(risk.parameters.values)
    plain = risk.plain(double=risk.inspection.double)
    with plain.held(values):
        differences = Differences.of(risk, plain, few)
        given = risk.parameters.natural(direction)
        slope = length(differences.gradient()) * length(given) / (length(values) or 1.0)
        expected = max(slope, length(differences.hessian(given, NEARBY)))
    allowed = AGREE[risk.parameters.dtype] * expected
    if not max(apart, unsure) <= allowed:
        return ""
    return f"zero to rounding ({max(apart, unsure):.0e} where the size of the gradient suggests {expected:.0e})"


def _of_differences(passes: Passes, truth: Truth, few: Batch, direction: Sequence[Tensor]) -> Verdict:
    """Judge differences themselves: whether they settle."""
    if truth.surrogate:
        return Verdict(False, math.inf, f"{NOT_OF_THE_LOSS}; their matrix is not symmetric, or zero between steps")
    size, unsure = length(truth.product), length(truth.changes)
    change = unsure / size if size else unsure
    text = f"differences change by {change:.1e} of the product from one displacement to the next, {few.samples} samples"
    if change <= SETTLES:
        return Verdict(True, 0.0, text)
    if zero := _zero_to_rounding(passes, few, direction, 0.0, unsure):
        return Verdict(True, 0.0, zero)
    return Verdict(False, change, text, largest(truth.changes, passes.risk.parameters.names))


def _at_kinks(passes: Passes, batch: Batch, direction: Sequence[Tensor], verdict: Verdict) -> Verdict:
    """Judge differences at the parameters themselves, by those to both sides; the verdict near them if there are none.

    Near them, kinks do not show: weights that are zero, as at the start of some trainings, put all units at their
    kinks, and differences are means of two curvatures that no matrix has.
    """
    risk = passes.risk
    plain = risk.plain(double=risk.inspection.double)
    with plain.held(risk.parameters.natural(risk.parameters.values)):
        differences, given = Differences.of(risk, plain, batch), risk.parameters.natural(direction)
        apart = differences.one_sided(given, KINK_AT[differences.dtype])
    if apart <= KINK[differences.dtype]:
        return verdict
    text = (
        f"differences to both sides are {apart:.0e} of the product apart, as units are exactly at their kinks: where "
        "zero weights or biases meet zero inputs, move the parameters by a millionth of their size"
    )
    return Verdict(apart <= SETTLES, apart, text)


def _at_the_point(passes: Passes, few: Batch, direction: Sequence[Tensor], verdict: Verdict, near: float) -> Verdict:
    """Judge products at the parameters themselves; the verdict near them if there is nothing to compare them with.

    `near` is the norm of the product near them.

    Where a function has no derivative, PyTorch returns zero, also if the loss is smooth there: the curvature of a
    squared norm is lost for weights that are zero, and that of `x.abs() ** 2` where x is zero. Near such points it is
    not. Differences show it, unless units are at their kinks, as those with zero biases and zero inputs. These are
    moved off them then, by a change of all parameters that are not zero and of the inputs.
    """
    try:
        found = _compared_there(passes, few, direction, near)
        if found is None:
            found = _compared_there(*_off_kinks(passes, few), direction, near)
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        logger.debug("no comparison at the parameters in mode %r", passes.mode, exc_info=error)
        return verdict
    return verdict if found is None or found.agrees else found


def _compared_there(passes: Passes, few: Batch, direction: Sequence[Tensor], near: float) -> Verdict | None:
    """Compare a product at the parameters of the passes with differences; None if these do not settle."""
    risk = passes.risk
    plain, names = risk.plain(double=risk.inspection.double), risk.parameters.names
    found, agreeing = passes.trial_by_rules(few, direction), Verdict(True, 0.0, "")
    with plain.held(risk.parameters.natural(risk.parameters.values)):
        differences, given = Differences.of(risk, plain, few), risk.parameters.natural(direction)
        # For nearly all models, one displacement or two decide, and the best is not looked for.
        if differences.dtype == torch.float64:
            likely = risk.parameters.real(passes.trial_by_differences(differences, given, AT_THE_POINT[0]))
            if length(minus(found, likely)) <= KINK[differences.dtype] * length(likely):
                return agreeing
            nearer = risk.parameters.real(passes.trial_by_differences(differences, given, AT_THE_POINT[1]))
            if length(minus(nearer, likely)) > TELLS * length(likely):
                return None
            del likely, nearer
        settling = settled_product(passes, differences, given)
    truth = Truth(risk.parameters.real(settling.product), risk.parameters.real(settling.changes))
    size, unsure = length(truth.product), length(truth.changes)
    if not truth.is_finite or not unsure <= TELLS * size:
        return None
    far = Deviation(found, truth, names)
    # A product that is not finite shows itself, and products of gradients that are zero but for their rounding are
    # rounding, too.
    unmistakable = math.isfinite(far.total) and far.relative > KINK[differences.dtype]
    rounding = size <= KINK[differences.dtype] * near
    if rounding or not unmistakable or _judge(passes, few, direction, found, truth, few.samples).agrees:
        return agreeing
    with plain.held(risk.parameters.natural(risk.parameters.values)):
        apart = differences.one_sided(given, KINK_AT[differences.dtype])
    text = (
        f"error {far.relative:.1e} at the parameters themselves against central differences of first derivatives, "
        f"although the loss is smooth there (differences to both sides are {apart:.0e} of the product apart), as the "
        "second derivatives of norms and absolute values at zero are lost even where their squares are smooth; write "
        "the squares as sums, such as (w * w).sum()"
    )
    return Verdict(False, far.relative, text, far.worst) if far.relative > BEYOND_KINKS * apart else None


def _off_kinks(passes: Passes, few: Batch) -> tuple[Passes, Batch]:
    """Passes and samples whose numbers are changed by `NEARBY`, except for parameters that are zero, and targets."""
    risk, generator = passes.risk, torch.Generator().manual_seed(1)

    def moved(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor + NEARBY * (_rms(tensor) or 1.0) * _noise(tensor, generator)

    values = [torch.where(value == 0, value, moved(value)) for value in risk.parameters.values]
    try:
        inputs = map_tensors(moved, few.inputs)
    except ValueError:
        # Objects that cannot be copied.
        inputs = few.inputs
    return passes.at(risk.at(values)), replace(few, inputs=inputs)


def _nearby(risk: EmpiricalRisk, generator: torch.Generator, smallest: float) -> list[Tensor]:
    values = risk.parameters.values
    norm, root = length(values), math.sqrt(risk.parameters.count)
    if norm <= smallest:
        # A change by a displacement relative to the parameters would be lost in rounding.
        return [value + _noise(value, generator) / root for value in values]
    return [value + NEARBY * (_rms(value) or norm / root) * _noise(value, generator) for value in values]


def _rms(tensor: Tensor) -> float:
    return length([tensor]) / math.sqrt(max(tensor.numel(), 1))


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of a tensor."""
    return torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)


def _direction(risk: EmpiricalRisk, generator: torch.Generator) -> list[Tensor]:
    return [_noise(value, generator) for value in risk.parameters.values]
