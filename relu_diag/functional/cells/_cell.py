"""A cell, or a face of it, as a stratum: its least squares, and the search for a solution that lies in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array, Index, Mask, unit_rows
from relu_diag.functional.block import Reduction, ShallowBlock, check_targets, residual_factor
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._fit import Coordinates, coordinates, split
from relu_diag.functional.cells._program import AffineSpace, Cell, Found
from relu_diag.functional.cells._stratum import Pattern, Sign, Weights, stratum_of, weights_of
from relu_diag.functional.cells._term import HalfSquares
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class CellProblem:
    """A block with one output and its data, in float64 on the CPU.

    Attributes:
        block: The block.
        X: Inputs, shape ``(N, d)``.
        term: Half the squared error of the outputs.
        at: The weights of the block.
        sign: Side of the cell for every neuron: -1 also on the kink, 0 for ``x_k = 0`` and on the face searched, shape
            ``(N, I)``.
        factor: Loss per half squared residual.
    """

    block: ShallowBlock
    X: Array
    term: HalfSquares
    at: Weights
    sign: Sign
    factor: float

    @property
    def slope(self) -> Array:
        """Slope of neuron ``i`` on sample ``k``, 0 where the sign is, shape ``(N, I)``."""
        s_minus, s_plus = self.block.slopes
        return np.where(self.sign > 0, s_plus, np.where(self.sign < 0, s_minus, 0.0))

    @property
    def pattern(self) -> Tensor:
        """The cell, bool, shape ``(N, I)``."""
        return torch.as_tensor(self.sign > 0, device=self.block.W.device)

    def on_face(self, neuron: int, touching: Mask) -> CellProblem:
        """The same with one neuron on the kink of some samples."""
        sign = self.sign.copy()
        sign[touching, neuron] = 0
        return replace(self, sign=sign)

    def rows(self, neuron: int) -> Array:
        """Unit inputs times the side the neuron sees them from: in its cell none is negative, shape ``(n, d)``."""
        sign = self.sign[:, neuron]
        return np.asarray((sign[:, None] * unit_rows(self.X))[sign != 0])


def cell_problem(block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction) -> CellProblem:
    """The problem in numbers.

    Raises:
        ValueError: If the block has several outputs, or the data do not fit it.
    """
    if len(block.H) != 1:
        raise ValueError(
            "`block` needs one output, as only then the loss in a cell is convex in h_i w_i; "
            f"got {len(block.H)}. Look at one output at a time: ShallowBlock(W, H[j : j + 1])."
        )
    check_targets(block, X, Y)
    points, targets = (value.detach().double().cpu().numpy() for value in (X, Y))
    at = weights_of(block)
    sign = np.where(points @ at.W.T > 0, 1, -1) * points.any(axis=1, keepdims=True)
    return CellProblem(block, points, HalfSquares(targets), at, sign.astype(np.int8), residual_factor(Y, reduction))


@dataclass(frozen=True, slots=True, eq=False)
class CellFit:
    """All least-squares solutions of some neurons.

    A pattern has several members only where one of them is strictly inside the cell: with opposite signs of ``h_i``
    they reach every sum, and the cell restricts nothing.

    Attributes:
        problem: The problem.
        neurons: The neurons that some sample sees.
        inside: For each pattern of several, a direction strictly inside the cell, shape ``(d,)``; None for one alone.
        place: Coordinates of their ``R_i``; of equal neurons each takes the same share.
        space: The solutions, around the one of least ``sum ||R_i||^2``.
        residual: Outputs minus targets, shape ``(N,)``.
    """

    problem: CellProblem
    neurons: Index
    inside: Sequence[Array | None]
    place: Coordinates
    space: AffineSpace
    residual: Array

    @property
    def loss(self) -> float:
        """The loss."""
        return self.problem.factor / 2 * float(self.residual @ self.residual)

    @property
    def unique(self) -> bool:
        """Whether there is one solution only."""
        return not self.space.directions.shape[1] and len(self.inside) == len(self.problem.at.W)

    @property
    def R(self) -> Tensor:
        """The least solution, 0 for a neuron that no sample sees, shape ``(I, d)``."""
        R = np.zeros_like(self.problem.at.W)
        R[self.neurons] = self.place.R(self.space.point)
        return torch.as_tensor(R).to(self.problem.block.W)

    def cells(self, face: tuple[int, int] | None = None) -> list[Cell]:
        """The cells that restrict the solutions, of a face the open one; ``face`` fixes the sign of one ``h_i``."""
        found = []
        for pattern, columns, inside in zip(self.place.stratum.patterns, self.place.columns, self.inside, strict=True):
            neuron = int(self.neurons[pattern.members[0]])
            if inside is not None:
                continue
            sign = self.problem.sign[:, neuron]
            strict = sign[sign != 0] > 0
            ours = -1 if self.problem.at.H[0, neuron] < 0 else 1
            allowed: tuple[int, ...] = (ours, -ours, 0)
            if face is not None and neuron == face[0]:
                strict = np.ones_like(strict)
                allowed = (face[1],)
            found.append(Cell(self.problem.rows(neuron) @ pattern.free, strict, columns, allowed))
        return found

    def weights(self, found: Found) -> Weights:
        """Balanced weights at a solution; a neuron with ``R_i = 0`` keeps ``w_i`` and gets ``h_i = 0``."""
        at = self.problem.at
        point = np.asarray(found.point)
        mine = at.only(self.neurons)
        R = np.zeros_like(mine.W)
        sign = np.zeros(len(R))
        signs = iter(found.signs)
        for p, (pattern, inside) in enumerate(zip(self.place.stratum.patterns, self.inside, strict=True)):
            total = self.place.total(p, point)
            if inside is None:
                R[pattern.members] = total
                sign[pattern.members] = next(signs)
            else:
                R[pattern.members[:2]] = _opposed(total, self.problem.rows(self.neurons[pattern.members[0]]), inside)
                sign[pattern.members[:2]] = (1, -1)
        R[np.linalg.norm(R, axis=1) <= FLOAT64.inside * self.space.scale] = 0.0
        on_face = replace(mine, W=self.place.stratum.project(mine.W))
        there = split(R, sign, on_face, self.place.bias(point))
        return at.replaced(self.neurons, there)

    def has_digits(self, at: Weights) -> bool:
        """Whether weights that solve it have the loss of the solution, and not one of rounding."""
        y = self.problem.term.Y[:, 0]
        Z = self.problem.X @ at.W.T
        s_minus, s_plus = self.problem.block.slopes
        outputs = np.where(Z > 0, s_plus, s_minus) * Z @ at.H[0] + at.b
        # Without targets the solutions are as long as the scale.
        size = float(np.linalg.norm(y)) or self.space.scale * float(np.linalg.norm(self.place.matrix))
        error = outputs - y
        return abs(float(error @ error - self.residual @ self.residual)) <= FLOAT64.settled * size**2


def fit_cell(problem: CellProblem, neurons: Sequence[int]) -> CellFit:
    """The least squares of some neurons of a cell: ``R* = A^+ y + (1 - A^+ A) c``.

    Source: Liu, equations 10 to 14.

    Raises:
        ValueError: If the system is too large to be decomposed.
    """
    block = problem.block
    seen = ((problem.slope != 0) | (problem.sign == 0)) & problem.X.any(axis=1, keepdims=True)
    living = np.array([i for i in neurons if seen[:, i].any()], dtype=np.intp)
    stratum = stratum_of(problem.X, problem.sign[:, living], block.slopes, block.output_bias is not None)
    groups = [group for pattern in stratum.patterns for group in _reaching_every_sum(problem, living, pattern)]
    variables = sum(pattern.free.shape[1] for pattern, _ in groups)
    if variables * len(problem.X) > BUDGETS.cell_entries:
        raise ValueError(
            f"`X` has {len(problem.X)} samples and the cell {variables} variables; a matrix of at most "
            f"{BUDGETS.cell_entries} entries is decomposed. Pass fewer samples, or only the effective neurons."
        )
    place = coordinates(replace(stratum, patterns=[pattern for pattern, _ in groups]), np.ones(len(living)))
    y = problem.term.Y[:, 0]
    point = place.shortest(y)
    size = float(np.linalg.norm(point[:variables]))
    reach = float(np.linalg.norm(place.matrix[:, :variables]))
    # A solution that vanishes is no scale for itself: it is rounding against what would make the targets.
    scale = max(size, float(np.linalg.norm(y)) / reach if reach > 0 else 0.0)
    space = AffineSpace(point, place.directions(), scale or 1.0)
    inside = [direction for _, direction in groups]
    return CellFit(problem, living, inside, place, space, place.matrix @ point - y)


def _reaching_every_sum(problem: CellProblem, neurons: Index, pattern: Pattern) -> list[tuple[Pattern, Array | None]]:
    """The pattern and a direction strictly inside its cell; each member by itself where none of several is inside."""
    if len(pattern.members) > 1:
        W = unit_rows(problem.at.W[neurons[pattern.members]])
        distance = (problem.rows(neurons[pattern.members[0]]) @ W.T).min(axis=0)
        best = int(distance.argmax())
        if distance[best] > FLOAT64.inside:
            return [(pattern, W[best])]
    return [(replace(pattern, members=member[None]), None) for member in pattern.members]


def _opposed(total: Array, rows: Array, inside: Array) -> Array:
    """Two neurons in the cell, with opposite signs, whose ``R_i`` add up to the total, shape ``(2, d)``."""
    needed = np.max(-(rows @ total) / (rows @ inside), initial=0.0)
    push = (2 * needed + np.linalg.norm(total)) * inside
    return np.array([total + push, -push])
