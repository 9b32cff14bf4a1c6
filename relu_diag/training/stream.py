"""Collect the losses of a run, from its training steps or from a logged metric, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.training.lightning_internals import logged_metric, loss_scale, steps_logged

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
        # Losses of the backward passes of a step by hand, whether steps return theirs, and whether neither tells one.
        self._passed: list[Tensor] = []
        self._returns = False
        self._lost = False

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
        self._passed = []
        self._returns = False
        self._lost = False

    def before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Note the loss of a backward pass: steps that are optimized by hand often return none.

        Args:
            trainer: The trainer.
            module: Its module.
            loss: The loss, times the scale of a GradScaler.
        """
        if self.monitor is None and not module.automatic_optimization and not self._returns:
            self._passed.append(loss.detach() / loss_scale(trainer))

    def take(self, trainer: Trainer, module: LightningModule, outputs: Any) -> bool:
        """Collect the loss of a batch that is an optimizer step, as nearly all are, with as little ado as there may be.

        Args:
            trainer: The trainer.
            module: Its module.
            outputs: What the training step returned.

        Returns:
            Whether it is one; else `after_step` is for it.
        """
        if type(outputs) is not dict or trainer.accumulate_grad_batches != 1 or self._batches:
            return False
        step, loss = self._steps, outputs.get("loss")
        if type(loss) is not Tensor or loss.requires_grad or self.monitor is not None:
            return False
        if steps_logged(trainer) != step or not module.automatic_optimization:
            return False
        self._waiting.append((step, loss))
        self._steps = step + 1
        self._by_step = True
        return True

    def after_step(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        """Collect the loss of a batch; batches that share an optimizer step count as one loss, their mean.

        Args:
            trainer: The trainer.
            module: Its module.
            outputs: What the training step returned.
        """
        steps = trainer.global_step
        step = max(0, steps - 1)  # The loss was computed at the weights before the step.
        if self.monitor is None:
            loss = self._returned(trainer, module, outputs, steps - self._steps)
        else:
            loss = self._logged(trainer, True)
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

    @property
    def due(self) -> bool:
        """Whether it is time to call `hand_out`: enough losses are waiting, or enough steps are over."""
        return len(self._waiting) >= _TOGETHER or self._steps - 1 - self._handed_out >= _TOGETHER

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

    def _returned(self, trainer: Trainer, module: LightningModule, outputs: Any, stepped: int) -> Tensor | None:
        """The loss that a training step returned, or the mean of those its only optimizer had; None without any.

        Several optimizers that step once each after one backward pass share its loss.

        Raises:
            MisconfigurationException: Once, if it returns none and several optimizers have their own.
        """
        passed = self._passed
        self._passed = []
        loss: Any = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._returns = True
            # Lightning has divided it by the number of batches that share a step.
            shared = trainer.accumulate_grad_batches if module.automatic_optimization else 1
            return loss if shared == 1 else loss * shared
        if not passed or self._lost:
            return None
        for_all = len(passed) == 1 and stepped == len(trainer.optimizers)
        if for_all or len(trainer.optimizers) == 1:
            return torch.stack([one.reshape(()) for one in passed]).mean()
        self._lost = True
        raise MisconfigurationException(
            f"the training_step of {type(module).__name__} returns no loss, and its optimizers have several. Return "
            "the one to watch, or name a metric that is logged: PlateauMonitor(monitor=...)"
        )

    def _logged(self, trainer: Trainer, on_step: bool) -> Tensor | None:
        """The metric to follow, as logged for the last step or for the epoch."""
        return logged_metric(trainer, self.monitor or "", on_step)
