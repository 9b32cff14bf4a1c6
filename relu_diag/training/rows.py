"""Inputs of a block and the loss of its outputs, kept while riding along: what a verdict needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import BlockSignal
from relu_diag.functional.output_loss import Loss, joined, recognise
from relu_diag.training._data import MAX_ELEMENTS, SAME, TOO_MANY, tensors_of
from relu_diag.training._factors import Factors, in_order
from relu_diag.training._thrift import spread_rows
from relu_diag.training._training_data import RowsOfStep, TrainingData
from relu_diag.training.evidence import Evidence
from relu_diag.training.obstacle import ACTIVATIONS_READ, obstacle_of
from relu_diag.training.ranks import of_all_ranks, on_all_ranks
from relu_diag.training.recipe import Recipe, factor_between

NOT_SEEN = "no step of the training was seen yet"
# Steps whose rows are kept of a loss that is not known; and rows, while those of other blocks are waited for.
_STEPS = 32
_ROWS = 4096
# Parts in which samples are kept at most, where not all are.
_PARTS = 64
# A root is twice what has its gradient.
_OF_A_ROOT = 2.0
# How a reason begins that is no matter of targets, and what helps where it is one.
_NO_GRADIENT = "the gradient"
# How it begins where the loss is none of those known.
_NONE_OF_THEM = "the loss is not"
_HINT = "; where a step computes its targets, give the callback targets=lambda batch: ..."
# Where an operation with a kink stands there, the block is no last one, or its loss none of those known.
_BETWEEN = "; between them and the loss stands a later {}"
_CHANGES = "the loss changes from batch to batch"
_ANOTHER = "the loss is another one than when its rows were kept"
# Factors that depend on the batch, as those of a mean by weights of classes, are no further off the others than that.
_OF_A_BATCH = 1.1
# Roundings of outputs that a gradient may be off by.
_ROUNDINGS = 8


class KeptRows:
    """Keeps the rows of one epoch, and their loss where it is recognised as one of the block's outputs.

    Args:
        max_samples: Keep no more than so many; None: as many as memory allows.
        expected: Number of samples that will pass, among which those kept are spread evenly; 0: unknown.
        reason: Why there is no loss, where that is known before.
        steps: Keep no rows of more steps than that where the loss is not known.
        each: Of these keep no more rows of each step; None: all.

    Attributes:
        complete: Whether every sample of an epoch was kept.
        full: Whether no more rows are to be kept.
        reason: Why there is no loss, empty where there is.
        recipe: How to read rows off a batch without riding along; None where that is not known.
        factors: What the losses of steps are multiplied by, in units of the first one whose recipe is known.

    Example:
        >>> rows = KeptRows(max_samples=100)
        >>> rows.data() is None, rows.reason
        (True, 'no step of the training was seen yet')
    """

    def __init__(
        self,
        max_samples: int | None = None,
        expected: int = 0,
        reason: str = NOT_SEEN,
        steps: int = _STEPS,
        each: int | None = None,
    ) -> None:
        self.max_samples = None if expected and max_samples and expected <= max_samples else max_samples
        self.expected = expected
        self.complete = False
        self.full = False
        self.reason = reason
        self.recipe: Recipe | None = None
        self._steps = steps
        self._each = each
        self.factors = Factors()
        self._batches: list[RowsOfStep] = []
        # Parts of batches that are read when somebody asks, and the number of batches that some rows are kept of.
        self._noted: list[list[Tensor]] = []
        self._kept_batches = 0
        self._kept = 0
        self._signals: list[BlockSignal] = []
        self._finished = False
        self._passed = 0
        self._evidence = Evidence()
        self._steps_of_evidence: list[int | None] = []
        # In units of that of the first batch.
        self._factors_of_batches = [1.0]
        self._last_factor: float | None = None  # the factor of the last batch, in units of those noted
        # What the loss of the evidence is not, so far.
        self._unknown = NOT_SEEN
        self._hint = _HINT

    def keep(
        self, seen: Sighting, loss: float | None, batch: Any, step: int | None = None, inner: bool = False
    ) -> None:
        """Keep the rows of a step.

        Args:
            seen: The block, as the step saw it.
            loss: The loss of the step.
            batch: Its batch, among whose tensors the targets are.
            step: Number of the step, by which the rows that another block has of it are found.
            inner: Whether what reads the activations is the first layer of another block: a few rows then show that
                the loss is no known one of the outputs.
        """
        if self.full and (self._finished or not self._signals or step is None or self._kept >= _ROWS):
            return
        if not self.reason or self.reason == NOT_SEEN:
            self.reason = obstacle_of(seen)
            self._hint = _BETWEEN.format(" and ".join(seen.kinks_after)) if seen.kinks_after else _HINT
            if not self.reason and inner:
                self.reason = self._not_known(Evidence.of_few(seen, tensors_of(batch)))
            if not self.reason:
                self._evidence.add(seen, loss, tensors_of(batch))
                self._steps_of_evidence.append(step)
                self.reason = self._recognise()
            if not self.reason:
                return
        if self._room(seen.count, seen.inputs + seen.outputs):
            signal = spread_rows(seen.signal, self._each or seen.count)
            self._batches.append(RowsOfStep(signal.X, None, None if self._each else step, None))
            self._kept_batches += 1
            self._kept += len(signal.X)
            if self.reason != ACTIVATIONS_READ and not self.full:
                self._signals.append(signal)
            self.full = len(self._batches) >= self._steps
            self._passed += seen.count

    def confirm(self, seen: Sighting, loss: float | None, batch: Any) -> None:
        """Compare the loss of a later step with that of the rows, which may have another factor by then.

        Args:
            seen: The block, as the step saw it.
            loss: The loss of the step.
            batch: Its batch.
        """
        recipe = self.recipe
        if self.reason or not self.full or recipe is None:
            return
        step = Evidence()
        step.add(seen, loss, tensors_of(batch))
        same = recipe.loss_of(step.leaves(), step.count)
        if same is None:
            return
        factor = factor_between(same, step.outputs(), step.G(), _ROUNDINGS * seen.rounding)
        # The factor of a sum over a batch of another size is another one.
        mean = sum(self._factors_of_batches) / len(self._factors_of_batches) if step.count == recipe.count else factor
        stands = not bool(same.gradient(step.outputs()).any())  # all targets are met: nothing tells the factor
        if obstacle_of(seen) or not (stands or (factor > 0 and step.is_all(same.scaled(factor)))):
            self.reason = _ANOTHER
        elif factor > 0 and factor != mean:
            self.factors.note(recipe.factor * factor)
            if self.factors.follow_time or (
                not self._has_seen(factor) and in_order([*self._factors_of_batches, factor])
            ):
                self._settle(recipe.factor * factor)
            elif not self._has_seen(factor):
                self.recipe = recipe.scaled(factor / mean)
                self._batches = [one.scaled(factor / mean) for one in self._batches]

    @property
    def _factor(self) -> float:
        """The factor of the last batch; of one whose own is not known, that of the recipe."""
        known = 1.0 if self.recipe is None else self.recipe.factor
        return known if self._last_factor is None else self._last_factor

    def _settle(self, factor: float) -> None:
        """Judge all rows by the loss of now, whose factor grows with time."""
        if self.recipe is not None:
            self.recipe = self.recipe.scaled(factor / self.recipe.factor)
            self._factors_of_batches = [1.0]
            self._batches = [one.scaled(factor / one.factor) for one in self._batches]

    @property
    def was_read(self) -> bool:
        """Whether rows were read off batches that were not ridden."""
        return bool(self._noted) or any(batch.step is None and batch.loss is not None for batch in self._batches)

    @property
    def uneven(self) -> bool:
        """Whether batches weigh their rows differently, as a mean by weights of classes does: each is to be asked."""
        return not 1 - SAME <= max(self._factors_of_batches) / min(self._factors_of_batches) <= 1 + SAME

    def _has_seen(self, factor: float) -> bool:
        """Whether a factor is one that a batch had, or that another batch may have."""
        slack = _OF_A_BATCH if self.uneven else 1 + SAME
        return min(self._factors_of_batches) / slack <= factor <= max(self._factors_of_batches) * slack

    def take(self, batch: Any) -> bool:
        """Keep the rows of a batch by the recipe, nothing being ridden: they are copied now, and read later.

        Args:
            batch: A batch.

        Returns:
            Whether it can be read.
        """
        leaves = tensors_of(batch)
        count = None if self.recipe is None else self.recipe.count_in(leaves)
        if self.recipe is None or count is None:
            return False
        if not self.full and self._has_room(count, self.recipe.columns + 2):
            some = self._some(count, leaves[0].device)
            if some is None or len(some):
                self._noted.append(self.recipe.part(leaves, some))
        return True

    @property
    def one_batch(self) -> bool:
        """Whether all rows are those of one batch."""
        return self._kept_batches == 1

    @property
    def waiting(self) -> bool:
        """Whether the loss may yet be recognised by further steps."""
        return not self.reason and not self._passed

    @property
    def unknown(self) -> bool:
        """Whether the loss is none of those known."""
        return self.reason.startswith(_NONE_OF_THEM)

    def finish(self, complete: bool) -> None:
        """Keep no more.

        Args:
            complete: Whether every sample of an epoch has passed by since the first one was kept.
        """
        self._read_noted()
        if self.factors.follow_time and not self._finished:
            self._settle(self._factor)
        if self._batches and not self.full:
            self.complete = complete and self._passed == self._kept
            self.full = True
        self._finished = self.full

    def _read_noted(self) -> None:
        """Read the parts of batches that were noted, all at once; a batch that is not finite is left out."""
        parts, self._noted = self._noted, []
        recipe = self.recipe
        if not parts or recipe is None:
            return
        together = recipe.below(parts)
        if not recipe.is_finite(together):
            parts = [part for part in parts if recipe.is_finite(part)]
            self._kept += sum(recipe.count_in(part) or 0 for part in parts) - (recipe.count_in(together) or 0)
            together = recipe.below(parts)
        try:
            read = recipe.rows(together) if parts else None
        except Exception as error:  # ranks may be waiting
            self.reason = str(error) or type(error).__name__
            return
        if read is not None:
            self._batches.append(RowsOfStep(*read, step=None, chosen=None, factor=recipe.factor))

    def inputs(self) -> list[Tensor]:
        """The inputs kept by this rank.

        Returns:
            Batches of rows, shape ``(N, d)`` each.
        """
        self._read_noted()
        return [batch.X for batch in self._batches]

    def signals(self) -> list[BlockSignal]:
        """Inputs and loss gradients of the steps, at their weights, where the loss is not known.

        Returns:
            Signals, batch by batch.
        """
        return self._signals

    def data(self) -> TrainingData | None:
        """The rows of all ranks. A collective: every rank must call it.

        Returns:
            The data; None where there are none, `reason` says why.
        """
        on_all_ranks(self._read_noted)
        kept = [] if self.reason else [(batch.X, batch.loss) for batch in self._batches if batch.loss is not None]
        everyone = of_all_ranks((kept, self.reason, self.complete))
        self.reason = next((reason for _, reason, _ in everyone if reason), "")
        if self.reason:
            return None
        try:
            data = self._together([one for theirs, *_ in everyone for one in theirs])
        except ValueError:
            self.reason = _CHANGES
            return None
        if data is None:
            self.reason = self._unknown
            return None
        return replace(data, complete=all(complete for *_, complete in everyone))

    def on_rows_of(self, below: KeptRows) -> TrainingData | None:
        """Rows of another block, with the loss of the same samples as this one knows it. A collective.

        Args:
            below: The rows of the other block, all of each of its steps.

        Returns:
            The data; None where the loss is not known, or the two have no samples in common.
        """
        kept = on_all_ranks(lambda: self._rows_in_common(below))
        everyone = of_all_ranks((kept, self.complete and len(kept) == len(self._batches)))
        try:
            data = self._together([one for theirs, _ in everyone for one in theirs])
        except ValueError:
            return None
        return None if data is None else replace(data, complete=all(complete for _, complete in everyone))

    def _rows_in_common(self, below: KeptRows) -> list[tuple[Tensor, Loss]]:
        """Inputs of another block, batch by batch, with the loss of the same samples as this one knows it."""
        self._read_noted()
        theirs = below._inputs_of_steps()
        kept = []
        for batch in [] if self.reason else self._batches:
            X = None if batch.step is None else theirs.get(batch.step)
            if X is None or batch.loss is None:
                continue
            X = X if batch.chosen is None else X[batch.chosen]
            if len(X) == len(batch.X):
                kept.append((X, batch.loss))
        return kept

    def _inputs_of_steps(self) -> dict[int, Tensor]:
        """All inputs of each step, by its number; also of steps that are too few to tell the loss of an inner block."""
        whole = {batch.step: batch.X for batch in self._batches if batch.chosen is None}
        waiting = zip(self._steps_of_evidence, self._evidence.inputs, strict=True)
        return {step: X for step, X in (*whole.items(), *waiting) if step is not None}

    def _together(self, kept: list[tuple[Tensor, Loss]]) -> TrainingData | None:
        """Batches of all ranks as one on this rank's device, with the mean of their losses; None without any."""
        if not kept:
            return None
        device = (self._batches[0].X if self._batches else kept[0][0]).device
        X = torch.cat([rows.to(device) for rows, _ in kept])
        shares = [len(rows) / len(X) for rows, _ in kept]
        return TrainingData(X, joined([loss.to(device) for _, loss in kept], shares))

    def _recognise(self) -> str:
        """Keep the rows of steps whose loss is recognised, and wait where more of them may tell; or what it is not."""
        evidence = self._evidence
        part = ""
        for found in self._candidates():
            if evidence.is_all(found):
                self._recognised(found)
                return ""
            root = evidence.is_all(found.scaled(_OF_A_ROOT))
            part = part or f"the loss {'is the root of' if root else 'has a part besides'} the {found.name}"
        return part or ("" if evidence.few else self._unknown)

    def _not_known(self, few: Evidence) -> str:
        """That the loss is none of those known, by a few rows; empty where more are to be asked."""
        recognition = recognise(few.outputs(), few.G(), few.leaves())
        return recognition.reason + self._hint if recognition.reason.startswith(_NONE_OF_THEM) else ""

    def _candidates(self) -> Iterator[Loss]:
        """Losses with that gradient: where outputs are small, only the value tells targets from weights."""
        evidence = self._evidence
        leaves, outputs, G = evidence.leaves(), evidence.outputs(), evidence.G()
        known = None if self.recipe is None else self.recipe.loss_with_gradient(leaves, outputs, G)
        if known is not None:
            yield known
        for order in (leaves, leaves[::-1]):
            recognition = recognise(outputs, G, order)
            hidden = not recognition.candidates and not recognition.reason.startswith(_NO_GRADIENT)
            self._unknown = recognition.reason + (self._hint if hidden else "")
            # Of several the value of the loss tells which it is, unless no target has been on the other side yet.
            if recognition.loss is None and evidence.valued and not evidence.one_sided:
                yield from recognition.candidates
            if recognition.loss is None:
                return
            yield recognition.loss

    def _recognised(self, found: Loss) -> None:
        """Keep the rows of the evidence."""
        evidence = self._evidence
        if self.recipe is None:
            self.recipe = Recipe.of(evidence.X(), found, evidence.leaves(), evidence.count)
            self.factors.note(self._factor)
        elif (same := self.recipe.loss_of(evidence.leaves(), evidence.count)) is not None:
            factor = factor_between(same, evidence.outputs(), evidence.G())
            if factor > 0 and evidence.count == self.recipe.count:
                self._factors_of_batches.append(factor)
                self._last_factor = self.recipe.factor * factor
                self.factors.note(self._last_factor)
        for step, (X, own) in zip(self._steps_of_evidence, evidence.steps(found), strict=True):
            self._add(X, own, step)
        self._evidence = Evidence()
        self._steps_of_evidence = []

    def _add(self, X: Tensor, loss: Loss, step: int | None = None) -> None:
        """Keep rows, no more than there is room for."""
        if not self._has_room(len(X), X.shape[1] + 1):
            return
        chosen = self._some(len(X), X.device)
        if chosen is not None:
            if not len(chosen):
                return
            loss = loss.rows(chosen).scaled(len(X) / len(chosen))
            X = X[chosen]
        self._batches.append(RowsOfStep(X.clone(), loss, step, chosen, self._factor))

    def _some(self, count: int, device: torch.device) -> Tensor | None:
        """Which rows of a batch of so many are kept, long; None: all."""
        self._passed += count
        room = count
        if self.max_samples is not None:
            wanted = math.ceil(min(1.0, self._passed / max(self.expected, 1)) * self.max_samples)
            room = min(count, wanted - self._kept)
            self.full = self._kept + room >= self.max_samples
            if self._kept and room < count and room * _PARTS < self.max_samples and not self.full:
                room = 0  # few parts of many rows cost less than many of few
        self._kept += room
        self._kept_batches += room > 0
        if room == count:
            return None
        return torch.arange(room, device=device) * count // max(room, 1)  # evenly spaced: data may be in order

    def _has_room(self, count: int, numbers: int) -> bool:
        """Whether memory allows more rows of so many numbers; else none are kept."""
        if self._room(count, numbers):
            return True
        self.reason = TOO_MANY
        self._batches.clear()
        self._noted.clear()
        self._kept = 0
        return False

    def _room(self, count: int, numbers: int) -> bool:
        """Whether memory allows more rows of so many numbers."""
        return (self._kept + count) * numbers <= MAX_ELEMENTS
