"""What is kept of every block before a verdict: its rows, and how they are found in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from relu_diag.capture import Sighting
from relu_diag.training._data import affordable
from relu_diag.training._factors import Factors
from relu_diag.training._others import Before, change_but, lengths_of_others
from relu_diag.training.obstacle import obstacle_of
from relu_diag.training.recipe import Recipe
from relu_diag.training.rows import NOT_SEEN, KeptRows

_OTHER_READERS = "other layers read it in other steps, so that no loss of its outputs is that of all of them"
_NOT_ALWAYS = "some steps do not go through it: not all data are its own"
_OTHER_TENSORS = "a batch has other tensors than those before"


class KeptBlocks:
    """Rows of the steps of an epoch, of every block, by the name of its first layer.

    Attributes:
        rows: The rows; none of blocks that are not being kept.
        recipes: Where batches hold inputs and targets, as far as it is known; they outlast the rows.
        reasons: Why rows cannot be judged, empty where they can; they outlast the rows.
        missed: Whether a batch of the epoch is not among them.
    """

    def __init__(self) -> None:
        self.rows: dict[str, KeptRows] = {}
        self.recipes: dict[str, Recipe] = {}
        self.reasons: dict[str, str] = {}
        self.missed = False
        # Whether the loss has become another one: then each batch is asked anew.
        self._changing = False
        # Why the loss is not known of inner blocks, by their outputs and what stands behind them.
        self._unknown: dict[tuple[bool, int, tuple[str, ...]], str] = {}
        # The rest of the module when rows began to be kept.
        self._others: dict[str, list[float]] = {}
        self._before: Before | None = None
        # What the losses of all steps so far are multiplied by, block by block.
        self._factors: dict[str, Factors] = {}

    @property
    def full(self) -> bool:
        """Whether every block has as many rows as are to be kept."""
        return bool(self.rows) and all(rows.full for rows in self.rows.values())

    @property
    def refused(self) -> bool:
        """Whether the rows of a block cannot be judged."""
        return any(rows.reason for rows in self.rows.values())

    @property
    def readable(self) -> bool:
        """Whether rows can be read off batches, without riding along."""
        held = all(rows.recipe is not None and rows.recipe.inputs is not None for rows in self.rows.values())
        uneven = self._changing or any(rows.uneven for rows in self.rows.values())
        return bool(self.rows) and held and not uneven

    def will_be_readable(self, names: Iterable[str]) -> bool:
        """Whether rows of blocks could be read off batches, by what is known of them.

        Args:
            names: The blocks.

        Returns:
            Whether they could.
        """
        return not self._changing and all(map(self._is_as_it_is, names))

    @property
    def columns(self) -> int:
        """Numbers of one row, of all blocks whose recipe is known."""
        return sum(rows.recipe.columns for rows in self.rows.values() if rows.recipe is not None)

    def clear(self) -> None:
        """Let go of the rows."""
        self.rows = {}

    def drop(self, name: str) -> None:
        """Forget a block of another shape: a layer beside it was widened."""
        self.missed = self.missed or name in self.rows
        self.rows.pop(name, None)
        self.recipes.pop(name, None)

    def begin(self, one: Sighting, most: int | None, expected: int, module: nn.Module | None) -> None:
        """Begin to keep the rows of a block.

        Args:
            one: The block.
            most: Largest number of rows; None: as many as a verdict may cost.
            expected: Number of rows that are to come; 0: not known.
            module: The module whose other layers may move its inputs; None: not known.
        """
        self._begin(one, KeptRows(most or affordable(one), expected), module)

    def begin_some(self, one: Sighting, most: int, steps: int, module: nn.Module | None, inner: bool) -> None:
        """Begin to keep a few rows of a block, of a few steps that are alike.

        Args:
            one: The block.
            most: Largest number of rows.
            steps: Number of steps whose rows are to come.
            module: The module whose other layers may move its inputs; None: not known.
            inner: Whether another block stands behind it: what was said of its loss stays so.
        """
        reason = (self.reasons.get(one.hidden) if inner else "") or NOT_SEEN
        each = -(-most // steps)
        self._begin(one, KeptRows(most, steps * one.count, reason, steps=steps, each=each), module)

    def _begin(self, one: Sighting, rows: KeptRows, module: nn.Module | None) -> None:
        if module is not None and not self._is_as_it_is(one.hidden) and (one.hidden in self.rows or not self.rows):
            self._before = Before(module)
        rows.recipe = self.recipes.get(one.hidden)
        if rows.recipe is not None:
            rows.factors = self._factors.get(one.hidden, rows.factors)
        self._factors[one.hidden] = rows.factors
        self.rows[one.hidden] = rows
        if one.from_data and not one.reruns and module is not None:
            self._others[one.hidden] = lengths_of_others(module, one.parameters)

    def add(self, one: Sighting, loss: float | None, batch: Any, number: int, same_readers: bool, inner: bool) -> None:
        """Add the rows of a step that was ridden.

        Args:
            one: The block.
            loss: Loss of the step.
            batch: Its batch, which shows its targets.
            number: Its number.
            same_readers: Whether the layers behind it are those of the steps before.
            inner: Whether these begin another block.
        """
        rows = self.rows[one.hidden]
        if not same_readers:
            rows.reason = _OTHER_READERS
        # Of inner blocks of one width, one tells that the loss is no known one of their outputs.
        alike = inner, one.outputs, one.kinks_after
        if rows.reason == NOT_SEEN and alike in self._unknown:
            rows.reason = obstacle_of(one) or self._unknown[alike]
        rows.keep(one, loss, batch, number, inner)
        if inner and rows.unknown:
            self._unknown[alike] = rows.reason
        self.reasons[one.hidden] = rows.reason
        if rows.recipe is not None:
            self.recipes[one.hidden] = rows.recipe

    def read(self, batch: Any) -> None:
        """Add the rows of a batch that was not ridden, by their recipes."""
        for rows in self.rows.values():
            if not rows.take(batch):
                rows.reason = _OTHER_TENSORS

    def leave_out(self, seen: Sequence[Sighting]) -> None:
        """Take note of blocks through which a step did not go: not all batches are theirs."""
        self.missed = self.missed or not seen
        shown = {one.hidden for one in seen}
        for name in self.rows.keys() - shown if shown else ():  # all may be frozen
            self.missed = True
            self._changing = True
            if self.rows[name].was_read:
                self.rows[name].reason = self.reasons[name] = _NOT_ALWAYS

    def confirm(self, one: Sighting, loss: float | None, batch: Any) -> None:
        """Compare the loss of a later step with that of the rows.

        Args:
            one: The block.
            loss: Loss of the step.
            batch: Its batch, which shows its targets.
        """
        rows = self.rows.get(one.hidden)
        if rows is None or rows.recipe is None:
            return
        rows.confirm(one, loss, batch)
        self.reasons[one.hidden] = rows.reason
        self.recipes[one.hidden] = rows.recipe
        if rows.reason:
            self._changing = True
            del self.recipes[one.hidden]

    def finish(self, complete: bool, drawn: bool) -> None:
        """The rows are all that are to be kept.

        Args:
            complete: Whether they are those of all batches of an epoch.
            drawn: Whether steps drew random numbers: what a module computes from a batch may be noise.
        """
        for name, rows in self.rows.items():
            noisy = drawn and not self._is_as_it_is(name)
            rows.finish(complete and not self.missed and not noisy)

    def moves(self, one: Sighting, module: nn.Module | None) -> bool:
        """Whether the inputs of a block may be others than when its rows were kept: not what batches hold as it is.

        Args:
            one: The block.
            module: Its module; None: not known.

        Returns:
            Whether they may.
        """
        if self._is_as_it_is(one.hidden):
            return False
        known = self._others.get(one.hidden)
        if not one.from_data or known is None or module is None:
            return True
        return known != lengths_of_others(module, one.parameters)

    def drifts(self, moved: Mapping[str, Sighting]) -> dict[str, float]:
        """How far what may compute the inputs of blocks has changed since rows began to be kept.

        Args:
            moved: The blocks, by name.

        Returns:
            By name, the change of all other weights, relative to them; 0 where it is not known.
        """
        changes = {} if self._before is None or not moved else self._before.changes()
        return {name: change_but(changes, () if one.reruns else one.parameters) for name, one in moved.items()}

    def _is_as_it_is(self, name: str) -> bool:
        """Whether a batch holds the inputs of a block as they are."""
        recipe = self.recipes.get(name)
        return recipe is not None and recipe.inputs is not None
