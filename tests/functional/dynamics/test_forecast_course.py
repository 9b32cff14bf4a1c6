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
    assert str(forecast).startswith("no escape by 0.01 of the loss, at most 0.0001: 1 neuron")


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


@pytest.mark.parametrize("length", [0.0, 1e-12])
@pytest.mark.parametrize("output", [1e-8, -1e-8])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.01, 1.0), (-0.5, 2.0)])
def test_input_weights_shorter_than_a_step_go_where_the_step_takes_them(
    length: float, output: float, slopes: tuple[float, float]
) -> None:
    """Gradient flow would turn them round; a step of descent leaps over the origin, and may end where all is dead."""
    X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double(), torch.tensor([[1.0], [-1.0], [2.0]]).double()
    block = ShallowBlock(torch.full((1, 2), length).double(), torch.full((1, 1), output).double(), slopes)
    forecast = F.forecast_escape(block, X, Y, lr=0.015, reduction="mean")
    steps = descend(block, X, Y, lr=0.015, most=3_000)
    foreseen = math.inf if forecast is None else forecast.steps
    assert foreseen > 3_000 if steps is None else foreseen == pytest.approx(steps, rel=0.05)


def test_neurons_that_are_zero_in_all_weights_keep_no_forecast_from_ending() -> None:
    """Nothing moves them; the rounding of what moves others is not their motion. The other one crosses the origin."""
    X, Y = torch.tensor([[1.0], [0.0], [-1.0]]).double(), torch.tensor([[0.0, -2.0], [2.0, -2.0], [2.0, 1.0]]).double()
    W, H = torch.zeros(3, 1).double(), torch.tensor([[0.0, -1.5e-8, 0.0], [0.0, 0.0, 0.0]]).double()
    block = ShallowBlock(W, H, (-0.5, 2.0))
    forecast = F.forecast_escape(block, X, Y, lr=0.03, reduction="mean")
    assert forecast is not None
    assert forecast.steps == pytest.approx(descend(block, X, Y, lr=0.03, most=5_000), rel=0.05)


def test_first_steps_that_leave_all_numbers_are_not_decided() -> None:
    """Output weights of 1e200 take input weights of 1e-200 beyond all numbers in a step."""
    X, Y = torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([[1.0], [0.5]]).double()
    block = ShallowBlock(torch.tensor([[1e-60]]).double(), torch.tensor([[1e30]]).double().square() * 1e90, (0.01, 1.0))
    forecast = F.forecast_escape(block, X, Y, lr=0.01)
    assert forecast is not None
    assert (forecast.decided, forecast.steps) == (False, math.inf)
