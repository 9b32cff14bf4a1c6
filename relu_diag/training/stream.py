"""Collect the losses of a run, from its training steps or from a logged metric, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.training.lightning_internals import logged_metric

# Reading every loss from the device at once would make each step wait for the device.
_TOGETHER = 16


class LossStream:
    """Collects losses on the device, and hands them out as numbers.

    Args:
        monitor: Name of a logged metric to follow; None: the loss of the training steps.

    Example:
        >>> stream = LossStream(monitor=None)
        >>> stream.load_state_dict(stream.state_dict() | {"waiting": [(0, 0.5), (1, 0.4)]})
        >>> stream.hand_out(Trainer(barebones=True, accelerator="cpu"))
        [(0, 0.5), (1, 0.4)]
    """

    def __init__(self, monitor: str | None) -> None:
        self.monitor = monitor
        self._waiting: list[tuple[int, Tensor]] = []
        # Mean loss over the batches since the last step, and their number.
        self._open: Tensor | float = 0.0
        self._batches = 0
        self._steps = 0
        self._handed_out = -1
        self._by_step = False
        self._seen = False

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            Plain numbers.
        """
        waiting = [(step, float(loss)) for step, loss in self._waiting]
        return {
            "waiting": waiting,
            "open": (float(self._open), self._batches, self._steps),
            "handed_out": self._handed_out,
            "by_step": self._by_step,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state: Result of `state_dict`.
        """
        self._waiting = [(step, torch.tensor(loss, dtype=torch.float64)) for step, loss in state["waiting"]]
        self._open, self._batches, self._steps = state["open"]
        self._handed_out = state["handed_out"]
        self._by_step = state["by_step"]
        self._seen = state["seen"]

    def after_step(self, trainer: Trainer, module: LightningModule, outputs: Any) -> bool:
        """Collect the loss of a batch; batches that share an optimizer step count as one loss, their mean.

        Args:
            trainer: The trainer.
            module: Its module.
            outputs: What the training step returned.

        Returns:
            Whether it is time to call `hand_out`.
        """
        steps = trainer.global_step
        step = max(0, steps - 1)  # The loss was computed at the weights before the step.
        loss = self._returned(trainer, module, outputs) if self.monitor is None else self._logged(trainer, True)
        if loss is not None:
            self._by_step = True
            self._batches += 1
            loss = loss.detach() if loss.requires_grad else loss
            self._open = loss if self._batches == 1 else self._open + (loss - self._open) / self._batches
        if steps != self._steps and isinstance(self._open, Tensor):
            self._waiting.append((step, self._open))
            self._open = 0.0
            self._batches = 0
        self._steps = steps
        return len(self._waiting) >= _TOGETHER or step - self._handed_out >= _TOGETHER

    def after_loop(self, trainer: Trainer) -> None:
        """Collect the metric of an epoch or a validation, unless the metric is logged at every step.

        Args:
            trainer: The trainer.
        """
        value = None if self.monitor is None or self._by_step else self._logged(trainer, False)
        if value is not None:
            self._waiting.append((max(0, trainer.global_step - 1), value.detach()))

    def check_seen(self, trainer: Trainer) -> None:
        """Refuse to follow a metric that was never logged.

        Args:
            trainer: The trainer, after an epoch and, if there is one, a validation.

        Raises:
            MisconfigurationException: If it was not.
        """
        if self.monitor is None or self._seen or self._waiting:
            return
        known = ", ".join(sorted(trainer.callback_metrics)) or "none"
        raise MisconfigurationException(
            f"PlateauMonitor(monitor={self.monitor!r}): no such metric was logged. Metrics logged: {known}. Leave "
            "`monitor` out to follow the training loss."
        )

    def hand_out(self, trainer: Trainer) -> list[tuple[int, float]]:
        """The losses collected, the same on every rank.

        Args:
            trainer: The trainer.

        Returns:
            Pairs of a step and its loss.
        """
        if not self._waiting:
            return []
        steps, losses = zip(*self._waiting, strict=True)
        together = torch.stack([loss if loss.dim() == 0 else loss.reshape(()) for loss in losses]).double()
        if trainer.world_size > 1:
            together = trainer.strategy.reduce(together, reduce_op="mean")
        self._waiting = []
        self._handed_out = steps[-1]
        self._seen = True
        return list(zip(steps, together.tolist(), strict=True))

    def _returned(self, trainer: Trainer, module: LightningModule, outputs: Any) -> Tensor | None:
        """The loss in what a training step returned; None if Lightning skips the step.

        Raises:
            MisconfigurationException: If a module that optimizes by hand returns none.
        """
        loss: Any = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Lightning has divided it by the number of batches that share a step.
            shared = trainer.accumulate_grad_batches if module.automatic_optimization else 1
            return loss if shared == 1 else loss * shared
        if not module.automatic_optimization:
            raise MisconfigurationException(
                f"The training_step of {type(module).__name__} returns no loss. Return it, or name a metric it logs: "
                "PlateauMonitor(monitor=...)."
            )
        return None

    def _logged(self, trainer: Trainer, on_step: bool) -> Tensor | None:
        """The metric to follow, as logged for the last step or for the epoch."""
        return logged_metric(trainer, self.monitor or "", on_step)
