"""Dual variables: which numbers ``E`` of the shape of the outputs give a lower bound, and their best scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from relu_diag.functional._arrays import classes, row_space, unit_rows
from relu_diag.functional.block import BlockSignal
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64


def balanced_gradient(loss: Loss, outputs: Tensor) -> Tensor:
    """The gradient of a convex loss where no constant added to the outputs lowers it: its columns add up to zero.

    A gradient lies in the domain of the conjugate. Where the loss has no best constant, or a kink there, the mean of
    the gradient is taken out instead, which may leave the domain: then smaller scales of it, or none, give the bound.

    Args:
        loss: The loss, float64.
        outputs: Outputs of the block, shape ``(N, J)``.

    Returns:
        Gradient, shape ``(N, J)``.
    """
    shift = torch.zeros_like(outputs[0])
    value = float(loss(outputs))
    for _ in range(BUDGETS.shifts_of_outputs):
        slope = loss.gradient(outputs + shift).sum(dim=0)
        step = -torch.linalg.pinv(_curvature_of_shifts(loss, outputs + shift), hermitian=True) @ slope
        length = 1.0
        lower = float(loss(outputs + shift + step))
        while not lower < value and length > FLOAT64.eps:
            length /= 2
            lower = float(loss(outputs + shift + length * step))
        if not lower < value:
            break
        shift, value = shift + length * step, lower
    G = loss.gradient(outputs + shift)
    left = G.sum(dim=0)
    if float(left.norm()) > FLOAT64.balanced * float(G.abs().sum()):
        return G - left / len(G)
    return G


def _curvature_of_shifts(loss: Loss, outputs: Tensor) -> Tensor:
    """The Hessian of the loss by a constant added to all outputs, shape ``(J, J)``."""
    axes = torch.eye(outputs.shape[1]).to(outputs)
    rows = [loss.curvature(outputs, axis.expand_as(outputs)).sum(dim=0) for axis in axes]
    return torch.stack(rows)


def silent_part(signal: BlockSignal, slopes: tuple[float, float], balanced: bool) -> Tensor:
    """The part of the loss gradients that no neuron feels, whatever its input weights: ``D`` is zero everywhere.

    ``D(v)`` is ``a G^T X v`` plus a multiple of ``|n . v|`` for each line of samples: both have to vanish.

    Args:
        signal: Inputs and loss gradients, float64.
        slopes: ``(s-, s+)``.
        balanced: Whether the columns shall add up to zero, too.

    Returns:
        Orthogonal projection of ``G``, shape ``(N, J)``.
    """
    X = signal.X
    first, line = classes(unit_rows(X.cpu().numpy()), FLOAT64.same_line, opposite=True)
    index = torch.as_tensor(line).to(X.device)
    size = X.norm(dim=1, keepdim=True)
    square = torch.zeros(len(first), 1).to(X).index_add_(0, index, size.square())
    square = torch.where(square > 0, square, 1.0)

    def off_lines(values: Tensor) -> Tensor:
        felt = torch.zeros(len(first), values.shape[1]).to(X).index_add_(0, index, size * values)
        off: Tensor = values - size * (felt / square)[index]
        return off

    linear = [X] if sum(slopes) != 0 else []
    constant = [torch.ones_like(size)] if balanced else []
    E = off_lines(signal.G)
    if linear or constant:
        columns = torch.cat([*linear, *constant], dim=1)
        # What is left of a column is rounding where the lines determine it.
        off = off_lines(columns)
        off = off[:, off.norm(dim=0) > FLOAT64.dependent * columns.norm(dim=0)]
        basis = torch.as_tensor(row_space(off.T.cpu().numpy())).to(X)
        E = E - basis.T @ (basis @ E)
    silent: Tensor = torch.where(E.abs() > FLOAT64.dependent * signal.G.abs().max(), E, 0.0)
    return silent


def best_scale(bound: Callable[[float], float], largest: float) -> float:
    """The largest value of a concave function on ``[0, largest]``, minus infinity beyond a point.

    Args:
        bound: The function; at 0 it may be minus infinity, too.
        largest: End of the interval, finite.

    Returns:
        The largest value met.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = 0.0, largest
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    at_inner, at_outer = bound(inner), bound(outer)
    best = max(bound(low), bound(high), at_inner, at_outer)
    for _ in range(BUDGETS.scales):
        if at_outer > at_inner:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + ratio * (high - low)
            at_outer = bound(outer)
        else:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - ratio * (high - low)
            at_inner = bound(inner)
        best = max(best, at_inner, at_outer)
    return best
