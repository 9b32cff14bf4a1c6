"""A point with an escape neuron whose kind depends on one number, and falls evaluated outside the package."""

from __future__ import annotations

import pytest
from support.tensors import tensor
from torch import Tensor

from relu_diag import ShallowBlock, Verdict
from relu_diag import functional as F


def fall_seen(verdict: Verdict, block: ShallowBlock, X: Tensor, Y: Tensor, reduction: F.Reduction = "mean") -> float:
    """The loss change along the witness, as anyone would evaluate it."""
    along = verdict.direction
    assert along is not None
    change = float(F.squared_loss(along.applied_to(block), X, Y, reduction) - F.squared_loss(block, X, Y, reduction))
    assert change == pytest.approx(along.loss_change, rel=1e-2)  # of two losses the difference is the less accurate
    return change


def two_outputs(size: float, copies: int = 1) -> tuple[ShallowBlock, Tensor, Tensor]:
    """Residuals orthogonal to the output weights: L' = 0 everywhere, D = 2 on the tangential line."""
    X, residual = tensor([1.0, 1.0], [1.0, -1.0]), tensor([0.0, 1.0], [0.0, -1.0])
    H = tensor([size], [0.0]) / copies
    block = ShallowBlock(tensor([1.0, 0.0]).repeat(copies, 1), H.repeat(1, copies))
    return block, X, block(X) - residual
