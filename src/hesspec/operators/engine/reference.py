"""Products by differences of the user's own module, which verification compares other products with."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesspec.backend.memory import is_out_of_memory
from hesspec.errors import InputError
from hesspec.operators.engine.differences import Differences, Settled, length, settled
from hesspec.operators.engine.surrogate import HOOKED, TensorHooks, double_backward_meant, mismatch
from hesspec.operators.model.ambient import differentiable_kernels
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import Named

if TYPE_CHECKING:
    from hesspec.operators.engine.passes import Passes

__all__ = [
    "AGREE",
    "LIKELY",
    "Deviation",
    "Product",
    "Truth",
    "largest",
    "minus",
    "plain_product",
    "settled_product",
    "truth_of",
]

logger = logging.getLogger(__name__)

# Relative error up to which products agree with the reference. Rounding in float32 gives 1e-7 to 1e-6 for networks of
# ordinary size; the faults that verification is meant to find give 1e-3 and more.
AGREE = {torch.float32: 1e-5, torch.float64: 1e-7}
# Relative tolerance of the block of one parameter, unless it is too small to be compared.
BLOCK, TELLING = 0.05, 1e-6
# Displacements in float64 by the dtype of the product, most promising first. At 1e-6, gradients keep ten digits and few
# units switch, or none; for float32, eight digits suffice, and at 1e-8 a hundredth as many switch.
LIKELY = {
    torch.float32: (1e-8, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4),
    torch.float64: (1e-6, 1e-7, 1e-8, 1e-9, 1e-5, 1e-4),
}
# Differences are as good a reference as is needed if they change by this share of what products may deviate.
SHARE = 0.1


@dataclass(frozen=True)
class Truth:
    """Reference for products.

    Attributes
    ----------
    product, changes : list of Tensor
        The product, and its uncertainty.
    surrogate : bool
        Whether it is computed by double backward, as the gradient is not that of the loss.
    """

    product: list[Tensor]
    changes: list[Tensor]
    surrogate: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether all entries of the product are finite."""
        return all(bool(part.isfinite().all()) for part in self.product)


@dataclass(frozen=True)
class Product:
    """Product to be verified, and the relative deviation from the reference that it may have."""

    parts: list[Tensor]
    tolerance: float


class Deviation:
    """Deviation of a product from the reference, as a whole and by block."""

    def __init__(self, found: Sequence[Tensor], truth: Truth, names: Sequence[str]) -> None:
        size = length(truth.product)
        apart = [length([part]) for part in minus(found, truth.product)]
        own = [length([part]) for part in truth.product]
        unsure = [length([part]) for part in truth.changes]
        self.total = math.hypot(*apart)
        self.relative = self.total / size if size else self.total
        # A block that is too small contains the rounding of the whole product.
        self.blocks = [
            name
            for name, a, b, c in zip(names, apart, own, unsure, strict=True)
            if not a <= BLOCK * b + TELLING * size + 3 * c
        ]
        self.worst = largest(minus(found, truth.product), names)


def largest(parts: Sequence[Tensor], names: Sequence[str]) -> tuple[str, ...]:
    """Names of the three largest blocks."""
    order = sorted(range(len(parts)), key=lambda i: -length([parts[i]]))
    return tuple(names[i] for i in order[:3])


def minus(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """Differences of tensors, in float64."""
    return [a.double() - b.double() for a, b in zip(one, other, strict=True)]


def settled_product(
    passes: Passes, differences: Differences, given: Sequence[Tensor], product: Product | None = None
) -> Settled:
    """Compute the product by differences, with no second displacement if the first one confirms the product."""

    def agrees(parts: list[Tensor]) -> bool:
        if product is None:
            return False
        truth = Truth(parameters.real(parts), [torch.zeros(()) for _ in parts])
        far, size = Deviation(product.parts, truth, parameters.names), length(truth.product)
        return size > 0 and far.total <= product.tolerance * size and not far.blocks

    parameters = passes.risk.parameters
    # Products by differences use the same displacements as their verification.
    quick = differences.dtype == torch.float64 and passes.mode != "differences"
    return settled(
        lambda h: passes.trial_by_differences(differences, given, h),
        differences.dtype,
        LIKELY[parameters.dtype] if quick else None,
        SHARE * AGREE[parameters.dtype] if quick else None,
        agrees if quick else None,
    )


def truth_of(passes: Passes, few: Batch, direction: Sequence[Tensor], product: Product | None = None) -> Truth:
    """Compute the reference for products of a few samples in a direction.

    Parameters
    ----------
    passes : Passes
        At the point of the comparison.
    few : Batch
    direction : sequence of Tensor
    product : Product, optional
        Product to be verified.

    Raises
    ------
    InputError
        If a hook on a tensor of the forward pass changes gradients.
    """
    risk = passes.risk
    plain, parameters = risk.plain(double=risk.inspection.double), risk.parameters
    with plain.held(parameters.natural(parameters.values)):
        differences = Differences.of(risk, plain, few)
        given = parameters.natural(direction)
        found = settled_product(passes, differences, given, product)
        slopes = mismatch(differences, given, found.displacement)
        if slopes:
            found = settled_product(passes, differences, given)
            slopes = mismatch(differences, given, found.displacement)
    found = found._replace(product=parameters.real(found.product), changes=parameters.real(found.changes))
    truth = Truth(found.product, found.changes)
    if not (slopes and truth.is_finite):
        return truth
    with plain.held(parameters.natural(parameters.values)), TensorHooks() as hooks:
        Differences.of(risk, plain, few).gradient()
    if hooks.found:
        raise InputError(HOOKED)

    def by_differences(tangents: Sequence[Tensor]) -> list[Tensor]:
        with plain.held(parameters.natural(parameters.values)):
            again, moved = Differences.of(risk, plain, few), parameters.natural(tangents)
            return parameters.real(passes.trial_by_differences(again, moved, found.displacement))

    def by_double_backward(tangents: Sequence[Tensor]) -> list[Tensor] | None:
        return plain_product(passes, few, tangents, double=risk.inspection.double)

    meant = double_backward_meant(by_differences, by_double_backward, direction, found, slopes=slopes, mode=risk.mode)
    if meant is None:
        return truth
    return Truth(list(meant), [torch.zeros_like(part) for part in meant], surrogate=True)


def plain_product(passes: Passes, few: Batch, direction: Sequence[Tensor], *, double: bool) -> list[Tensor] | None:
    """Compute the product by double backward of the user's own module, in place; None if that fails."""
    risk = passes.risk
    plain = risk.plain(double=double)
    try:
        with plain.held(risk.parameters.natural(risk.parameters.values)), torch.enable_grad(), differentiable_kernels():
            inputs, targets = plain.converted((few.inputs, few.targets))
            theta: Named = dict(zip(risk.parameters.names, plain.leaves, strict=True))
            given = plain.converted(risk.parameters.natural(direction))
            predict, loss = risk.in_place(plain, inputs, targets)
            found = passes.trial_in_place(predict, loss, theta, given)
            return [part.detach() for part in risk.parameters.real(found)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.debug("no plain double backward", exc_info=error)
        return None
