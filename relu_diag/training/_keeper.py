"""Keep the rows that a verdict needs while riding along on training steps: on which steps, and of which blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from relu_diag.capture import Sighting
from relu_diag.training._chained import as_one
from relu_diag.training._data import Draws, Repeats, affordable, is_at_the_end, is_epoch_of_all, samples_of
from relu_diag.training._kept_blocks import KeptBlocks
from relu_diag.training._sample import rows_of_choice
from relu_diag.training._thrift import SMALL, Spread, rows_worth, size_of, spares
from relu_diag.training.careful import Careful
from relu_diag.training.look import Look
from relu_diag.training.rider import Rider

# Steps that are ridden at the beginning: two with the same inputs are steps on the whole data set.
FIRST = 2
# Batches of an epoch whose rows are kept before anybody asks.
_SHORT = 32
# Samples of a data set, and numbers of their inputs, that are kept before anybody asks, where they need no riding.
_EARLY = 2**16
_EARLY_NUMBERS = 2**22
# One step of so many is ridden while rows are read off batches: inputs and loss may change.
_RIDDEN = 32
# One step of so many confirms the loss of rows kept before, as do one before a verdict and the last.
_CONFIRMED = 256
# The same where steps are spared.
_CONFIRMED_AT_LAST = 1024
# Samples that are kept of data without an end.
_ENDLESS = 2**14


class Keeper:
    """Keeps the rows of steps.

    Args:
        owner: Name of the callback, for messages.
        ridden: Name or pattern of the blocks to ride on, by their first layer, or several of them; None: all.
        max_samples: Keep no more than so many samples; None: all, or with `as_one` as many as neurons are chosen by.
        targets: Returns the targets of a batch that does not show them.
        as_one: Whether rows of blocks that are one chain are kept as those of one network. A growth needs no others,
            and what goes into the first block and the targets can be read off batches.

    Attributes:
        seen: The last sighting of every block, by name of its first layer.
        rider: Sees the steps.
        careful: Runs what may go wrong.
        thrifty: Whether verdicts are only said: of large blocks they are on as few rows as the steps so far pay for.
    """

    def __init__(
        self,
        owner: str,
        ridden: str | Sequence[str] | None,
        max_samples: int | None,
        targets: Callable[[Any], Any] | None,
        as_one: bool = False,
    ) -> None:
        self.owner = owner
        self.max_samples = max_samples
        self.targets = targets
        self._patterns = ridden
        self.as_one = as_one
        self._forget()

    def _forget(self) -> None:
        """Forget the run before."""
        self.thrifty = False
        self.careful = Careful(self.owner)
        self.seen: dict[str, Sighting] = {}
        # Those whose rows are kept, a chain as one.
        self._rowed: dict[str, Sighting] = {}
        self._chained = self.as_one
        self.rider = Rider(self._patterns, self.careful)
        self._kept = KeptBlocks()
        self._look: Look | None = None
        self._ridden = 0
        self._wanted = False
        self._keeping = False
        self._whole = False
        # Whether an epoch may have no end: until the first one begins, nobody knows.
        self._endless = True
        self._most = self.max_samples
        self._expected = 0
        # Which steps of an epoch are kept, and how many go by before the loss of their rows is confirmed.
        self._spread = Spread()
        self._confirmed = _CONFIRMED
        # Whether the present step is read off its batch, and the number of steps.
        self._reading = False
        self._batches = 0
        # Whether the present step only confirms the loss of rows, and whether the next one is to.
        self._confirming = False
        self._unconfirmed = False
        self._batch_idx = 0
        # Number of the step before which none needs anything.
        self._busy_at = 0
        # Step at which the last rows were there.
        self._kept_at = 0
        self._module: LightningModule | None = None
        # The batch of the present step, and a copy of the container it is.
        self._held: tuple[Any, Any] = None, None
        self._repeats = Repeats()
        self._draws = Draws()

    def step_begins(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ride along on the step, if its rows are needed.

        Args:
            trainer: The trainer.
            module: Its module.
            batch: Its batch.
            batch_idx: Number of the batch in its epoch.
        """
        if self._look is not None or self.careful.off:
            return
        self._module = module
        if batch_idx == 0 or self._whole or self._endless:
            self._begin_keeping(trainer)
        if self._keeping and batch_idx % self._spread.stride:
            return
        number = self._batches + 1
        self._batch_idx = batch_idx
        self._confirming = not self._keeping and self._ridden >= FIRST
        due = self._unconfirmed or number % self._confirmed == 0 or self._is_at_the_end(trainer, batch_idx)
        self._unconfirmed = self._unconfirmed and not self._confirming
        if self._confirming and not (self._kept.rows and due):
            return
        # A step may take the targets out of its batch.
        self._held = batch, copy.copy(batch) if isinstance(batch, Mapping | list) else batch
        ridden = number % _RIDDEN == 0 and self._spread.stride == 1
        self._reading = self._keeping and self._ridden >= FIRST and self._kept.readable and not ridden
        if not self._reading:
            self._draws.begin(trainer.strategy.root_device)
            self.rider.begin(module)

    def step_ended(self, trainer: Trainer, batch: Any, skipped: bool = False) -> None:
        """Keep the rows of a step that was ridden.

        Args:
            trainer: The trainer.
            batch: Its batch.
            skipped: Whether nothing was learned from the batch.
        """
        self._batches += 1
        if not (self._reading or self.rider.riding):
            return
        before, as_it_was = self._held
        self._held = None, None
        batch = as_it_was if before is batch else batch
        if self._reading:
            self._reading = False
            with self.careful:
                self._read(trainer, batch, skipped)
        if not self.rider.riding:
            return
        with self.careful:
            seen = self.rider.end()
            self._draws.end(trainer.strategy.root_device)
            self._ridden += 1
            for name in self.rider.refuted & self.seen.keys() - {one.hidden for one in seen}:
                del self.seen[name]
                self._rowed.pop(name, None)
                self._kept.drop(name)
            rowed = self._with_rows(seen)
            if not self._confirming or self._begins_again(rowed, batch):
                self.seen.update({one.hidden: one for one in seen})
                self._take(trainer, rowed, batch)
                if self._chained and any(self._kept.reasons.get(one.hidden) for one in rowed):
                    self._take_apart(trainer, seen, batch)
        self.rider.leave()

    def passes(self) -> bool:
        """Whether neither the step that has ended nor the next one needs anything, as most steps: it is counted."""
        if self._batches + 2 >= self._busy_at:
            return False
        self._batches += 1
        return True

    def rests(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether the next step needs nothing: `step_begins` may be left out.

        Args:
            trainer: The trainer.
            batch_idx: Number of the batch in its epoch, whose step has ended.

        Returns:
            Whether it does not need it.
        """
        if self._batches + 1 >= self._busy_at:
            self._busy_at = self._batches + self._rest_of_steps(trainer, batch_idx)
        return self._batches + 1 < self._busy_at

    def _rest_of_steps(self, trainer: Trainer, batch_idx: int) -> int:
        """Number of the next step, counted from the one that has ended, that may need something."""
        if self._look is not None or self.careful.off:
            return _CONFIRMED
        if self._keeping and self._spread.stride > 1:
            return int(min(self._spread.ahead(batch_idx), max(1, trainer.num_training_batches - batch_idx)))
        busy = self._keeping or self._unconfirmed or self._whole or self._endless or self._ridden < FIRST
        if busy or self._is_at_the_end(trainer, batch_idx + 1):
            return 1
        # An epoch begins, a loss is confirmed, or the run is at its end.
        ahead = [trainer.num_training_batches - batch_idx, self._confirmed - self._batches % self._confirmed]
        if trainer.max_steps > trainer.global_step:
            ahead.append(trainer.max_steps - trainer.global_step)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            ahead.append(trainer.num_training_batches - 2 - batch_idx)
        return max(1, int(min(ahead)))

    def _is_at_the_end(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a step is one of the last ones, and the loss of the rows is to be confirmed once more."""
        if self._spread.stride > 1 and trainer.global_step - self._kept_at < trainer.num_training_batches:
            return False
        return is_at_the_end(trainer, batch_idx)

    def _take(self, trainer: Trainer, seen: Sequence[Sighting], batch: Any) -> None:
        """Keep the rows of a step."""
        self._kept.leave_out(seen)
        again = self._repeats.comes_again(batch, self._batches)
        self._whole = again or (trainer.num_training_batches == 1 and is_epoch_of_all(trainer))
        first = {one.hidden for one in seen}
        for one in seen:
            self._keep(one, batch, inner=not first.isdisjoint(one.readers))
        self._rowed.update({one.hidden: one for one in seen})
        if self._whole:
            self._finish_keeping(trainer, complete=True)
        elif self._ridden >= FIRST and not self._worth_keeping(trainer):
            self._kept.clear()
            self._keeping = False
        elif self._keeping and self._kept.full:
            self._finish_keeping(trainer, complete=False)
        self._unconfirmed = self._unconfirmed and self._spread.stride == 1

    def _with_rows(self, seen: Sequence[Sighting]) -> Sequence[Sighting]:
        """Whose rows are kept of the blocks of a step: theirs, or those of all as one."""
        together = as_one(seen, self._rowed) if self._chained else None
        return seen if together is None else [together]

    def _take_apart(self, trainer: Trainer, seen: Sequence[Sighting], batch: Any) -> None:
        """Keep the rows of each block from this step on: of all as one the loss is not known."""
        self._chained = False
        self._rowed = {}
        self._kept = KeptBlocks()
        self._take(trainer, seen, batch)

    def _begins_again(self, seen: Sequence[Sighting], batch: Any) -> bool:
        """Compare the loss of a step with that of the rows kept; whether it is another one, and an epoch begins."""
        self._kept.leave_out(seen)
        for one in seen:
            self._kept.confirm(one, self.rider.loss, self._shown(batch))
        if self._batch_idx == 0 and self._wanted and self._kept.refused:
            self._kept.clear()
            self._keeping = True
        return self._keeping

    def epoch_ended(self, trainer: Trainer) -> None:
        """The rows of an epoch are kept, if its first step was ridden.

        Args:
            trainer: The trainer.
        """
        # A step may have ended the epoch before it ran.
        self.rider.leave()
        self._reading = False
        # What was known to need nothing were steps of an epoch that may have ended early.
        self._busy_at = 0
        if self._keeping:
            with self.careful:
                self._finish_keeping(trainer, complete=is_epoch_of_all(trainer))

    def want(self) -> None:
        """Ask for a verdict. Inputs that layers below compute, and gradients, are kept anew from the next epoch on."""
        self._wanted = True
        self._unconfirmed = True
        self._busy_at = 0
        lasting = not any(self._kept.reasons.values()) and not self._moved() and not self._pays_for_more()
        if not self._keeping and not lasting:
            self._kept.clear()

    def want_if_cheap(self, trainer: Trainer) -> None:
        """Ask for rows that nobody waits for, where they are read off batches or the network is small.

        Args:
            trainer: The trainer.
        """
        if self._kept.readable or (self._short(trainer) and self._small):
            self.want()

    def _moved(self) -> dict[str, Sighting]:
        """Blocks whose inputs may be others than when their rows were kept."""
        return {name: one for name, one in self._rowed.items() if self._kept.moves(one, self._module)}

    def _begin_keeping(self, trainer: Trainer) -> None:
        """Keep the rows of the steps to come, where they are needed."""
        early = self._ridden == 0 and (self._short(trainer) or samples_of(trainer) <= _EARLY)
        begins = not self._keeping and not self._kept.rows and (early or self._wanted)
        self._kept.missed = self._kept.missed and self._keeping
        self._keeping = self._keeping or begins
        self._endless = not math.isfinite(trainer.num_training_batches)
        self._most = _ENDLESS if self._endless and self.max_samples is None else self.max_samples
        self._expected = 0 if self._endless else samples_of(trainer)
        if begins:
            readable = self._kept.will_be_readable(self._rowed)
            some = Spread.over(trainer.num_training_batches, self._batches, readable)
            self._spread = some if self._spares() else Spread()
            self._confirmed = _CONFIRMED_AT_LAST if self._spread.stride > 1 else _CONFIRMED
        self._kept.missed = self._kept.missed or (self._keeping and self._spread.stride > 1)

    def _short(self, trainer: Trainer) -> bool:
        """Whether the steps of an epoch are so few that all may be ridden."""
        return trainer.num_training_batches <= _SHORT

    def _worth_keeping(self, trainer: Trainer) -> bool:
        """Whether the rows of the first epoch are kept although nobody has asked: where that costs next to nothing."""
        numbers = self._kept.columns * max(self._expected, 1)
        waiting = self._ridden < _SHORT and any(rows.waiting for rows in self._kept.rows.values())
        cheap = waiting or (self._kept.readable and numbers <= _EARLY_NUMBERS and not self._spares())
        return self._wanted or (self._keeping and ((self._short(trainer) and self._small) or cheap))

    @property
    def _small(self) -> bool:
        """Whether a ridden step costs next to nothing."""
        return sum(map(size_of, self.seen.values())) <= SMALL

    def _spares(self) -> bool:
        """Whether only as many steps and rows are kept as pay."""
        return self.thrifty and spares(self.seen.values(), self._kept.reasons, self._expected)

    def _worth(self, one: Sighting) -> int:
        """Number of rows of a block that pay by now."""
        most = rows_worth(one, self._expected, self._batches)
        return most if self._most is None else min(most, self._most)

    def _pays_for_more(self) -> bool:
        """Whether a verdict may be on twice as many rows by now as those that are kept."""
        rows = self._kept.rows
        few = any(
            one.max_samples and 2 * one.max_samples <= self._worth(self._rowed[name]) for name, one in rows.items()
        )
        return few and self._spares()

    def _finish_keeping(self, trainer: Trainer, complete: bool) -> None:
        """The rows are those of an epoch, or as many as are to be kept."""
        self._kept.finish(complete, self._draws.any)
        self._kept_at = trainer.global_step
        self._keeping = False
        self._wanted = False

    def _keep(self, one: Sighting, batch: Any, inner: bool) -> None:
        """Keep the rows of a block; a batch that is the whole data set alone."""
        kept = self._kept
        before = self._rowed.get(one.hidden, one)
        same_readers = before.readers == one.readers
        if same_readers and (before.inputs, before.outputs) != (one.inputs, one.outputs):
            kept.drop(one.hidden)
        if self._spread.stride > 1 and one.hidden not in kept.rows and not self._whole:
            kept.begin_some(one, self._worth(one), self._spread.steps, self._module, inner)
        elif self._whole or one.hidden not in kept.rows:
            few = min(affordable(one), rows_of_choice(one.inputs)) if self.as_one else None
            expected = one.count if self._whole else self._expected
            kept.begin(one, self._most or few, expected, self._module)
        kept.add(one, self.rider.loss, self._shown(batch), self._batches, same_readers, inner)

    def _shown(self, batch: Any) -> Any:
        """A batch that shows its targets."""
        return batch if self.targets is None else (batch, self.targets(batch))

    def _read(self, trainer: Trainer, batch: Any, skipped: bool) -> None:
        """Keep the rows of a batch that is not ridden."""
        if skipped:
            self._kept.missed = True
            return
        self._kept.read(self._shown(batch))
        if self._kept.full:
            self._finish_keeping(trainer, complete=False)
