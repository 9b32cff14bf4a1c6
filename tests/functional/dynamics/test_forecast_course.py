"""Forecasts where growth to first order is not all: drops out of reach, kinks on the way, neurons that go nowhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.experiments import gradient_descent_
from relu_diag.functional.block import residual_factor


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def descend(block: ShallowBlock, X: Tensor, Y: Tensor, lr: float, most: int) -> int | None:
    """The definition: steps of gradient descent until 1 % of the loss is gone."""
    block = ShallowBlock(block.W.clone(), block.H.clone(), block.slopes)
    target = 0.99 * float(F.squared_loss(block, X, Y))
    for step in range(most):
        if float(F.squared_loss(block, X, Y)) <= target:
            return step
        gradient_descent_(block, X, Y, lr * residual_factor(Y, "mean"), 1)
    return None


def test_a_drop_that_the_growing_neuron_cannot_reach_is_no_escape() -> None:
    """The neuron sees the first sample alone, which has 1e-4 of the loss."""
    X, Y = torch.eye(2).double(), torch.tensor([[0.05], [5.0]]).double()
    block = ShallowBlock(torch.tensor([[1e-6, -1e-6]]).double(), torch.tensor([[1e-6]]).double())
    assert descend(block, X, Y, lr=0.1, most=20_000) is None
    forecast = F.forecast_escape(block, X, Y, lr=0.1)
    assert forecast is not None
    assert forecast.steps == math.inf
    assert forecast.reached == pytest.approx(1e-4, rel=0.01)
    assert str(forecast).startswith("no escape by 0.01 of the loss, at most 0.0001: 1 neurons")


@pytest.mark.parametrize("seed", range(8))
def test_first_escapes_of_leaky_neurons_across_kinks_are_those_of_descent(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    X, Y = normal(draw, 4, 2), normal(draw, 4, 1)
    block = ShallowBlock(1e-6 * normal(draw, 12, 2), 1e-6 * normal(draw, 1, 12), (0.01, 1.0))
    forecast = F.forecast_escape(block, X, Y, lr=0.1)
    steps = descend(block, X, Y, lr=0.1, most=20_000)
    assert forecast is not None
    assert steps is not None
    assert forecast.steps == pytest.approx(steps, rel=0.05)
