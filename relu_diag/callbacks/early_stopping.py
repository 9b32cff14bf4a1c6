"""SaddleAwareEarlyStopping: stop at minima, not at saddles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from relu_diag.callbacks._passenger import Passenger
from relu_diag.training import (
    Examination,
    Examiner,
    LossFunction,
    Report,
    check_block,
    check_count,
    check_fraction,
    stop_or_wait,
    tell,
)

# How many times as often it waits at a saddle, which has a way down, as where nothing is certain.
_AT_SADDLES = 5


class SaddleAwareEarlyStopping(Passenger, EarlyStopping):
    """Lightning's EarlyStopping, with a verdict on the weights before it stops.

    It rides along on the user's own steps, and when patience is exhausted it judges the weights by the rows of the last
    epoch; the training step is never run for it. It stops at a certified local or global minimum, if every neuron is
    dead, or where the loss falls by more than ``drop`` in ten steps of descent on all data and no faster from step to
    step: then no saddle holds it, and the metric does not follow the loss. At a saddle it waits until the escape is
    due, plus a margin, and stops if the metric has not improved by then. If the verdict is undecided or there is no
    forecast, it waits, and judges again each time patience is exhausted once more, ``max_waits`` times; then it stops
    as `EarlyStopping` does. NaN and thresholds stop training at once, as in `EarlyStopping`.

    The decision and its reason are printed, and logged as the text ``early_stopping/decision``.

    Args:
        monitor: Name of the metric.
        args: Further arguments of `EarlyStopping`, in its order.
        margin: Fraction by which it waits longer than forecast.
        drop: Fraction by which the loss falls in an escape.
        max_waits: How often it waits where nothing is certain; at a saddle without a forecast five times as often.
        block: Name of the first layer of a block, a pattern (``encoder.*``), or several of them; None: all blocks.
        dataloader: Data to judge on, in passes at fixed weights that need ``loss`` or ``module.batch_loss``; None: rows
            of the training steps.
        max_samples: Largest number of samples to judge on; verdicts hold for their loss. None: all.
        loss: Loss of a pass, ``loss(module, batch)``. A module with a method ``batch_loss(batch)`` asks for passes too.
        targets: Returns the targets of a batch, ``targets(batch)``, where the batch does not show them; None: they are
            among its tensors.
        kwargs: Further arguments of `EarlyStopping`: ``patience``, ``min_delta``, ``mode`` and so on.

    Attributes:
        examination: The last examination, `Examination`; None before patience was exhausted.
        wait_until: Step until which it waits at a saddle, or None.
        decision: Why it waits or has stopped; empty before patience was exhausted.

    Raises:
        MisconfigurationException: If the margin is negative; or, in training, if a pass has no loss.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SaddleAwareEarlyStopping("val_loss", patience=5)], logger=False)
    """

    def __init__(
        self,
        monitor: str,
        *args: Any,
        margin: float = 0.2,
        drop: float = 0.01,
        max_waits: int = 2,
        block: str | Sequence[str] | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
        targets: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor, *args, **kwargs)
        if not (isinstance(margin, int | float) and math.isfinite(margin) and margin >= 0):
            raise MisconfigurationException(f"`margin` is a fraction of the forecast, >= 0; got {margin!r}.")
        check_block(block)
        self.margin = margin
        self.drop = check_fraction("drop", drop)
        self.examination: Examination | None = None
        self.wait_until: float | None = None
        self.decision = ""
        self.max_waits = check_count("max_waits", max_waits)
        self._waits = 0
        # Value of `wait_count` from which the weights are judged again.
        self._judge_at_count = 0
        self.examiner = Examiner(type(self).__name__, block, dataloader, max_samples, loss, targets)
        self._report = Report("early_stopping/")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            The state of `EarlyStopping`, and until when it waits.
        """
        own = {
            "wait_until": self.wait_until,
            "look_at": self._judge_at_count,
            "decision": self.decision,
            "waits": self._waits,
        }
        return {**super().state_dict(), **own}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the state of a plain `EarlyStopping`, if the run began with one.

        Args:
            trainer: Unused.
            pl_module: Unused.
            checkpoint: The checkpoint.
        """
        states = checkpoint.get("callbacks", {})
        plain = self.state_key.replace(type(self).__name__, "EarlyStopping")
        if self.state_key not in states and plain in states:
            self.load_state_dict(states[plain])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint, also of a plain `EarlyStopping`.

        Args:
            state_dict: Result of `state_dict`.
        """
        super().load_state_dict(state_dict)
        self.wait_until = state_dict.get("wait_until")
        self._judge_at_count = state_dict.get("look_at", 0)
        self.decision = state_dict.get("decision", "")
        self._waits = state_dict.get("waits", 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the rows of the epoch, and check as `EarlyStopping` does.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        Passenger.on_train_epoch_end(self, trainer, pl_module)
        EarlyStopping.on_train_epoch_end(self, trainer, pl_module)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        """Keep the trainer for `_evaluate_stopping_criteria`, which Lightning calls without it."""
        self._trainer = trainer
        try:
            super()._run_early_stopping_check(trainer)
        finally:
            del self._trainer

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        """Whether to stop, and why: Lightning's decision, unless it is that patience is exhausted."""
        stop, reason = super()._evaluate_stopping_criteria(current)
        if self.wait_count == 0:
            self.wait_until = None
            self._judge_at_count = 0
            self._waits = 0
            self.decision = ""
        if self.wait_count >= self.patience - 1:
            self._want()  # in time: the rows of an epoch are kept before they are needed
        trainer = self._trainer
        exhausted = stop and self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
        # Either every rank looks or none does: a look sums over the ranks.
        if not trainer.strategy.reduce_boolean_decision(exhausted, all=False):
            return stop, reason
        late = self.wait_until is not None and trainer.global_step > self.wait_until
        due = self.wait_count >= self._judge_at_count if self.wait_until is None else late
        due = trainer.strategy.reduce_boolean_decision(due, all=False) and self.examiner.agreed_ready(trainer)
        over = due and self._is_over(trainer)
        self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED if over else EarlyStoppingReason.NOT_STOPPED
        return over, self.decision

    def _is_over(self, trainer: Trainer) -> bool:
        """Whether training is over, by a verdict on the weights; says and logs the decision."""
        found = self.examiner.examine(trainer, trainer.lightning_module, self.drop)
        self.examination = found[0] if found else None
        at_saddle = bool(found) and found is not None and found[0].verdict.kind == "saddle"
        last = self._waits >= (_AT_SADDLES if at_saddle else 1) * self.max_waits
        decision = stop_or_wait(found, self.examiner.reason(), self.wait_until, self.margin, last)
        self._waits = 0 if decision.wait_until is not None else self._waits + 1
        self.wait_until = decision.wait_until
        self._judge_at_count = self.wait_count + self.patience
        self.decision = f"step {trainer.global_step:,} {'stops' if decision.stop else 'waits'}: {decision.reason}"
        tell(trainer, self.decision)
        self._report.log_text(trainer, trainer.global_step, "decision", self.decision)
        return decision.stop
