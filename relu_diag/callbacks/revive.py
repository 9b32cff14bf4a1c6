"""ReviveDeadUnits: place neurons that do nothing where they gain most, in the middle of training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from relu_diag.callbacks._passenger import Rides
from relu_diag.functional.widening import merge_units
from relu_diag.growth import check_strategy, replace_in_training
from relu_diag.training import (
    BlockRevival,
    Careful,
    LossJumps,
    NewPlaces,
    Report,
    Revival,
    Rider,
    check_block,
    check_count,
    of_first_rank,
    on_all_ranks,
    say,
)

# The last part of the steps between two revivals, in which a neuron must have been active, is one of so many.
_LAST_PART = 4
# Activations by which of them are largest, and not by their sign.
_REFUSED = re.compile(r"(top_?k|jump_?relu)", re.IGNORECASE)


class ReviveDeadUnits(Rides):
    """Places dead, dormant and duplicate neurons anew, where the loss falls most with them.

    Every so many steps the neurons of each Linear -> ReLU-like -> Linear block that have been silent since, nearly
    silent, or that repeat another neuron get the weights of an extremal direction of the loss gradient
    (`relu_diag.functional.widening.place_units`), on rows kept while riding along on the steps before; training_step is
    never run. Of long windows the last quarter counts, where that has 16,384 rows. Where the loss of the block's
    outputs is recognised, the amplitude is the one at which it falls most, and the drop has been evaluated on rows
    kept; else output weights are zero, and the function stays. An L1 price on the activations is read off and counted.
    Output weights that are kept at one length, as a dictionary's, stay at it. Raw parameters are blocks as well (sparse
    autoencoders).

    Where the loss has jumped, as it does where the data become others, a revival follows as soon as there are rows of
    after the jump.

    Shapes, Parameters and compiled code stay; optimizers start again for these neurons only, averaged copies follow,
    all processes do the same (`relu_diag.growth.replace_units`). Whether a neuron is silent is read off the gradient of
    its bias at every step, where it has one, else off the steps that are ridden. On those, compiled modules run
    uncompiled.

    Each revival logs, under the prefix ``revive/`` (for several blocks ``revive/<block>/``): ``dead``, ``dormant``,
    ``duplicate``, ``revived``, ``gain``, ``drop``, ``function_change``; at the end a line of text ``found``.

    Args:
        every_n_steps: Optimizer steps between revivals.
        samples: Rows to keep for each, of the steps right before it; None: 2,048 to 8,192, as many as one of 32 steps
            brings, half of them where few are dead. What few rows have is found by many rows only.
        block: Name of the first layer of a block, a pattern (``encoder.*``), or several of them; None: all blocks.
        dormant: A neuron counts as dormant up to so many times the mean activation of its layer; 0: none does.

    Attributes:
        revivals: The revivals so far, `Revival`.
        off: Why the callback has switched itself off; empty while it is on.

    Raises:
        MisconfigurationException: If an argument is not what it should be, the parameters are sharded, or an activation
            keeps the largest pre-activations (TopK, JumpReLU): no ReLU, and neurons die of other causes there.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ReviveDeadUnits(every_n_steps=500)], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        samples: int | None = None,
        block: str | Sequence[str] | None = None,
        dormant: float = 0.025,
    ) -> None:
        super().__init__()
        self.every_n_steps = check_count("every_n_steps", every_n_steps)
        self.samples = None if samples is None else check_count("samples", samples)
        if isinstance(dormant, bool) or not isinstance(dormant, int | float) or not 0 <= dormant < 1:
            raise MisconfigurationException(f"`dormant` must be a share of the mean activation; got {dormant!r}.")
        check_block(block)
        self.block = block
        # Lightning asks for it at every hook of every step.
        self._state_key = self._generate_state_key(block=block)
        self.dormant = float(dormant)
        self.revivals: list[Revival] = []
        self._begin()

    def _begin(self) -> None:
        """Forget the run before, not its revivals."""
        self._jumps = LossJumps()
        # Step of a revival besides the regular ones.
        self._soon: int | None = None
        self._careful = Careful(type(self).__name__)
        self._rider = Rider(self.block, self._careful)
        self._blocks: dict[str, BlockRevival] = {}
        self._uncompiled = ExitStack()
        # Blocks of which it was said why they cannot be revived.
        self._told: set[str] = set()
        self._ridden = False
        self._step = 0

    @property
    def off(self) -> str:
        """Why the callback has switched itself off.

        Returns:
            The error, or nothing.
        """
        return self._careful.off

    @property
    def state_key(self) -> str:
        """Callbacks for different blocks are told apart.

        Returns:
            Key of this callback's state in checkpoints.
        """
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the revivals, and what is known of each block, the rows kept so far among it.

        Returns:
            Plain numbers and tensors.
        """
        return {
            "revivals": [asdict(one) for one in self.revivals],
            "blocks": {name: one.state_dict() for name, one in self._blocks.items()},
            "jumps": self._jumps.state_dict(),
            "soon": self._soon,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state_dict: Result of `state_dict`.
        """
        self.revivals = [Revival(**one) for one in state_dict["revivals"]]
        for name, state in state_dict.get("blocks", {}).items():
            self._blocks[name] = self._revival_of(name)
            self._blocks[name].load_state_dict(state)
        if "jumps" in state_dict:
            self._jumps.load_state_dict(state_dict["jumps"])
        self._soon = state_dict.get("soon")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be revived.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            stage: What the trainer is about to do.
        """
        if stage == "fit":
            check_strategy(trainer)
            _check_activations(pl_module, self._rider.patterns)
            self._begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ride along, where a revival is near.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: Unused.
            batch_idx: Unused.
        """
        self._step = trainer.global_step
        last_part = self.every_n_steps // _LAST_PART
        if last_part and self.every_n_steps - self._step % self.every_n_steps == last_part:
            for one in self._blocks.values():
                one.note_last_part(last_part)
        if self.off or not self._near():
            return
        with self._careful:
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
            self._rider.begin(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note which neurons were active.

        Args:
            trainer: The trainer.
            pl_module: Unused.
            optimizer: Unused.
        """
        if not self.off:
            scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
            with self._careful:
                for one in self._blocks.values():
                    one.note_gradients(scaled)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the rows of a step that was ridden; revive where it is time.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: Unused.
            batch: The batch.
            batch_idx: Unused.
        """
        if self._rider.riding:
            with self._careful:
                self._took(batch)
            self._leave()
            self._refuse()
            self._warn()
        now = trainer.global_step
        regular = now // self.every_n_steps > self._step // self.every_n_steps
        if not regular and (self._soon is None or now < self._soon):
            self._look_for_jumps(trainer, outputs, now)
            return
        self._soon = None
        # A decision of all processes: one that is off would leave the others waiting.
        together = trainer.strategy.reduce_boolean_decision(not self.off, all=True)
        if together and not trainer.should_stop and not _is_last(trainer):
            with self._careful:
                self._revive(trainer, now)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was done.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        if self.off:
            return
        last = {one.block: one for one in self.revivals}
        lines = []
        for name, one in self._blocks.items():
            total = sum(revival.revived for revival in self.revivals if revival.block == name)
            if one.reason:
                lines.append(f"{name}: nothing revived, {one.reason}")
            elif name in last:
                lines.append(f"{name}: {total} neuron{'' if total == 1 else 's'} placed anew in all; last {last[name]}")
        if not self._blocks:
            lines.append(f"ReviveDeadUnits {self._rider.nothing}")
        if lines:
            say(trainer, "revive/found", "; ".join(lines))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind.

        Args:
            trainer: Unused.
            pl_module: Unused.
            exception: Unused.
        """
        self._leave()

    def __repr__(self) -> str:
        words = f"off: {self.off}" if self.off else ", ".join(self._blocks) or "nothing seen yet"
        return f"{type(self).__name__}({words})"

    def _leave(self) -> None:
        """Take the hooks off; compiled code runs again."""
        self._rider.leave()
        self._uncompiled.close()

    def _look_for_jumps(self, trainer: Trainer, outputs: Any, now: int) -> None:
        """After a jump of the loss what was known is of other data: soon there is a revival by rows of the new ones."""
        jumped = self._jumps.note(outputs)
        if jumped is None or not trainer.strategy.reduce_boolean_decision(jumped, all=True):
            return
        for one in self._blocks.values():
            one.look_anew()
        needed = max((one.steps_needed for one in self._blocks.values() if not one.reason), default=0)
        left = self.every_n_steps - now % self.every_n_steps
        soon = trainer.strategy.broadcast(needed)
        self._soon = now + soon if 0 < soon < left else None

    def _near(self) -> bool:
        """Whether a step is ridden: the first, and as many before a revival as it takes to keep the rows."""
        return not self._ridden or self._wants_rows()

    def _wants_rows(self) -> bool:
        """Whether a revival is so near that the rows of this step are kept for it."""
        left = self.every_n_steps - self._step % self.every_n_steps
        if self._soon is not None:
            left = min(left, self._soon - self._step)
        able = [one for one in self._blocks.values() if not (one.reason or one.idle)]
        return any(one.rows < one.samples and left <= one.steps_needed for one in able)

    def _took(self, batch: Any) -> None:
        """Take in a step that was ridden; the first one only shows the blocks, unless a revival is near."""
        seen = self._rider.end()
        if not self._rider.finite or not (seen or self._rider.reasons):
            return
        wanted = self._wants_rows()
        for one in seen:
            if one.outgrown:  # by another callback, since the step
                continue
            known = self._blocks.setdefault(one.hidden, self._revival_of(one.hidden))
            if known.show(one):
                if wanted:
                    known.keep(one, batch)
                continue
            known.keep(one, batch)
            if not self._ridden and self._step % self.every_n_steps + known.steps_needed < self.every_n_steps:
                known.forget_rows()
        self._ridden = True

    def _revival_of(self, hidden: str) -> BlockRevival:
        """What is known of a block that is seen for the first time."""
        return BlockRevival(hidden, self.samples, self.dormant, self.every_n_steps)

    def _refuse(self) -> None:
        """Refuse layers behind which a step has shown an activation that keeps the largest pre-activations.

        Raises:
            MisconfigurationException: If there is one.
        """
        reasons = {name: one.reason for name, one in self._blocks.items()} or self._rider.reasons
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
        if _REFUSED.search(told) or (told and not self._blocks):
            raise MisconfigurationException(
                f"ReviveDeadUnits revives Linear -> ReLU-like -> Linear blocks; {told}. Activations that keep the "
                "largest pre-activations (TopK, JumpReLU) are none: name other blocks by `block`."
            )

    def _warn(self) -> None:
        """Say once of each block that cannot be revived why."""
        for name, one in self._blocks.items():
            if one.reason and name not in self._told:
                self._told.add(name)
                rank_zero_warn(f"ReviveDeadUnits places no neurons of {name} anew: {one.reason}.")

    def _revive(self, trainer: Trainer, step: int) -> None:
        """Find what to do on the first process, and do it on all of them."""
        names = trainer.strategy.broadcast([name for name, one in self._blocks.items() if not one.reason])
        for name in names:
            one = self._blocks[name]
            width = 0 if one.live is None else len(one.live.hidden.value())
            alive = one.alive_of(width).float().to(trainer.strategy.root_device)
            alive = trainer.strategy.reduce(alive, reduce_op="sum") > 0
            found = _found_together(trainer, one, alive)
            if found is not None:
                self._apply(trainer, one, found, step)
            one.note(found)
            one.begin_again()

    def _apply(self, trainer: Trainer, one: BlockRevival, found: NewPlaces, step: int) -> None:
        """Merge and replace neurons, and report it."""
        assert one.live is not None
        placement = found.placement
        if len(found.merged):
            replace_in_training(
                trainer, one.live, torch.unique(found.into), lambda b: merge_units(b, *_on(b.W, found)), restart=False
            )
        if len(placement.units):
            replace_in_training(trainer, one.live, placement.units, placement.applied_to)
        dead, dormant, duplicate = found.counts
        revival = Revival(
            step=step,
            block=one.hidden,
            width=len(one.live.hidden.value()),
            dead=dead,
            dormant=dormant,
            duplicate=duplicate,
            revived=len(placement.units),
            gain=float(placement.gain.sum()),
            drop=placement.drop,
            function_change=placement.function_change,
        )
        self.revivals.append(revival)
        named = self.block is not None or len(self._blocks) > 1
        numbers = {name: float(value) for name, value in asdict(revival).items() if name not in {"step", "block"}}
        Report(f"revive/{one.hidden}/" if named else "revive/").log_scalars(trainer, step, numbers)


def _found_together(trainer: Trainer, one: BlockRevival, alive: Tensor) -> NewPlaces | None:
    """What the first process finds, on all of them."""
    return of_first_rank(trainer, on_all_ranks(lambda: one.find(alive) if trainer.is_global_zero else None))


def _on(like: Tensor, found: NewPlaces) -> tuple[Tensor, Tensor]:
    """Merged neurons and those that they are merged into, on a device."""
    return found.merged.to(like.device), found.into.to(like.device)


def _is_last(trainer: Trainer) -> bool:
    """Whether no step will follow in which new neurons could be trained."""
    last_epoch = trainer.current_epoch + 1 == trainer.max_epochs and trainer.is_last_batch
    return last_epoch or 0 <= trainer.max_steps <= trainer.global_step


def _check_activations(module: nn.Module, patterns: Sequence[str]) -> None:
    """Refuse modules whose names say that they keep the largest pre-activations, beside what is to be revived.

    Raises:
        MisconfigurationException: If there is one.
    """
    for name, part in module.named_modules():
        found = _REFUSED.search(type(part).__name__)
        if found and "*" in patterns:
            raise MisconfigurationException(
                f"ReviveDeadUnits cannot revive what {name or 'the module'}, a {type(part).__name__}, makes of its "
                f"inputs: {found.group()} is no ReLU. Name the blocks to revive by `block`, or use AuxK there."
            )
