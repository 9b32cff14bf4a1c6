"""The output weights of new neurons with the lowest loss, the rest of the network as it is."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss, LossAt
from relu_diag.functional.tolerances import FLOAT64


class Start:
    """A loss at the outputs without new neurons, where all fits begin: what they ask of it is computed once.

    Args:
        loss: The loss, convex or not.
        outputs: Outputs without the neurons, shape ``(N, J)``.
    """

    def __init__(self, loss: Loss, outputs: Tensor) -> None:
        self.loss = loss
        self.outputs = outputs
        self.at = loss.at(outputs).prepared()

    @cached_property
    def value(self) -> float:
        """The loss."""
        return float(self.at.value())

    @cached_property
    def gradient(self) -> Tensor:
        """Its gradient, shape ``(N, J)``."""
        return self.at.gradient()

    @cached_property
    def scale(self) -> float:
        """Its curvature per squared output of one sample, in the direction of its gradient."""
        G = self.gradient
        size = float(G.square().sum())
        bend = float((G * self.at.curvature(G)).sum()) if size > 0 else 0.0
        # A loss without curvature is as far from linear as its gradient would change over one output.
        return bend / size if bend > 0 else max(size**0.5 / len(G), FLOAT64.eps)


def proposed_outputs(start: Start, A: Tensor, ridge: float) -> Tensor:
    """Output weights by one step from none, not searched along: little work, to rank sets of neurons by.

    Args:
        start: The loss without the neurons.
        A: Activations of the neurons, of mean square 1, shape ``(N, n)``.
        ridge: Penalty on the squares of output weights, over the mean curvature of the loss.

    Returns:
        Output weights, shape ``(J, n)``.
    """
    penalty, factor = _stiffness(start, A, ridge)
    return _newton_step(start.at, A, start.gradient.T @ A, penalty, factor, BUDGETS.products_to_propose)


def refitted_outputs(start: Start, A: Tensor, H: Tensor, ridge: float) -> Tensor:
    """Output weights by damped Newton steps, each solved by conjugate gradients.

    Args:
        start: The loss without the neurons.
        A: Activations of the neurons, of mean square 1, shape ``(N, n)``.
        H: Output weights to start from, shape ``(J, n)``.
        ridge: Penalty on their squares, over the mean curvature of the loss.

    Returns:
        Output weights, shape ``(J, n)``.
    """
    loss, outputs = start.loss, start.outputs
    penalty, factor = _stiffness(start, A, ridge)
    here = loss.at(outputs + A @ H.T) if bool(H.any()) else start.at
    value = _penalised(here, H, penalty)
    for _ in range(BUDGETS.refits):
        slope = start.gradient if here is start.at else here.gradient()
        # Where each product passes through layers, the curvature without the neurons has to do.
        bent = start.at if start.at.stands_for_others else here
        step = _newton_step(bent, A, slope.T @ A + penalty * H, penalty, factor, BUDGETS.refit_products)
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


def _stiffness(start: Start, A: Tensor, ridge: float) -> tuple[float, Tensor]:
    """The penalty on squares of output weights, and the factor of the damped curvature as if that were the same."""
    penalty = ridge * start.scale * len(A)
    gram = start.scale * (A.T @ A)
    gram.diagonal().add_(penalty + FLOAT64.damping * start.scale * len(A))
    return penalty, torch.linalg.cholesky(gram)


def _penalised(here: LossAt, H: Tensor, penalty: float) -> float:
    return float(here.value()) + penalty / 2 * float(H.square().sum())


def _newton_step(here: LossAt, A: Tensor, gradient: Tensor, penalty: float, factor: Tensor, products: int) -> Tensor:
    """The step ``(J, n)`` to the minimum of the quadratic model, or until its curvature is not positive."""
    step = torch.zeros_like(gradient)
    left = -gradient
    aside = torch.cholesky_solve(left.T, factor).T
    direction, size = aside, float((left * aside).sum())
    first = size
    for _ in range(products):
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
