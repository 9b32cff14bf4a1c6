"""What a verdict may cost that is only said: a share of the steps before it, counted in steps, as no clock decides.

A block that is too large to search around it is judged at its weights, and one whose inputs are trained by how far the
gradients of steps agree. A few hundred rows say as much of it as thousands do. They are taken from a few steps of an
epoch, and are more, the longer the run: then verdicts together cost far less than a hundredth of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from relu_diag.capture import Sighting
from relu_diag.functional import BlockSignal
from relu_diag.training._data import SEARCHED, affordable

# Steps that pay for the rows of one more.
_STEPS_A_BATCH = 512
# More than a descent is tried on: it costs as much as hundreds of verdicts, and needs as many steps to pay for it.
_FEWEST_ROWS = 256
_STEPS_A_DESCENT = 2**16
# Steps that pay for one more that is ridden, and how many are at least and at most.
_STEPS_A_RIDE = 128
_FEWEST_RIDES = 6
_MOST_RIDES = 32
# Steps of an epoch whose rows are read off batches.
_READ = 16
# Weights of blocks whose steps may be ridden freely.
SMALL = 2**14


def size_of(one: Sighting) -> int:
    """Number of weights of a block."""
    return one.neurons * (one.inputs + one.outputs)


def rows_worth(one: Sighting, expected: int, steps: int) -> int:
    """Number of rows of a block whose verdict so many steps pay for, of so many expected; 0: not known."""
    most = affordable(one)
    if not _is_large(one, expected):
        return most
    out_of_reach = 2 * SEARCHED // (size_of(one) * one.outputs)  # or few rows would be searched for longer than many
    return min(most, max(out_of_reach, one.count, _FEWEST_ROWS, steps * one.count // _STEPS_A_BATCH))


def spares(seen: Collection[Sighting], reasons: Mapping[str, str], expected: int) -> bool:
    """Whether all blocks that can be judged, whose reasons against it are empty, are large."""
    judged = [one for one in seen if not reasons.get(one.hidden)]
    return sum(map(size_of, seen)) > SMALL and all(_is_large(one, expected) for one in judged)


@dataclass(frozen=True, slots=True)
class Spread:
    """Steps of an epoch whose rows are kept: how many, and one of so many, the first of all; as it is, all of them."""

    steps: int = 0
    stride: int = 1

    @classmethod
    def over(cls, batches: float, steps: int, readable: bool) -> Spread:
        """Over an epoch of so many batches, or as many as the steps so far where it has no end."""
        most = _READ if readable else min(_MOST_RIDES, max(_FEWEST_RIDES, steps // _STEPS_A_RIDE))
        length = int(batches) if math.isfinite(batches) else steps
        stride = max(1, length // most)
        return cls(-(-length // stride), stride)

    def ahead(self, batch_idx: int) -> int:
        """How many batches after one of an epoch the next one of them comes."""
        return self.stride - batch_idx % self.stride


def pays_for_descent(steps: int) -> bool:
    """Whether so many steps pay for a few steps of descent on the rows, and the curvature there."""
    return steps >= _STEPS_A_DESCENT


def spread_rows(signal: BlockSignal, most: int) -> BlockSignal:
    """Inputs and gradients of rows spread over all, copied; gradients are those of the mean over these rows."""
    count = len(signal.X)
    if count <= most:
        return BlockSignal(signal.X.clone(), signal.G.clone())
    some = torch.arange(most, device=signal.X.device) * count // most
    return BlockSignal(signal.X[some], signal.G[some] * (count / most))


def _is_large(one: Sighting, expected: int) -> bool:
    """Whether the rows of a block are neither all that there are nor few enough for a search around it."""
    most = affordable(one)
    rows = min(most, expected or most)
    complete = one.from_data and rows == expected
    return not complete and rows * size_of(one) * one.outputs > SEARCHED
