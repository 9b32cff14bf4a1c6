"""Weight decay as a search in a stratum sees it: a price on the square of every weight, in units of the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relu_diag.functional._arrays import Array
from relu_diag.functional.cells._stratum import Weights


@dataclass(frozen=True, slots=True, eq=False)
class Decay:
    """What half the square of a weight costs.

    Attributes:
        W: Of an input weight, one for each input, shape ``(d,)``.
        H: Of an output weight.
        b: Of the output bias.
    """

    W: Array
    H: float
    b: float

    @property
    def any(self) -> bool:
        """Whether anything decays."""
        return bool(self.W.any()) or self.H > 0 or self.b > 0

    def price(self, at: Weights) -> float:
        """What weights cost."""
        return float(at.flat @ self.gradient(at).flat) / 2

    def gradient(self, at: Weights) -> Weights:
        """The gradient of the price, or, of a direction, the change of that gradient along it: it is linear."""
        return Weights(self.W * at.W, self.H * at.H, self.b * at.b)

    def factors(self, at: Weights) -> Array:
        """The price of every weight, in one vector."""
        return self.gradient(Weights(np.ones_like(at.W), np.ones_like(at.H), np.ones_like(at.b))).flat


def no_decay(inputs: int) -> Decay:
    """The price of weights that do not decay."""
    return Decay(np.zeros(inputs), 0.0, 0.0)
