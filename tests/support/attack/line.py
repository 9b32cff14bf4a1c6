"""The loss along a straight line of parameters, piece by piece, in long double: where it falls and where it rises."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .first_order import EPS
from .problem import Array, Problem

LONG = np.longdouble


@dataclass(frozen=True)
class Profile:
    """Loss change at the step, largest rise on the way, and the lowest change on the first piece, ``first`` long."""

    fall: float
    rise: float
    start: float
    first: float


def profile(problem: Problem, dW: Array, dH: Array, db: Array, step: float, kink: Array) -> Profile:
    """The loss from 0 to ``step``; pairs in ``kink`` (N, I) start on the kink."""
    W, H, X = (value.astype(LONG) for value in (problem.W, problem.H, problem.X))
    dW, dH, db, end = dW.astype(LONG), dH.astype(LONG), db.astype(LONG), LONG(step)
    Z, dZ = np.where(kink, LONG(0), X @ W.T), X @ dW.T
    moved = dW.any(axis=1) | dH.any(axis=0)
    Z, dZ, H, dH = Z[:, moved], dZ[:, moved], H[:, moved], dH[:, moved]
    base = _outputs(problem, problem.W.astype(LONG), problem.H.astype(LONG)) - problem.Y
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = np.where((dZ != 0) & (Z != 0), -Z / dZ, LONG(-1))
    times = np.unique(crossings[(crossings > 0) & (crossings < end)])
    edges = np.concatenate([[LONG(0)], times, [end]])
    change = lowest = rise = LONG(0)
    start = LONG(np.inf)
    for left, right in itertools.pairwise(edges):
        middle = Z + (left + right) / 2 * dZ
        slope = np.where(middle > 0, LONG(problem.slopes[1]), LONG(problem.slopes[0]))
        A, B = slope * (Z + left * dZ), slope * dZ
        one, two = A @ dH.T + B @ (H + left * dH).T + db, B @ dH.T
        at = base + _moved(problem, Z, dZ, (H, dH), db, left)
        c = [(at * one).sum(), (at * two).sum() + (one * one).sum() / 2, (one * two).sum(), (two * two).sum() / 2]
        length = right - left
        for t in _stops(c, length):
            value = change + LONG(problem.factor) * sum(c[m] * t ** (m + 1) for m in range(4))
            rise, lowest = max(rise, value - lowest), min(lowest, value)
            start = min(start, value) if left == 0 else start
        change = change + LONG(problem.factor) * sum(c[m] * length ** (m + 1) for m in range(4))
    return Profile(float(change), float(rise), float(start), float(edges[1]))


def change(problem: Problem, dW: Array, dH: Array, db: Array, step: float) -> float:
    """The loss change from the weights as they are, no sample put on its kink, as a sum of differences."""
    dW, dH, db, t = dW.astype(LONG), dH.astype(LONG), db.astype(LONG), LONG(step)
    W, H, X = (value.astype(LONG) for value in (problem.W, problem.H, problem.X))
    delta = _moved(problem, X @ W.T, X @ dW.T, (H, dH), db, t)
    error = _outputs(problem, W, H) - problem.Y
    return float(LONG(problem.factor) * (delta * (error + delta / 2)).sum())


def rounding_of_change(problem: Problem, dW: Array, dH: Array, step: float) -> float:
    """What one rounding of every product of an input and an input weight, before and after, makes of the change."""
    W, H, X = (np.abs(value) for value in (problem.W, problem.H, problem.X))
    W, H = W + step * np.abs(dW), H + step * np.abs(dH)
    moved = dW.any(axis=1) | dH.any(axis=0)
    wrong = EPS * max(map(abs, problem.slopes)) * (X @ W[moved].T) @ H[:, moved].T
    before, after = (_outputs(problem, problem.W + t * dW, problem.H + t * dH) - problem.Y for t in (0.0, step))
    return float(problem.factor * (wrong * (np.abs(before) + np.abs(after))).sum())


def _stops(c: list[LONG], length: LONG) -> list[LONG]:
    """Turning points of the quartic inside a piece, in order, and its end."""
    derivative = np.array([(m + 1) * c[m] * length**m for m in range(4)], dtype=float)
    size = np.abs(derivative).max()
    if size == 0:
        return [length]
    # What is rounding beside the others would take all digits from the roots.
    kept = np.where(np.abs(derivative) > 1e-15 * size, derivative / size, 0.0)
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(kept, "b"))
    inside = sorted({float(t.real) for t in roots if abs(t.imag) < 1e-6 and 0 < t.real < 1})
    return [*(LONG(t) * length for t in inside), length]


def _outputs(problem: Problem, W: Array, H: Array) -> Array:
    Z = problem.X.astype(LONG) @ W.T
    out = np.where(Z > 0, problem.slopes[1] * Z, problem.slopes[0] * Z) @ H.T
    return out if problem.b is None else out + problem.b


def _moved(problem: Problem, Z: Array, dZ: Array, H: tuple[Array, Array], db: Array, t: LONG) -> Array:
    """Change of the outputs after a step, as a sum of differences."""
    minus, plus = LONG(problem.slopes[0]), LONG(problem.slopes[1])
    there = Z + t * dZ
    before, after = (np.where(z > 0, plus * z, minus * z) for z in (Z, there))
    same = (Z > 0) == (there > 0)
    difference = np.where(same, np.where(there > 0, plus, minus) * t * dZ, after - before)
    return difference @ (H[0] + t * H[1]).T + before @ (t * H[1]).T + t * db
