"""What descends in a forecast: a network, its loss as a function of its outputs, and a moment of its motion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from relu_diag.functional._arrays import Array
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.weight_decay import WeightDecay


class Objective(ABC):
    """A loss of the outputs ``(N, J)`` of a network."""

    @abstractmethod
    def value(self, outputs: Array) -> float:
        """The loss."""

    @abstractmethod
    def gradient(self, outputs: Array) -> Array:
        """Its gradient, shape ``(N, J)``."""

    @abstractmethod
    def curvature(self, outputs: Array) -> Array:
        """Its Hessian, one block a sample, shape ``(N, J, J)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Squares(Objective):
    """``factor / 2`` times the sum of the squared residuals; targets have shape ``(N, J)``."""

    targets: Array
    factor: float

    def value(self, outputs: Array) -> float:
        residual = outputs - self.targets
        return self.factor / 2 * float((residual * residual).sum())

    def gradient(self, outputs: Array) -> Array:
        return self.factor * (outputs - self.targets)

    def curvature(self, outputs: Array) -> Array:
        return np.broadcast_to(self.factor * np.eye(outputs.shape[1]), (*outputs.shape, outputs.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class OfOutputs(Objective):
    """Any loss of the outputs, in float64."""

    loss: Loss

    def value(self, outputs: Array) -> float:
        return float(self.loss(torch.from_numpy(outputs)))

    def gradient(self, outputs: Array) -> Array:
        return np.asarray(self.loss.gradient(torch.from_numpy(outputs)).numpy())

    def curvature(self, outputs: Array) -> Array:
        at = torch.from_numpy(outputs)
        units = torch.eye(outputs.shape[1], dtype=at.dtype)
        columns = [self.loss.curvature(at, unit.expand_as(at).contiguous()) for unit in units]
        return np.asarray(torch.stack(columns, dim=2).numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The network at a moment of its motion.

    Attributes:
        W: Input weights, shape ``(I, d)``.
        H: Output weights, shape ``(J, I)``.
        bias: Output bias, shape ``(J,)``.
        time: Time of gradient flow from the start of the forecast.
        drop: Drop of the loss since then.
        ended: Whether the drop is the one asked for; the time is then interpolated.
        budget: Gradients, or leaps, that may still be computed.
    """

    W: Array
    H: Array
    bias: Array
    time: float
    drop: float
    ended: bool
    budget: int


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """A network that descends.

    Attributes:
        X: Inputs, shape ``(N, d)``.
        slopes: Slopes ``s-`` and ``s+``.
        objective: The loss of its outputs.
        bias_moves: Whether it has an output bias, which descends as well.
        decay: Weight decay of its parts.
    """

    X: Array
    slopes: tuple[float, float]
    objective: Objective
    bias_moves: bool
    decay: WeightDecay

    @property
    def input_decay(self) -> Array:
        """Weight decay of the input weights, one a column, shape ``(d,)``."""
        decay = np.full(self.X.shape[1], self.decay.W)
        decay[-1] = self.decay.last_column
        return decay

    @property
    def slowing(self) -> float:
        """What weight decay takes from the growth rate of a neuron."""
        return (self.decay.W + self.decay.H) / 2

    def loss(self, W: Array, H: Array, bias: Array) -> float:
        """The loss at weights ``(I, d)``, ``(J, I)`` and a bias ``(J,)``, without the decay's."""
        Z = self.X @ W.T
        A = np.where(Z > 0, self.slopes[1], self.slopes[0]) * Z
        return self.objective.value(A @ H.T + bias)
