"""One output at fixed signs: a least squares in ``R_i = h_i w_i``, and the way back to weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lstsq, null_space

from relu_diag.functional._arrays import Array
from relu_diag.functional.cells._stratum import Stratum, Weights
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """Coordinates for changes of ``R_i`` in a stratum, one block for each pattern, and last the output bias.

    Neurons of one pattern act through the sum of their ``R_i``. They share a change in proportion to their weight, so
    that the shortest vector of coordinates is the change of least ``sum_i ||change of R_i||^2 / weight_i``.

    Attributes:
        stratum: The stratum.
        weight: How much each neuron takes of a change, shape ``(M,)``.
        scale: Sum of ``R_i`` per unit of a pattern's coordinates, one a pattern.
        columns: Place of each pattern.
        matrix: Change of the outputs along each coordinate, shape ``(N, q)``.
    """

    stratum: Stratum
    weight: Array
    scale: Array
    columns: Sequence[slice]
    matrix: Array

    def total(self, pattern: int, point: Array) -> Array:
        """Sum of the ``R_i`` of a pattern, shape ``(d,)``."""
        free = self.stratum.patterns[pattern].free
        return np.asarray(self.scale[pattern] * free @ point[self.columns[pattern]])

    def R(self, point: Array) -> Array:
        """The change of every ``R_i``, shape ``(M, d)``."""
        R = np.zeros((len(self.weight), self.stratum.X.shape[1]))
        for p, pattern in enumerate(self.stratum.patterns):
            if self.scale[p] > 0:
                share = self.weight[pattern.members] / self.scale[p] ** 2
                R[pattern.members] = share[:, None] * self.total(p, point)
        return R

    def bias(self, point: Array) -> Array:
        """The change of the output bias, 0 without one, shape ``(1,)``."""
        return point[-1:] if self.stratum.biased else np.zeros(1)

    def shortest(self, missing: Array) -> Array:
        """The shortest of the points whose outputs are nearest to ``missing`` ``(N,)``, shape ``(q,)``."""
        return np.asarray(lstsq(self.matrix, missing, cond=FLOAT64.dependent, lapack_driver="gelsy")[0])

    def directions(self) -> Array:
        """Orthonormal basis of the coordinates that change no output, shape ``(q, D)``."""
        tall = self.matrix.shape[0] > self.matrix.shape[1]
        matrix = np.linalg.qr(self.matrix, mode="r") if tall else self.matrix
        return np.asarray(null_space(matrix, rcond=FLOAT64.dependent))


def coordinates(stratum: Stratum, weight: Array) -> Coordinates:
    """Coordinates of a stratum in which neuron ``i`` takes a share ``weight_i`` of a change."""
    scale = np.sqrt([weight[pattern.members].sum() for pattern in stratum.patterns])
    edges = np.cumsum([0, *(pattern.free.shape[1] for pattern in stratum.patterns)])
    columns = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]
    matrix = np.ones((len(stratum.X), edges[-1] + stratum.biased))
    for factor, pattern, place in zip(scale, stratum.patterns, columns, strict=True):
        matrix[:, place] = factor * stratum.slope[:, pattern.members[:1]] * (stratum.X @ pattern.free)
    return Coordinates(stratum, weight, scale, columns, matrix)


def split(R: Array, sign: Array, at: Weights, b: Array) -> Weights:
    """Balanced neurons of one output with ``h_i w_i = R_i`` and a given sign of ``h_i``.

    Where ``R_i = 0``, ``w_i`` is the one of ``at`` and ``h_i = 0``, or, if that ``w_i`` is zero, ``h_i`` the sign.
    """
    there = rebalanced(Weights(sign[:, None] * R, sign[None], b), np.zeros(len(R)))
    gone = ~R.any(axis=1, keepdims=True)
    silent = gone & at.W.any(axis=1, keepdims=True)
    return Weights(np.where(gone, at.W, there.W), np.where(silent.T, 0.0, there.H), b)


def rebalanced(at: Weights, balance: Array) -> Weights:
    """The same network with ``||w_i||^2 - ||h_i||^2 = balance_i``, which gradient flow conserves.

    Neurons with ``w_i = 0`` or ``h_i = 0`` are left as they are.
    """
    w = np.linalg.norm(at.W, axis=1)
    h = np.linalg.norm(at.H, axis=0)
    larger = np.asarray(np.sqrt((np.hypot(balance, 2 * w * h) + np.abs(balance)) / 2))
    smaller = np.divide(w * h, larger, out=np.zeros_like(h), where=larger > 0)
    loud = (w > 0) & (h > 0) & (smaller > 0)
    factor = np.ones_like(h)
    factor[loud] = np.where(balance > 0, smaller, larger)[loud] / h[loud]
    return Weights(at.W / factor[:, None], at.H * factor, at.b)
