"""What a monitor remembers of a run, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from relu_diag.figures import TrainingHistory
from relu_diag.functional import NeuronStates, ShallowBlock

# Bounds of a recorder: moments, and numbers in all of them.
_MAX_MOMENTS = 2000
_MAX_NUMBERS = 2**24
# Points of a loss curve.
_MAX_POINTS = 1000


class Moment(NamedTuple):
    """A block at one moment of a run.

    Attributes:
        step: Gradient steps done.
        loss: Loss.
        angle: Orientations, rad, float32, shape ``(I,)``.
        input_norm: Norms of the input weights, float32, shape ``(I,)``.
        output: Output weights, float32, shape ``(J, I)``.
    """

    step: int
    loss: float
    angle: Tensor
    input_norm: Tensor
    output: Tensor


@dataclass(slots=True)
class HistoryRecorder:
    """Records moments of a run; when memory is full it drops every other one, and from then on keeps every other one.

    Attributes:
        moments: The moments kept.
        stride: One in this many moments is kept.
        offered: Number of moments so far, kept or not.

    Example:
        >>> recorder = HistoryRecorder()
        >>> recorder.offered
        0
    """

    moments: list[Moment] = field(default_factory=list)
    stride: int = 1
    offered: int = 0

    def add(self, step: int, loss: float, block: ShallowBlock, states: NeuronStates) -> None:
        """Offer a moment.

        Args:
            step: Gradient steps done.
            loss: Loss.
            block: The block.
            states: Its neuron states.
        """
        if self.moments:
            outputs, neurons = self.moments[-1].output.shape
            if len(block.H) != outputs or block.H.shape[1] < neurons:
                self.moments.clear()  # It is another network, which does not fit on the same axes.
        self.offered += 1
        if (self.offered - 1) % self.stride:
            return
        angle, norm, output = (v.detach().float().cpu() for v in (states.angle, block.W.double().norm(dim=1), block.H))
        self.moments.append(Moment(step, loss, angle, norm, output))
        most = max(16, min(_MAX_MOMENTS, _MAX_NUMBERS // (block.H.numel() + 2 * block.H.shape[1])))
        if len(self.moments) > most:
            self.moments = self.moments[::2]
            self.stride *= 2

    def finished(self, states: NeuronStates, dead_sector: tuple[float, float] | None) -> TrainingHistory:
        """The history as `training_figure` takes it.

        Args:
            states: Neuron states at the end, whose groups get the colours.
            dead_sector: Arc of dead orientations, rad, or None.

        Returns:
            History of all moments kept.
        """
        return TrainingHistory(
            steps=torch.tensor([moment.step for moment in self.moments]),
            loss=torch.tensor([moment.loss for moment in self.moments], dtype=torch.float64),
            angle=_stacked([moment.angle for moment in self.moments]),
            input_norm=_stacked([moment.input_norm for moment in self.moments]),
            output=_stacked([moment.output for moment in self.moments]),
            group=states.group.cpu(),
            dead=states.dead.cpu(),
            dead_sector=dead_sector,
        )


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """``T`` tensors over neurons, stacked to ``(T, ..., I)``; NaN for neurons that were added later."""
    width = values[-1].shape[-1]
    return torch.stack([pad(value, (0, width - value.shape[-1]), value=torch.nan) for value in values])


@dataclass(slots=True)
class LossCurve:
    """A loss curve, averaged over more and more observations as the run gets longer.

    Attributes:
        points: Step and mean loss of each point, at most 1000.
        stride: Number of observations in a point.
        count: Number of observations in the point that is not complete yet.
        total: Sum of these observations.

    Example:
        >>> curve = LossCurve()
        >>> curve.add(0, 0.5)
        >>> curve.points
        [(0, 0.5)]
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    stride: int = 1
    count: int = 0
    total: float = 0.0

    def add(self, step: int, loss: float) -> None:
        """Add an observation.

        Args:
            step: Its step.
            loss: Its loss.
        """
        self.count += 1
        self.total += loss
        if self.count < self.stride:
            return
        self.points.append((step, self.total / self.count))
        self.count = 0
        self.total = 0.0
        if len(self.points) >= _MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(later, (a + b) / 2) for (_, a), (later, b) in pairs]
            self.stride *= 2
