"""The output weights of new neurons with the lowest loss, the rest of the network as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss, LossAt
from relu_diag.functional.tolerances import FLOAT64


def refitted_outputs(loss: Loss, outputs: Tensor, A: Tensor, start: Tensor, ridge: float) -> Tensor:
    """Output weights by damped Newton steps, each solved by conjugate gradients.

    Args:
        loss: The loss, convex or not.
        outputs: Outputs without the neurons, shape ``(N, J)``.
        A: Activations of the neurons, of mean square 1, shape ``(N, n)``.
        start: Output weights to start from, shape ``(J, n)``.
        ridge: Penalty on their squares, over the mean curvature of the loss.

    Returns:
        Output weights, shape ``(J, n)``.
    """
    H = start
    before = loss.at(outputs)
    scale = curvature_scale(before)
    penalty = ridge * scale * len(A)
    gram = scale * (A.T @ A) + (penalty + FLOAT64.damping * scale * len(A)) * torch.eye(A.shape[1]).to(A)
    factor = torch.linalg.cholesky(gram)
    here = loss.at(outputs + A @ H.T) if bool(H.any()) else before
    value = _penalised(here, H, penalty)
    for _ in range(BUDGETS.refits):
        gradient = here.gradient().T @ A + penalty * H
        step = _newton_step(here, A, gradient, penalty, factor)
        length, found = 1.0, None
        for _ in range(BUDGETS.halvings):
            trial = H + length * step
            there = loss.at(outputs + A @ trial.T)
            lower = _penalised(there, trial, penalty)
            if lower < value:
                found = trial
                break
            length /= 2
        if found is None:
            break
        enough = value - lower <= FLOAT64.short * abs(value)
        H, here, value = found, there, lower
        if enough:
            break
    return H


def curvature_scale(here: LossAt) -> float:
    """The curvature of a loss per squared output of one sample, in the direction of its gradient, shape ``()``."""
    G = here.gradient()
    size = float(G.square().sum())
    bend = float((G * here.curvature(G)).sum()) if size > 0 else 0.0
    # A loss without curvature is as far from linear as its gradient would change over one output.
    return bend / size if bend > 0 else max(size**0.5 / len(G), FLOAT64.eps)


def _penalised(here: LossAt, H: Tensor, penalty: float) -> float:
    return float(here.value()) + penalty / 2 * float(H.square().sum())


def _newton_step(here: LossAt, A: Tensor, gradient: Tensor, penalty: float, factor: Tensor) -> Tensor:
    """The step ``(J, n)`` to the minimum of the quadratic model, or until its curvature is not positive."""
    step = torch.zeros_like(gradient)
    left = -gradient
    aside = torch.cholesky_solve(left.T, factor).T
    direction, size = aside, float((left * aside).sum())
    first = size
    for _ in range(BUDGETS.refit_products):
        product = here.curvature(A @ direction.T).T @ A + penalty * direction
        bend = float((direction * product).sum())
        if not bend > 0:
            return step if bool(step.any()) else direction
        step = step + size / bend * direction
        left = left - size / bend * product
        aside = torch.cholesky_solve(left.T, factor).T
        before, size = size, float((left * aside).sum())
        if not size > FLOAT64.taken * first:
            break
        direction = aside + size / before * direction
    return step
