"""A problem in units of its own: what is found and which point is nearer must not hang on how it was written down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from relu_diag.functional._arrays import Array
from relu_diag.functional.cells._decay import Decay
from relu_diag.functional.cells._fit import rebalanced
from relu_diag.functional.cells._stratum import Weights


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Inputs and targets of size 1, every neuron balanced: ``||w_i|| = ||h_i||``, or 1 where the other is zero.

    Where weights decay their lengths count: all neurons have the same factor, with which both weights decay alike.

    Attributes:
        x: Unit of the inputs.
        y: Unit of the outputs.
        factor: What each ``w_i`` is multiplied by, and ``h_i`` divided, shape ``(I,)``.
        balance: ``||w_i||^2 - ||h_i||^2`` in the caller's units, shape ``(I,)``; None where weights decay: it is free.
    """

    x: float
    y: float
    factor: Array
    balance: Array | None

    def into(self, at: Weights) -> Weights:
        """Weights of the caller in these units."""
        root = math.sqrt(self.x / self.y)
        return Weights(root * self.factor[:, None] * at.W, root * at.H / self.factor, at.b / self.y)

    def back(self, at: Weights) -> Weights:
        """Weights in the caller's units, every neuron with the balance it had."""
        root = math.sqrt(self.y / self.x)
        moved = Weights(root * at.W / self.factor[:, None], root * self.factor * at.H, self.y * at.b)
        return moved if self.balance is None else rebalanced(moved, self.balance)

    def decay(self, W: Array, H: float, b: float) -> Decay:
        """Decay of input weights ``(d,)``, output weights and output bias in these units, if both decay alike."""
        square = self.y / self.x
        factor = float(self.factor[0]) if len(self.factor) else 1.0
        return Decay(square * W / factor**2, square * H * factor**2, self.y**2 * b)


def own_units(X: Array, Y: Array, at: Weights) -> Units:
    """The units of a problem without decay, neurons balanced."""
    x, y = _sizes(X, Y)
    w = np.linalg.norm(at.W, axis=1)
    h = np.linalg.norm(at.H, axis=0)
    root = math.sqrt(x / y)
    alone = np.where(w > 0, np.divide(1.0, root * w, out=np.ones_like(w), where=w > 0), root * h)
    ratio = np.divide(h, w, out=np.ones_like(w), where=(w > 0) & (h > 0))
    factor = np.where((w > 0) & (h > 0), np.sqrt(ratio), np.where(alone > 0, alone, 1.0))
    return Units(x, y, factor, w**2 - h**2)


def decayed_units(X: Array, Y: Array, neurons: int, by_input: float, by_output: float) -> Units:
    """The units of a problem in which input and output weights have these decays."""
    x, y = _sizes(X, Y)
    # At a stationary point by_input ||w||^2 = by_output ||h||^2.
    factor = (by_input / by_output) ** 0.25 if by_input > 0 and by_output > 0 else 1.0
    return Units(x, y, np.full(neurons, factor), None)


def _sizes(X: Array, Y: Array) -> tuple[float, float]:
    """Sizes of inputs and targets: powers of 2 that change no digit of the data, and of 4 in the ratio of the two."""
    x = 2.0 ** round(math.log2(_rms(X)))
    return x, x * 4.0 ** round(math.log2(_rms(Y) / x) / 2)


def _rms(values: Array) -> float:
    """Root mean square, 1 where all is zero."""
    return float(np.sqrt(np.mean(np.square(values)))) or 1.0
