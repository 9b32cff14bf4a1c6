"""GrowOnPlateau: grow the network at the local minima where training is stuck, and go on training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from relu_diag.callbacks._dead_layers import revived_layers
from relu_diag.callbacks._growable import Growable, goes_on, graphs_let_go
from relu_diag.callbacks._growth_choices import Embedding, check_choices
from relu_diag.callbacks._passenger import Passenger
from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.growth import averaged_copies, check_strategy, grow_in_training, resize_on_load
from relu_diag.training import (
    Examination,
    Examiner,
    Growth,
    LossFunction,
    NoWidening,
    PlateauEvent,
    PlateauListener,
    Report,
    WideningChoice,
    against_growing,
    check_block,
    check_count,
    check_flag,
    choose_widening,
    for_dead_layers,
    gap_in_training,
    growth_order,
    of_first_rank,
    off_together,
    on_all_ranks,
    tell,
)

# Why a plateau is none to grow on, which the monitor has said.
_OTHER_VERDICT = "another verdict"


class GrowOnPlateau(Passenger, PlateauListener):
    """Adds neurons to a block when a `PlateauMonitor` of the same trainer reports that it rests at a local minimum.

    It grows the network in the way that lowers the loss most, under any differentiable loss: the loss falls at the
    growth itself, or the function is kept where no loss can be evaluated or nothing lowers it. Layers, Parameters,
    optimizer states, schedulers and copies (averages, target networks) stay in use (`relu_diag.growth.grow`). Of
    several blocks, each is grown when its own monitor reports it, and has its own width. A block that can never grow
    is named at its first sighting, with the cure.

    A layer all of whose neurons are dead lets nothing through, and no growth elsewhere is felt: such layers of a
    network whose loss is known get new neurons first, as many as they have, and Adam begins anew there.

    Where the loss is convex and weight decay part of it, as that of SGD, verdicts do not count: the network grows on
    plateaus where the gap to the best network of any width is more than 1 % of its loss, and new neurons are pulled by
    more than the decay but none that is there (`relu_diag.functional.optimality_gap`).

    Each growth logs, under the prefix ``growth/`` (or ``growth/<block>/``): ``width``, ``function_change``,
    ``predicted_drop``, ``measured_drop``, and a line of text ``timeline``. Checkpoints of the grown module load into a
    module of the first width: with ``fit(ckpt_path=...)`` or ``test(ckpt_path=...)`` and this callback; and with
    ``load_from_checkpoint`` if the width is a hyper-parameter (``width``, or the only one of that value with a name
    such as ``hidden_dim``), or if the module is a `relu_diag.growth.GrowingModule`.

    Args:
        units: Number of neurons to add at once, or "auto": as many, up to 32, as lower the loss by 1 % each.
        embedding: "replication" or "inactive propagation", one neuron after the other; or "best": whatever has the
            lowest loss, several neurons at once among them (`relu_diag.functional.best_widening`).
        nudge: Whether to place the new neuron across the nearest kink, or to give it an output weight, so that the loss
            falls at once; False keeps the function exactly.
        max_width: Largest width; None: no limit.
        max_growths: Largest number of growths; None: no limit.
        patience: Number of consecutive reports of a local minimum before the network grows.
        verdicts: Kinds of plateaus on which to grow. Under a loss that is not recognised or not convex, and where the
            optimizer's decay is part of none, as AdamW's, a plateau is "undecided": growing there is a choice, and no
            theorem.
        at_steps: Gradient steps at which to grow as well, whatever the verdict.
        block: Qualified name of the only block to grow; None: every block that is reported, and at ``at_steps`` the one
            that gains most by its new neurons, of those that gain a quarter of what it does or more the earliest.
        dataloader: Data by which to choose at ``at_steps``, in passes at fixed weights that need ``loss`` or
            ``module.batch_loss``; None: rows of the training steps. On plateaus the monitor's data are used.
        loss: Loss of a pass at ``at_steps``, ``loss(module, batch)``.

    Attributes:
        growths: The growths so far, `Growth`.

    Raises:
        MisconfigurationException: If an argument is out of range, the parameters are sharded over processes, or there
            is neither a `PlateauMonitor` nor a step at which to grow.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PlateauMonitor(), GrowOnPlateau(max_width=64)], logger=False)
    """

    def __init__(
        self,
        units: int | Literal["auto"] = 1,
        embedding: Embedding = "best",
        nudge: bool = True,
        max_width: int | None = None,
        max_growths: int | None = None,
        patience: int = 1,
        verdicts: Sequence[str] = ("local minimum",),
        at_steps: Sequence[int] = (),
        block: str | None = None,
        dataloader: Iterable[Any] | None = None,
        loss: LossFunction | None = None,
    ) -> None:
        super().__init__()
        check_choices(at_steps, embedding, verdicts)
        self.units: int | Literal["auto"] = "auto" if units == "auto" else check_count("units", units)
        self.embedding = embedding
        self.nudge = check_flag("nudge", nudge)
        self.max_width = None if max_width is None else check_count("max_width", max_width)
        self.max_growths = None if max_growths is None else check_count("max_growths", max_growths)
        self.patience = check_count("patience", patience)
        self.verdicts = tuple(verdicts)
        self.at_steps = tuple(sorted(at_steps))
        check_block(block, one=True)
        self.block = block
        # Lightning asks for it at every hook of every step.
        self._state_key = self._generate_state_key(block=block)
        self.growths: list[Growth] = []
        # Consecutive reports of each block, and number of `at_steps` that are over.
        self._reports: dict[str, int] = {}
        self._scheduled = 0
        # Growths that wait until no graph is alive, and whether that was said.
        self._waiting: list[Examination] = []
        self._told = False
        # Why blocks did not grow at their last plateau, as far as the gap says.
        self._reasons: dict[str, str] = {}
        self._growable = Growable(block)
        self.examiner = Examiner("GrowOnPlateau", block, dataloader, None, loss, around=True)
        self._report = Report(f"growth/{block}/" if block else "growth/")

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints, different for every block.

        Returns:
            The key.
        """
        return self._state_key

    @property
    def marks(self) -> list[tuple[int, str]]:
        """The growths, for the figure of the loss.

        Returns:
            Pairs of a gradient step and the new width.
        """
        return [(growth.step, f"width {growth.after}") for growth in self.growths]

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            Plain numbers and strings.
        """
        growths = [asdict(growth) | {"embedding": list(growth.embedding)} for growth in self.growths]
        return {"growths": growths, "reports": dict(self._reports), "scheduled": self._scheduled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state_dict: Result of `state_dict`.
        """
        self.growths = [Growth(**one | {"embedding": tuple(one["embedding"])}) for one in state_dict["growths"]]
        self._reports = dict(state_dict["reports"])
        self._scheduled = state_dict["scheduled"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module and its averaged copies load checkpoints of any width.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            stage: What the trainer is about to do.
        """
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer)
        for module in (pl_module, *averaged_copies(trainer)):
            resize_on_load(module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Raises:
            MisconfigurationException: If there is neither a `PlateauMonitor` nor a step at which to grow.
        """
        self._growable.begin(trainer)
        if self.at_steps:
            super().on_train_start(trainer, pl_module)
        elif not any(isinstance(callback, PlateauMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "GrowOnPlateau waits for the reports of a PlateauMonitor, and there is none. Add PlateauMonitor() to "
                "the trainer's callbacks, or give steps to grow at: GrowOnPlateau(at_steps=[...])."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of the epoch, if a growth is due in it.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        if any(step - trainer.global_step <= steps for step in self.at_steps[self._scheduled :]):
            self._want()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ride along, if a growth at a given step needs the rows.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: Unused.
            batch_idx: Number of the batch in its epoch.
        """
        if self._scheduled < len(self.at_steps):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Grow if one of the given steps is reached, and the rows to choose by are there.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: Unused.
            batch: The batch.
            batch_idx: Unused.
        """
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        monitors = [one for one in trainer.callbacks if isinstance(one, PlateauMonitor)]  # type: ignore[attr-defined]
        self._growable.check(trainer, [one.examiner for one in (self, *monitors)])
        waiting, self._waiting = self._waiting, []
        for examination in waiting:
            self._grow(trainer, examination)
        self._grow_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grow if a growth has waited for the rows of this epoch.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        super().on_train_epoch_end(trainer, pl_module)
        self._grow_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of what belongs to the run.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        super().on_train_end(trainer, pl_module)
        self._growable.end()

    def _grow_if_due(self, trainer: Trainer) -> None:
        """Grow where one of the given steps is reached."""
        if self._scheduled == len(self.at_steps):
            return
        now = trainer.global_step
        due = sum(step <= now for step in self.at_steps)
        if due <= self._scheduled or not self.examiner.agreed_ready(trainer):
            return
        self._scheduled = due
        found = self.examiner.examine(trainer, trainer.lightning_module, drop=None)
        if found is None:
            rank_zero_warn(f"GrowOnPlateau: no growth at step {trainer.global_step:,}: the loss is not finite.")
            return
        found = [one for one in found if self.block in {None, one.name}]
        if not found and not self.off:
            reason = self.examiner.reason() or f"no step has shown a block {self.block!r}"
            rank_zero_warn(f"GrowOnPlateau: no growth at step {trainer.global_step:,}: {reason}.")
        if any(self._may_grow(trainer, one) for one in found):
            found = self._with_living_layers(trainer, found)
        self._grow_one_of(trainer, [one for one in found if self._may_grow(trainer, one)])

    def _with_living_layers(self, trainer: Trainer, examinations: list[Examination]) -> list[Examination]:
        """The blocks, dead layers having got new neurons: no growth elsewhere would be felt."""
        # Otherwise neurons, or the function, are to stay; so are other blocks than the only one that may grow.
        if self.embedding == "best" and self.nudge and self.block is None:
            with self.examiner.careful:
                found = of_first_rank(trainer, on_all_ranks(lambda: for_dead_layers(trainer, examinations)))
                examinations = revived_layers(trainer, examinations, found, self._growable)
            off_together(self.examiner.careful)
        return examinations

    def _grow_one_of(self, trainer: Trainer, able: Sequence[Examination]) -> None:
        """Grow the block that gains most by it; where no neurons of it do, the next one."""
        order = [*range(len(able))]
        if len(able) > 1:
            with self.examiner.careful:
                order = trainer.strategy.broadcast(on_all_ranks(lambda: growth_order(trainer, able, self.units)))
        for place in order:
            if self._grow(trainer, able[place]):
                return

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        """Grow the blocks that are at one of the kinds to grow on, and whose patience is exhausted.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            event: The event.
        """
        due = {one.name for one in event.examinations if self._is_due(trainer, one, event)}
        if not any(one.name in due and self._may_grow(trainer, one) for one in event.examinations):
            return
        for examination in self._with_living_layers(trainer, list(event.examinations)):
            if examination.name in due:
                self._grow(trainer, examination)

    def _is_due(self, trainer: Trainer, examination: Examination, event: PlateauEvent) -> bool:
        """Whether a block is stuck for so many reports that it is to grow now."""
        name = examination.name
        if self.block not in {None, name}:
            return False
        stuck = self._is_stuck(trainer, examination, event)
        self._reports[name] = self._reports.get(name, 0) + 1 if stuck else 0
        if self._reports[name] < self.patience or not stuck or trainer.should_stop or not goes_on(trainer):
            return False
        self._reports[name] = 0
        return True

    def _is_stuck(self, trainer: Trainer, examination: Examination, event: PlateauEvent) -> bool:
        """Whether a plateau is one to grow on: by the gap where decay is part of the loss, else by the verdict."""
        against = ""
        with self.examiner.careful:
            against = trainer.strategy.broadcast(on_all_ranks(lambda: self._against(trainer, examination, event)))
        if off_together(self.examiner.careful):
            return False
        name = examination.name
        if against and against not in {_OTHER_VERDICT, self._reasons.get(name)}:
            tell(trainer, f"step {examination.step:,} {name or 'block'} does not grow: {against}")
        if against != _OTHER_VERDICT:
            self._reasons[name] = against
        return not against

    def _against(self, trainer: Trainer, examination: Examination, event: PlateauEvent) -> str:
        """Why a block does not grow on a plateau; empty where it does."""
        gap = event.gap if examination is event.examination else gap_in_training(trainer, examination)
        if gap is not None:
            return against_growing(trainer, examination, gap)
        return "" if examination.verdict.kind in self.verdicts else _OTHER_VERDICT

    def _may_grow(self, trainer: Trainer, examination: Examination) -> bool:
        """Whether there is room for neurons, and nothing forbids a block to grow for ever."""
        if self.off or (self.max_growths is not None and len(self.growths) >= self.max_growths):
            return False
        room = self._room(examination)
        return (room is None or room > 0) and self._growable.allows(trainer, examination)

    def _room(self, examination: Examination) -> int | None:
        """Number of neurons that a block may get; None: no limit."""
        return None if self.max_width is None else self.max_width - len(examination.block.W)

    def _grow(self, trainer: Trainer, examination: Examination) -> bool:
        """Choose the neurons to add, add them, and report it; False, with a warning, if there are none."""
        if not self._may_grow(trainer, examination):
            return False
        if not self._is_free(trainer, examination):
            return True
        choice = self._choice(trainer, examination)
        if choice is None:
            return False
        self._embed(trainer, examination, choice)
        return True

    def _choice(self, trainer: Trainer, examination: Examination) -> WideningChoice | None:
        """The neurons to add; None, with a word, where there are none."""
        room = self._room(examination)
        units = self.units if self.units == "auto" or room is None else min(self.units, room)
        module = trainer.lightning_module
        choice: WideningChoice | None = None
        with self.examiner.careful:
            try:
                choice = choose_widening(trainer, module, examination, units, self.embedding, self.nudge, room)
            except NoWidening as why:
                where = examination.location
                rank_zero_warn(f"GrowOnPlateau: no growth of {where} at step {examination.step:,}: {why}.")
        return choice

    def _embed(self, trainer: Trainer, examination: Examination, choice: WideningChoice) -> None:
        """Add the neurons, and report it."""
        location = examination.location
        if location is None:
            return
        embed = partial(choice.embed, live=examination.block)
        why = "GrowOnPlateau is off"
        with self.examiner.careful:
            try:
                grow_in_training(trainer, location, embed, self._growable.others, on_all_ranks)
                why = ""
            except (RuntimeError, TypeError, ValueError) as refusal:
                why = str(refusal)
        off_together(self.examiner.careful)
        if why:
            rank_zero_warn(f"GrowOnPlateau: no growth of {location} at step {examination.step:,}: {why}")
            return
        growth = Growth.of(examination, choice)
        self.growths.append(growth)
        tell(trainer, str(growth))
        numbers = {name: getattr(growth, name) for name in ("function_change", "predicted_drop", "measured_drop")}
        self._report.log_scalars(trainer, growth.step, {"width": growth.after, **numbers})
        self._report.log_text(trainer, growth.step, "timeline", str(growth))

    def _is_free(self, trainer: Trainer, examination: Examination) -> bool:
        """Whether no graph depends on the shape of the block; if one does, the growth waits."""
        free: bool = trainer.strategy.reduce_boolean_decision(graphs_let_go(trainer, examination))
        if not free:
            self._waiting.append(examination)
            if not self._told:
                rank_zero_warn("GrowOnPlateau: something keeps the graph of a step that is over; growth waits for it.")
            self._told = True
        return free
