"""Give the verdict on a block in training: collect its data, check the loss, bound the cost."""

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
    Verdict,
    nearby_stationary_point,
    squared_loss,
)
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.block import Reduction, residual_factor
from relu_diag.functional.problem import squared_problem
from relu_diag.training._data import MAX_ELEMENTS, TOO_MANY
from relu_diag.training.look import targets_of

# The integer that is logged for every kind of verdict; it rises with how final the point is.
VERDICT_CODES = {
    "undecided": 0,
    "not stationary": 1,
    "saddle": 2,
    "type-2 candidate": 3,
    "local minimum": 4,
    "global minimum": 5,
}
# Largest share of the time of training that verdicts may take.
_MAX_SHARE = 0.1
# Relative difference up to which a gradient, or a loss, is that of the squared error.
_SAME = 1e-3
# Roundings of the outputs that the root of the loss may be off.
_ROUNDINGS = 8
_REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "half_sum")
_NO_TARGETS = "the batch does not hold targets of the block's outputs as its second part"
_OTHER_LOSS = "the loss is not the squared error of the block's output"
_PENALTY = "the loss has a part besides the squared error of the block's output"
_DECAYED = "the optimizer decays the weights: the theorem is about the loss alone"


@dataclass(frozen=True, slots=True, eq=False)
class SquaredData:
    """The data of a squared loss.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: Reduction of the squared error.
    """

    X: Tensor
    Y: Tensor
    reduction: Reduction

    def loss_of(self, block: ShallowBlock) -> float:
        """The loss of a block on the data, computed in float64.

        Args:
            block: The block.

        Returns:
            Loss.
        """
        return float(squared_problem(block, self.X, self.Y, self.reduction).loss)


class Judge:
    """Collects the data of a look, and says what stationary point is near.

    Attributes:
        nearby: The point found by the last call of `judge`, with its verdict; None if there is none.
        reason: Why there is none; empty if there is one.
        seconds: Time that the last call took, s.
    """

    def __init__(self) -> None:
        self.nearby: NearbyStationaryPoint | None = None
        self.reason = ""
        self.seconds = 0.0
        self._parts: list[_Part] = []
        self._ended = -float("inf")

    @property
    def due(self) -> bool:
        """Whether another verdict keeps the share of verdicts at most a tenth of the time."""
        return time.monotonic() - self._ended >= self.seconds * (1 / _MAX_SHARE - 1)

    def collect(self, signal: BlockSignal, loss: Tensor, batch: Any) -> None:
        """Add the data of a batch.

        Args:
            signal: Signal of the block under the batch's mean loss.
            loss: That loss, shape ``()``.
            batch: The batch. Its second part must hold the targets; its third part, if it is one number a sample, the
                weights of the samples.
        """
        X = signal.X
        G = signal.G
        targets = targets_of(batch)
        if targets is None or not targets.is_floating_point() or targets.numel() != G.numel():
            self.reason = _NO_TARGETS
        elif sum(len(part.X) for part in self._parts) * (X.shape[1] + 2 * G.shape[1]) > MAX_ELEMENTS:
            self.reason = TOO_MANY
        else:
            Y = targets.detach().reshape(G.shape).to(X.dtype)
            count = len(X)
            self._parts.append(_Part(X, Y, count * G, _weights_of(batch, X), count * loss.detach()))

    def judge(self, block: ShallowBlock, sampled: bool) -> SquaredData | None:
        """Find the stationary point near a block for the data collected, and forget the data.

        Args:
            block: The block at which they were collected.
            sampled: Whether the training data may hold more samples.

        Returns:
            The data of all ranks, if the loss is their squared error; None otherwise.
        """
        start = time.monotonic()
        self.nearby = None
        data = self._squared(block)
        if data is not None:
            nearby = nearby_stationary_point(block, data.X, data.Y, data.reduction)
            assumptions = nearby.verdict.assumptions | {"full data set": checked(not sampled)}
            self.nearby = replace(nearby, verdict=replace(nearby.verdict, assumptions=assumptions))
        self._ended = time.monotonic()
        self.seconds = self._ended - start
        return data

    def verdict(self, decayed: bool) -> Verdict:
        """The verdict of the last call of `judge`, for the optimizer in use.

        Args:
            decayed: Whether the optimizer decays the weights, so that it descends another function than the loss.

        Returns:
            The verdict; "undecided" with the reason if there is none.
        """
        if self.nearby is None:
            nobody = torch.empty(0, dtype=torch.long)
            return Verdict("undecided", nobody, None, Assumptions({"squared loss": "broken"}), reason=self.reason)
        # The loss was found to be the squared error alone: only the optimizer can add to it.
        assumptions = self.nearby.verdict.assumptions | {"no regulariser": checked(not decayed)}
        verdict = replace(self.nearby.verdict, assumptions=assumptions)
        if not decayed or verdict.kind == "not stationary":
            return verdict
        return replace(verdict, kind="undecided", direction=None, theorem="", reason=_DECAYED)

    @property
    def code(self) -> int:
        """The verdict of the nearby point as an integer, `VERDICT_CODES`."""
        return VERDICT_CODES[self.nearby.verdict.kind if self.nearby else "undecided"]

    def __str__(self) -> str:
        return str(self.nearby) if self.nearby else f"undecided: {self.reason}"

    def _squared(self, block: ShallowBlock) -> SquaredData | None:
        """The data of all ranks, if the loss is their squared error; else the reason is set."""
        collected = _from_all_ranks(_Collected(self._parts, self.reason))
        self._parts = []
        self.reason = next((theirs.reason for theirs in collected if theirs.reason), "")
        if self.reason:
            return None
        data = _joined([part for theirs in collected for part in theirs.parts], block.W.device)
        for reading in _readings(block, data):
            reduction = _reduction(block, reading)
            if reduction is not None:
                squared = SquaredData(reading.X, reading.Y, reduction)
                self.reason = "" if _is_loss(float(reading.loss), block, squared) else _PENALTY
                return None if self.reason else squared
        self.reason = _OTHER_LOSS
        if block.output_bias is not None and bool((data.weight != data.weight[0]).any()):
            self.reason += "; weights that differ need a block without output bias"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Samples with their gradients and loss: of a batch summed over its samples, of the whole data set their mean.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        G: Loss gradient at the outputs, shape ``(N, J)``.
        weight: Weights of the samples, shape ``(N,)``.
        loss: Loss, shape ``()``.
    """

    X: Tensor
    Y: Tensor
    G: Tensor
    weight: Tensor
    loss: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Collected:
    """The batches of one rank, and the reason why some are missing."""

    parts: list[_Part]
    reason: str


def _weights_of(batch: Any, X: Tensor) -> Tensor:
    """The third part of a batch, if that is one number a sample, or ones; shape ``(N,)``."""
    weight = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    if isinstance(weight, Tensor) and weight.shape == X.shape[:1] and weight.is_floating_point():
        return weight.detach().to(X.dtype)
    return X.new_ones(len(X))


def _joined(parts: list[_Part], device: torch.device) -> _Part:
    """All batches as one, under the mean loss."""
    X, Y, G, weight = (
        torch.cat([getattr(part, name).to(device) for part in parts]) for name in ("X", "Y", "G", "weight")
    )
    loss = torch.stack([part.loss.reshape(()).cpu().double() for part in parts]).sum()
    return _Part(X, Y, G / len(X), weight, loss / len(X))


def _readings(block: ShallowBlock, data: _Part) -> Iterator[_Part]:
    """The data as they are, and data without sample weights that have the same loss."""
    yield data
    weight = data.weight.clamp_min(torch.finfo(data.weight.dtype).tiny)
    if block.output_bias is None:
        # The block is positively homogeneous: the roots of the weights can be factors of the rows.
        root = weight.sqrt()[:, None]
        yield replace(data, X=root * data.X, Y=root * data.Y, G=data.G / root)
    elif bool((weight == weight[0]).all()):
        # Equal weights are a factor of the loss, which changes no verdict.
        yield replace(data, G=data.G / weight[0], loss=data.loss / float(weight[0]))


def _reduction(block: ShallowBlock, data: _Part) -> Reduction | None:
    """The reduction under which the gradient is that of the squared error, if there is one."""
    residual = block(data.X) - data.Y
    for reduction in _REDUCTIONS:
        expected = residual_factor(data.Y, reduction) * residual
        rounding = torch.finfo(data.G.dtype).eps * data.G.norm()
        if bool((data.G - expected).norm() <= _SAME * expected.norm() + rounding):
            return reduction
    return None


def _is_loss(loss: float, block: ShallowBlock, data: SquaredData) -> bool:
    """Whether the squared error is the whole loss, up to the rounding of the outputs."""
    residual = float(squared_loss(block, data.X, data.Y, data.reduction)) ** 0.5
    rounding = torch.finfo(data.X.dtype).eps * float(data.Y.norm() + block(data.X).norm())
    factor = residual_factor(data.Y, data.reduction) ** 0.5
    return loss >= 0 and abs(loss**0.5 - residual) <= _SAME * residual + _ROUNDINGS * factor * rounding


def _from_all_ranks(collected: _Collected) -> list[_Collected]:
    """What all ranks have collected, in the order of the ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [collected]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, collected)
    return gathered
