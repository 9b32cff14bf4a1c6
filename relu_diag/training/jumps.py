"""Whether the loss has jumped, as it does where the data become others in the middle of training."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

# Steps that are looked at together: seldom enough to wait for a device.
_TOGETHER = 10
# A jump is to so many times the highest loss before.
_HIGH = 2.0


class LossJumps:
    """Notes the loss of every step, and says when it has jumped.

    Ten steps, none of which is below twice the highest of twenty before, with ten between that may have seen the jump.

    Example:
        >>> jumps = LossJumps()
        >>> losses = [0.1] * 43 + [0.5] * 27
        >>> [step for step, loss in enumerate(losses) if jumps.note(torch.tensor(loss))]
        [59]
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._ranges: deque[tuple[float, float]] = deque(maxlen=4)

    def note(self, outputs: Any) -> bool | None:
        """Note a step.

        Args:
            outputs: What the training step returned, as callbacks get it: a loss, or a mapping that holds it.

        Returns:
            Whether the loss has jumped, what was before the jump being forgotten then; None at steps that do not tell.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return None
        self._losses.append(loss.detach())
        if len(self._losses) < _TOGETHER:
            return None
        # Those of a checkpoint come on the CPU.
        some = torch.stack([one.reshape(()).to(loss.device) for one in self._losses])
        self._losses = []
        low, high = torch.stack([some.amin(), some.amax()]).tolist()
        self._ranges.append((low, high))
        before = [high for _, high in list(self._ranges)[:2]]
        jumped = len(self._ranges) == self._ranges.maxlen and low > _HIGH * max(before) > 0
        if jumped:
            self._ranges.clear()
        return jumped

    def state_dict(self) -> dict[str, Any]:
        """What was noted, for a checkpoint.

        Returns:
            Plain numbers.
        """
        return {"losses": [float(one) for one in self._losses], "ranges": [list(pair) for pair in self._ranges]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._losses = [torch.tensor(loss, dtype=torch.float64) for loss in state["losses"]]
        self._ranges.extend((low, high) for low, high in state["ranges"])
