"""Is there a point of an affine space at which every neuron lies in its own activation cell, up to one sign each?

With the signs of the output weights fixed this is a linear program; the signs are searched by branch and bound, a
neuron without a sign yet being free.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from relu_diag.functional._arrays import Array
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64

# Sign of each output weight, 0 for one that is zero, None for one not chosen yet.
Signs = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The cone ``{r : rows r >= 0}``, some of the inequalities strict, that ``s R_i`` lies in for a sign ``s``.

    Attributes:
        rows: Unit inputs times the side the neuron sees them from, shape ``(n, p)``.
        strict: Which inequalities are strict, bool, shape ``(n,)``.
        columns: Where ``R_i`` sits among the variables.
        signs: Signs ``s`` that are allowed, the most promising first; 0 stands for ``R_i = 0``.
    """

    rows: Array
    strict: NDArray[np.bool_]
    columns: slice
    signs: tuple[int, ...] = (1, -1, 0)

    def sign_of(self, r: Array, scale: float) -> int | None:
        """The sign for which ``r`` is in the cone.

        Args:
            r: The neuron's part, shape ``(p,)``.
            scale: Length against which ``r`` may be zero.

        Returns:
            An allowed sign, or None.
        """
        length = float(np.linalg.norm(r))
        if 0 in self.signs and length <= FLOAT64.inside * scale:
            return 0
        slack = np.where(self.strict, -FLOAT64.inside * length, FLOAT64.inside * length)
        for sign in self.signs:
            along = sign * self.rows @ r + slack
            if sign and np.where(self.strict, along > 0, along >= 0).all():
                return sign
        return None


@dataclass(frozen=True, slots=True, eq=False)
class AffineSpace:
    """The points ``point + directions c``.

    Attributes:
        point: The one of least length, shape ``(q,)``.
        directions: Orthonormal columns, shape ``(q, D)``; none where the point is the only one.
        scale: Length of a point that is not small.
    """

    point: Array
    directions: Array
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Outcome of the search.

    Attributes:
        exists: Whether there is such a point; None where the budget ran out first.
        point: The point, shape ``(q,)``, or None.
        signs: Sign of every cell at the point.
    """

    exists: bool | None
    point: Array | None = None
    signs: Signs = ()


def find_in_cells(space: AffineSpace, cells: Sequence[Cell]) -> Found:
    """A point of the space at which every neuron lies in its cell, for one allowed sign each.

    Args:
        space: The space.
        cells: The cells; variables outside their columns are free.

    Returns:
        The point and its signs, the proof that there is none, or neither.
    """
    free = space.directions.shape[1]
    if not free:
        signs = _signs_at(space, cells, space.point)
        return Found(False) if None in signs else Found(True, space.point, signs)
    stack: list[Signs] = [(None,) * len(cells), tuple(cell.signs[0] for cell in cells)]
    certain, budget = True, BUDGETS.program_entries
    while stack:
        node = stack.pop()
        size = free * sum(len(cell.rows) for cell, sign in zip(cells, node, strict=True) if sign)
        budget -= max(size, BUDGETS.smallest_program)
        if budget < 0:
            return Found(None)
        point, proven = _solve(space, cells, node)
        certain &= proven
        if point is None:
            continue
        signs = tuple(s if t is None else t for s, t in zip(_signs_at(space, cells, point), node, strict=True))
        if None not in signs:
            return _settled(space, cells, signs)
        i = signs.index(None)
        stack.extend((*node[:i], sign, *node[i + 1 :]) for sign in reversed(cells[i].signs))
    return Found(False if certain else None)


def _signs_at(space: AffineSpace, cells: Sequence[Cell], point: Array) -> Signs:
    return tuple(cell.sign_of(point[cell.columns], space.scale) for cell in cells)


def _settled(space: AffineSpace, cells: Sequence[Cell], signs: Signs) -> Found:
    """The point with these signs: near, where its outputs are no rounding, and in the open cells where it can be."""
    for near, interior in itertools.product((True, False), (True, False)):
        point, _ = _solve(space, cells, signs, interior, near)
        if point is not None:
            return Found(True, point, signs)
    return Found(None)


def _solve(
    space: AffineSpace, cells: Sequence[Cell], signs: Signs, interior: bool = False, near: bool = False
) -> tuple[Array | None, bool]:
    """The point of largest margin, or None; and whether None is a proof, where points that are not near count.

    The margin, capped at 1, counts for the strict inequalities, or for all of them.
    """
    scale = space.scale
    free = space.directions.shape[1]
    above, fixed = [np.empty((0, free + 2))], [np.empty((0, free + 1))]
    for cell, sign in zip(cells, signs, strict=True):
        point, directions = space.point[cell.columns] / scale, space.directions[cell.columns]
        if sign == 0:
            fixed.append(np.column_stack([directions, -point]))
        elif sign is not None:
            margin = np.ones(len(cell.rows)) if interior else cell.strict
            above.append(np.column_stack([-sign * cell.rows @ directions, margin, sign * cell.rows @ point]))
    A_ub, A_eq = np.concatenate(above), np.concatenate(fixed)
    reach = FLOAT64.near_lengths if near else None
    outcome = linprog(
        -np.eye(free + 1)[-1],
        A_ub=A_ub[:, :-1],
        b_ub=A_ub[:, -1],
        A_eq=np.insert(A_eq[:, :-1], free, 0.0, axis=1),
        b_eq=A_eq[:, -1],
        bounds=[(None if reach is None else -reach, reach)] * free + [(0.0, 1.0)],
        options={"primal_feasibility_tolerance": FLOAT64.program, "dual_feasibility_tolerance": FLOAT64.program},
    )
    if outcome.status == 0 and outcome.x[-1] > FLOAT64.inside:
        return space.point + scale * space.directions @ outcome.x[:-1], True
    return None, outcome.status in {0, 2}
