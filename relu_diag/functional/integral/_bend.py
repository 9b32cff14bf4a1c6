"""Second derivatives of the integral loss among the neurons that can use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.integral.generalised_gradient import generalised_jacobian


@dataclass(frozen=True, slots=True, eq=False)
class Bend:
    """The Hessian in the parameters of some neurons and the output bias.

    Attributes:
        neurons: Which neurons, long, shape ``(n,)``.
        hessian: In the order ``w, b, h`` of these, ``c``, shape ``(3 n + 1, 3 n + 1)``.
    """

    neurons: Tensor
    hessian: Tensor


def bend_among(problem: AffineProblem, who: Tensor) -> Bend:
    """The Hessian among some neurons, the loudest of them where they are too many.

    Args:
        problem: Network and target.
        who: Which neurons, bool, shape ``(I,)``; the others are zero on the interval.

    Returns:
        Hessian and neurons.
    """
    neurons = who.nonzero().squeeze(1)
    if len(neurons) > BUDGETS.bent_neurons:
        loud = problem.h.abs() * (problem.w.abs() + problem.b.abs())
        loudest = loud[neurons].argsort(descending=True)[: BUDGETS.bent_neurons]
        return _differentiated(problem, neurons[loudest])
    if problem.slopes != (0.0, 1.0) or not len(neurons):
        return _differentiated(problem, neurons)
    w, b, h = problem.neurons[:, neurons]
    alone = AffineProblem(w, b, h, problem.c, problem.slope, problem.intercept, problem.interval)
    return Bend(neurons, generalised_jacobian(alone))


def _differentiated(problem: AffineProblem, neurons: Tensor) -> Bend:
    """The Hessian by differentiating twice, in the parameters of some neurons, long ``(n,)``."""

    def loss(theta: Tensor) -> Tensor:
        moved = problem.neurons.index_copy(1, neurons, theta[:-1].reshape(3, -1))
        return problem.loss(moved, theta[-1])

    theta = torch.cat([problem.neurons[:, neurons].flatten(), problem.c.reshape(1)])
    hessian: Any = torch.autograd.functional.hessian(loss, theta)  # type: ignore[no-untyped-call]
    return Bend(neurons, hessian)
