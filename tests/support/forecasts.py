"""Small neurons whose escape is forecast, and the definition of the forecast, step by step."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from support.tensors import normal
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-0.5, 1.0), (1.0, 0.0), (2.0, -0.3)]


def small_problem(seed: int) -> tuple[ShallowBlock, Tensor, Tensor]:
    """Small neurons before a random problem; output weights of the size of the input weights, or a tenth."""
    draw = torch.Generator().manual_seed(seed)
    d, outputs = 1 + seed % 4, 1 + (seed // 4) % 3
    samples = int(torch.randint(3, 10, (1,), generator=draw))
    X, Y = normal(draw, samples, d), normal(draw, samples, outputs)
    W, H = 1e-8 * normal(draw, 8, d), 1e-8 * 10.0 ** -(seed % 2) * normal(draw, outputs, 8)
    return ShallowBlock(W, H, SLOPES[seed % len(SLOPES)]), X, Y


def descend_frozen(block: ShallowBlock, X: Tensor, Y: Tensor, lr: float) -> int:
    """The definition: gradient descent with the residuals held fixed, until they say that 1 % of the loss is gone."""
    E, x = F.squared_error_signal(block, X, Y).G.numpy(), X.numpy()
    W, H, target = block.W.numpy(), block.H.numpy(), 0.01 * float(F.squared_loss(block, X, Y))
    steps = 0
    while True:
        Z = x @ W.T
        S = np.where(Z > 0, block.slopes[1], block.slopes[0])
        if -(E * (S * Z @ H.T)).sum() >= target:
            return steps
        W, H = W - lr * (S * (E @ H)).T @ x, H - lr * E.T @ (S * Z)
        steps += 1


def losses_of_descent(block: ShallowBlock, X: Tensor, Y: Tensor, lr: float, steps: int) -> list[float]:
    """The mean squared error before each step of gradient descent, and after the last."""
    return [float(F.squared_loss(at, X, Y)) for at in descent(block, X, Y, lr, steps)]


def descent(block: ShallowBlock, X: Tensor, Y: Tensor, lr: float, steps: int) -> Iterator[ShallowBlock]:
    """The network before each step of gradient descent on the mean squared error, and after the last."""
    W, H = block.W.clone(), block.H.clone()
    below, above = block.slopes
    yield block
    for _ in range(steps):
        Z = X @ W.T
        S = torch.where(Z > 0, above, below)
        A = S * Z
        G = 2 * lr / Y.numel() * (A @ H.T - Y)
        W, H = W - (S * (G @ H)).T @ X, H - G.T @ A
        yield replace(block, W=W, H=H)
