"""Least squares in ``R_i = h_i w_i`` at a fixed activation pattern, where the model is linear."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock, check_targets, residual_factor
from relu_diag.functional.cells._program import AffineSpace, Cell

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_FIT_ENTRIES = 2**27
# Sine of the angle to a boundary from which a weight counts as strictly inside its cell.
INSIDE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class CellProblem:
    """A block with one output and its data, in float64 on the CPU.

    Attributes:
        X: Inputs, shape ``(N, d)``.
        unit: Inputs at length 1, zero where ``x_k = 0``, shape ``(N, d)``.
        y: Targets, shape ``(N,)``.
        W: Input weights, shape ``(I, d)``.
        h: Output weights, shape ``(I,)``.
        pattern: Whether ``w_i . x_k > 0``, bool, shape ``(N, I)``.
        sigma: Slope of neuron ``i`` on sample ``k``, shape ``(N, I)``.
        slopes: ``(s-, s+)``.
        has_bias: Whether the block has an output bias.
        factor: Loss per squared residual.
    """

    X: Array
    unit: Array
    y: Array
    W: Array
    h: Array
    pattern: Mask
    sigma: Array
    slopes: tuple[float, float]
    has_bias: bool
    factor: float

    def rows(self, neuron: int, samples: Mask) -> Array:
        """Unit inputs times the side a neuron sees them from: its cell is where none is negative.

        Args:
            neuron: The neuron.
            samples: Which samples, shape ``(N,)``; ``x_k = 0`` is left out.

        Returns:
            Rows, shape ``(n, d)``.
        """
        keep = samples & self.unit.any(axis=1)
        return np.where(self.pattern[keep, neuron], 1.0, -1.0)[:, None] * self.unit[keep]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Neurons that act on the data only through the sum of their ``R_i``.

    Attributes:
        members: The neurons: one, or several of one pattern.
        basis: Orthonormal basis of the directions ``R_i`` may have, shape ``(d, p)``.
        effect: Output on every sample of a unit of ``R_i`` along each of them, shape ``(N, p)``.
        rows: The cell, from `CellProblem.rows`, shape ``(n, d)``.
        strict: Which of its inequalities are strict, shape ``(n,)``.
        signs: Signs of ``h_i`` to try (`Cell.signs`).
        inside: Of several, a direction strictly inside the cell, shape ``(d,)``: with opposite signs of ``h_i`` they
            reach every sum, and the cell restricts nothing.
    """

    members: tuple[int, ...]
    basis: Array
    effect: Array
    rows: Array
    strict: Mask
    signs: tuple[int, ...]
    inside: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CellFit:
    """All least-squares solutions over some parts.

    Attributes:
        parts: The parts.
        columns: Place of every part among the variables; the output bias comes last.
        space: The solutions, around the one of least ``sum ||R_i||^2``.
        residual: Output minus target, shape ``(N,)``.
        loss: Loss.
    """

    parts: Sequence[Part]
    columns: Sequence[slice]
    space: AffineSpace
    residual: Array
    loss: float

    def cells(self) -> list[Cell]:
        """The cells that restrict the solutions.

        Returns:
            One for every part of a single neuron.
        """
        return [
            Cell(part.rows @ part.basis, part.strict, columns, part.signs)
            for part, columns in zip(self.parts, self.columns, strict=True)
            if part.inside is None
        ]

    def total(self, i: int, point: Array) -> Array:
        """Sum of the ``R_i`` of a part.

        Args:
            i: Index of the part.
            point: Values of the variables.

        Returns:
            Sum, shape ``(d,)``.
        """
        part = self.parts[i]
        return np.asarray(np.sqrt(len(part.members)) * part.basis @ point[self.columns[i]])


def cell_problem(block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction) -> CellProblem:
    """The problem in numbers.

    Args:
        block: The network, one output.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, 1)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        Problem.

    Raises:
        ValueError: If the block has several outputs, or the data do not fit it.
    """
    if block.H.shape[0] != 1:
        raise ValueError(
            "`block` needs one output, as only then the loss in a cell is convex in h_i w_i; "
            f"got {block.H.shape[0]}. Look at one output at a time: ShallowBlock(W, H[j : j + 1])."
        )
    check_targets(block, X, Y)
    points, W, h, y = (np.asarray(value.detach().double().cpu()) for value in (X, block.W, block.H[0], Y[:, 0]))
    length = np.linalg.norm(points, axis=1, keepdims=True)
    pattern = points @ W.T > 0
    s_minus, s_plus = block.slopes
    return CellProblem(
        X=points,
        unit=np.divide(points, length, out=np.zeros_like(points), where=length > 0),
        y=y,
        W=W,
        h=h,
        pattern=pattern,
        sigma=np.where(pattern, s_plus, s_minus),
        slopes=block.slopes,
        has_bias=block.output_bias is not None,
        factor=residual_factor(Y, reduction) / 2,
    )


def parts_of(problem: CellProblem, neurons: Iterable[int]) -> list[Part]:
    """Neurons grouped by pattern; dead ones, which no sample sees, are left out.

    Args:
        problem: The problem.
        neurons: The neurons.

    Returns:
        Parts.
    """
    samples = problem.unit.any(axis=1)
    by_pattern: dict[bytes, list[int]] = {}
    for i in neurons:
        if problem.sigma[samples, i].any():
            by_pattern.setdefault(problem.pattern[samples, i].tobytes(), []).append(i)
    parts = []
    for members in by_pattern.values():
        inside = _inside(problem, members) if len(members) > 1 else None
        parts += [
            _part(problem, group, inside) for group in ([members] if inside is not None else [[i] for i in members])
        ]
    return parts


def _part(problem: CellProblem, members: list[int], inside: Array | None) -> Part:
    everywhere = np.ones(len(problem.X), dtype=bool)
    rows = problem.rows(members[0], everywhere)
    sign = -1 if problem.h[members[0]] < 0 else 1
    strict = problem.pattern[problem.unit.any(axis=1), members[0]]
    effect = problem.sigma[:, members[:1]] * problem.X
    return Part(tuple(members), np.eye(problem.X.shape[1]), effect, rows, strict, (sign, -sign, 0), inside)


def _inside(problem: CellProblem, members: list[int]) -> Array | None:
    """The direction of the member furthest from the boundaries, if it is off them."""
    W = problem.W[members]
    U = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), np.finfo(float).tiny)
    distance = (problem.rows(members[0], np.ones(len(problem.X), dtype=bool)) @ U.T).min(axis=0)
    best = int(distance.argmax())
    return np.asarray(U[best]) if distance[best] > INSIDE else None


def fit_parts(problem: CellProblem, parts: Sequence[Part]) -> CellFit:
    """The least squares of the parts: ``R* = A^+ y + (1 - A^+ A) c``.

    Source: Liu, equations 10 to 14.

    Args:
        problem: The problem.
        parts: The parts that contribute.

    Returns:
        Solutions, residual and loss.

    Raises:
        ValueError: If the system is too large to be decomposed.
    """
    edges = np.cumsum([0, *(part.basis.shape[1] for part in parts)])
    if edges[-1] * len(problem.X) > MAX_FIT_ENTRIES:
        raise ValueError(
            f"`X` has {len(problem.X)} samples and the cell {edges[-1]} variables; a matrix of at most "
            f"{MAX_FIT_ENTRIES} entries is decomposed. Pass fewer samples, or only the effective neurons."
        )
    # Equal columns are merged; the square root keeps the least solution the least one of the neurons themselves.
    blocks = [np.sqrt(len(part.members)) * part.effect for part in parts]
    A = np.hstack([*blocks, np.ones((len(problem.X), int(problem.has_bias)))])
    U, singular, rows = np.linalg.svd(A, full_matrices=A.shape[0] < A.shape[1])
    rank = int((singular > singular[:1].sum() * max(A.shape) * np.finfo(float).eps).sum())
    along = U[:, :rank].T @ problem.y
    residual = U[:, :rank] @ along - problem.y
    space = AffineSpace(rows[:rank].T @ (along / singular[:rank]), rows[rank:].T)
    columns = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]
    return CellFit(parts, columns, space, residual, problem.factor * float(residual @ residual))


def least_solution(problem: CellProblem, fit: CellFit) -> Array:
    """The solution of least ``sum ||R_i||^2``, neuron by neuron.

    Args:
        problem: The problem.
        fit: Its fit.

    Returns:
        ``R``, zero for neurons in no part, shape ``(I, d)``.
    """
    R = np.zeros_like(problem.W)
    for i, part in enumerate(fit.parts):
        R[list(part.members)] = fit.total(i, fit.space.point) / len(part.members)
    return R
