"""PlateauMonitor: find the plateaus of the loss, judge what each is near, and forecast when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from relu_diag.callbacks._passenger import Passenger
from relu_diag.figures import story_figure
from relu_diag.functional import Gap
from relu_diag.report import RunStory
from relu_diag.training import (
    STORY,
    EventKind,
    Examination,
    Examiner,
    LossCurve,
    LossFunction,
    LossStream,
    Plateau,
    PlateauChange,
    PlateauDetector,
    PlateauEvent,
    Report,
    check_block,
    check_count,
    check_fraction,
    lately,
    listeners,
    marks_of,
    show_in_bar,
    story_rows,
    tell,
    tell_event,
    tell_gap,
    text_table,
    verdict_in_training,
)

# A plateau is judged again when it is this many times as old as at the last time.
_AGAIN = 1.5
_BETWEEN = {"verdict": -1.0}
_WAITS = "the rows of an epoch are being kept"


class PlateauMonitor(Passenger):
    """Finds the plateaus of the training loss, judges which stationary point each is near, and forecasts its end.

    It finds plateaus of any length in the loss of the training steps without settings, under noise and spikes
    (`relu_diag.training.PlateauDetector`). When a plateau is noticed, and each time it has become half as old again, it
    judges every block at the weights of then: by the rows of one epoch that it keeps while riding along on the user's
    own steps. The training step is never run for it. A batch that is the whole data set is judged at once. Blocks too
    large to search around are judged by as few rows of as few steps as the run so far pays for, unless a callback acts
    on plateaus. A forecast needs inputs that nothing trains and SGD, with or without momentum, decay and schedule.

    Each event logs, under the prefix ``plateau/`` (or ``plateau/<block>/``): ``verdict``
    (`relu_diag.training.VERDICT_CODES`, -1 between plateaus), ``escape`` (number of escape neurons), ``escape_step``
    with ``escape_low`` and ``escape_high``, ``gap`` (`relu_diag.functional.optimality_gap`, where decay is part of the
    loss; in TensorBoard ``landscape/gap``), and ``loss`` of the plateau; the table ``timeline`` and the figure ``loss``
    of the whole run, TensorBoard's first one; at the end of training its ``hp_metric``, the final loss. Each event is
    one line in the terminal, past the progress bar, and the run ends with the table. The progress bar shows, for
    example, ``plateau: saddle, escape in ~41k steps``. Every `PlateauListener` of the trainer receives the events.

    Args:
        monitor: Name of a logged metric to watch instead, which falls as training succeeds; None: the training loss.
        drop: A plateau has ended when the loss is lower by this fraction.
        min_steps: Shortest plateau, in steps.
        block: Name of the first layer of a block, a pattern (``encoder.*``), or several of them; None: all blocks.
        dataloader: Data to judge on, in passes at fixed weights that need ``loss`` or ``module.batch_loss``; None: rows
            of the training steps.
        max_samples: Largest number of samples to judge on; verdicts hold for their loss. None: all.
        loss: Loss of a pass, ``loss(module, batch)``. A module with a method ``batch_loss(batch)`` asks for passes too.
        targets: Returns the targets of a batch, ``targets(batch)``, where the batch does not show them; None: they are
            among its tensors.

    Attributes:
        plateaus: The plateaus so far, `Plateau`.
        final: The weights at the end of training, judged, `Examination`; None before, without a block or finite loss.
        not_finite: First step at which the loss was NaN or infinite, or None.

    Raises:
        MisconfigurationException: If an argument is out of range; or, in training, if a pass has no loss, or the metric
            is never logged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PlateauMonitor()], logger=False)
    """

    def __init__(
        self,
        monitor: str | None = None,
        drop: float = 0.01,
        min_steps: int = 100,
        block: str | Sequence[str] | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
        targets: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.drop = check_fraction("drop", drop)
        self._detector = PlateauDetector(self.drop, check_count("min_steps", min_steps))
        check_block(block)
        self.block = block
        # Lightning asks for it at every hook of every step.
        self._state_key = self._generate_state_key(block=block, monitor=monitor)
        self.plateaus: list[Plateau] = []
        self.final: Examination | None = None
        self.not_finite: int | None = None
        self._finite = True
        self._validated = False
        self.examiner = Examiner("PlateauMonitor", block, dataloader, max_samples, loss, targets)
        self._stream = LossStream(monitor)
        self._curve = LossCurve()
        # Step at which the plateau is judged again, whether a verdict is waited for, and the loss at the last one.
        self._judge_at = 0.0
        self._asked = False
        self._judged_loss: float | None = None
        # Plateau and verdict that were said last.
        self._told: tuple[int, str, bool] | None = None
        named = block if isinstance(block, str) else ""
        self._name = f"plateau {named}" if named else "plateau"
        self._report = Report(f"plateau/{named}/" if named else "plateau/", first="loss")

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints, different for every block and metric.

        Returns:
            The key.
        """
        return self._state_key

    @property
    def forecast_prefix(self) -> str:
        """Prefix under which forecasts are logged, for the chart that draws them.

        Returns:
            Text such as ``plateau/``.
        """
        return self._report.prefix

    @property
    def timeline(self) -> list[str]:
        """The run in text, in lines such as ``step 4,900 plateau ends (forecast 4,870 made at step 500)``."""
        end = [] if self.final is None else [f"step {self.final.step:,} training ends: {self.final.verdict.kind}"]
        return [line for plateau in self.plateaus for line in plateau.story()] + end

    def story(self, trainer: Trainer) -> RunStory | None:
        """The run so far, as a report tells it.

        Args:
            trainer: The trainer, whose other callbacks have acted on plateaus.

        Returns:
            Losses, plateaus and what was done about them; None before the first loss.
        """
        if not self._curve.points:
            return None
        steps, losses = zip(*self._curve.points, strict=True)
        return RunStory(steps, losses, self.plateaus, marks_of(trainer))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            Plain numbers, strings and tensors.
        """
        return {
            "detector": self._detector.state_dict(),
            "plateaus": [plateau.state_dict() for plateau in self.plateaus],
            "curve": (list(self._curve.points), self._curve.stride, self._curve.count, self._curve.total),
            "stream": self._stream.state_dict(),
            "judge_at": self._judge_at,
            "judged_loss": self._judged_loss,
            "not_finite": self.not_finite,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state_dict: Result of `state_dict`.
        """
        self._detector.load_state_dict(state_dict["detector"])
        self.plateaus = [Plateau.from_state(state) for state in state_dict["plateaus"]]
        self._curve = LossCurve(*state_dict["curve"])
        self._stream.load_state_dict(state_dict["stream"])
        self._judge_at = state_dict["judge_at"]
        self._judged_loss = state_dict["judged_loss"]
        self.not_finite = state_dict["not_finite"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        super().on_train_start(trainer, pl_module)
        self.examiner.thrifty = not listeners(trainer)
        same = [one for one in trainer.callbacks if isinstance(one, PlateauMonitor) and one.block == self.block]  # type: ignore[attr-defined]
        if len(same) > 1 and self.monitor is not None:  # several metrics of one block: each has names of its own
            self._name = f"plateau {self.monitor}"
            self._report.prefix = f"plateau/{self.monitor}/"
        self.final = None
        self._told = None
        self._asked = self._detector.loss is not None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of the last epoch: the weights at the end are judged by them.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        steps = trainer.global_step + trainer.num_training_batches
        if trainer.max_epochs == trainer.current_epoch + 1 or 0 <= trainer.max_steps <= steps < math.inf:
            self.examiner.want_if_cheap(trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, where the step may return none.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            loss: The loss.
        """
        super().on_before_backward(trainer, pl_module, loss)
        self._stream.before_backward(trainer, pl_module, loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the loss of the step, and look for plateaus from time to time.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: Result of the training step, with its loss.
            batch: The batch.
            batch_idx: Unused.
        """
        if not self.examiner.passes():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._stream.take(trainer, pl_module, outputs):
            with self.examiner.careful:
                self._stream.after_step(trainer, pl_module, outputs)
        if self._stream.due:
            self._look_for_plateaus(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect a metric of the validation.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stream.after_loop(trainer)
            self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect a metric of the epoch, and look for plateaus.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        super().on_train_epoch_end(trainer, pl_module)
        self._stream.after_loop(trainer)
        if self._validated or not trainer.enable_validation:
            self._stream.check_seen(trainer)
        self._look_for_plateaus(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the final weights, and write the figure.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._look_for_plateaus(trainer, pl_module)
        lasts = self._detector.loss is not None
        since = self.plateaus[-1].start if lasts else lately(trainer)
        found = self.examiner.examine(trainer, pl_module, self.drop, since)
        if found is None and self._finite:
            self._add(trainer, pl_module, trainer.global_step, math.nan)
        elif found:
            self.final = found[0].at_the_end(None if self.monitor else self._curve.last)
            if lasts:
                self._judged(trainer, pl_module, found, "update")
            else:
                self._tell_gap(trainer, found)
            ending = self.final.ending(lasts, named=len(found) > 1)
            tell_event(trainer, self.final.step, self.final.verdict.kind, ending)
        self._progress(trainer)
        if self._curve.points:
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Close what is logged, write the story, and say where it is."""
        step = trainer.global_step
        lasts = self._detector.loss is not None
        self._report.log_scalars(trainer, step, self.plateaus[-1].scalars() if lasts else _BETWEEN)
        self._report.log_final_loss(trainer, step, self.final.loss if self.final else self._curve.points[-1][1])
        self._report.write_figures(trainer, step, lambda: self._figures(trainer))
        rows = self._rows(trainer)
        self._report.log_table(trainer, "timeline", STORY, rows)
        if self.plateaus:
            tell(trainer, text_table(STORY, rows))
        if trainer.loggers and trainer.loggers[0].log_dir is not None:
            tell(trainer, f"logs and figures: {trainer.loggers[0].log_dir}")

    def _look_for_plateaus(self, trainer: Trainer, module: LightningModule) -> None:
        """Pass the collected losses to the detector, and judge the current plateau again if it is time."""
        for step, loss in self._stream.hand_out(trainer):
            self._add(trainer, module, step, loss)
        if self._detector.loss is not None and trainer.global_step >= self._judge_at:
            self._ask()
        if self._asked and self.examiner.agreed_ready(trainer):
            found = self.examiner.examine(trainer, module, self.drop)
            if found is None:  # Not finite, which the losses collected so far do not show yet.
                self._add(trainer, module, trainer.global_step, math.nan)
            else:
                self._judged(trainer, module, found, "update")
        self._progress(trainer)

    def _ask(self) -> None:
        """Ask for a verdict, unless one is waited for."""
        if not self._asked:
            self._asked = True
            self._want()

    def _add(self, trainer: Trainer, module: LightningModule, step: int, loss: float) -> None:
        """Pass a loss to the detector, and act on the start or the end of a plateau."""
        self._finite = math.isfinite(loss)
        if self._finite:
            self._curve.add(step, loss)
        elif self.not_finite is None:
            self.not_finite = step
            tell_event(trainer, step, "", f"the loss is {loss}{self._curve.rise}")
            rank_zero_warn(f"PlateauMonitor: the loss is {loss} at step {step:,}{self._curve.rise}.")
        change = self._detector.add(step, loss)
        if change is not None:
            act = self._started if change.how == "start" else self._ended
            act(trainer, module, change)

    def _started(self, trainer: Trainer, module: LightningModule, change: PlateauChange) -> None:
        """Note a new plateau, and judge it, now or when the rows of an epoch are there."""
        self._judged_loss = None
        self._ask()
        ready = self.examiner.agreed_ready(trainer)
        found = self.examiner.examine(trainer, module, self.drop) if ready else []
        if found is None:  # The losses to come are not finite.
            self._asked = False
            self._detector.add(change.step, math.nan)
            return
        reason = self.examiner.reason() if ready else _WAITS
        new = Plateau(change.step, None, change.loss, verdict_in_training(None, reason), None, no_forecast=reason)
        self.plateaus.append(replace(new, seen=trainer.global_step))
        self._judged(trainer, module, found, "start")
        self._asked = not ready

    def _judged(self, trainer: Trainer, module: LightningModule, found: list[Examination], kind: EventKind) -> None:
        """Write the verdict and the forecast of the first of the examinations into the current plateau."""
        self._asked = False
        plateau = self.plateaus[-1]
        step = trainer.global_step
        if found:
            # Once neurons have begun to end the plateau, verdicts are on what comes after it: this one's is final.
            if self._judged_loss is not None and found[0].loss < (1 - self.drop / 4) * self._judged_loss:
                self._judge_at = math.inf
                return
            self._judged_loss = found[0].loss
            plateau = plateau.judged_again(found[0], self._detector.loss, named=len(found) > 1)
            self.plateaus[-1] = plateau
        gap = self._tell_gap(trainer, found) if found else None
        age = step - plateau.start
        self._judge_at = plateau.start + max(_AGAIN * age, age + 1)
        self._report.log_scalars(trainer, step, plateau.scalars())
        self._tell_verdict(trainer, plateau, step)
        self._send(trainer, module, PlateauEvent(kind, step, plateau, self.block, tuple(found), gap))

    def _tell_gap(self, trainer: Trainer, found: list[Examination]) -> Gap | None:
        """Log, say and return how far the first block is from the best of any width, if decay is part of the loss."""
        named = self.block is not None or len(found) > 1
        # Beside what is watched of the block: there TensorBoard shows it.
        beside = Report(f"landscape/{found[0].name}/" if named else "landscape/")
        return tell_gap(trainer, found[0], (self._report, beside))

    def _ended(self, trainer: Trainer, module: LightningModule, change: PlateauChange) -> None:
        """Close the current plateau, or drop it if it was a slide."""
        plateau = self.plateaus.pop()
        self._asked = False
        step = trainer.global_step
        kind: EventKind = "slide" if change.how == "slide" else "end"
        if change.how == "slide":
            tell_event(trainer, step, "", f"a slide since step {plateau.start:,}, no plateau")
        else:
            plateau = replace(plateau, end=change.step, loss=change.loss, ended_by=change.how)
            self.plateaus.append(plateau)
            tell_event(trainer, change.step, plateau.verdict.kind, plateau.ending)
        self._report.log_scalars(trainer, step, _BETWEEN)
        self._send(trainer, module, PlateauEvent(kind, step, plateau, self.block))

    def _send(self, trainer: Trainer, module: LightningModule, event: PlateauEvent) -> None:
        """Send an event to the listeners; if one of them widens the block, the plateau ends."""
        for callback in listeners(trainer):
            callback.on_plateau(trainer, module, event)
        if any(one.has_grown(module) for one in event.examinations):
            self._detector.interrupt(event.step)
            self.plateaus[-1] = replace(event.plateau, end=event.step, ended_by="growth")
            self._report.log_scalars(trainer, event.step, _BETWEEN)
            tell_event(trainer, event.step, event.plateau.verdict.kind, self.plateaus[-1].ending)
        self._report.log_table(trainer, "timeline", STORY, self._rows(trainer))
        if self._curve.points and (event.kind != "update" or self._report.due()):
            self._report.send_figures(trainer, event.step, lambda: self._figures(trainer))

    def _tell_verdict(self, trainer: Trainer, plateau: Plateau, step: int) -> None:
        """Say what a plateau is near, when it is known and when the verdict is another one."""
        told = (plateau.start, plateau.verdict.kind, bool(plateau.fact))
        if told != self._told and plateau.no_forecast != _WAITS:
            self._told = told
            tell_event(trainer, step, plateau.verdict.kind, plateau.words)

    def _rows(self, trainer: Trainer) -> list[tuple[str, ...]]:
        """The plateaus so far, and the end of training where it is off them, as rows of the story."""
        return story_rows(self.plateaus, marks_of(trainer), self.final if self._detector.loss is None else None)

    def _progress(self, trainer: Trainer) -> None:
        """Show the current plateau in the progress bar."""
        lasts = self._detector.loss is not None
        show_in_bar(trainer, self._name, self.plateaus[-1].short(trainer.global_step) if lasts else "")

    def _figures(self, trainer: Trainer) -> dict[str, Figure]:
        """The story of the run so far."""
        story = self.story(trainer)
        assert story is not None
        return {"loss": story_figure(story.steps, story.losses, story.plateaus, story.marks)}
