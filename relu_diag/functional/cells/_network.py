"""From a solution ``R_i = h_i w_i`` inside the cells back to weights."""

from __future__ import annotations

import numpy as np
import torch

from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.cells._fit import INSIDE, Array, CellFit, CellProblem
from relu_diag.functional.cells._program import Found


def weights_at(problem: CellProblem, fit: CellFit, found: Found) -> tuple[Array, Array]:
    """Balanced weights, ``||w_i|| = |h_i|``, at a solution inside the cell.

    Args:
        problem: The problem.
        fit: Its fit.
        found: A solution and its signs.

    Returns:
        ``W``, shape ``(I, d)``, and ``h``, shape ``(I,)``. A neuron with ``R_i = 0`` keeps ``w_i`` and gets
        ``h_i = 0``; one in no part keeps both.
    """
    W, h, signs = problem.W.copy(), problem.h.copy(), iter(found.signs)
    if found.point is None:
        return W, h
    smallest = INSIDE * (float(np.linalg.norm(fit.space.point)) or 1.0)
    for i, part in enumerate(fit.parts):
        total = fit.total(i, found.point)
        h[list(part.members)] = 0.0
        shares = [(total, next(signs))] if part.inside is None else _opposed(total, part.rows, part.inside)
        for member, (R, sign) in zip(part.members, shares, strict=False):
            length = np.sqrt(np.linalg.norm(R))
            if sign and length**2 > smallest:
                W[member], h[member] = sign * R / length, sign * length
            elif 0 not in part.signs:  # on the only face there is for d = 1
                W[member], h[member] = 0.0, sign
    return W, h


def _opposed(total: Array, rows: Array, inside: Array) -> list[tuple[Array, int]]:
    """Two neurons in the cell, with opposite signs, whose ``R_i`` add up to the total."""
    needed = np.max(-(rows @ total) / (rows @ inside), initial=0.0)
    push = (2 * needed + np.linalg.norm(total)) * inside
    return [(total + push, 1), (-push, -1)]


def network_at(block: ShallowBlock, weights: tuple[Array, Array], found: Found) -> ShallowBlock:
    """Weights as a network, in the dtype and on the device of a block.

    Args:
        block: The block; one with an output bias gets the one of the solution.
        weights: ``W``, shape ``(I, d)``, and ``h``, shape ``(I,)``.
        found: The solution they are taken from.

    Returns:
        Network of the same width and order.
    """
    W, h = (torch.as_tensor(values).to(block.W) for values in weights)
    bias = block.output_bias
    if bias is not None and found.point is not None:
        bias = bias.new_tensor(found.point[-1:])
    return ShallowBlock(W, h[None], block.slopes, bias)
