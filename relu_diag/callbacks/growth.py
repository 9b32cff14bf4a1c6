"""GrowOnPlateau: widen the network where training is stuck at a local minimum, and train on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.growth import averaged_copies, check_strategy, grow_in_training, resize_on_load
from relu_diag.training import (
    VERDICT_CODES,
    Examination,
    Look,
    LossFunction,
    NoWidening,
    PlateauEvent,
    PlateauListener,
    Report,
    choose_widening,
    epochs_completed,
    examine,
)

Embedding = Literal["best", "replication", "inactive propagation"]
_DROP = 0.01


@dataclass(frozen=True, slots=True)
class Growth:
    """A growth of a block in training.

    Attributes:
        step: Gradient steps done.
        block: Qualified name of the block's first Linear.
        before: Width before it.
        after: Width after it.
        embedding: What was done, a line for each new neuron.
        verdict_before: What the weights were near.
        verdict_after: What the grown weights are.
        function_change: Largest change of an output on the data.
        predicted_drop: First-order prediction of how much the loss drops at once.
        measured_drop: How much it dropped.
    """

    step: int
    block: str
    before: int
    after: int
    embedding: tuple[str, ...]
    verdict_before: str
    verdict_after: str
    function_change: float
    predicted_drop: float
    measured_drop: float

    def __str__(self) -> str:
        return (
            f"step {self.step:,} {self.block or 'block'} grows from {self.before} to {self.after} neurons: "
            f"{'; '.join(self.embedding)}; {self.verdict_before} before, {self.verdict_after} after; drop predicted "
            f"{self.predicted_drop:.2g}, measured {self.measured_drop:.2g}"
        )


class GrowOnPlateau(PlateauListener):
    """Adds neurons to a block when a `PlateauMonitor` of the same trainer says that it rests at a local minimum.

    Of all ways to grow (`relu_diag.functional.growth_proposals`) the one that lowers the loss most is taken, under any
    differentiable loss. Layers, Parameters, optimizer states, schedulers and averaged copies go on
    (`relu_diag.growth.grow`). A block of a module with several is grown when the monitor that watches it reports; each
    has its own width.

    Logged at each growth, prefix ``growth/`` (or ``growth/<block>/``): ``width``, ``function_change``,
    ``predicted_drop``, ``measured_drop``, and the line as text ``timeline``. Checkpoints of the grown module load into
    a module of the first width, by ``fit(ckpt_path=...)`` or ``test(ckpt_path=...)`` with this callback, and by
    ``load_from_checkpoint`` where the width is a hyper-parameter (``width``, or the only one of that value called after
    hidden units, as ``hidden_dim``) or the module a `relu_diag.growth.GrowingModule`.

    Args:
        units: Neurons added at a growth.
        embedding: "replication", "inactive propagation", or "best": whichever lowers the loss most.
        nudge: Whether the new neuron is placed across the nearest kink, or given an output weight, so that the loss
            falls at once; False keeps the function exactly.
        max_width: No wider than this; None: no limit.
        max_growths: No more growths than this; None: no limit.
        patience: Reports of a local minimum, one after another, to wait for before growing.
        verdicts: Grow on plateaus judged as one of these. "undecided" is what every plateau is under a loss other than
            the squared error, cross-entropy for example: to grow there is a choice, not a theorem.
        at_steps: Grow also at these gradient steps, whatever the verdict.
        block: Qualified name of the only block to grow; None: each that is reported, and at ``at_steps`` the only one.
        dataloader: Data to choose by at ``at_steps``; None: the training data set. Elsewhere the monitor's own.
        loss: Computes the loss of a batch at ``at_steps``, ``loss(module, batch)``; None: the module's own.

    Attributes:
        growths: What was grown, `Growth`.

    Raises:
        MisconfigurationException: If an argument is out of range, the parameters are sharded over processes, or there
            is neither a `PlateauMonitor` nor a step to grow at.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PlateauMonitor(), GrowOnPlateau(max_width=64)], logger=False)
    """

    def __init__(
        self,
        units: int = 1,
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
        counts = {"units": units, "max_width": max_width, "max_growths": max_growths, "patience": patience}
        for name, count in counts.items():
            if count is not None and not (isinstance(count, int) and count >= 1):
                raise MisconfigurationException(f"`{name}` must be a positive whole number; got {count!r}.")
        if not isinstance(at_steps, Sequence) or not all(isinstance(step, int) and step >= 1 for step in at_steps):
            raise MisconfigurationException(
                f"`at_steps` must be a list of gradient steps, 1 or more; got {at_steps!r}."
            )
        if embedding not in get_args(Embedding):
            raise MisconfigurationException(f"`embedding` must be one of {get_args(Embedding)}; got {embedding!r}.")
        if unknown := set(verdicts) - set(VERDICT_CODES):
            raise MisconfigurationException(f"`verdicts` must be among {[*VERDICT_CODES]}; got {sorted(unknown)}.")
        self.units, self.embedding, self.nudge, self.verdicts = units, embedding, nudge, tuple(verdicts)
        self.max_width, self.max_growths, self.patience = max_width, max_growths, patience
        self.at_steps, self.block = tuple(sorted(at_steps)), block
        self.growths: list[Growth] = []
        self._reports: dict[str, int] = {}
        self._scheduled = 0
        self._look = Look("GrowOnPlateau", block, dataloader, None, loss)
        self._report = Report(f"growth/{block}/" if block else "growth/")

    @property
    def state_key(self) -> str:
        """Several of one run are told apart by their block.

        Returns:
            Key of this callback's state in checkpoints.
        """
        return self._generate_state_key(block=self.block)

    @property
    def marks(self) -> list[tuple[int, str]]:
        """The growths, for the figure of the loss.

        Returns:
            Gradient steps, and the new width for each.
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
        """Take up the state of a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self.growths = [Growth(**one | {"embedding": tuple(one["embedding"])}) for one in state_dict["growths"]]
        self._reports, self._scheduled = dict(state_dict["reports"]), state_dict["scheduled"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the module take checkpoints of any width, before one is loaded.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            stage: Unused.
        """
        check_strategy(trainer)
        for module in (pl_module, *averaged_copies(trainer)):
            resize_on_load(module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block, where it is to grow at given steps.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Raises:
            MisconfigurationException: If nothing will ever make it grow.
        """
        if self.at_steps:
            self._look.find(trainer, pl_module)
        elif not any(isinstance(callback, PlateauMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "GrowOnPlateau waits for the reports of a PlateauMonitor, and there is none. Add PlateauMonitor() to "
                "the trainer's callbacks, or give steps to grow at: GrowOnPlateau(at_steps=[...])."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Grow at the given steps.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: Unused.
            batch: Unused.
            batch_idx: Unused.
        """
        due = sum(step <= trainer.global_step for step in self.at_steps)
        if due > self._scheduled:
            self._scheduled = due
            found = examine(trainer, pl_module, self._look, _DROP)
            if found is None:
                rank_zero_warn(f"GrowOnPlateau: no growth at step {trainer.global_step:,}: the loss is not finite.")
            else:
                self._grow(trainer, found)

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        """Grow if the plateau is a local minimum.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            event: What the monitor saw.
        """
        found = event.examination
        name = found.location.hidden if found else ""
        if found is None or self.block not in {None, name}:
            return
        if found.verdict.kind not in self.verdicts:
            self._reports[name] = 0
            return
        self._reports[name] = self._reports.get(name, 0) + 1
        if self._reports[name] >= self.patience and not trainer.should_stop and _goes_on(trainer):
            self._reports[name] = 0
            self._grow(trainer, found)

    def _grow(self, trainer: Trainer, found: Examination) -> None:
        width = len(found.block.W)
        room = self.units if self.max_width is None else min(self.units, self.max_width - width)
        if room < 1 or (self.max_growths is not None and len(self.growths) >= self.max_growths):
            return
        try:
            choice = choose_widening(trainer, trainer.lightning_module, found, room, self.embedding, self.nudge)
        except NoWidening as why:
            rank_zero_warn(f"GrowOnPlateau: no growth of {found.location} at step {found.step:,}: {why}.")
            return
        grow_in_training(trainer, found.location, lambda block: choice.embed(block, found.block))
        growth = Growth(
            step=found.step,
            block=found.location.hidden,
            before=width,
            after=width + len(choice.proposals),
            embedding=tuple(str(one) for one in choice.proposals),
            verdict_before=found.verdict.kind,
            verdict_after=choice.verdict,
            function_change=choice.function_change,
            predicted_drop=sum(one.predicted_drop for one in choice.proposals),
            measured_drop=sum(one.measured_drop for one in choice.proposals),
        )
        self.growths.append(growth)
        rank_zero_info(str(growth))
        numbers = {name: getattr(growth, name) for name in ("function_change", "predicted_drop", "measured_drop")}
        self._report.log_scalars(trainer, growth.step, {"width": growth.after, **numbers})
        self._report.log_text(trainer, growth.step, "timeline", str(growth))


def _goes_on(trainer: Trainer) -> bool:
    """Whether there are steps left to train what has grown."""
    ended = epochs_completed(trainer)
    more_epochs = trainer.max_epochs in {None, -1} or ended < (trainer.max_epochs or 0)
    return more_epochs and (trainer.max_steps < 0 or trainer.global_step < trainer.max_steps)
