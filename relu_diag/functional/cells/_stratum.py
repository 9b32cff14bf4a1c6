"""The smooth pieces of the landscape: all parameters at which every neuron sees every sample from the same side.

A sign is +, - or 0, the last for a sample on the kink of a neuron. Among the parameters with the same signs the outputs
are polynomials: every neuron is linear in the samples, and its input weights are orthogonal to those on its kink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from relu_diag.functional._arrays import Array, row_space

Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

MAX_SIGNS = 2**27
# Sine of an angle below which a weight is on a kink: a margin over the rounding of one inner product.
_ON_KINK = 1e-10


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

    def like(self, flat: Array) -> Weights:
        """Numbers in the order of `flat` as weights.

        Args:
            flat: The vector.

        Returns:
            Weights of the same shapes.
        """
        W, H, b = np.split(flat, np.cumsum([self.W.size, self.H.size]))
        return Weights(W.reshape(self.W.shape), H.reshape(self.H.shape), b)


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
    """The parameters with given signs, and the data.

    Attributes:
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        sign: Side from which neuron ``i`` sees sample ``k``: 1, -1, or 0 on the kink and for ``x_k = 0``, shape
            ``(N, M)``.
        slope: Slope of the activation there, 0 on the kink, shape ``(N, M)``.
        patterns: Neurons with the same signs.
        biased: Whether there is an output bias.
    """

    X: Array
    Y: Array
    sign: NDArray[np.int8]
    slope: Array
    patterns: list[Pattern]
    biased: bool

    @property
    def kink_count(self) -> int:
        """Number of pairs (sample, neuron) on the kink."""
        return int((self.sign[self.X.any(axis=1)] == 0).sum())

    def project(self, W: Array) -> Array:
        """Input weights moved onto the kinks.

        Args:
            W: Input weights, shape ``(M, d)``.

        Returns:
            The nearest ones in the stratum, but for the signs off the kinks, shape ``(M, d)``.
        """
        W = W.copy()
        for pattern in self.patterns:
            if len(pattern.normals):
                rows = W[pattern.members]
                W[pattern.members] = rows - rows @ pattern.normals.T @ pattern.normals
        return W

    def activations(self, W: Array) -> Array:
        """What the neurons compute.

        Args:
            W: Input weights, shape ``(M, d)``.

        Returns:
            Activations, shape ``(N, M)``.
        """
        return np.asarray(self.slope * (self.X @ W.T))

    def residual(self, at: Weights) -> Array:
        """Outputs minus targets.

        Args:
            at: The weights.

        Returns:
            Residual, shape ``(N, J)``.
        """
        return np.asarray(self.activations(at.W) @ at.H.T + at.b - self.Y)

    def pull(self, residual: Array) -> Array:
        """How strongly each neuron is pulled: the largest norm, over outputs, of ``sum_k e_kj s_ki x_k`` off the kinks.

        Args:
            residual: Outputs minus targets, shape ``(N, J)``.

        Returns:
            Derivative of half the squared residual per unit of output weight, shape ``(M,)``.
        """
        parts = [self.project((self.slope * column[:, None]).T @ self.X) for column in residual.T]
        return np.asarray(np.linalg.norm(parts, axis=2).max(axis=0))

    def holds(self, W: Array) -> Mask:
        """Whether the signs are those of given weights.

        Args:
            W: Input weights, shape ``(M, d)``.

        Returns:
            Per sample and neuron, shape ``(N, M)``.
        """
        return np.asarray(signs(self.X, W, _ON_KINK) == self.sign)


def stratum_at(
    data: tuple[Array, Array], at: Weights, slopes: tuple[float, float], tol: float, biased: bool
) -> Stratum:
    """The stratum that weights are in, or beside.

    Args:
        data: Inputs, shape ``(N, d)``, and targets, shape ``(N, J)``.
        at: The weights.
        slopes: ``(s-, s+)``.
        tol: A sample is on the kink where ``|z_ki| <= tol ||w_i|| ||x_k||``.
        biased: Whether there is an output bias.

    Returns:
        Stratum.
    """
    X, Y = data
    sign = signs(X, at.W, tol)
    by_sign: dict[bytes, list[int]] = {}
    for i, column in enumerate(np.ascontiguousarray(sign.T)):
        by_sign.setdefault(column.tobytes(), []).append(i)
    length = np.linalg.norm(X, axis=1)
    patterns = []
    for members in by_sign.values():
        kinks = (sign[:, members[0]] == 0) & (length > 0)
        normals = row_space(X[kinks] / length[kinks, None])
        free = null_space(normals) if len(normals) else np.eye(X.shape[1])
        patterns.append(Pattern(np.array(members), normals, free))
    slope = np.where(sign > 0, slopes[1], np.where(sign < 0, slopes[0], 0.0))
    return Stratum(X, Y, sign, slope, patterns, biased)


def signs(X: Array, W: Array, tol: float) -> NDArray[np.int8]:
    """The side from which each neuron sees each sample.

    Args:
        X: Inputs, shape ``(N, d)``.
        W: Input weights, shape ``(I, d)``.
        tol: A sample is on the kink where ``|z_ki| <= tol ||w_i|| ||x_k||``.

    Returns:
        1, -1 or 0, shape ``(N, I)``.
    """
    # At length 1 first: products of weights near 1e-160 underflow.
    cosine = _unit(X) @ _unit(W).T
    return np.where(np.abs(cosine) <= tol, 0, np.sign(cosine)).astype(np.int8)


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0))
