"""Activation cells: where no sample changes sides, the loss is convex in ``R_i = h_i w_i`` and has its own minimum.

A cell is the pattern ``I_ki = [w_i . x_k > 0]``. Its minimum is genuine where some least-squares solution has the
pattern it was computed for; then nothing below it is reached without crossing a kink.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from relu_diag.functional._arrays import Array, unit_rows
from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._cell import CellFit, cell_problem, fit_cell
from relu_diag.functional.cells._program import Found, find_in_cells
from relu_diag.functional.cells.arrangement import cell_directions
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class CellMinimum:
    """The minimum of the squared loss over one cell, or over a face of it.

    Attributes:
        loss: Least loss with this pattern, whether or not it is reached inside the cell.
        R: The least-squares solution of least norm, ``R_i = h_i w_i``, shape ``(I, d)``.
        unique: Whether it is the only one; else the solutions fill an affine space.
        genuine: Whether a solution lies in the cell, for one sign of ``h_i`` per neuron (``R_i = 0`` does, as
            ``h_i = 0``); None where the search for signs ran out of its budget, or where the only solutions found are
            so large that their outputs are rounding.
        block: The network at such a solution, of the same width and order; None where none was found.
        pattern: The cell, bool, shape ``(N, I)``.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 1.0]]), H=torch.tensor([[3.0]]))
        >>> found = cell_minimum(block, X=torch.eye(2), Y=torch.tensor([[1.0], [4.0]]))
        >>> found.R, found.genuine
        (tensor([[1., 4.]]), True)
    """

    loss: float
    R: Tensor
    unique: bool
    genuine: bool | None
    block: ShallowBlock | None
    pattern: Tensor

    def __str__(self) -> str:
        word = {True: "genuine", False: "not genuine", None: "undecided whether genuine"}[self.genuine]
        return f"cell minimum: loss {self.loss:.6g}, {'unique' if self.unique else 'not unique'}, {word}"


def cell_pattern(block: ShallowBlock, X: Tensor) -> Tensor:
    """The cell a block is in.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.

    Returns:
        Whether ``w_i . x_k > 0``, computed in float64, bool, shape ``(N, I)``.

    Example:
        >>> import torch
        >>> cell_pattern(ShallowBlock(W=torch.tensor([[1.0, -1.0]]), H=torch.ones(1, 1)), X=torch.eye(2)).tolist()
        [[True], [False]]
    """
    return X.detach().double() @ block.W.detach().double().T > 0


def cell_minimum(block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean") -> CellMinimum:
    """How low the loss can go without any sample changing sides, and whether that point is in the cell.

    An output bias is minimised over as well. Either sign of every ``h_i`` is allowed, whatever it is now.

    Source: Liu, Theorem 1 and equations 10 to 18.

    Args:
        block: The network, one output.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, 1)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        Minimum.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 1.0]]), H=torch.tensor([[1.0]]))
        >>> print(cell_minimum(block, X=torch.eye(2), Y=torch.tensor([[1.0], [-1.0]])))
        cell minimum: loss 0, unique, not genuine
    """
    fit = fit_cell(cell_problem(block, X, Y, reduction), range(len(block.W)))
    return _minimum(fit, find_in_cells(fit.space, fit.cells()))


def boundary_minimum(
    block: ShallowBlock, X: Tensor, Y: Tensor, boundary: tuple[int, int], reduction: Reduction = "mean"
) -> CellMinimum:
    """The least loss with one neuron on a boundary of its cell, and whether it is a local minimum.

    The other neurons stay in their cells. A local minimum needs besides that the loss rises to both sides of the
    boundary: ``h_m (f + s+ e_n x_n) . x_n > 0`` and ``h_m (f + s- e_n x_n) . x_n < 0`` with
    ``f = sum_{k != n} e_k s_km x_k``. Samples collinear with ``x_n`` are on the boundary with it.

    Source: Liu, Theorem 3.

    Args:
        block: The network, one output; its pattern names the cells.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, 1)``.
        boundary: The neuron ``m`` and the sample ``n``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        Minimum over the face; genuine where it is a non-differentiable local minimum of the loss.

    Raises:
        ValueError: If there is no such neuron or sample, or ``x_n = 0``.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 1.0]]), H=torch.tensor([[1.0]]))
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> print(boundary_minimum(block, X, Y=torch.tensor([[1.0], [-2.0], [3.0]]), boundary=(0, 1)))
        cell minimum: loss 2, unique, genuine
    """
    problem = cell_problem(block, X, Y, reduction)
    neuron, sample = boundary
    neurons = len(block.W)
    samples = len(X)
    if not (0 <= neuron < neurons and 0 <= sample < samples) or not problem.X[sample].any():
        raise ValueError(
            f"`boundary` must be a neuron below {neurons} and a sample below {samples} whose input is not zero; "
            f"got {boundary}."
        )
    unit = unit_rows(problem.X)
    touching = np.linalg.norm(unit - np.outer(unit @ unit[sample], unit[sample]), axis=1) <= FLOAT64.same_line
    fit = fit_cell(problem.on_face(neuron, touching), range(neurons))
    sign = _rising_sign(fit, neuron, unit[sample])
    return _minimum(fit, find_in_cells(fit.space, fit.cells((neuron, sign))) if sign else Found(False))


def _rising_sign(fit: CellFit, neuron: int, normal: Array) -> int:
    """The sign of ``h_m`` with which the loss rises to both sides of the face, 0 for none."""
    along = fit.problem.X @ normal
    rest = float((fit.residual * fit.problem.slope[:, neuron]) @ along)
    touching = fit.problem.sign[:, neuron] == 0
    t = along[touching]
    e = fit.residual[touching]
    s_minus, s_plus = fit.problem.block.slopes
    up = rest + float(e @ (t * np.where(t > 0, s_plus, s_minus)))
    down = rest + float(e @ (t * np.where(t > 0, s_minus, s_plus)))
    floor = FLOAT64.flat * fit.problem.term.size * float(np.linalg.norm(along))
    return next((sign for sign in (1, -1) if sign * up > floor and sign * down < -floor), 0)


def all_cell_minima(
    X: Tensor, Y: Tensor, width: int = 1, slopes: tuple[float, float] = (0.0, 1.0), reduction: Reduction = "mean"
) -> list[CellMinimum]:
    """The minima of all cells of a network of few neurons, each set of patterns once.

    Args:
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, 1)``.
        width: Number of neurons.
        slopes: ``(s-, s+)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        One minimum per multiset of ``width`` patterns, lowest loss first.

    Raises:
        ValueError: If there are more than 10,000 of them.

    Example:
        >>> import torch
        >>> [minimum.loss for minimum in all_cell_minima(torch.eye(2), torch.ones(2, 1))]
        [0.0, 0.5, 0.5, 1.0]
    """
    W = cell_directions(X).to(X)
    count = math.comb(len(W) + width - 1, width)
    if count > BUDGETS.combinations:
        raise ValueError(
            f"`width` {width} and {len(W)} cells make {count} combinations; at most {BUDGETS.combinations} are "
            "searched. Pass fewer samples or neurons."
        )
    H = X.new_ones(1, width)
    chosen = itertools.combinations_with_replacement(range(len(W)), width)
    minima = [cell_minimum(ShallowBlock(W[list(cells)], H, slopes), X, Y, reduction) for cells in chosen]
    return sorted(minima, key=lambda minimum: minimum.loss)


def _minimum(fit: CellFit, found: Found) -> CellMinimum:
    """The fit and the search in the caller's terms."""
    at = fit.weights(found) if found.exists else None
    lost = at is not None and not fit.has_digits(at)
    return CellMinimum(
        loss=fit.loss,
        R=fit.R,
        unique=fit.unique,
        genuine=None if lost else found.exists,
        block=None if at is None or lost else at.as_block(fit.problem.block),
        pattern=fit.problem.pattern,
    )
