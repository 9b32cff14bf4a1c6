"""Small neurons whose escape is forecast, and the definition of the forecast, step by step."""

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
