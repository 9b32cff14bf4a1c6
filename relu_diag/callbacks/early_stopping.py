"""SaddleAwareEarlyStopping: stop where training is over, not where it only rests at a saddle."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from relu_diag.training import MINIMA, Examination, Look, LossFunction, Report, examine


class SaddleAwareEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, which asks what the weights are at before it stops.

    When patience is exhausted, one full pass judges the weights. It stops at a certified local minimum, a global one,
    or where every neuron is dead. At a saddle it waits until the step its escape is forecast for, and a margin; if the
    metric has not improved by then, it stops. Where the verdict is undecided, or no forecast can be made, it waits, and
    looks again each time patience is exhausted once more. NaN and thresholds stop at once, as ever.

    Why it waits or stops is logged as text, ``early_stopping/decision``, and said.

    Args:
        monitor: Name of the metric.
        args: Further arguments of `EarlyStopping`, in its order.
        margin: It waits for so much longer than forecast, as a fraction.
        drop: Fraction of the loss whose loss is an escape.
        block: Qualified name of the block's first Linear, where the module has several blocks.
        dataloader: Data to judge on; None: the training data set, in order.
        max_samples: Judge on no more than so many samples, evenly spaced, and only for their loss; None: all.
        loss: Computes the loss of a batch, ``loss(module, batch)``; None: the module's own.
        kwargs: Further arguments of `EarlyStopping`: ``patience``, ``min_delta``, ``mode`` and so on.

    Attributes:
        examination: What the last look found, `Examination`, or None.
        wait_until: Step until which it waits at a saddle, or None.
        decision: Why it waits or has stopped, empty before patience was exhausted.

    Raises:
        MisconfigurationException: If the margin is negative, or (at the start of training) no block is found.

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
        block: str | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor, *args, **kwargs)
        if not (math.isfinite(margin) and margin >= 0):
            raise MisconfigurationException(f"`margin` is a fraction of the forecast, >= 0; got {margin!r}.")
        self.margin, self.drop = margin, drop
        self.examination: Examination | None = None
        self.wait_until: float | None = None
        self.decision = ""
        self._look_at = 0
        self._looking = Look(type(self).__name__, block, dataloader, max_samples, loss)
        self._report = Report("early_stopping/")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            That of `EarlyStopping`, and until when it waits.
        """
        own = {"wait_until": self.wait_until, "look_at": self._look_at, "decision": self.decision}
        return {**super().state_dict(), **own}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over from an `EarlyStopping` that the run began with.

        Args:
            trainer: Unused.
            pl_module: Unused.
            checkpoint: The checkpoint.
        """
        states, plain = checkpoint.get("callbacks", {}), self.state_key.replace(type(self).__name__, "EarlyStopping")
        if self.state_key not in states and plain in states:
            self.load_state_dict(states[plain])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, also of a plain `EarlyStopping`.

        Args:
            state_dict: What `state_dict` returned.
        """
        super().load_state_dict(state_dict)
        self.wait_until = state_dict.get("wait_until")
        self._look_at, self.decision = state_dict.get("look_at", 0), state_dict.get("decision", "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._looking.find(trainer, pl_module)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        self._trainer = trainer
        try:
            super()._run_early_stopping_check(trainer)
        finally:
            del self._trainer

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        stop, reason = super()._evaluate_stopping_criteria(current)
        if self.wait_count == 0:
            self.wait_until, self._look_at, self.decision = None, 0, ""
        trainer, exhausted = self._trainer, stop and self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
        # Every rank looks, or none: a look adds up over the ranks.
        if not trainer.strategy.reduce_boolean_decision(exhausted, all=False):
            return stop, reason
        late = self.wait_until is not None and trainer.global_step > self.wait_until
        due = self.wait_count >= self._look_at if self.wait_until is None else late
        over = trainer.strategy.reduce_boolean_decision(due, all=False) and self._is_over(trainer)
        self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED if over else EarlyStoppingReason.NOT_STOPPED
        return over, self.decision

    def _is_over(self, trainer: Trainer) -> bool:
        """Look, and decide."""
        found = self.examination = examine(trainer, trainer.lightning_module, self._looking, self.drop)
        over, why = self._decide(found) if found else (True, "the loss is not finite")
        self.decision = f"step {trainer.global_step:,} {'stops' if over else 'waits'}: {why}"
        self._look_at = self.wait_count + self.patience
        rank_zero_info(self.decision)
        self._report.log_text(trainer, trainer.global_step, "decision", self.decision)
        return over

    def _decide(self, found: Examination) -> tuple[bool, str]:
        kind, reason = found.verdict.kind, found.verdict.reason
        if found.dead:
            return True, "every neuron is dead"
        if kind in MINIMA:
            return True, f"near a {kind}"
        if kind != "saddle":
            self.wait_until = None
            return False, f"nothing is certain ({kind}: {reason})"
        if self.wait_until is not None:
            return True, f"near a saddle still, after its escape was forecast and awaited until {self.wait_until:,.0f}"
        if found.forecast is None:
            return False, f"near a saddle; no forecast: {found.no_forecast}"
        if not math.isfinite(found.forecast.steps):
            return True, "near a saddle that no step leaves at the learning rates to come"
        self.wait_until = found.step + (1 + self.margin) * found.forecast.steps
        end = found.step + found.forecast.steps
        return False, f"near a saddle; escape forecast at step {end:,.0f}, awaited until {self.wait_until:,.0f}"
