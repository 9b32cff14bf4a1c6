"""Keep what a verdict needs while riding along on training steps, or take it from a pass that was asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from relu_diag.capture import Sighting
from relu_diag.training._data import Draws, Repeats, is_at_the_end, is_epoch_of_all, samples_of
from relu_diag.training._given import rows_of_batches
from relu_diag.training._kept_blocks import KeptBlocks
from relu_diag.training.careful import Careful
from relu_diag.training.checks import check_callable, check_count, check_iterable
from relu_diag.training.examination import Examination
from relu_diag.training.examine import examine_pass, examine_rows
from relu_diag.training.lightning_internals import device_batches
from relu_diag.training.look import Look, LossFunction
from relu_diag.training.ranks import agree
from relu_diag.training.rider import Rider
from relu_diag.training.rows import NOT_SEEN, KeptRows

# Steps that are ridden at the beginning: two with the same inputs are steps on the whole data set.
_FIRST = 2
# Batches of an epoch whose rows are kept before anybody asks.
_SHORT = 32
# Samples of a data set, and numbers of their inputs, that are kept before anybody asks, where they need no riding.
_EARLY = 2**16
_EARLY_NUMBERS = 2**22
# Weights of blocks whose steps may be ridden although nobody has asked.
_SMALL = 2**14
# One step of so many is ridden while rows are read off batches: inputs and loss may change.
_RIDDEN = 32
# One step of so many confirms the loss of rows kept before, as do one before a verdict and the last.
_CONFIRMED = 256
# Samples that are kept of data without an end.
_ENDLESS = 2**14
_UNASKED = "no rows of its data are kept before a verdict is asked for, as on a plateau"
_MOVED = "its inputs have moved since its rows were kept: what computes them was trained"


class Examiner:
    """Examines the blocks of a module in training, without running anything of the user's again.

    It rides on the first two steps. When a verdict is wanted, it rides on the steps of one epoch and keeps their rows;
    a batch that is the whole data set was kept before. Only where a loss or data were given, or the module has a method
    ``batch_loss``, it makes a pass at fixed weights.

    Args:
        owner: Name of the callback, for messages.
        block: Name or pattern of the blocks, by their first layer, or several of them; None: all.
        dataloader: Data of a pass.
        max_samples: Judge on no more than so many samples; None: all.
        loss: Loss of a pass, ``loss(module, batch)``.
        targets: Returns the targets of a batch that does not show them.
        around: Whether to ride on all blocks: those behind the ones asked for tell what these are worth.

    Attributes:
        seen: The last sighting of every block, by name of its first layer.
        rider: Sees the steps.

    Raises:
        MisconfigurationException: If an argument is not what it should be.

    Example:
        >>> examiner = Examiner("PlateauMonitor", block="encoder*")
        >>> examiner.reason()
        'no step of the training was seen yet'
    """

    def __init__(
        self,
        owner: str,
        block: str | Sequence[str] | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
        targets: Callable[[Any], Any] | None = None,
        around: bool = False,
    ) -> None:
        self.owner = owner
        self.block = block
        self.dataloader = check_iterable("dataloader", dataloader)
        self.max_samples = None if max_samples is None else check_count("max_samples", max_samples)
        self.loss = check_callable("loss", loss)
        self.targets = check_callable("targets", targets)
        self._around = around
        self._forget()

    def _forget(self) -> None:
        self.careful = Careful(self.owner)
        self.seen: dict[str, Sighting] = {}
        self.rider = Rider(None if self._around else self.block, self.careful)
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

    def begin_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget the run before; find the block of a pass, where one is asked for.

        Args:
            trainer: The trainer, about to train.
            module: Its module.

        Raises:
            MisconfigurationException: If a pass was asked for and has no loss, no data, or not the one block.
        """
        self._forget()
        if self.loss is None and not hasattr(module, "batch_loss"):
            return
        if self.block is not None and not isinstance(self.block, str):
            raise MisconfigurationException(f"A pass at fixed weights looks at one block; got block={self.block!r}.")
        self._look = Look(self.owner, self.block, self.dataloader, self.max_samples, self.loss)
        self._look.find(trainer, module)

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
        number = self._batches + 1
        self._batch_idx = batch_idx
        self._confirming = not self._keeping and self._ridden >= _FIRST
        due = self._unconfirmed or number % _CONFIRMED == 0 or is_at_the_end(trainer, batch_idx)
        self._unconfirmed = self._unconfirmed and not self._confirming
        if self._confirming and not (self._kept.rows and due):
            return
        # A step may take the targets out of its batch.
        self._held = batch, copy.copy(batch) if isinstance(batch, Mapping | list) else batch
        self._reading = (
            self._keeping and self._ridden >= _FIRST and self._kept.readable and number % _RIDDEN != 0
        )
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
            if not self._confirming or self._begins_again(seen, batch):
                self._take(trainer, seen, batch)
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
        busy = self._keeping or self._unconfirmed or self._whole or self._endless or self._ridden < _FIRST
        if busy or is_at_the_end(trainer, batch_idx + 1):
            return 1
        # An epoch begins, a loss is confirmed, or the run is at its end.
        ahead = [trainer.num_training_batches - batch_idx, _CONFIRMED - self._batches % _CONFIRMED]
        if trainer.max_steps > trainer.global_step:
            ahead.append(trainer.max_steps - trainer.global_step)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            ahead.append(trainer.num_training_batches - 2 - batch_idx)
        return max(1, int(min(ahead)))

    def _take(self, trainer: Trainer, seen: Sequence[Sighting], batch: Any) -> None:
        """Keep the rows of a step."""
        self._kept.leave_out(seen)
        again = self._repeats.comes_again(batch, self._batches)
        self._whole = again or (trainer.num_training_batches == 1 and is_epoch_of_all(trainer))
        for one in seen:
            self._keep(one, batch)
        self.seen.update({one.hidden: one for one in seen})
        if self._whole:
            self._finish_keeping(trainer, complete=True)
        elif self._ridden >= _FIRST and not self._worth_keeping(trainer):
            self._kept.clear()
            self._keeping = False
        elif self._keeping and self._kept.full:
            self._finish_keeping(trainer, complete=False)

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
        if self._keeping:
            with self.careful:
                self._finish_keeping(trainer, complete=is_epoch_of_all(trainer))

    def want(self) -> None:
        """Ask for a verdict. Inputs that layers below compute, and gradients, are kept anew from the next epoch on."""
        self._wanted = True
        self._unconfirmed = True
        self._busy_at = 0
        lasting = not any(self._kept.reasons.values()) and not self._moved()
        if not self._keeping and not lasting:
            self._kept.clear()

    def want_if_cheap(self, trainer: Trainer) -> None:
        """Ask for rows that nobody waits for, where they are read off batches or the network is small.

        Args:
            trainer: The trainer.
        """
        if self._kept.readable or (self._short(trainer) and self._small):
            self.want()

    def agreed_ready(self, trainer: Trainer) -> bool:
        """Whether an examination would find its rows. A collective: every rank must call it.

        Args:
            trainer: The trainer.

        Returns:
            Whether all ranks have theirs, or need none.
        """
        self._agree()
        needless = self._look is not None or bool(self.careful.off) or (self._ridden >= _FIRST and not self.seen)
        given = self.dataloader is not None and self._ridden >= _FIRST and not any(self._kept.reasons.values())
        ready = needless or given or (bool(self._kept.rows) and not self._keeping)
        return trainer.strategy.reduce_boolean_decision(ready)

    def examine(
        self, trainer: Trainer, module: LightningModule, drop: float | None, since: int | None = None
    ) -> list[Examination] | None:
        """Judge every block at the weights of now, and forecast its escape. A collective: every rank must call it.

        Args:
            trainer: The trainer.
            module: Its module.
            drop: Fraction by which the loss falls in an escape; None: no verdict and no forecast are asked for.
            since: Step from which on the loss stood still, or nearly: inputs that the module computes are taken for
                those of now if they were kept since. None: as old as they are, they were asked for.

        Returns:
            The examinations, the block that says most about the loss first; none without a block, and where our own
            code failed, which is one warning. None if the weights or the loss are not finite on any rank.
        """
        self._agree()
        if self.careful.off:
            return []
        # Early stopping calls this during validation, in inference mode, in which nothing has a gradient.
        found: list[Examination] | None = []
        with self.careful, torch.inference_mode(False):
            found = self._examined(trainer, module, drop, since)
        self._agree()
        return [] if self.careful.off else found

    def _examined(
        self, trainer: Trainer, module: LightningModule, drop: float | None, since: int | None
    ) -> list[Examination] | None:
        """The examinations, by a pass or by rows."""
        if self._look is not None:
            examination = examine_pass(trainer, module, self._look, drop)
            return None if examination is None else [examination]
        loss = math.nan if self.rider.loss is None else self.rider.loss
        reasons = self._kept.reasons
        rows = self._kept.rows
        if self.dataloader is not None:
            with self.careful:  # only this rank reads them
                recipes = {name: self._kept.recipes.get(name) for name in self.seen if not reasons.get(name)}
                batches = map(self._shown, device_batches(trainer, module, self.dataloader))
                rows = rows | rows_of_batches(batches, recipes, self.max_samples)
            self._agree()
            if self.careful.off:
                return []
        moved = self._moved()
        missing = {name: KeptRows(reason=reasons.get(name) or _UNASKED) for name in self.seen if name not in rows}
        if since is not None and self._kept_at < since and not self._keeping:
            missing |= {name: KeptRows(reason=reasons.get(name) or _MOVED) for name in moved if name in rows}
        return examine_rows(trainer, module, self.seen, rows | missing, loss, drop, moved)

    def _moved(self) -> dict[str, float]:
        """Blocks whose inputs may be others than when their rows were kept, and how far what computes them changed."""
        moved = {name: one for name, one in self.seen.items() if self._kept.moves(one, self._module)}
        return {name: self._kept.drift(one) for name, one in moved.items()}

    def refused(self) -> dict[str, str]:
        """What stands between layers that make no block, by their names, once steps were seen.

        Returns:
            Reasons; one for the whole module, by an empty name, where there is no block and nothing is named.
            Nothing while a Linear layer is frozen, which may be trained later.
        """
        # The first step may be one of another part of the module.
        if (self._ridden < _FIRST and not self.seen) or self.careful.off or self._module is None:
            return {}
        between = self.rider.refused
        if between or self.seen:
            return between
        linear = [layer for layer in self._module.modules() if isinstance(layer, torch.nn.Linear)]
        trained = all(any(one.requires_grad for one in layer.parameters()) for layer in linear)
        return {"": self.reason()} if trained else {}

    def reason(self) -> str:
        """Why there is nothing to examine.

        Returns:
            A few words; empty where there is a block.
        """
        if self.careful.off:
            return f"{self.owner} is off: {self.careful.off}"
        if self.seen or self._look is not None:
            return ""
        return self.rider.nothing if self._ridden else NOT_SEEN

    def _agree(self) -> None:
        """Go on with the blocks that all ranks have seen, or with none where one of them is off. A collective."""
        shapes = {name: (one.block.W.shape, one.block.H.shape) for name, one in self.seen.items()}
        names = agree(self.careful, shapes)
        self.seen = {name: self.seen[name] for name in names}

    def _begin_keeping(self, trainer: Trainer) -> None:
        """Keep the rows of the steps to come, where they are needed."""
        early = self._ridden == 0 and (self._short(trainer) or samples_of(trainer) <= _EARLY)
        self._kept.missed = self._kept.missed and self._keeping
        self._keeping = self._keeping or (not self._kept.rows and (early or self._wanted))
        self._endless = not math.isfinite(trainer.num_training_batches)
        self._most = _ENDLESS if self._endless and self.max_samples is None else self.max_samples
        self._expected = 0 if self._endless else samples_of(trainer)

    def _short(self, trainer: Trainer) -> bool:
        """Whether the steps of an epoch are so few that all may be ridden."""
        return trainer.num_training_batches <= _SHORT

    def _worth_keeping(self, trainer: Trainer) -> bool:
        """Whether the rows of the first epoch are kept although nobody has asked: where that costs next to nothing."""
        numbers = self._kept.columns * max(self._expected, 1)
        waiting = self._ridden < _SHORT and any(rows.waiting for rows in self._kept.rows.values())
        cheap = waiting or (self._kept.readable and numbers <= _EARLY_NUMBERS)
        return self._wanted or (self._keeping and ((self._short(trainer) and self._small) or cheap))

    @property
    def _small(self) -> bool:
        """Whether a ridden step costs next to nothing."""
        return sum(one.block.W.numel() + one.block.H.numel() for one in self.seen.values()) <= _SMALL

    def _finish_keeping(self, trainer: Trainer, complete: bool) -> None:
        """The rows are those of an epoch, or as many as are to be kept."""
        self._kept.finish(complete, self._draws.any)
        self._kept_at = trainer.global_step
        self._keeping = False
        self._wanted = False

    def _keep(self, one: Sighting, batch: Any) -> None:
        """Keep the rows of a block; a batch that is the whole data set alone."""
        kept = self._kept
        before = self.seen.get(one.hidden, one)
        same_readers = before.readers == one.readers
        if same_readers and (before.inputs, before.outputs) != (one.inputs, one.outputs):
            kept.drop(one.hidden)
        if self._whole or one.hidden not in kept.rows:
            kept.begin(one, self._most, len(one.signal.X) if self._whole else self._expected, self._module)
        kept.add(one, self.rider.loss, self._shown(batch), self._batches, same_readers)

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
