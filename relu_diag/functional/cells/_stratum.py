"""The smooth pieces of the landscape: all parameters at which every neuron sees every sample from the same side.

A sign is +, - or 0, the last for a sample on the kink of a neuron; without zeros the stratum is an activation cell.
Among the parameters with the same signs the outputs are polynomials: every neuron is linear in the samples, and its
input weights are orthogonal to those on its kink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from relu_diag.functional._arrays import Array, Index, Mask, row_space, unit_rows
from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.tolerances import FLOAT64

Sign = NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The weights of some neurons, and the output bias; or a direction in their space.

    Attributes:
        W: Input weights, shape ``(M, d)``.
        H: Output weights, shape ``(J, M)``.
        b: Output bias, zero for a block without one, shape ``(J,)``.
    """

    W: Array
    H: Array
    b: Array

    @property
    def flat(self) -> Array:
        """All numbers in one vector."""
        return np.concatenate([self.W.ravel(), self.H.ravel(), self.b])

    @property
    def amplitude(self) -> Array:
        """``||w_i|| ||h_i||``, shape ``(M,)``."""
        return np.asarray(np.linalg.norm(self.W, axis=1) * np.linalg.norm(self.H, axis=0))

    def like(self, flat: Array) -> Weights:
        """Numbers in the order of `flat` as weights of the same shapes."""
        W, H, b = np.split(flat, np.cumsum([self.W.size, self.H.size]))
        return Weights(W.reshape(self.W.shape), H.reshape(self.H.shape), b)

    def only(self, neurons: Index) -> Weights:
        """The weights of some of the neurons."""
        return Weights(self.W[neurons], self.H[:, neurons], self.b)

    def replaced(self, neurons: Index, new: Weights) -> Weights:
        """The same with other weights for some of the neurons, and with their output bias."""
        W, H = self.W.copy(), self.H.copy()
        W[neurons], H[:, neurons] = new.W, new.H
        return Weights(W, H, new.b)

    def as_block(self, like: ShallowBlock) -> ShallowBlock:
        """The weights as a network with the slopes, dtype and device of a block, and a bias where that has one."""
        W, H, b = (like.W.new_tensor(value) for value in (self.W, self.H, self.b))
        return ShallowBlock(W, H, like.slopes, None if like.output_bias is None else b)


def weights_of(block: ShallowBlock) -> Weights:
    """A copy of the weights of a block, float64 on the CPU."""
    double = block.double()
    bias = double.H.new_zeros(len(double.H)) if double.output_bias is None else double.output_bias
    return Weights(*(value.cpu().numpy().copy() for value in (double.W, double.H, bias)))


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Neurons that see every sample from the same side.

    Attributes:
        members: Their indices among the neurons of the stratum.
        normals: Orthonormal basis of the span of the samples on their kink, shape ``(rank, d)``.
        free: Orthonormal basis of the directions orthogonal to it, shape ``(d, d - rank)``.
    """

    members: Index
    normals: Array
    free: Array


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """The parameters with given signs.

    Attributes:
        X: Inputs, shape ``(N, d)``.
        sign: Side from which neuron ``i`` sees sample ``k``: 1, -1, or 0 on the kink and for ``x_k = 0``, shape
            ``(N, M)``.
        slope: Slope of the activation there, 0 on the kink, shape ``(N, M)``.
        patterns: Neurons with the same signs.
        slopes: ``(s-, s+)``.
        biased: Whether there is an output bias.
    """

    X: Array
    sign: Sign
    slope: Array
    patterns: list[Pattern]
    slopes: tuple[float, float]
    biased: bool

    @property
    def on_kink(self) -> Mask:
        """Which pairs (sample, neuron) are on the kink, shape ``(N, M)``."""
        return np.asarray((self.sign == 0) & self.X.any(axis=1, keepdims=True))

    def only(self, neurons: Index) -> Stratum:
        """The stratum of some of the neurons."""
        return stratum_of(self.X, self.sign[:, neurons], self.slopes, self.biased)

    def project(self, W: Array) -> Array:
        """The nearest input weights on the kinks, whatever their other signs, shape ``(M, d)``."""
        W = W.copy()
        for pattern in self.patterns:
            if len(pattern.normals):
                rows = W[pattern.members]
                W[pattern.members] = rows - rows @ pattern.normals.T @ pattern.normals
        return W

    def activations(self, W: Array) -> Array:
        """What the neurons compute, shape ``(N, M)``."""
        return np.asarray(self.slope * (self.X @ W.T))

    def outputs(self, at: Weights) -> Array:
        """Outputs of the network, shape ``(N, J)``."""
        return np.asarray(self.activations(at.W) @ at.H.T + at.b)

    def gradient(self, C: Array) -> Array:
        """Gradient by the input weights along the kinks, from the one at the activations ``(N, M)``; ``(M, d)``."""
        return self.project((self.slope * C).T @ self.X)

    def holds(self, W: Array) -> Mask:
        """Whether the signs are those of given weights, shape ``(N, M)``."""
        return np.asarray(signs(self.X, W, FLOAT64.kink) == self.sign)


def stratum_of(X: Array, sign: Sign, slopes: tuple[float, float], biased: bool) -> Stratum:
    """The stratum of signs ``(N, M)``; neurons with the same column make a pattern."""
    by_sign: dict[bytes, list[int]] = {}
    for i, column in enumerate(np.ascontiguousarray(sign.T)):
        by_sign.setdefault(column.tobytes(), []).append(i)
    unit = unit_rows(X)
    patterns = []
    for members in by_sign.values():
        normals = row_space(unit[(sign[:, members[0]] == 0) & unit.any(axis=1)])
        free = null_space(normals) if len(normals) else np.eye(X.shape[1])
        patterns.append(Pattern(np.array(members), normals, free))
    slope = np.where(sign > 0, slopes[1], np.where(sign < 0, slopes[0], 0.0))
    return Stratum(X, sign, slope, patterns, slopes, biased)


def signs(X: Array, W: Array, tol: float) -> Sign:
    """The side from which each neuron sees each sample: 0 where ``|z_ki| <= tol ||w_i|| ||x_k||``, shape ``(N, I)``."""
    # At length 1 first: products of weights near 1e-160 underflow.
    cosine = unit_rows(X) @ unit_rows(W).T
    return np.where(np.abs(cosine) <= tol, 0, np.sign(cosine)).astype(np.int8)
