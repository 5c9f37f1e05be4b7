"""How the losses of batches add up to that of all data, inferred from the losses of a few samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from hesspec.backend.ranks import Ranks
from hesspec.backend.user_warnings import warn
from hesspec.operators.data.division import Division, joined
from hesspec.operators.data.structures import flatten
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.risk.first_pass import ClassRange, Evaluation, Forward, copied, evaluate
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.reduction import (
    LOOKED_AT,
    SMALLER,
    Finding,
    Groups,
    Part,
    by_calls,
    check_broadcast,
    compare_outputs,
    compare_parts,
    mixed_parts,
    two_parts,
)
from hesspec.operators.risk.terms import SAMPLES, SUM, Terms, candidates

__all__ = ["NOT_ADDITIVE", "Nature"]

# Largest number of batches that are examined: the first, and others that resolve what it leaves open. Batches of one
# sample, which leave more open, are counted apart.
LOOKS = 4

# Relative difference of weights up to which they are the same: probabilities in float32 sum to one sample up to 6e-8.
ALIKE = 1e-6

# Largest number of inputs of which each is tried as one that all samples share.
MOST_SHARED = 8

NOT_ADDITIVE = "the losses of its parts do not add up to its loss"
UNTOLD = "it is unknown whether the losses of its parts add up to its loss"
AMBIGUOUS = "it is unknown what its loss is a mean over"


class Nature:
    """Kind of reduction in the loss of a batch: a mean (over which terms), a sum, or neither.

    Batches are examined in order (`wants`, `look`), then the processes that share the data agree (`settle`).

    It evaluates a few samples of a batch, at most 16, and two parts of them: a mean over terms is the mean of the
    parts' losses weighted by their terms, and a sum is their sum. Candidates for the terms are samples, targets that
    are not ignored, and totals of masks or weights (`hesspec.operators.risk.terms`). If several fit, further batches
    that distinguish them are examined, alone or together with samples of an earlier batch; if there are none, the terms
    are those of the PyTorch loss functions that were called, and otherwise the samples. A batch of one sample is only
    informative together with a second one, and the loss functions that it calls count if nothing else is.

    Parameters
    ----------
    loss : Loss
    forward : callable or None
        From inputs to outputs at the real parameters; None if no forward pass can be run, so that the reduction
        declared by the loss is used.

    Attributes
    ----------
    ranges : list of ClassRange
        Ranges of valid classes in the data.
    changes_inputs : bool
        Whether the model modifies its inputs in place.
    open : list of Terms
        Candidates for the terms of the mean.
    terms : Terms
        The terms that were chosen.
    division : Division or None
        Position of the samples in a batch that was examined.
    indivisible : str
        Why batches are never split; "" if they may be.
    """

    def __init__(self, loss: Loss, forward: Forward | None) -> None:
        self._loss, self._forward = loss, forward
        self.ranges: list[ClassRange] = []
        self.changes_inputs = False
        self.open: list[Terms] = []
        self.terms = SAMPLES
        self.division: Division | None = None
        self.indivisible = ""
        # Candidates for which parts add up to rounding; None if no parts were evaluated.
        self._exact: set[Terms] | None = None
        self._backed: set[Terms] = set()
        # The losses of the first informative batch, as text.
        self._told = ""
        # What calls of loss functions show for batches of one sample.
        self._of_one: Finding | None = None
        # Numbers of batches that were examined, of several samples and of one.
        self._looks = [0, 0]
        # Some samples of the batches that were examined.
        self._seen: list[Part] = []
        # For each batch, the open candidates that count its samples alike.
        self._alike: list[dict[Terms, int]] = []

    def known(self) -> Self:
        """Return the same finding for other batches, which are not examined."""
        other = copy.copy(self)
        other._forward = None  # noqa: SLF001 - it is of this class
        return other

    def divides(self, inputs: Any, targets: Any, samples: int) -> bool:
        """Whether the samples of a batch can be separated like those of the first one."""
        structure = inputs, targets
        if samples < 2 or flatten(structure)[1].opaque:
            return False
        if self.division is not None:
            return self.division.fits(structure, samples)
        sides = [Division.of(side, samples) for side in structure if flatten(side)[0]]
        return bool(sides) and all(side.divides for side in sides)

    @property
    def adds_up(self) -> bool:
        """Whether the examined parts add up to their batches by numbers of samples."""
        return SAMPLES in (self._exact or ())

    def wants(self, inputs: Any, targets: Any, samples: int) -> bool:
        """Whether to examine a batch: the first ones until one is informative, and any that adds information."""
        if self._forward is None:
            return False
        more = not self._told or self._tells_apart(inputs, targets, samples)
        return self._looks[samples == 1] < LOOKS and (more or bool(self._others(Part(inputs, targets, samples))))

    def _tells_apart(self, inputs: Any, targets: Any, samples: int) -> bool:
        """Whether the open candidates count the samples of a batch differently, which is recorded for `settle`."""
        alike: dict[Terms, int] = {}
        kinds: list[torch.Tensor] = []
        for terms in self.open:
            each = None if terms == SUM else terms.of_each(self._loss, inputs, targets, samples)
            if each is None or not each.sum() > 0:
                continue
            share = each / each.sum()
            same = (i for i, kind in enumerate(kinds) if float((share - kind).abs().sum()) <= ALIKE)
            alike[terms] = next(same, len(kinds))
            if alike[terms] == len(kinds):
                kinds.append(share)
        if len(kinds) > 1:
            self._alike.append(alike)
        return len(kinds) > 1

    def look(self, index: int, inputs: Any, targets: Any, samples: int) -> None:
        """Examine a batch on the model's device, which is left unchanged.

        Raises
        ------
        ValueError
            If the model or the loss fails on it, or `terms=` contradicts the loss.
        """
        if self._forward is None:
            return
        with preserved_randomness():
            self._look(index, inputs, targets, samples, self._forward)

    def _look(self, index: int, inputs: Any, targets: Any, samples: int, forward: Forward) -> None:
        self._looks[samples == 1] += 1
        batch = Part(inputs, targets, samples)
        finding = self._look_at(index, batch, forward)
        if finding is not None:
            self._note(index, finding)
        # Samples that all open candidates count alike are not informative; others of this batch may be.
        before: list[Terms] = []
        while finding is not None and self.open != before and self._tells_apart(inputs, targets, samples):
            before, finding = self.open, self._look_at(index, batch, forward)
            if finding is not None:
                self._note(index, finding)
        some = self._some(batch)
        if some is None:
            return
        for other in self._others(some):
            finding = self._look_at_both(index, other, some, forward)
            # A model for one sample may return anything for two.
            if finding is not None and (finding.fits or self._of_one is None):
                self._note(index, finding)
                break
        self._seen.append(some)

    def _some(self, batch: Part) -> Part | None:
        """Return a few samples of a batch, to be joined with those of others; None if it cannot be divided."""
        structure = batch.inputs, batch.targets
        if flatten(structure)[1].opaque:
            return None
        if batch.samples == 1:
            return batch
        if not self._exact or not self.divides(*structure, batch.samples):
            return None
        some = _taken(batch, self._in_batch(batch), torch.arange(min(batch.samples, SMALLER), device="cpu"))
        # Not views, which would keep the whole batch alive.
        inputs, targets = copied((some.inputs, some.targets))
        return Part(inputs, targets, some.samples)

    def _in_batch(self, batch: Part) -> Division:
        return self.division or Division.of_pair((batch.inputs, batch.targets), batch.samples)

    def _others(self, batch: Part) -> list[Part]:
        """Return samples of other batches that are informative together with a batch.

        These are samples that the open candidates count differently, and batches of one sample.
        """
        found = []
        for other in self._seen:
            numbers = (
                [terms.of(self._loss, p.inputs, p.targets, p.samples) for p in (other, batch)] for terms in self.open
            )
            shares = [one / (one + two) for one, two in numbers if one + two > 0]
            single = not self._told and batch.samples == other.samples == 1
            if single or (shares and max(shares) - min(shares) > ALIKE):
                found.append(other)
        return found

    def _look_at_both(self, index: int, one: Part, other: Part, forward: Forward) -> Finding | None:
        """Examine samples of two batches as one batch, if they can be joined."""
        division, pairs = self._in_batch(one), ((one.inputs, one.targets), (other.inputs, other.targets))
        divisions = [division]
        if one.samples == other.samples == 1:
            # Of one sample, rows and tensors that all samples share look the same.
            divisions.append(division.sharing(*pairs))
        for tried in divisions:
            both = joined(*pairs, tried) if tried.divides else None
            if both is None:
                continue
            whole = Part(both[0], both[1], one.samples + other.samples)
            try:
                evaluation = self._evaluate(index, whole, forward)
            except ValueError:
                # Their entries do not correspond to samples by rows.
                continue
            break
        else:
            return None
        found = compare_parts(index, evaluation, (whole, one, other), self.open, forward, self._loss)
        # Whether a batch may be split is determined by its own parts, if it has any.
        return found and replace(found, cut=self._exact is None)

    def _look_at(self, index: int, batch: Part, forward: Forward) -> Finding | None:
        divided = self.divides(batch.inputs, batch.targets, batch.samples)
        division = self._in_batch(batch)
        tried = self.open or candidates(self._loss, batch.inputs, batch.targets, batch.samples, ())
        some, groups, cut = batch, None, divided
        if divided:
            groups = two_parts(self._loss, batch, tried)
            some = _taken(batch, division, torch.cat(groups).sort().values)
        try:
            whole = self._evaluate(index, some, forward)
        except ValueError:
            if groups is None:
                raise
            # Either the model cannot process a subset of the samples, or it fails, which the whole batch will show.
            some, groups = batch, None
            whole = self._evaluate(index, batch, forward)
        if not self._told:
            called = candidates(self._loss, batch.inputs, batch.targets, batch.samples, whole.calls)
            self.open = list(dict.fromkeys([*self.open, *called]))
        finding = None
        if groups is not None:
            finding = self._of_parts(index, whole, batch, some, groups, forward)
        if (finding is None or not finding.fits) and some.samples > 1 and self._loss.closure is None:
            groups = two_parts(self._loss, some, self.open, limit=some.samples)
            by_outputs = compare_outputs(whole, some, groups, self.open, self._loss)
            finding = by_outputs or finding
        if finding is not None and not finding.fits:
            check_broadcast(index, whole, some, self.open, self._loss)
        finding = finding or by_calls(whole, some, self.open, self._loss)
        return finding and replace(finding, cut=cut)

    def _of_parts(
        self, index: int, whole: Evaluation, batch: Part, some: Part, groups: Groups, forward: Forward
    ) -> Finding | None:
        """Compare the loss of some samples of a batch with those of two parts, in the first division that explains it.

        Terms that only the values suggest must fit two other parts as well, each of which has some if possible: if all
        terms are in one part, those of any loss that is determined by one sample, such as its maximum, fit.
        """

        def compare(way: Division, parts: Groups, *, strict: bool = False) -> Finding | None:
            one, other = (_taken(batch, way, group) for group in parts)
            return compare_parts(index, whole, (some, one, other), self.open, forward, self._loss, strict=strict)

        found: Finding | None = None
        for way in self._divisions(batch):
            finding = compare(way, groups)
            if finding is not None and (found is None or finding.fits):
                found, self.division = finding, way
            if found is not None and found.fits:
                break
        # What is declared, called or most likely needs no second look.
        likely = {"samples", "sum", "given", "module"}
        if found is None or not found.fits or found.backed or any(terms.kind in likely for terms in found.fits):
            return found
        mixed = compare(self._in_batch(batch), mixed_parts(self._loss, batch, groups, found.fits[0]), strict=True)
        return found if mixed is None else mixed.and_of(found)

    def _divisions(self, batch: Part) -> list[Division]:
        """Return the ways to divide a batch, the most likely one first.

        Two inputs of two samples, one of them shared, look like two samples; and a tensor that all samples share may
        have as many rows as there are samples, like a mask of positions.
        """
        first = self._in_batch(batch)
        rows = sorted(path for path in first.rows if path.startswith("[0]"))
        if batch.samples > LOOKED_AT:
            return [first]
        by_rows = [Division.of_rows((batch.inputs, batch.targets), batch.samples)] if first.lists else []
        return [first, *by_rows, *(first.shared(path) for path in rows if 1 < len(rows) <= MOST_SHARED)]

    def _evaluate(self, index: int, part: Part, forward: Forward) -> Evaluation:
        found = evaluate(index, part.inputs, part.targets, forward, self._loss)
        self.changes_inputs |= found.changes_inputs
        self._loss.changes_targets |= found.changes_targets
        self._loss.changes_outputs |= found.changes_outputs
        self.ranges = list(dict.fromkeys([*self.ranges, *found.ranges]))
        return found

    def _note(self, index: int, finding: Finding) -> None:
        """Keep the candidates that fit this batch as well."""
        given = next((terms for terms in self.open if terms.kind == "given"), None)
        if given is not None and finding.fits and given not in finding.fits:
            fitting = "the sum of its parts" if finding.fits[0] == SUM else f"a mean over {finding.fits[0]}"
            raise ValueError(
                f"Batch {index}: terms= contradicts the loss, which is {finding.words}: that is {fitting}. Omit "
                "terms=, or let it return the number of terms in the mean."
            )
        if finding.of_one and not self._told:
            self._of_one = finding.and_of(self._of_one)
            return
        if finding.cut:
            self._exact = set(finding.exact) & (set(finding.exact) if self._exact is None else self._exact)
        self._backed = set(finding.backed) & (self._backed if self._told else set(finding.backed))
        self.open = [terms for terms in self.open if terms in finding.fits]
        self._told = self._told or finding.words

    def settle(self, ranks: Ranks, numbers: Sequence[Mapping[Terms, float]]) -> None:
        """Choose the most likely candidate that fits on all ranks.

        Parameters
        ----------
        ranks : Ranks
        numbers : sequence of mappings
            For each batch of this rank, its number of terms by each open candidate.

        Warns
        -----
        UserWarning
            If it cannot be determined for several batches.
        """
        told, of_one = self._gathered(ranks)
        fits = [terms for terms in told[0][1] if all(terms in fitting for _, fitting, _, _ in told)] if told else []
        fits = [terms for terms in fits if all(terms in of for of in numbers) or terms == SUM]
        cut = [of_rank for _, _, of_rank, _ in told if of_rank is not None]
        backed = [terms for terms in fits if all(terms in of_rank for _, _, _, of_rank in told)]
        # If all targets count in the examined batches, they give no information about ignored targets.
        backed.sort(key=lambda terms: terms == SAMPLES)
        known = known_terms(self._loss, numbers)
        assumed = SUM if self._loss.reduction == "sum" and not self._loss.given_terms else [*known, SAMPLES][0]
        self.terms = next((terms for terms in [*known, *backed, *fits] if terms in fits), assumed)
        self.open = fits
        if self.terms == SUM:
            self._loss.reduction = "sum"
        elif self._loss.reduction == "sum":
            self._loss.reduction = "mean"
        self._seen.clear()
        if self._forward is None:
            return
        if not cut or not all(self.terms in of_rank for of_rank in cut):
            self.indivisible = NOT_ADDITIVE if cut else UNTOLD
        several = ranks.total(len(numbers)) > 1
        if several and not fits and self.terms not in known:
            seen = (
                f"it is neither a mean over samples, tokens or other terms nor a sum: {told[0][0]}" if told else UNTOLD
            )
            _warn(
                ranks,
                f"It is unknown how the losses of batches add up ({seen}). Batches are weighted by their numbers of "
                "samples and never split. Pass all data as one batch, or terms=..., the number of terms in the mean "
                "of a batch.",
            )
        if several and of_one and self.terms == SUM != assumed:
            _warn(
                ranks,
                f"Every batch that was examined has one sample, for which a sum over samples and their mean are the "
                f"same ({told[0][0]}): a sum is assumed. If it is a mean, pass terms=..., a function of the targets "
                "that returns their number, or batches of several samples.",
            )
        if self.terms not in [*known, *backed, SUM]:
            self._settle_open(ranks, numbers)

    def _gathered(self, ranks: Ranks) -> tuple[list[tuple[str, list[Terms], set[Terms] | None, set[Terms]]], bool]:
        """Return the informative findings of all ranks (losses as text, open, exact, backed), and if all are of one."""
        told = [one for one in ranks.gather((self._told, self.open, self._exact, self._backed)) if one[0]]
        if told:
            return told, False
        of_one = [one for one in ranks.gather(self._of_one) if one is not None]
        return [(one.words, list(one.fits), None, set(one.backed)) for one in of_one], True

    def _settle_open(self, ranks: Ranks, numbers: Sequence[Mapping[Terms, float]]) -> None:
        """Warn if batches would have different weights under the other candidates that fit."""
        other: list[Terms] = []
        for terms in self.open:
            ratios = [of[terms] / of[self.terms] for of in numbers if of[self.terms]]
            least = ranks.least(min(ratios, default=math.inf))
            most = -ranks.least(-max(ratios, default=-math.inf))
            if terms != SUM and most - least > ALIKE * most:
                other.append(terms)
        undecided = any(len({alike[terms] for terms in self.open if terms in alike}) > 1 for alike in self._alike)
        if other or ranks.total(float(undecided)) > 0:
            self.indivisible = self.indivisible or AMBIGUOUS
        if other:
            named = list({terms.path: str(terms) for terms in reversed(other)}.values())[::-1]
            _warn(
                ranks,
                f"The mean of the loss may be over {self.terms} or over {' or '.join(named[:3])}, which give "
                f"batches different weights; {self.terms} are assumed. Pass terms=..., a function of the "
                "targets that returns the number of terms, to specify it.",
            )


def known_terms(loss: Loss, numbers: Sequence[Mapping[Terms, float]]) -> list[Terms]:
    """Return the terms that the user, or a loss module of PyTorch, declares."""
    given = [Terms("given")] if loss.given_terms is not None else []
    return [*given, *([Terms("module")] if all(Terms("module") in of for of in numbers) else [])]


def _taken(batch: Part, division: Division, group: torch.Tensor) -> Part:
    inputs, targets = division.taken((batch.inputs, batch.targets), group)
    return Part(inputs, targets, len(group))


def _warn(ranks: Ranks, words: str) -> None:
    if ranks.rank == 0:
        warn(words)
