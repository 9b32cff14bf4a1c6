"""A problem in units of its own: what is found and which point is nearer must not hang on how it was written down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from relu_diag.functional._arrays import Array
from relu_diag.functional.cells._fit import rebalanced
from relu_diag.functional.cells._stratum import Weights


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Inputs and targets of size 1, every neuron balanced: ``||w_i|| = ||h_i||``, or 1 where the other is zero.

    Attributes:
        x: Unit of the inputs.
        y: Unit of the outputs.
        factor: What each ``w_i`` is multiplied by, and ``h_i`` divided, shape ``(I,)``.
        balance: ``||w_i||^2 - ||h_i||^2`` in the caller's units, shape ``(I,)``.
    """

    x: float
    y: float
    factor: Array
    balance: Array

    def into(self, at: Weights) -> Weights:
        """Weights of the caller in these units."""
        root = math.sqrt(self.x / self.y)
        return Weights(root * self.factor[:, None] * at.W, root * at.H / self.factor, at.b / self.y)

    def back(self, at: Weights) -> Weights:
        """Weights in the caller's units, every neuron with the balance it had."""
        root = math.sqrt(self.y / self.x)
        moved = Weights(root * at.W / self.factor[:, None], root * self.factor * at.H, self.y * at.b)
        return rebalanced(moved, self.balance)


def own_units(X: Array, Y: Array, at: Weights) -> Units:
    """The units of a problem; powers of 2 that change no digit of the data, and of 4 in the ratio of the two."""
    x = 2.0 ** round(math.log2(_rms(X)))
    y = x * 4.0 ** round(math.log2(_rms(Y) / x) / 2)
    w = np.linalg.norm(at.W, axis=1)
    h = np.linalg.norm(at.H, axis=0)
    root = math.sqrt(x / y)
    alone = np.where(w > 0, np.divide(1.0, root * w, out=np.ones_like(w), where=w > 0), root * h)
    ratio = np.divide(h, w, out=np.ones_like(w), where=(w > 0) & (h > 0))
    factor = np.where((w > 0) & (h > 0), np.sqrt(ratio), np.where(alone > 0, alone, 1.0))
    return Units(x, y, factor, w**2 - h**2)


def _rms(values: Array) -> float:
    """Root mean square, 1 where all is zero."""
    return float(np.sqrt(np.mean(np.square(values)))) or 1.0
