"""Steepest descents of neurons that see the same kinks: each distinct problem is solved once, and within a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from relu_diag.functional._arrays import Array, Index, Mask, classes, unit_rows
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local._affordable import affordable
from relu_diag.functional.local.fan import all_fan_rays, one_sided
from relu_diag.functional.local.kink_groups import KinkGroup
from relu_diag.functional.local.steepest import steepest_descent
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Descents of the neurons of a group: slopes ``(n,)``, directions ``(n, d)``, and whether they are the steepest."""

    slope: Array
    direction: Array
    exact: Mask

    def put(self, at: int | Index, slope: float | Array, direction: Array, exact: bool) -> None:
        """Overwrite some of them."""
        self.slope[at] = slope
        self.direction[at] = direction
        self.exact[at] = exact


def group_descents(groups: list[KinkGroup]) -> list[Found]:
    """The steepest descents of all neurons, group by group; attained only, where too many signs had to be tried."""
    problems, labels = [], []
    for group in groups:
        problem, label = _distinct(group)
        problems.append(problem)
        labels.append(label)
    costs = [_cost(problem) for problem in problems]
    affords = affordable(np.concatenate([*costs, np.empty(0)]), BUDGETS.all_patterns)
    ends = np.cumsum([len(cost) for cost in costs], dtype=np.intp)
    found = []
    for problem, cost, end in zip(problems, costs, ends, strict=True):
        thorough = affords[end - len(cost) : end]
        found.append(_thoroughly(problem, thorough))
        _cone_by_cone(problem, np.flatnonzero(~thorough), found[-1])
    _along_rays(problems, found)
    return [
        Found(_size(group) * one.slope[label], one.direction[label], one.exact[label])
        for group, one, label in zip(groups, found, labels, strict=True)
    ]


def _size(group: KinkGroup) -> Array:
    """The largest slope that the parts of each problem could add up to, ``(n,)``."""
    size: Array = np.linalg.norm(group.g, axis=1) + np.abs(group.q).sum(axis=1)
    return size


def _distinct(group: KinkGroup) -> tuple[KinkGroup, Index]:
    """The problems of a group that are no multiples of each other, of size 1, and which of them each neuron has."""
    size = _size(group)[:, None]
    rows = np.concatenate([group.g, group.q], axis=1) / np.where(size > 0, size, 1.0)
    first, label = classes(rows, FLOAT64.alike)
    g, q = np.split(rows[first], [group.g.shape[1]], axis=1)
    return replace(group, neurons=group.neurons[first], g=g, q=q), label


def _cost(problem: KinkGroup) -> Array:
    """Least squares that the search for each steepest descent may need, ``(n,)``."""
    concave = (problem.q < 0).sum(axis=1)
    if len(problem.basis) <= 2:
        concave[:] = 0  # sector by sector
    return np.asarray(np.minimum(2.0**concave, BUDGETS.patterns) * np.ceil(len(problem.X) / BUDGETS.columns))


def _thoroughly(problem: KinkGroup, some: Mask) -> Found:
    """Steepest descents of some problems; nothing for the others."""
    found = Found(np.zeros(len(some)), np.zeros_like(problem.g), np.zeros(len(some), dtype=bool))
    for i in np.flatnonzero(some).tolist():
        one = steepest_descent(problem.g[i], problem.q[i], problem.X)
        found.put(i, one.slope, one.direction, one.exact)
    return found


def _cone_by_cone(problem: KinkGroup, some: Index, found: Found) -> None:
    """Put descents of some problems: from a few starts to the best direction of the cone, as long as that helps."""
    strongest = min(BUDGETS.quick_starts, len(problem.X))
    rows = max(1, BUDGETS.chunk // max(2 * strongest * len(problem.X), 1))
    for at in np.split(some, range(rows, len(some), rows)):
        g = problem.g[at, None]
        q = problem.q[at, None]
        concave = problem.X[problem.q[at].argsort(axis=1)[:, :strongest]]
        outside = g - g @ problem.basis.T @ problem.basis
        V = unit_rows(np.concatenate([-g, -outside, -(g + q @ problem.X), concave, -concave], axis=1))
        rate = _rates(V, g, q, problem.X)
        for _ in range(BUDGETS.rounds):
            ahead = unit_rows(-(g + (np.sign(V @ problem.X.T) * q) @ problem.X))
            rate_ahead = _rates(ahead, g, q, problem.X)
            better = rate_ahead < rate
            if not better.any():
                break
            V[better] = ahead[better]
            rate[better] = rate_ahead[better]
        best = rate.argmin(axis=1)
        lane = np.arange(len(at))
        slope = np.minimum(rate[lane, best], 0.0)
        found.put(at, slope, np.where(slope[:, None] < 0, V[lane, best], 0.0), exact=False)


def _rates(V: Array, g: Array, q: Array, X: Array) -> Array:
    """``g . v + sum_k q_k |x_k . v|`` of directions ``(n, s, d)``, for parts ``(n, 1, d)`` and ``(n, 1, m)``."""
    return np.asarray((V * g).sum(axis=2) + (np.abs(V @ X.T) * q).sum(axis=2))


def _along_rays(problems: list[KinkGroup], found: list[Found]) -> None:
    """Put what the rays of the fans prove of the problems for which no descent was seen: none, or one."""
    seen = [~one.exact & (one.slope >= -FLOAT64.no_descent) for one in found]
    open_ones = [place for place, mask in enumerate(seen) if mask.any()]
    for place, rays in zip(open_ones, all_fan_rays([problems[place].X for place in open_ones]), strict=True):
        if rays is None:
            continue
        at = np.flatnonzero(seen[place])
        problem = problems[place]
        some = replace(problem, neurons=problem.neurons[at], g=problem.g[at], q=problem.q[at])
        level = some.lowest(rays) >= -FLOAT64.no_descent
        found[place].put(at[level], 0.0, np.zeros(problem.g.shape[1]), exact=True)
        for i in at[~level].tolist():
            rates = one_sided(rays, problem.g[i], problem.q[i], problem.X)
            found[place].put(i, rates.min(), rays[rates.argmin()], exact=False)
