"""Inputs of a block and targets, kept while riding along: what a verdict at the weights of now is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import Reduction
from relu_diag.functional.problem import squared_problem
from relu_diag.training._data import MAX_ELEMENTS, TOO_MANY

NOT_SEEN = "no step of the training was seen yet"
# Relative deviation at which two gradients, or two losses, are the same.
_SAME = 1e-3
_ROUNDINGS = 8
_NO_TARGETS = "no tensor of the batch has the shape of the block's outputs, as targets of a squared error have"
_OTHER_LOSS = "the loss is not the squared error of the block's output"
_PENALTY = "the loss has a part besides the squared error of the block's output"
_DROPOUT = "dropout stands behind the activations, so that the loss of a step is not the loss of the network"


@dataclass(frozen=True, slots=True, eq=False)
class SquaredData:
    """The data of a squared error.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: Of the squared error.
        scale: The training loss is so many times that error. A verdict does not depend on it, the time of a forecast
            does.
        complete: Whether these are all samples of an epoch.
    """

    X: Tensor
    Y: Tensor
    reduction: Reduction
    scale: float = 1.0
    complete: bool = False

    def loss_of(self, block: ShallowBlock) -> float:
        """The training loss of a block on the data, computed in float64.

        Args:
            block: The block.

        Returns:
            Loss.
        """
        return self.scale * float(squared_problem(block, self.X, self.Y, self.reduction).loss)


class KeptRows:
    """Keeps the rows of one epoch, as long as the loss is the squared error of the block's outputs.

    Args:
        max_samples: Keep no more than so many; None: as many as memory allows.

    Attributes:
        complete: Whether every sample of an epoch was kept.
        reason: Why there are no data, empty where there are.
    """

    def __init__(self, max_samples: int | None = None) -> None:
        self.max_samples = max_samples
        self.complete = False
        self.reason = NOT_SEEN
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._scales: list[float] = []
        self._full = False

    def keep(self, seen: Sighting, loss: float | None, batch: Any) -> None:
        """Keep the rows of a step.

        Args:
            seen: The block, as the step saw it.
            loss: The loss of the step.
            batch: Its batch, among whose tensors the targets are.
        """
        if self._full or (self.reason and self.reason != NOT_SEEN):
            return
        found = _squared_error(seen, loss, batch)
        if isinstance(found, str):
            self.reason = found
            self._rows.clear()
            return
        self.reason = ""
        X, Y, scale = found
        kept = sum(len(rows) for rows, _ in self._rows)
        room = len(X) if self.max_samples is None else min(len(X), self.max_samples - kept)
        if (kept + room) * (X.shape[1] + Y.shape[1]) > MAX_ELEMENTS:
            self.reason = TOO_MANY
            self._rows.clear()
            return
        self._rows.append((X[:room].clone(), Y[:room].clone()))
        self._scales.append(scale)
        self._full = room < len(X)

    def end_epoch(self) -> None:
        """Every sample of an epoch has passed by since the first one was kept."""
        if self._rows and not self._full:
            self.complete = self._full = True

    def data(self) -> SquaredData | None:
        """The rows of all ranks.

        Returns:
            The data; None where there are none, `reason` says why.
        """
        everyone = _from_all_ranks((self._rows, self._scales, self.reason, self.complete))
        rows = [pair for theirs, *_ in everyone for pair in theirs]
        scales = [scale for _, theirs, *_ in everyone for scale in theirs]
        self.reason = next((reason for *_, reason, _ in everyone if reason), "")
        if self.reason or not rows:
            return None
        device = self._rows[0][0].device if self._rows else rows[0][0].device
        X, Y = (torch.cat([pair[i].to(device) for pair in rows]) for i in range(2))
        reduction, scale = _reduction(sum(scales) / len(scales), Y.numel())
        return SquaredData(X, Y, reduction, scale, all(complete for *_, complete in everyone))


def _tensors_of(batch: Any) -> list[Tensor]:
    """The tensors in a batch, in order.

    Args:
        batch: Whatever a loader yields.

    Returns:
        Its tensors.
    """
    found: list[Tensor] = []
    apply_to_collection(batch, Tensor, found.append)
    return found


def _squared_error(seen: Sighting, loss: float | None, batch: Any) -> tuple[Tensor, Tensor, float] | str:
    """Inputs, targets and scale of a squared error, weights of samples drawn into the rows; or what the loss is not."""
    block, signal = seen.block, seen.signal
    if seen.dropout:
        return _DROPOUT
    through = signal.G @ block.H
    if signal.C is not None and bool((signal.C - through).norm() > _SAME * through.norm()):
        return _PENALTY
    outputs = block(signal.X)
    leaves = [leaf for leaf in _tensors_of(batch) if leaf.is_floating_point() and leaf.numel() == outputs.numel()]
    if not leaves:
        return _NO_TARGETS
    reason = _OTHER_LOSS
    for leaf in reversed(leaves):  # targets come after the inputs
        Y = leaf.detach().reshape(outputs.shape).to(outputs)
        for weight in _weights(batch, len(Y), outputs):
            scale = _scale(outputs - Y, signal.G, weight)
            if scale is None:
                continue
            if _is_all(loss, scale, outputs, Y, weight):
                return _with_weights(seen, Y, weight, scale)
            reason = _PENALTY
    return reason


def _reduction(scale: float, numbers: int) -> tuple[Reduction, float]:
    """The reduction that makes a factor of the mean squared error 1, where there is one."""
    known: dict[Reduction, float] = {"mean": 1.0, "half_sum": numbers / 2, "sum": float(numbers)}
    for reduction, factor in known.items():
        if abs(scale / factor - 1) <= _SAME:
            return reduction, 1.0
    return "mean", scale


def _weights(batch: Any, rows: int, like: Tensor) -> list[Tensor]:
    """Weights that samples may have: none, or one number a sample from the batch."""
    given = [leaf for leaf in _tensors_of(batch) if leaf.is_floating_point() and leaf.numel() == rows]
    return [like.new_ones(rows), *(leaf.detach().reshape(rows).to(like) for leaf in given if bool((leaf > 0).all()))]


def _scale(residual: Tensor, G: Tensor, weight: Tensor) -> float | None:
    """The factor between a weighted mean squared error and the loss with a gradient, where there is one."""
    expected = 2 / residual.numel() * weight[:, None] * residual
    square = float(expected.double().square().sum())
    if square == 0:
        return None
    scale = float((G.double() * expected.double()).sum()) / square
    miss = (G - scale * expected).norm()
    rounding = torch.finfo(G.dtype).eps * G.norm()
    return scale if scale > 0 and bool(miss <= _SAME * scale * expected.norm() + rounding) else None


def _is_all(loss: float | None, scale: float, outputs: Tensor, Y: Tensor, weight: Tensor) -> bool:
    """Whether the squared error is all of a loss, as far as the rounding of the outputs lets it be told."""
    if loss is None:
        return True
    if loss < 0:
        return False
    expected = (scale * float((weight[:, None] * (outputs - Y).square()).mean())) ** 0.5
    rounding = torch.finfo(outputs.dtype).eps * float(Y.norm() + outputs.norm()) * (scale / Y.numel()) ** 0.5
    return bool(abs(loss**0.5 - expected) <= _SAME * expected + _ROUNDINGS * rounding)


def _with_weights(seen: Sighting, Y: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor, float] | str:
    """The same loss without its weights: a positively homogeneous block takes their roots as factors of rows."""
    if bool((weight == weight[0]).all()):
        return seen.signal.X, Y, scale * float(weight[0])
    if seen.block.output_bias is not None:
        return f"{_OTHER_LOSS}; weights that differ need a block without output bias"
    root = weight.sqrt()[:, None]
    return root * seen.signal.X, root * Y, scale


def _from_all_ranks(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
