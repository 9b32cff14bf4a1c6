"""Forecasts of small networks against descent itself: any loss, weight decay, an output bias, moving residuals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tensors import normal

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

LR = 0.05


def descend(block: ShallowBlock, X: torch.Tensor, loss: Loss, steps: int, decay: float = 0.0) -> ShallowBlock:
    """The definition: some steps of SGD on all samples."""
    W, H, bias = block.W, block.H, block.output_bias
    for _ in range(steps):
        Z = X @ W.T
        G = loss.gradient(block_at(block, W, H, bias)(X))
        dW = ((Z > 0) * (G @ H)).T @ X + decay * W
        dH = G.T @ Z.relu() + decay * H
        W, H = W - LR * dW, H - LR * dH
        bias = None if bias is None else bias - LR * G.sum(0)
    return block_at(block, W, H, bias)


def block_at(block: ShallowBlock, W: torch.Tensor, H: torch.Tensor, bias: torch.Tensor | None) -> ShallowBlock:
    return replace(block, W=W, H=H, output_bias=bias)


def steps_to_the_drop(block: ShallowBlock, X: torch.Tensor, loss: Loss, decay: float, most: int) -> int:
    start = float(loss(block(X)))
    for step in range(most):
        if float(loss(block(X))) <= 0.99 * start:
            return step
        block = descend(block, X, loss, 1, decay)
    raise AssertionError("the descent does not come to the drop")


def losses(draw: torch.Generator) -> dict[str, Loss]:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    return {
        "cross entropy": F.CrossEntropy(labels),
        "logistic": F.BinaryCrossEntropy(labels.double()[:, None]),
        "squared": F.SquaredError(normal(draw, 8, 1)),
        "huber": F.Huber(normal(draw, 8, 2)),
    }


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["cross entropy", "logistic", "squared", "huber"])
def test_forecast_is_the_step_of_descent(name: str, bias: bool, decay: float) -> None:
    draw = torch.Generator().manual_seed(3)
    loss = losses(draw)[name]
    outputs = 1 if name in {"logistic", "squared"} else 2
    X = normal(draw, 8, 3)
    start = ShallowBlock(1e-4 * normal(draw, 10, 3), 1e-4 * normal(draw, outputs, 10))
    if bias:
        start = replace(start, output_bias=torch.zeros(outputs).double())
        start = descend(start, X, loss, 400, decay)
    forecast = F.forecast_escape(start, X, loss, LR, weight_decay=decay)
    assert forecast is not None
    assert forecast.decided
    assert forecast.steps == pytest.approx(steps_to_the_drop(start, X, loss, decay, 5000), rel=0.01, abs=2)


def test_growth_that_weight_decay_outweighs_is_none() -> None:
    X, Y = torch.eye(2).double(), torch.tensor([[3.0], [4.0]]).double()
    block = ShallowBlock(torch.tensor([[6e-6, 8e-6]]).double(), torch.tensor([[1e-5]]).double())
    assert F.forecast_escape(block, X, Y, LR, weight_decay=4.9) is not None
    assert F.forecast_escape(block, X, Y, LR, weight_decay=5.1) is None


def test_a_network_whose_bias_alone_moves_has_an_answer() -> None:
    X = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double()
    silent = ShallowBlock(
        torch.tensor([[-0.4, 0.0], [-1.2, 0.0]]).double(),
        torch.tensor([[-0.8, 0.05]]).double(),
        output_bias=torch.tensor([1.5]).double(),
    )
    found = F.forecast_escape(silent, X, torch.tensor([[1.0], [2.0]]).double(), 0.1)
    assert found is None or found.reached < found.drop  # it ends at the fit of a constant
