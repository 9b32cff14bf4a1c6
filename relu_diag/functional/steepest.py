"""The steepest descent of ``L'(v) = g . v + sum_k q_k |x_k . v|`` over the unit ball: one neuron, small and exact.

Directions orthogonal to all ``x_k`` see only ``g``; the rest is a problem in the span of the kink samples. There the
minimum is a distance to a zonotope where all ``q_k >= 0``, and a minimum over sign patterns of such distances
otherwise. Where the patterns are too many the rays of the fan still settle whether there is any descent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from relu_diag.functional.fan import Array, fan_rays, merge_collinear, one_sided, row_space

# Sign patterns of kinks with q < 0 that are enumerated before the search turns into an iteration that proves nothing.
MAX_PATTERNS = 2**12
_MAX_STARTS = 32
# Largest gap between the slope attained and its lower bound, relative to the coefficients, that counts as closed.
_GAP = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Steepest:
    """Steepest descent of one neuron.

    Attributes:
        slope: Minimum over the unit ball, loss per unit length, <= 0.
        direction: Unit direction that attains it, zero where the slope is zero, shape ``(d,)``.
        exact: False where the sign patterns were too many to enumerate, or the bounded least squares did not converge:
            the slope is then attained, but a steeper one may exist.
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
    basis = row_space(X)
    orthogonal = g - basis.T @ (basis @ g)
    inner, exact = _in_span(basis @ g, q, X @ basis.T)
    descent = basis.T @ inner - orthogonal
    length = float(np.linalg.norm(descent))
    nothing = Steepest(0.0, np.zeros_like(g), exact)
    if length == 0:
        return nothing
    # -length bounds the minimum from below, the slope seen along the direction bounds it from above.
    direction = descent / length
    slope = float(one_sided(direction[None], g, q, X)[0])
    if slope + length > _GAP * (np.linalg.norm(g) + np.abs(q).sum()):
        exact = False
    return replace(nothing, exact=exact) if slope >= 0 else Steepest(slope, direction, exact)


def _in_span(g: Array, q: Array, X: Array) -> tuple[Array, bool]:
    """Minus the residual vector of the problem in the span of the kinks; its norm is minus the slope."""
    if not len(q):
        return -g, True
    if X.shape[1] == 2 and (q < 0).any():
        return _sweep(g, q, X), True
    negative = q < 0
    if not negative.any():
        return -_nearest_in_zonotope(g, q, X), True
    if 2 ** negative.sum() <= MAX_PATTERNS:
        return _enumerate(g, q, X), True
    return _alternate(g, q, X)


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


def _alternate(g: Array, q: Array, X: Array) -> tuple[Array, bool]:
    """Fix the signs of the concave kinks, solve, read the signs off the solution; from several starts."""
    negative = q < 0
    strongest = X[q.argsort()[: min(_MAX_STARTS, int(negative.sum()))]]
    starts = [-g, -q @ X, *strongest, *-strongest]
    rays = fan_rays(X)
    if rays is not None:
        values = one_sided(rays, g, q, X)
        if values.min() >= -1e-14 * (np.linalg.norm(g) + np.abs(q).sum()):
            return np.zeros_like(g), True
        starts = [rays[values.argmin()], *starts]
    best = np.zeros_like(g)
    for start in starts:
        descent = _follow_signs(start, g, q, X)
        if np.linalg.norm(descent) > np.linalg.norm(best):
            best = descent
    return best, False


def _follow_signs(start: Array, g: Array, q: Array, X: Array) -> Array:
    negative = q < 0
    sign = np.where(X[negative] @ start >= 0, 1.0, -1.0)
    for _ in range(100):
        shifted = g + sign @ (q[negative, None] * X[negative])
        descent = -_nearest_in_zonotope(shifted, q[~negative], X[~negative])
        following = np.where(X[negative] @ descent >= 0, 1.0, -1.0)
        if (following == sign).all():
            break
        sign = following
    return descent
