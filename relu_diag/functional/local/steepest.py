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

from relu_diag.functional._arrays import Array, row_space, unit_rows
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local.fan import fan_rays, merge_collinear, one_sided
from relu_diag.functional.tolerances import FLOAT64

# Where the bounded least squares stops: the accuracy of its sums.
_SOLVED = 4 * FLOAT64.eps


@dataclass(frozen=True, slots=True, eq=False)
class Steepest:
    """Steepest descent of one neuron.

    Attributes:
        slope: Minimum over the unit ball, loss per unit length, <= 0.
        direction: Unit direction that attains it, zero where the slope is zero, shape ``(d,)``.
        exact: False where the sign patterns were too many to enumerate, or the bounded least squares did not converge:
            the slope is then attained, but a steeper one may exist.

    Example:
        >>> Steepest(slope=0.0, direction=np.zeros(2), exact=True).exact  # certainly no descent
        True
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

    Example:
        >>> down = steepest_descent(g=np.array([3.0, 0.0]), q=np.array([-4.0]), X=np.array([[0.0, 1.0]]))
        >>> round(down.slope, 12), down.exact
        (-5.0, True)
    """
    q, X = merge_collinear(q, X)
    scale = float(np.linalg.norm(g) + np.abs(q).sum())
    nothing = Steepest(0.0, np.zeros_like(g), exact=True)
    if scale == 0:
        return nothing
    # The least squares below stop at absolute sizes.
    g = g / scale
    q = q / scale
    basis = row_space(X)
    orthogonal = g - basis.T @ (basis @ g)
    # Its rounding would turn a short descent in the span away from the kinks it follows.
    orthogonal -= basis.T @ (basis @ orthogonal)
    inner, exact = _in_span(basis @ g, q, X @ basis.T)
    descent = basis.T @ inner - orthogonal
    length = float(np.linalg.norm(descent))
    direction = descent / (length or 1.0)
    # -length bounds the minimum from below, the slope seen along the direction bounds it from above.
    slope = min(0.0, float(one_sided(direction[None], g, q, X)[0]))
    exact &= slope + length <= FLOAT64.gap
    return Steepest(scale * slope, direction, exact) if slope < 0 else replace(nothing, exact=exact)


def _in_span(g: Array, q: Array, X: Array) -> tuple[Array, bool]:
    """Minus the residual vector of the problem in the span of the kinks; its norm is minus the slope."""
    if not len(q):
        return -g, True
    if X.shape[1] == 2 and (q < 0).any():
        return _sweep(g, q, X), True
    negative = q < 0
    if not negative.any():
        return -_nearest_in_zonotope(g, q, X), True
    patterns = _sign_patterns(X[negative])
    if patterns is None:
        return _alternate(g, q, X)
    return _enumerate(g, q, X, patterns), True


def _nearest_in_zonotope(g: Array, q: Array, X: Array) -> Array:
    """The shortest vector of ``g + {sum_k q_k l_k x_k : |l_k| <= 1}``, ``q >= 0``."""
    if not len(q):
        return g
    columns = (q[:, None] * X).T
    if len(q) == 1:
        column = columns[:, 0]
        return g + np.clip(-(g @ column) / (column @ column), -1, 1) * column
    fit: Any = lsq_linear(columns, -g, bounds=(-1, 1), method="bvls", tol=_SOLVED, max_iter=50 * len(q))
    return _without(X[np.abs(fit.x) < 1], g + columns @ fit.x)


def _without(X: Array, v: Array) -> Array:
    """A vector that is orthogonal to some inputs ``(m, d)`` but for rounding, freed of that however short it is."""
    basis = row_space(X)
    freed = v - basis.T @ (basis @ v)
    freed -= basis.T @ (basis @ freed)
    return freed if np.linalg.norm(v - freed) <= FLOAT64.gap else v


def _sign_patterns(X: Array) -> Array | None:
    """Sign vectors, among them those of every cone that the hyperplanes cut; None where they are too many."""
    kinks = len(X)
    if 2**kinks <= min(BUDGETS.few_patterns, BUDGETS.patterns):
        return _signs(kinks)
    rays = fan_rays(X)
    if rays is not None:
        side = rays @ X.T
        side = np.where(np.abs(side) > FLOAT64.same_side, np.sign(side), 0.0)
        # A cone lies around one of its rays: on the ray's side of a hyperplane, on either where the ray is in it.
        free = (side == 0).sum(axis=1)
        if (2.0**free).sum() <= 16 * BUDGETS.patterns:
            patterns = np.unique(np.concatenate([_filled(signs) for signs in side]), axis=0)
            if len(patterns) <= BUDGETS.patterns:
                return patterns
    return _signs(kinks) if 2**kinks <= BUDGETS.patterns else None


def _filled(side: Array) -> Array:
    """All sign vectors ``(n, m)`` that agree with one ``(m,)`` where it is not zero."""
    fillings = _signs(int((side == 0).sum()))
    patterns = np.repeat(side[None], len(fillings), axis=0)
    patterns[:, side == 0] = fillings
    return patterns


def _signs(count: int) -> Array:
    """All sign vectors of a length, ``(2^count, count)``."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=count))).reshape(2**count, count)


def _enumerate(g: Array, q: Array, X: Array, patterns: Array) -> Array:
    """The steepest descent ``(d,)``, where the signs of the concave kinks are one of the patterns ``(n, m)``."""
    negative = q < 0
    columns = (q[~negative, None] * X[~negative]).T
    candidates = g + patterns @ (q[negative, None] * X[negative])
    # No pattern can do better than any point of its zonotope: most promising first, then stop.
    bounds = np.linalg.norm(_toward_zero(candidates, columns) if len(patterns) > 8 else candidates, axis=1)
    best = np.zeros_like(g)
    for pattern in np.argsort(-bounds):
        if bounds[pattern] <= np.linalg.norm(best):
            break
        residual = _nearest_in_zonotope(candidates[pattern], q[~negative], X[~negative])
        if np.linalg.norm(residual) > np.linalg.norm(best):
            best = residual
    return -best


def _toward_zero(points: Array, columns: Array) -> Array:
    """Points of ``points + {columns l : |l| <= 1}`` near zero, by some steps of projected gradient, row by row."""
    step = 1 / float(np.linalg.norm(columns, ord=2)) ** 2 if columns.size else 0.0
    multipliers = np.zeros((len(points), columns.shape[1]))
    for _ in range(BUDGETS.rounds):
        residual = points + multipliers @ columns.T
        multipliers = np.clip(multipliers - step * (residual @ columns), -1, 1)
    return np.asarray(points + multipliers @ columns.T)


def _sweep(g: Array, q: Array, X: Array) -> Array:
    """Two dimensions: linear in each sector between neighbouring kink lines, so each sector has one candidate."""
    line = np.arctan2(X[:, 0], -X[:, 1])
    edges = np.unique(np.concatenate([line, line + np.pi]) % (2 * np.pi))
    middle = (edges + np.roll(edges, -1)) / 2
    middle[-1] = (edges[-1] + edges[0]) / 2 + np.pi
    toward = np.stack([np.cos(middle), np.sin(middle)], axis=1)
    slope = g + (np.sign(toward @ X.T) * q) @ X
    rays = np.stack([np.cos(edges), np.sin(edges)], axis=1)
    directions = np.concatenate([unit_rows(-slope), rays])
    values = directions @ g + np.abs(directions @ X.T) @ q
    best = int(values.argmin())
    return np.asarray(directions[best] * max(-values[best], 0.0))


def _alternate(g: Array, q: Array, X: Array) -> tuple[Array, bool]:
    """Descend cone by cone from many starts; fix the signs of the concave kinks of the best, solve, and repeat."""
    strongest = X[np.abs(q).argsort()[-BUDGETS.starts :]]
    V = np.concatenate([-g[None], -(q @ X)[None], strongest, -strongest])
    rays = fan_rays(X)
    if rays is not None:
        values = one_sided(rays, g, q, X)
        if values.min() >= -FLOAT64.no_descent:
            return np.zeros_like(g), True
        V = np.concatenate([V, rays[values.argsort()[: BUDGETS.starts]]])
    V = unit_rows(V)
    for _ in range(BUDGETS.rounds):
        ahead = unit_rows(-(g + (np.sign(V @ X.T) * q) @ X))
        better = one_sided(ahead, g, q, X) < one_sided(V, g, q, X)
        V[better] = ahead[better]
    promising = V[one_sided(V, g, q, X).argsort()[: BUDGETS.polished]]
    descents = [_follow_signs(start, g, q, X) for start in promising]
    return max(descents, key=np.linalg.norm), False


def _follow_signs(start: Array, g: Array, q: Array, X: Array) -> Array:
    """Descent ``(d,)`` reached from a start by taking the signs of the concave kinks along it, and solving again."""
    negative = q < 0
    sign = np.where(X[negative] @ start >= 0, 1.0, -1.0)
    for _ in range(5 * BUDGETS.rounds):
        shifted = g + sign @ (q[negative, None] * X[negative])
        descent = -_nearest_in_zonotope(shifted, q[~negative], X[~negative])
        following = np.where(X[negative] @ descent >= 0, 1.0, -1.0)
        if (following == sign).all():
            break
        sign = following
    return descent
