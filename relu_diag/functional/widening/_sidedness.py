"""Directions that see all samples from one side, or not at all."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from relu_diag.functional._arrays import Array, unit_rows
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64

_TOLERANCES = {"primal_feasibility_tolerance": FLOAT64.program, "dual_feasibility_tolerance": FLOAT64.program}


def most_negative_direction(X: Tensor) -> tuple[Tensor, float] | None:
    """A direction with ``w . x_k < 0`` for every sample ``x_k != 0``, if there is one.

    The margin ``min_k -w . x_k / ||x_k||`` is at least half of the largest there is. No margin exceeds the length of
    the mean of the ``x_k / ||x_k||``, so an axis or that mean often prove to be good enough; otherwise a linear program
    maximises it over ``|w_c| <= 1``, and samples it was not given are added where its answer fails.

    Args:
        X: Inputs, float64, shape ``(N, d)``.

    Returns:
        Unit vector ``w``, shape ``(d,)``, and its margin; None where no margin exceeds 1e-9.

    Example:
        >>> w, margin = most_negative_direction(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double())
        >>> w, round(margin, 3)
        (tensor([-0.7071, -0.7071], dtype=torch.float64), 0.707)
        >>> most_negative_direction(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()) is None
        True
    """
    points = X.cpu().numpy()
    points = unit_rows(points[points.any(axis=1)])
    if not len(points):
        return torch.eye(X.shape[1], dtype=X.dtype, device=X.device)[0], 1.0
    w = _simple_candidate(points)
    if -(points @ w).max() < max(np.linalg.norm(points.mean(axis=0)) / 2, FLOAT64.inside):
        margin, given = np.inf, np.zeros(len(points), dtype=bool)
        while (points[~given] @ w).max(initial=-np.inf) > -margin / 2:
            given[np.argsort(points @ w)[-BUDGETS.program_samples :]] = True
            w, margin = _largest_margin(points[given])
            if margin <= FLOAT64.inside:
                return None
        w /= np.linalg.norm(w)
    return torch.as_tensor(w).to(X), -float((points @ w).max())


def orthogonal_directions(X: Tensor) -> Tensor:
    """An orthonormal basis of the vectors orthogonal to all samples.

    Args:
        X: Inputs, float64, shape ``(N, d)``.

    Returns:
        Basis, shape ``(d - rank, d)``.

    Example:
        >>> orthogonal_directions(torch.tensor([[3.0, 0.0], [-2.0, 0.0]]).double()).abs()
        tensor([[0., 1.]], dtype=torch.float64)
    """
    # The triangle has the singular values and right singular vectors of X, whatever the number of samples.
    triangle = torch.linalg.qr(X, mode="r").R
    _, singular, rows = torch.linalg.svd(triangle, full_matrices=True)
    rounding = max(X.shape) * FLOAT64.eps * singular.max()
    basis: Tensor = rows[int((singular > rounding).sum()) :]
    return basis


def _simple_candidate(points: Array) -> Array:
    """The best of the axes, their opposites, and the direction against the mean."""
    axes = np.eye(points.shape[1])
    candidates = np.concatenate([unit_rows(-points.mean(axis=0, keepdims=True)), -axes, axes])
    largest = [(points @ candidates[0]).max(), *-points.min(axis=0), *points.max(axis=0)]
    return np.asarray(candidates[np.argmin(largest)])


def _largest_margin(points: Array) -> tuple[Array, float]:
    """The direction of largest margin in the box, and that margin.

    Raises:
        ArithmeticError: If the solver fails.
    """
    inputs = points.shape[1]
    outcome = linprog(
        -np.eye(inputs + 1)[-1],
        A_ub=np.column_stack([points, np.ones(len(points))]),
        b_ub=np.zeros(len(points)),
        bounds=[(-1.0, 1.0)] * inputs + [(0.0, None)],
        options=_TOLERANCES,
    )
    if outcome.status != 0:
        raise ArithmeticError(f"The linear program for a direction that no sample activates failed: {outcome.message}")
    return outcome.x[:-1], float(outcome.x[-1])
