"""Networks in training, and networks beside a stationary point with samples on kinks."""

from functools import cache

import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag.experiments import ReferenceRegression, gradient_descent_
from relu_diag.functional.block import residual_factor
from relu_diag.functional.local import radial_directions

Problem = tuple[ShallowBlock, Tensor, Tensor, str]


@cache
def iterate(name: str, lr: float, step: int) -> Problem:
    """Where gradient descent on a reference problem is after so many steps."""
    module = ReferenceRegression(name, lr=lr)
    X, Y = module.problem.tensors()
    block, reduction = module.block, module.problem.reduction
    gradient_descent_(block, X, Y, lr * residual_factor(Y, reduction), step)
    return block, X, Y, reduction


def cosines(block: ShallowBlock, X: Tensor) -> Tensor:
    return (X / X.norm(dim=1, keepdim=True)) @ radial_directions(block.W).T


def random_problem(seed: int, outputs: int = 1, bias: bool = False, samples: int = 12) -> Problem:
    """Targets of a network with some samples on kinks, plus noise; the network a little beside it."""
    draw = torch.Generator().manual_seed(seed)
    X, W = (torch.randn(n, 3, generator=draw).double() for n in (samples, 4))
    H = torch.randn(outputs, 4, generator=draw).double()
    for i, k in ((0, 0), (1, 3)):
        W[i] -= (W[i] @ X[k]) / X[k].square().sum() * X[k]
    b = torch.randn(outputs, generator=draw).double() if bias else None
    teacher = ShallowBlock(W, H, output_bias=b)
    Y = teacher(X) + 1e-4 * torch.randn(samples, outputs, generator=draw).double()
    student = ShallowBlock(W + 1e-4 * torch.randn(4, 3, generator=draw), H, output_bias=b)
    return student, X, Y, "half_sum"
