"""The steepest descent of ``L'(v) = g . v + sum_k q_k |x_k . v|`` over the unit ball: one neuron, small and exact.

Directions orthogonal to all ``x_k`` see only ``g``; the rest is a problem in the span of the kink samples. There the
minimum is a distance to a zonotope where all ``q_k >= 0``, and a minimum over sign patterns of such distances
otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

Array = NDArray[np.float64]

# Sign patterns of kinks with q < 0 that are enumerated before the search turns into an iteration that proves nothing.
MAX_PATTERNS = 2**12
_COLLINEAR = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Steepest:
    """Steepest descent of one neuron.

    Attributes:
        slope: Minimum over the unit ball, loss per unit length, <= 0.
        direction: Unit direction that attains it, zero where the slope is zero, shape ``(d,)``.
        exact: False where the sign patterns were too many to enumerate: the slope is then attained, but a steeper one
            may exist.
    """

    slope: float
    direction: Array
    exact: bool


def steepest_descent(g: Array, q: Array, X: Array) -> Steepest:
    """The minimum of ``g . v + sum_k q_k |x_k . v|`` over the unit ball.

    Source: Wu et al., Lemma 3.2, with the one-sided derivative split at the kink.

    Args:
        g: Smooth part, shape ``(d,)``.
        q: Kink coefficients, any sign, shape ``(m,)``.
        X: Kink inputs, shape ``(m, d)``.

    Returns:
        Slope, direction, and whether the minimum is proven.
    """
    q, X = merge_collinear(q, X)
    if not len(q):
        return _along(-g, exact=True)
    basis = _row_space(X)
    orthogonal = g - basis.T @ (basis @ g)
    inner, exact = _in_span(basis @ g, q, X @ basis.T)
    return _along(basis.T @ inner - orthogonal, exact)


def merge_collinear(q: Array, X: Array) -> tuple[Array, Array]:
    """Kinks on one hyperplane counted once: ``|t x . v| = |t| |x . v|`` for either sign of ``t``.

    Args:
        q: Kink coefficients, shape ``(m,)``.
        X: Kink inputs, shape ``(m, d)``.

    Returns:
        Coefficients and unit inputs of the distinct hyperplanes with nonzero coefficient.
    """
    norm = np.linalg.norm(X, axis=1)
    q, X = (q * norm)[norm > 0], X[norm > 0] / norm[norm > 0, None]
    scale = np.abs(q).max(initial=0.0)
    merged_q: list[float] = []
    merged_X: list[Array] = []
    while len(q):
        along = X @ X[0]
        same = np.linalg.norm(X - along[:, None] * X[0], axis=1) <= _COLLINEAR
        merged_q.append(float(q[same].sum()))
        merged_X.append(X[0])
        q, X = q[~same], X[~same]
    keep = np.abs(merged_q) > 1e-15 * scale
    return np.array(merged_q)[keep], np.array(merged_X).reshape(-1, X.shape[1])[keep]


def _in_span(g: Array, q: Array, X: Array) -> tuple[Array, bool]:
    """Minus the residual vector of the problem in the span of the kinks; its norm is minus the slope."""
    if X.shape[1] == 2 and (q < 0).any():
        return _sweep(g, q, X), True
    negative = q < 0
    if not negative.any():
        return -_nearest_in_zonotope(g, q, X), True
    if 2 ** negative.sum() <= MAX_PATTERNS:
        return _enumerate(g, q, X), True
    return _alternate(g, q, X), False


def _nearest_in_zonotope(g: Array, q: Array, X: Array) -> Array:
    """The shortest vector of ``g + {sum_k q_k l_k x_k : |l_k| <= 1}``, ``q >= 0``."""
    if not len(q):
        return g
    columns = (q[:, None] * X).T
    if len(q) == 1:
        column = columns[:, 0]
        return g + np.clip(-(g @ column) / (column @ column), -1, 1) * column
    fit: Any = lsq_linear(columns, -g, bounds=(-1, 1), method="bvls", tol=1e-15, max_iter=50 * len(q))
    return np.asarray(g + columns @ fit.x)


def _enumerate(g: Array, q: Array, X: Array) -> Array:
    negative = q < 0
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=int(negative.sum()))))
    candidates = g + patterns @ (q[negative, None] * X[negative])
    # The zonotope contains zero, so a pattern cannot do better than its own |candidate|: longest first, then stop.
    candidates = candidates[np.argsort(-np.linalg.norm(candidates, axis=1))]
    best = np.zeros_like(g)
    for candidate in candidates:
        if np.linalg.norm(candidate) <= np.linalg.norm(best):
            break
        residual = _nearest_in_zonotope(candidate, q[~negative], X[~negative])
        if np.linalg.norm(residual) > np.linalg.norm(best):
            best = residual
    return -best


def _sweep(g: Array, q: Array, X: Array) -> Array:
    """Two dimensions: linear in each sector between neighbouring kink lines, so each sector has one candidate."""
    line = np.arctan2(X[:, 0], -X[:, 1])
    edges = np.unique(np.concatenate([line, line + np.pi]) % (2 * np.pi))
    middle = (edges + np.roll(edges, -1)) / 2
    middle[-1] = (edges[-1] + edges[0]) / 2 + np.pi
    toward = np.stack([np.cos(middle), np.sin(middle)], axis=1)
    slope = g + (np.sign(toward @ X.T) * q) @ X
    free = -slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-300)
    rays = np.stack([np.cos(edges), np.sin(edges)], axis=1)
    directions = np.concatenate([free, rays])
    values = directions @ g + np.abs(directions @ X.T) @ q
    best = int(values.argmin())
    return np.asarray(directions[best] * max(-values[best], 0.0))


def _alternate(g: Array, q: Array, X: Array) -> Array:
    """Fix the signs of the concave kinks, solve, read the signs off the solution; from several starts."""
    negative = q < 0
    starts = [-g, *X[negative], *-X[negative], -(q[:, None] * X).sum(0)]
    best = np.zeros_like(g)
    for start in starts:
        sign = np.where(X[negative] @ start >= 0, 1.0, -1.0)
        for _ in range(100):
            shifted = g + sign @ (q[negative, None] * X[negative])
            direction = -_nearest_in_zonotope(shifted, q[~negative], X[~negative])
            following = np.where(X[negative] @ direction >= 0, 1.0, -1.0)
            if (following == sign).all():
                break
            sign = following
        if np.linalg.norm(direction) > np.linalg.norm(best):
            best = direction
    return best


def _along(descent: Array, exact: bool) -> Steepest:
    length = float(np.linalg.norm(descent))
    return Steepest(-length, descent / length if length > 0 else np.zeros_like(descent), exact)


def _row_space(X: Array) -> Array:
    _, singular, rows = np.linalg.svd(X, full_matrices=False)
    return np.asarray(rows[singular > 1e-10 * singular[0]])
