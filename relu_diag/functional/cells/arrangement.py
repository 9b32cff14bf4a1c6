"""The cells that samples cut the space of one neuron's input weights into."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import BlockSignal
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64


def cell_directions(X: Tensor) -> Tensor:
    """One direction inside every cell of the hyperplanes ``x_k . w = 0``.

    A cell has a facet, and a facet is a cell of the arrangement that the other samples make on its hyperplane; so each
    is reached by stepping off a facet.

    Args:
        X: Inputs, shape ``(N, d)``; ``x_k = 0`` and collinear ones add no hyperplane.

    Returns:
        Unit input weights, at most ``2 sum_{j < d} C(N - 1, j)`` of them, float64, shape ``(M, d)``.

    Raises:
        ValueError: If there can be more than 10,000 cells.

    Example:
        >>> len(cell_directions(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])))
        6
    """
    BlockSignal(X, X)  # the checks every data set goes through
    points = X.detach().double().cpu().numpy()
    length = np.linalg.norm(points, axis=1)
    lines = _distinct(points[length > 0] / length[length > 0, None])
    if not len(lines):
        return torch.eye(X.shape[1], dtype=torch.float64)[:1]
    _, singular, rows = np.linalg.svd(lines, full_matrices=False)
    rows = rows[singular > FLOAT64.same_line * singular[0]]
    count = 2 * sum(math.comb(len(lines) - 1, j) for j in range(len(rows)))
    if count > BUDGETS.cells:
        raise ValueError(
            f"`X` can have {count} cells: {len(lines)} distinct samples in {len(rows)} dimensions; "
            f"at most {BUDGETS.cells} are listed. Pass fewer samples."
        )
    return torch.as_tensor(_inside_cells(lines @ rows.T) @ rows)


def _distinct(units: Array) -> Array:
    """One of every set of collinear rows."""
    kept: list[Array] = []
    for unit in units:
        if all(np.linalg.norm(unit - (unit @ other) * other) > FLOAT64.same_line for other in kept):
            kept.append(unit)
    return np.array(kept).reshape(-1, units.shape[1])


def _inside_cells(lines: Array) -> Array:
    """Unit directions inside the cells of distinct lines that span the space."""
    if lines.shape[1] == 1:
        return np.array([[1.0], [-1.0]])
    found = []
    for k, line in enumerate(lines):
        basis = np.linalg.svd(line[None])[2][1:]
        others = np.delete(lines, k, axis=0) @ basis.T
        facets = _inside_cells(_distinct(others / np.linalg.norm(others, axis=1, keepdims=True))) @ basis
        # Half way to the nearest other hyperplane: no sign changes.
        step = np.abs(facets @ np.delete(lines, k, axis=0).T).min(axis=1, keepdims=True) / 2 * line
        found += [facets + step, facets - step]
    points = np.concatenate(found)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    # A cell is found from each of its facets; the mean of its directions is well inside, as a cell is convex.
    _, cell = np.unique(points @ lines.T > 0, axis=0, return_inverse=True)
    centres = np.zeros((cell.max() + 1, lines.shape[1]))
    np.add.at(centres, cell.ravel(), points)
    return np.asarray(centres / np.linalg.norm(centres, axis=1, keepdims=True))
