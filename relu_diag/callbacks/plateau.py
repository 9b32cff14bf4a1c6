"""PlateauMonitor: notice that the loss stands still, say at what, and when it will go on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure

from relu_diag.figures import plateau_figure
from relu_diag.training import (
    Examination,
    Look,
    LossCurve,
    LossFunction,
    LossStream,
    Plateau,
    PlateauChange,
    PlateauDetector,
    PlateauEvent,
    Report,
    examine,
    listeners,
    looked_at_again,
    plateau_from_state,
    progress_bar_texts,
)

# A plateau is judged again when it has become so many times as old.
_AGAIN = 1.5
_NO_PLATEAU = -1


class PlateauMonitor(Callback):
    """Finds the plateaus of the training loss, and says of each what stationary point is near and when it will end.

    The loss is that of the module's training steps. Plateaus of any length are found without settings, under noise and
    spikes (`PlateauDetector`). When one is noticed, and again each time it is half as old again, one full pass over
    the training data gives the verdict on the stationary point nearby and the forecast: for the squared error of the
    block's output, and plain SGD, with momentum, weight decay, a schedule. For others it says why there is none.

    `plateaus` holds them all. Logged at each event, prefix ``plateau/`` (or ``plateau/<block>/``): ``verdict``
    (`relu_diag.training.VERDICT_CODES`, -1 off plateaus), ``escape_step`` with ``escape_low`` and
    ``escape_high``; the text ``timeline``; the figure ``loss``. The progress bar shows, for example,
    ``plateau: saddle, escape in ~41k steps``. Other callbacks of the trainer are told if they are a `PlateauListener`.

    Args:
        monitor: Name of a logged metric to watch instead, which falls as training succeeds; None: the training loss.
        drop: A plateau has ended when the loss is lower by this fraction.
        min_steps: No plateau is found in fewer steps.
        block: Qualified name of the block's first Linear, where the module has several blocks.
        dataloader: Data to judge on; None: the training data set, in order.
        max_samples: Judge on no more than so many samples, evenly spaced, and only for their loss; None: all.
        loss: Computes the loss of a batch, ``loss(module, batch)``; None: the module's own.

    Attributes:
        plateaus: The plateaus so far, `Plateau`.
        final: What the weights were near at the end of training, `Examination`; None before, and if the loss is not
            finite.
        not_finite: First step whose loss was NaN or infinite, or None.

    Raises:
        MisconfigurationException: If an argument is out of range, or (in training) no block is found, there is no loss,
            or the metric is never logged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PlateauMonitor()], logger=False)
    """

    def __init__(
        self,
        monitor: str | None = None,
        drop: float = 0.01,
        min_steps: int = 100,
        block: str | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
    ) -> None:
        super().__init__()
        try:
            self._detector = PlateauDetector(drop, min_steps)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.monitor, self.drop, self.block = monitor, drop, block
        self.plateaus: list[Plateau] = []
        self.final: Examination | None = None
        self.not_finite: int | None = None
        self._finite, self._validated = True, False
        self._looking = Look("PlateauMonitor", block, dataloader, max_samples, loss)
        self._stream = LossStream(monitor)
        self._curve = LossCurve()
        self._judge_at = 0.0
        self._looked: float | None = None
        self._name = f"plateau {block}" if block else "plateau"
        self._report = Report(f"plateau/{block}/" if block else "plateau/")

    @property
    def state_key(self) -> str:
        """Monitors of one run are told apart by what they watch.

        Returns:
            Key of this callback's state in checkpoints.
        """
        return self._generate_state_key(block=self.block, monitor=self.monitor)

    @property
    def timeline(self) -> list[str]:
        """The run as a story.

        Returns:
            Lines like ``step 4,900 plateau ends (forecast 4,870 made at step 500)``.
        """
        end = [] if self.final is None else [f"step {self.final.step:,} training ends: {self.final.verdict.kind}"]
        return [line for plateau in self.plateaus for line in plateau.story()] + end

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            Plain numbers, strings and tensors.
        """
        return {
            "detector": self._detector.state_dict(),
            "plateaus": [plateau.state_dict() for plateau in self.plateaus],
            "curve": (list(self._curve.points), self._curve.stride, self._curve.open),
            "stream": self._stream.state_dict(),
            "judge_at": self._judge_at,
            "looked": self._looked,
            "not_finite": self.not_finite,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._detector.load_state_dict(state_dict["detector"])
        self.plateaus = [plateau_from_state(state) for state in state_dict["plateaus"]]
        self._curve = LossCurve(*state_dict["curve"])
        self._stream.load_state_dict(state_dict["stream"])
        self._judge_at, self._looked = state_dict["judge_at"], state_dict["looked"]
        self.not_finite = state_dict["not_finite"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._looking.find(trainer, pl_module)
        self.final = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the loss of a step.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: Outputs of the step, its loss among them.
            batch: Unused.
            batch_idx: Unused.
        """
        if self._stream.after_step(trainer, pl_module, outputs):
            self._take(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in a metric of the validation.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stream.after_loop(trainer)
            self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in a metric of the epoch.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._stream.after_loop(trainer)
        if self._validated or not trainer.enable_validation:
            self._stream.check_seen(trainer)
        self._take(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the end of the run, and write the figure.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._take(trainer, pl_module)
        self.final = examine(trainer, pl_module, self._looking, self.drop)
        if self.final is not None:
            if self._detector.loss is not None:
                self._judged(trainer, pl_module, self.final, "update")
            self._say(trainer, self.timeline[-1])
        elif self._finite:
            self._add(trainer, pl_module, trainer.global_step, math.nan)
        self._progress(trainer)
        if self._curve.points:
            self._report.write_figures(trainer, trainer.global_step, lambda: self._figures(trainer))

    def _take(self, trainer: Trainer, module: LightningModule) -> None:
        for step, loss in self._stream.hand_out(trainer):
            self._add(trainer, module, step, loss)
        if self._detector.loss is not None and trainer.global_step >= self._judge_at:
            found = examine(trainer, module, self._looking, self.drop)
            if found is None:  # before their loss tells
                self._add(trainer, module, trainer.global_step, math.nan)
            else:
                self._judged(trainer, module, found, "update")
        self._progress(trainer)

    def _add(self, trainer: Trainer, module: LightningModule, step: int, loss: float) -> None:
        self._finite = math.isfinite(loss)
        if self._finite:
            self._curve.add(step, loss)
        elif self.not_finite is None:
            self.not_finite = step
            self._say(trainer, f"step {step:,} the loss is {loss}")
            rank_zero_warn(f"PlateauMonitor: the loss is {loss} at step {step:,}.")
        change = self._detector.add(step, loss)
        if change is None:
            return
        if change.how == "start":
            self._started(trainer, module, change)
        else:
            self._ended(trainer, module, change)

    def _started(self, trainer: Trainer, module: LightningModule, change: PlateauChange) -> None:
        found, self._looked = examine(trainer, module, self._looking, self.drop), None
        if found is None:  # the losses to come are not finite
            self._detector.add(change.step, math.nan)
            return
        self.plateaus.append(
            Plateau(change.step, None, change.loss, found.verdict, None, found.step, no_forecast=found.no_forecast)
        )
        self._judged(trainer, module, found, "start")

    def _judged(
        self, trainer: Trainer, module: LightningModule, found: Examination, kind: Literal["start", "update"]
    ) -> None:
        """Write a verdict and a forecast into the present plateau."""
        # Neurons that have begun to end it are no longer small: what is forecast then is the escape after this one.
        under_way = self._looked is not None and found.loss < (1 - self.drop / 4) * self._looked
        self._looked = found.loss
        self.plateaus[-1] = plateau = looked_at_again(self.plateaus[-1], found, self._detector.loss, under_way)
        self._judge_at = plateau.start + max(_AGAIN * (found.step - plateau.start), found.step - plateau.start + 1)
        self._report.log_scalars(trainer, found.step, plateau.scalars())
        if kind == "start":
            self._say(trainer, f"step {found.step:,} on a plateau {plateau}")
        self._tell(trainer, module, PlateauEvent(kind, found.step, plateau, self.block, found))

    def _ended(self, trainer: Trainer, module: LightningModule, change: PlateauChange) -> None:
        plateau = self.plateaus.pop()
        step = trainer.global_step
        if change.how == "slide":
            self._say(trainer, f"step {step:,} no plateau since step {plateau.start:,}: the loss slides steadily")
        else:
            plateau = replace(plateau, end=change.step, loss=change.loss, ended_by=change.how)
            self.plateaus.append(plateau)
            self._say(trainer, plateau.story()[-1])
        self._report.log_scalars(trainer, step, {"verdict": _NO_PLATEAU})
        kind: Literal["end", "slide"] = "slide" if change.how == "slide" else "end"
        self._tell(trainer, module, PlateauEvent(kind, step, plateau, self.block, None))
        if self._report.due():
            self._report.send_figures(trainer, step, lambda: self._figures(trainer))

    def _tell(self, trainer: Trainer, module: LightningModule, event: PlateauEvent) -> None:
        for callback in listeners(trainer):
            callback.on_plateau(trainer, module, event)
        if event.examination and self._looking.parameters(module).W.shape != event.examination.block.W.shape:
            self._detector.interrupt(event.step)
            self.plateaus[-1] = replace(event.plateau, end=event.step, ended_by="growth")
            self._say(trainer, self.plateaus[-1].story()[-1])

    def _say(self, trainer: Trainer, line: str) -> None:
        rank_zero_info(line)
        self._report.log_text(trainer, trainer.global_step, "timeline", line)

    def _progress(self, trainer: Trainer) -> None:
        """Text has no other way into a progress bar: what is logged must be a number."""
        shown = progress_bar_texts(trainer)
        shown.pop(self._name, None)
        if self._detector.loss is not None:
            shown[self._name] = self.plateaus[-1].short(trainer.global_step)

    def _figures(self, trainer: Trainer) -> dict[str, Figure]:
        bands = [plateau.band() for plateau in self.plateaus]
        marks = [mark for callback in listeners(trainer) for mark in callback.marks]
        return {"loss": plateau_figure(self._curve.points, bands, marks)}
