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
# Numbers in the directions of a moment, and samples on which neurons are looked at.
_MAX_DIRECTIONS = 2**18
_MAX_ROWS = 256
# Points of a loss curve.
_MAX_POINTS = 1000
# A loss so many times the first one is a run that steps drive away.
_RUNAWAY = 100.0


class Moment(NamedTuple):
    """A block at one moment of a run.

    Attributes:
        step: Gradient steps done.
        loss: Loss.
        angle: Orientations, rad, float32, shape ``(I,)``.
        input_norm: Norms of the input weights, float32, shape ``(I,)``.
        output: Output weights, float32, shape ``(J, I)``.
        direction: Unit input weights of every n-th neuron, the n that memory allows, float32, shape ``(ceil(I/n), d)``;
            None with two inputs, where the angle says it all.
        active: Share of the samples on the leg of slope ``s+``, float32, shape ``(I,)``, or None.

    Example:
        >>> moment = Moment(100, 0.5, angle=torch.zeros(3), input_norm=torch.ones(3), output=torch.ones(1, 3))
        >>> moment.step, moment.direction
        (100, None)
    """

    step: int
    loss: float
    angle: Tensor
    input_norm: Tensor
    output: Tensor
    direction: Tensor | None = None
    active: Tensor | None = None


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

    def add(
        self,
        step: int,
        loss: float,
        block: ShallowBlock,
        states: NeuronStates,
        X: Tensor | None = None,
        Z: Tensor | None = None,
    ) -> None:
        """Offer a moment.

        Args:
            step: Gradient steps done.
            loss: Loss.
            block: The block.
            states: Its neuron states.
            X: Inputs of the block, shape ``(N, d)``, to tell how many of them each neuron is active on; None: unknown.
            Z: Pre-activations on these inputs, shape ``(N, I)``; None: computed.
        """
        if self.moments:
            outputs, neurons = self.moments[-1].output.shape
            if len(block.H) != outputs or block.H.shape[1] < neurons:
                self.moments.clear()  # It is another network, which does not fit on the same axes.
        self.offered += 1
        if (self.offered - 1) % self.stride:
            return
        angle, norm, output = (v.detach().float().cpu() for v in (states.angle, block.W.norm(dim=1), block.H))
        moment = Moment(step, loss, angle, norm, output, _directions(block), _active(block, X, Z))
        self.moments.append(moment)
        numbers = sum(part.numel() for part in moment if isinstance(part, Tensor))
        most = max(16, min(_MAX_MOMENTS, _MAX_NUMBERS // numbers))
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
            alignment=self._alignment(),
            active=self._active(),
        )

    def _alignment(self) -> Tensor | None:
        """Cosines with the directions at the end, NaN where one of both was not kept, shape ``(T, I)``."""
        last = self.moments[-1]
        if last.direction is None:
            return None
        end = _spread(last.direction, len(last.input_norm))
        rows = []
        for moment in self.moments:
            row = torch.full((len(last.input_norm),), torch.nan)
            if moment.direction is not None:
                kept = _kept(len(moment.input_norm), end.shape[1])
                row[kept] = (moment.direction * end[kept]).sum(dim=1)
            rows.append(row)
        return torch.stack(rows)

    def _active(self) -> Tensor | None:
        """Shares of active samples, shape ``(T, I)``; None if the last moment has none."""
        if self.moments[-1].active is None:
            return None
        unknown = [torch.full_like(moment.input_norm, torch.nan) for moment in self.moments]
        known = [moment.active for moment in self.moments]
        return _stacked([other if one is None else one for one, other in zip(known, unknown, strict=True)])


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """``T`` tensors over neurons, stacked to ``(T, ..., I)``; NaN for neurons that were added later."""
    width = values[-1].shape[-1]
    return torch.stack([pad(value, (0, width - value.shape[-1]), value=torch.nan) for value in values])


def _directions(block: ShallowBlock) -> Tensor | None:
    """Unit input weights of every n-th neuron, float32, NaN for ``w_i = 0``; None with at most two inputs."""
    neurons, inputs = block.W.shape
    if inputs <= 2:
        return None
    W = block.W.detach()[_kept(neurons, inputs)]
    unit: Tensor = W / W.norm(dim=1, keepdim=True)
    return unit.float().cpu()


def _kept(neurons: int, inputs: int) -> Tensor:
    """Indices of the neurons whose directions are kept, long, evenly spaced."""
    return torch.arange(0, neurons, -(-neurons * inputs // _MAX_DIRECTIONS))


def _spread(direction: Tensor, neurons: int) -> Tensor:
    """Directions of all neurons, shape ``(I, d)``, NaN for those that were not kept."""
    inputs = direction.shape[1]
    spread = direction.new_full((neurons, inputs), torch.nan)
    spread[_kept(neurons, inputs)] = direction
    return spread


def _active(block: ShallowBlock, X: Tensor | None, Z: Tensor | None) -> Tensor | None:
    """Share of some of the samples on which each neuron is active, float32, shape ``(I,)``."""
    if X is None:
        return None
    some = slice(None, None, max(1, -(-len(X) // _MAX_ROWS)))
    Z = X.detach()[some].to(block.W) @ block.W.detach().T if Z is None else Z.detach()[some]
    return (Z > 0).float().mean(dim=0).cpu()


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

    @property
    def last(self) -> float | None:
        """Mean of the last observations; None before the first."""
        if self.count:
            return self.total / self.count
        return self.points[-1][1] if self.points else None

    @property
    def rise(self) -> str:
        """That the loss rose beyond anything that training needs, in words with a cure; empty where it did not."""
        if not self.points:
            return ""
        first, last = self.points[0][1], self.points[-1][1]
        if last <= _RUNAWAY * abs(first):
            return ""
        return f", after it rose from {first:.3g} to {last:.3g}: steps overshoot, lower the learning rate"
