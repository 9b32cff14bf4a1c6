"""The verdict on a block in training: the data it takes, whether the loss allows one, and what it may cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relu_diag.functional import (
    BlockSignal,
    NearbyStationaryPoint,
    ShallowBlock,
    nearby_stationary_point,
    squared_loss,
)
from relu_diag.functional.assumptions import checked
from relu_diag.functional.block import Reduction, residual_factor
from relu_diag.training.look import targets_of

# Inputs, targets, gradients, weights and loss of a batch, gradients and loss summed over its samples.
_Part = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# One integer scalar for every kind, rising with how final it is.
VERDICT_CODES = {
    "undecided": 0,
    "not stationary": 1,
    "saddle": 2,
    "type-2 candidate": 3,
    "local minimum": 4,
    "global minimum": 5,
}
MAX_ELEMENTS = 2**26
_MAX_SHARE = 0.1
_SAME = 1e-3
_ROUNDINGS = 8
_REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "half_sum")
_NO_TARGETS = "the batch does not hold targets of the block's outputs as its second part"
TOO_MANY = "the data are too many to hold at once; give the monitor max_samples"
_OTHER_LOSS = "the loss is not the squared error of the block's output"
_PENALTY = "the loss has a part besides the squared error of the block's output"


@dataclass(frozen=True, slots=True, eq=False)
class SquaredData:
    """The data of a squared loss.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: Of the squared error.
    """

    X: Tensor
    Y: Tensor
    reduction: Reduction


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
        self._parts: list[_Part] = []
        self._ended = -float("inf")

    @property
    def due(self) -> bool:
        """Whether the last answer has been paid for."""
        return time.monotonic() - self._ended >= self.seconds * (1 / _MAX_SHARE - 1)

    def collect(self, signal: BlockSignal, loss: Tensor, batch: Any) -> None:
        """Take the data of a batch.

        Args:
            signal: Signal of the block under the batch's mean loss.
            loss: That loss.
            batch: The batch; its second part the targets, its third the weights of the samples where there are any.
        """
        X, G, targets = signal.X, signal.G, targets_of(batch)
        if targets is None or not targets.is_floating_point() or targets.numel() != G.numel():
            self.reason = _NO_TARGETS
        elif sum(len(part[0]) for part in self._parts) * (X.shape[1] + 2 * G.shape[1]) > MAX_ELEMENTS:
            self.reason = TOO_MANY
        else:
            Y, count = targets.detach().reshape(G.shape).to(X.dtype), len(X)
            self._parts.append((X, Y, count * G, _weights_of(batch, X), count * loss.detach()))

    def judge(self, block: ShallowBlock, sampled: bool) -> SquaredData | None:
        """Answer for the data collected, and forget them.

        Args:
            block: The block at the look.
            sampled: Whether there are more data than that.

        Returns:
            The data, where the loss is their squared error.
        """
        start = time.monotonic()
        self.nearby, data = None, self._squared(block)
        if data is not None:
            nearby = nearby_stationary_point(block, data.X, data.Y, data.reduction)
            verdict = nearby.verdict
            assumptions = verdict.assumptions | {"full data set": checked(not sampled)}
            self.nearby = replace(nearby, verdict=replace(verdict, assumptions=assumptions))
        self._ended = time.monotonic()
        self.seconds = self._ended - start
        return data

    def _squared(self, block: ShallowBlock) -> SquaredData | None:
        """The data of all ranks, if the loss is their squared error."""
        parts, self._parts, reason, self.reason = self._parts, [], self.reason, ""
        everyone = _from_all_ranks((parts, reason))
        parts = [part for theirs, _ in everyone for part in theirs]
        self.reason = next((theirs for _, theirs in everyone if theirs), "")
        if self.reason:
            return None
        X, Y, G, weight = (torch.cat([part[i].to(block.W.device) for part in parts]) for i in range(4))
        loss = sum(float(part[4]) for part in parts) / len(X)
        self.reason = _OTHER_LOSS
        for data, gradient, value in _readings(block, (X, Y, G / len(X)), weight, loss):
            reduction = _reduction(block, *data, gradient)
            if reduction is not None:
                found = SquaredData(*data, reduction)
                self.reason = "" if _is_loss(value, block, found) else _PENALTY
                return None if self.reason else found
        if block.output_bias is not None and bool((weight != weight[0]).any()):
            self.reason += "; weights that differ need a block without output bias"
        return None

    @property
    def code(self) -> int:
        """The verdict as an integer, `VERDICT_CODES`."""
        return VERDICT_CODES[self.nearby.verdict.kind if self.nearby else "undecided"]

    def __str__(self) -> str:
        return str(self.nearby) if self.nearby else f"undecided: {self.reason}"


def _weights_of(batch: Any, X: Tensor) -> Tensor:
    """Sample weights: the third part of a batch, where that is one number a sample."""
    weight = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    if isinstance(weight, Tensor) and weight.shape == X.shape[:1] and weight.is_floating_point():
        return weight.detach().to(X.dtype)
    return X.new_ones(len(X))


def _readings(
    block: ShallowBlock, data: tuple[Tensor, Tensor, Tensor], weight: Tensor, loss: float
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor, float]]:
    """The data as they are, and the same loss without its weights: data, gradient at the output, loss."""
    X, Y, G = data
    yield (X, Y), G, loss
    weight = weight.clamp_min(torch.finfo(weight.dtype).tiny)
    if block.output_bias is None:  # a positively homogeneous block takes the roots as factors of rows
        root = weight.sqrt()[:, None]
        yield (root * X, root * Y), G / root, loss
    elif bool((weight == weight[0]).all()):  # a factor of the loss, on which no verdict depends
        yield (X, Y), G / weight[0], loss / float(weight[0])


def _reduction(block: ShallowBlock, X: Tensor, Y: Tensor, G: Tensor) -> Reduction | None:
    """The reduction under which the gradient is that of the squared error, checked on the numbers."""
    residual = block(X) - Y
    for reduction in _REDUCTIONS:
        expected = residual_factor(Y, reduction) * residual
        if bool((G - expected).norm() <= _SAME * expected.norm() + torch.finfo(G.dtype).eps * G.norm()):
            return reduction
    return None


def _is_loss(loss: float, block: ShallowBlock, data: SquaredData) -> bool:
    """Whether the squared error is all of a loss, as far as the rounding of the outputs lets it be told."""
    residual = float(squared_loss(block, data.X, data.Y, data.reduction)) ** 0.5
    rounding = torch.finfo(data.X.dtype).eps * float(data.Y.norm() + block(data.X).norm())
    factor = residual_factor(data.Y, data.reduction) ** 0.5
    return loss >= 0 and abs(loss**0.5 - residual) <= _SAME * residual + _ROUNDINGS * factor * rounding


def _from_all_ranks(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
