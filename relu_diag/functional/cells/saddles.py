"""Differentiable saddles: stationary points inside a cell that are not its minimum."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._cell import CellFit, CellProblem, cell_problem, fit_cell
from relu_diag.functional.cells._program import AffineSpace, Cell, Found, find_in_cells
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class CellSaddle:
    """The saddles of one cell with the same neurons at ``dL/dR_i = 0``.

    Attributes:
        neurons: Neurons with ``dL/dR_i = 0``; the others have ``h_i = 0`` and ``w_i`` orthogonal to ``dL/dR_i``, long.
        loss: Loss.
        R: The least-norm solution, ``R_i = h_i w_i``, shape ``(I, d)``.
        genuine: Whether such a point lies in the cell (`CellMinimum`); None where the search ran out of its budget.
        block: The network at such a point; None where none was found.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 1.0]]), H=torch.tensor([[1.0]]))
        >>> (saddle,) = cell_saddles(block, X=torch.eye(2), Y=torch.tensor([[1.0], [-1.0]]))
        >>> saddle.neurons.tolist(), saddle.R.tolist(), saddle.genuine
        ([], [[0.0, 0.0]], True)
    """

    neurons: Tensor
    loss: float
    R: Tensor
    genuine: bool | None
    block: ShallowBlock | None

    def __str__(self) -> str:
        word = {True: "genuine", False: "not genuine", None: "undecided whether genuine"}[self.genuine]
        return f"cell saddle: loss {self.loss:.6g}, dL/dR = 0 for neurons {self.neurons.tolist()}, {word}"


def cell_saddles(block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean") -> list[CellSaddle]:
    """All differentiable saddles of the cell a block is in, one entry for each set of neurons at ``dL/dR_i = 0``.

    Source: Liu, Theorem 2.

    Args:
        block: The network, one output, at most 12 neurons.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, 1)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        Saddles, genuine or not, lowest loss first. Sets that leave another neuron at ``dL/dR_i = 0`` are covered by the
        larger set.

    Raises:
        ValueError: If there are more than 12 neurons.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, -1.0]]), H=torch.tensor([[1.0]]))
        >>> print(*cell_saddles(block, X=torch.eye(2), Y=torch.ones(2, 1)))
        cell saddle: loss 1, dL/dR = 0 for neurons [], not genuine
    """
    problem = cell_problem(block, X, Y, reduction)
    width = len(block.W)
    if width > BUDGETS.saddle_neurons:
        raise ValueError(
            f"`block` has {width} neurons, so 2^{width} sets of them; at most 2^{BUDGETS.saddle_neurons} are searched. "
            "Merge effective neurons, or look at `cell_minimum` alone."
        )
    sets = (neurons for size in range(width) for neurons in itertools.combinations(range(width), size))
    found = [saddle for neurons in sets if (saddle := _saddle(problem, neurons)) is not None]
    return sorted(found, key=lambda saddle: saddle.loss)


def _saddle(problem: CellProblem, neurons: Sequence[int]) -> CellSaddle | None:
    """The saddles with ``dL/dR_i = 0`` for these neurons, None where it is also zero for another one."""
    fit = fit_cell(problem, neurons)
    rest = [i for i in range(len(problem.at.W)) if i not in neurons]
    gradient = (problem.slope[:, rest] * fit.residual[:, None]).T @ problem.X
    floor = FLOAT64.flat * problem.term.size * np.linalg.norm(problem.X)
    if (np.linalg.norm(gradient, axis=1) <= floor).any():
        return None
    found = find_in_cells(fit.space, fit.cells())
    held = [_on_hyperplane(problem, i, g) for i, g in zip(rest, gradient, strict=True)]
    exists = {found.exists, *(point.exists for point in held)}
    genuine = False if False in exists else None if None in exists else True
    return CellSaddle(
        neurons=torch.tensor(neurons, dtype=torch.long, device=problem.block.W.device),
        loss=fit.loss,
        R=fit.R,
        genuine=genuine,
        block=_network(fit, found, rest, held) if genuine else None,
    )


def _network(fit: CellFit, found: Found, rest: Sequence[int], held: Sequence[Found]) -> ShallowBlock:
    """The network at the solution, the other neurons on their hyperplanes with ``h_i = 0``."""
    there = fit.weights(found)
    for i, point in zip(rest, held, strict=True):
        there.H[0, i] = 0.0
        there.W[i] = point.point
    return there.as_block(fit.problem.block)


def _on_hyperplane(problem: CellProblem, neuron: int, gradient: Array) -> Found:
    """An input weight inside the neuron's open cell and orthogonal to the gradient."""
    rows = problem.rows(neuron)
    cell = Cell(rows, np.ones(len(rows), dtype=bool), slice(0, len(gradient)), signs=(1,))
    orthogonal = np.linalg.svd(gradient[None])[2][1:].T
    return find_in_cells(AffineSpace(np.zeros_like(gradient), orthogonal), [cell])
