"""What a monitor remembers of a run, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from relu_diag.figures import TrainingHistory
from relu_diag.functional import NeuronStates, ShallowBlock

_MAX_MOMENTS = 2000
_MAX_NUMBERS = 2**24
_MAX_POINTS = 1000


@dataclass(slots=True)
class HistoryRecorder:
    """Moments of a run; when memory is full every other one is dropped and from then on every other one is kept.

    Attributes:
        moments: Step, loss, orientations, input norms and output weights, each float32 but the step.
        stride: One of so many moments offered is kept.
        offered: Moments offered so far.
    """

    moments: list[tuple[int, float, Tensor, Tensor, Tensor]] = field(default_factory=list)
    stride: int = 1
    offered: int = 0

    def add(self, step: int, loss: float, block: ShallowBlock, states: NeuronStates) -> None:
        """Offer a moment.

        Args:
            step: Gradient steps done.
            loss: Loss.
            block: Parameters.
            states: Neuron states.
        """
        if self.moments:
            outputs, neurons = self.moments[-1][4].shape
            if len(block.H) != outputs or block.H.shape[1] < neurons:
                self.moments.clear()  # another network: what came before cannot share an axis
        self.offered += 1
        if (self.offered - 1) % self.stride:
            return
        angle, norm, output = (v.detach().float().cpu() for v in (states.angle, block.W.double().norm(dim=1), block.H))
        self.moments.append((step, loss, angle, norm, output))
        most = max(16, min(_MAX_MOMENTS, _MAX_NUMBERS // (block.H.numel() + 2 * block.H.shape[1])))
        if len(self.moments) > most:
            self.moments = self.moments[::2]
            self.stride *= 2

    def finished(self, states: NeuronStates, dead_sector: tuple[float, float] | None) -> TrainingHistory:
        """The history as a figure takes it.

        Args:
            states: Neuron states at the end; they give the groups their colours.
            dead_sector: Arc of dead orientations, rad, or None.

        Returns:
            History.
        """
        steps, loss, *neurons = zip(*self.moments, strict=True)
        angle, input_norm, output = (_stacked(values) for values in neurons)
        return TrainingHistory(
            torch.tensor(steps),
            torch.tensor(loss, dtype=torch.float64),
            angle,
            input_norm,
            output,
            states.group.cpu(),
            states.dead.cpu(),
            dead_sector,
        )


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """NaN for the neurons that were not there yet."""
    width = values[-1].shape[-1]
    return torch.stack([pad(value, (0, width - value.shape[-1]), value=torch.nan) for value in values])


@dataclass(slots=True)
class LossCurve:
    """A loss, averaged over more and more observations as the run gets longer.

    Attributes:
        points: Step and mean loss, at most 1000.
        stride: Observations in a point.
        open: The point being made: number of observations and their sum.
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    stride: int = 1
    open: tuple[int, float] = (0, 0.0)

    def add(self, step: int, loss: float) -> None:
        """Take in a loss.

        Args:
            step: Its step.
            loss: The loss.
        """
        count, total = self.open[0] + 1, self.open[1] + loss
        self.open = (count, total)
        if count < self.stride:
            return
        self.points.append((step, total / count))
        self.open = (0, 0.0)
        if len(self.points) >= _MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(later, (a + b) / 2) for (_, a), (later, b) in pairs]
            self.stride *= 2
