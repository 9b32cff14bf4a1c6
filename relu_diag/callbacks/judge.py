"""The verdict on a block in training: the data it takes, whether the loss allows one, and what it may cost."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from relu_diag.functional import NearbyStationaryPoint, ShallowBlock, nearby_stationary_point
from relu_diag.functional.block import Reduction, residual_factor

# One integer scalar for every kind, rising with how final it is.
VERDICT_CODES = {
    "undecided": 0,
    "not stationary": 1,
    "saddle": 2,
    "type-2 candidate": 3,
    "local minimum": 4,
    "global minimum": 5,
}
_MAX_ELEMENTS = 2**26
_MAX_SHARE = 0.1
_SAME = 1e-3
_REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "half_sum")


class Judge:
    """Collects the data of a look, then says what stationary point is near; at most a tenth of the time goes into it.

    Attributes:
        nearby: The last answer, or None.
        reason: Why the last look has no answer, empty where it has.
        seconds: What the last answer cost, s.
    """

    def __init__(self) -> None:
        self.nearby: NearbyStationaryPoint | None = None
        self.reason = ""
        self.seconds = 0.0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._ended = -float("inf")

    @property
    def due(self) -> bool:
        """Whether the last answer has been paid for."""
        return time.monotonic() - self._ended >= self.seconds * (1 / _MAX_SHARE - 1)

    def collect(self, X: Tensor, G: Tensor, batch: Any) -> None:
        """Take the data of a batch.

        Args:
            X: Block inputs, shape ``(n, d)``.
            G: Gradient of the batch's mean loss at the output, shape ``(n, J)``.
            batch: The batch; its second part the targets.
        """
        targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.numel() != G.numel():
            self.reason = "the batch does not hold targets of the block's outputs as its second part"
        elif sum(len(x) for x, _, _ in self._parts) * (X.shape[1] + 2 * G.shape[1]) > _MAX_ELEMENTS:
            self.reason = "the data are too many to hold at once; give the monitor max_samples"
        else:
            self._parts.append((X, targets.detach().reshape(G.shape).to(X.dtype), G * len(X)))

    def judge(self, block: ShallowBlock) -> None:
        """Answer for the data collected, and forget them.

        Args:
            block: The block at the look.
        """
        parts, self._parts, reason, self.reason = self._parts, [], self.reason, ""
        start = time.monotonic()
        self.nearby = None
        if not reason:
            X, Y, G = (torch.cat(part) for part in zip(*parts, strict=True))
            reduction = _reduction(block, X, Y, G / len(X))
            if reduction is None:
                reason = "the loss is not the squared error of the block's output"
            else:
                self.nearby = nearby_stationary_point(block, X, Y, reduction)
        self.reason = reason
        self._ended = time.monotonic()
        self.seconds = self._ended - start

    @property
    def code(self) -> int:
        """The verdict as an integer, `VERDICT_CODES`."""
        return VERDICT_CODES[self.nearby.verdict.kind if self.nearby else "undecided"]

    def __str__(self) -> str:
        return str(self.nearby) if self.nearby else f"undecided: {self.reason}"


def _reduction(block: ShallowBlock, X: Tensor, Y: Tensor, G: Tensor) -> Reduction | None:
    """The reduction under which the gradient is that of the squared error, checked on the numbers."""
    residual = block(X) - Y
    for reduction in _REDUCTIONS:
        expected = residual_factor(Y, reduction) * residual
        if bool((G - expected).norm() <= _SAME * expected.norm() + torch.finfo(G.dtype).eps * G.norm()):
            return reduction
    return None
