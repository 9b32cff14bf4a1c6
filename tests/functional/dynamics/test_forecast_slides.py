"""Forecasts where the loss is not level: it slides, or leaps to and fro from step to step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.forecasts import descent, losses_of_descent
from support.tensors import normal
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F


def steps_to_the_drop(losses: list[float], drop: float = 0.01) -> int | None:
    """The first of every second step at which so much of the loss is gone."""
    lower = np.array(losses[::2]) <= (1 - drop) * losses[0]
    return 2 * int(lower.argmax()) if lower.any() else None


def sliding_problem(amplitude: float) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A neuron that slowly comes to fit the first sample, and a small one that grows on the second."""
    X, Y = torch.diag(torch.tensor([0.3, 1.0])).double(), torch.tensor([[1.0], [3.0]]).double()
    W = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    H = torch.tensor([[3.0, amplitude]]).double()
    W[1] *= amplitude
    return ShallowBlock(W, H), X, Y


@pytest.mark.parametrize("amplitude", [0.08, 0.05, 0.02, 0.005])
def test_the_drop_is_counted_from_now_where_the_loss_slides(amplitude: float) -> None:
    """Some of the small neuron's own drop has happened already: it is none to come."""
    block, X, Y = sliding_problem(amplitude)
    forecast = F.forecast_escape(block, X, Y, lr=1e-3)
    steps = steps_to_the_drop(losses_of_descent(block, X, Y, lr=1e-3, steps=3000))
    assert forecast is not None
    assert steps is not None
    assert forecast.steps == pytest.approx(steps, rel=0.01, abs=2)


def in_training(seed: int, lr: float) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A network at some moment of its training on a random problem."""
    draw = torch.Generator().manual_seed(seed)
    inputs, outputs, samples = 2 + seed % 2, 1 + (seed // 2) % 2, 4 + seed % 3
    X, Y = normal(draw, samples, inputs), normal(draw, samples, outputs)
    start = ShallowBlock(0.05 * normal(draw, 8, inputs), 0.05 * normal(draw, outputs, 8), (0.1 * (seed % 3), 1.0))
    steps = int(torch.randint(20, 1000, (1,), generator=draw))
    *_, block = descent(start, X, Y, lr, steps)
    return block, X, Y


@pytest.mark.parametrize(
    ("seed", "lr"), [(seed, 0.05) for seed in (0, 1, 2, 14)] + [(seed, 0.3) for seed in (0, 1, 2, 4)]
)
def test_a_forecast_that_is_decided_is_what_descent_does(seed: int, lr: float) -> None:
    block, X, Y = in_training(seed, lr)
    forecast = F.forecast_escape(block, X, Y, lr, small=0.1)
    if forecast is None:
        return
    most = 1000
    steps = steps_to_the_drop(losses_of_descent(block, X, Y, lr, most))
    assert forecast.decided
    if steps is None:
        assert forecast.steps > 0.9 * most
    else:
        assert forecast.steps == pytest.approx(steps, rel=0.1, abs=4)


@pytest.mark.parametrize("seed", [10, 17])
def test_a_loss_that_leaps_to_and_fro_across_the_drop_is_not_decided(seed: int) -> None:
    """At so high a rate the loss is below the drop at once, and above it hundreds of steps later."""
    lr = 0.3
    block, X, Y = in_training(seed, lr)
    losses = np.array(losses_of_descent(block, X, Y, lr, 1000))
    lower = losses <= 0.99 * losses[0]
    assert lower[:20].any()
    assert not lower[900:].all()
    forecast = F.forecast_escape(block, X, Y, lr, small=0.1)
    assert forecast is not None
    assert not forecast.decided
    assert forecast.steps == math.inf


def test_a_loss_that_leaps_on_one_level_is_followed_to_the_escape_that_comes() -> None:
    """Neurons leap across their kinks all the while, by a tenth of the drop, and one grows."""
    draw = torch.Generator().manual_seed(1)
    X, Y = normal(draw, 6, 2), normal(draw, 6, 1)
    start = ShallowBlock(0.01 * normal(draw, 6, 2), 0.01 * normal(draw, 1, 6), (0.1, 1.0))
    *_, block = descent(start, X, Y, 0.1, 6000)
    small = ShallowBlock(1e-4 * normal(draw, 1, 2), 1e-4 * normal(draw, 1, 1), (0.1, 1.0))
    block = ShallowBlock(torch.cat([block.W, small.W]), torch.cat([block.H, small.H], dim=1), (0.1, 1.0))
    forecast = F.forecast_escape(block, X, Y, 0.1)
    steps = steps_to_the_drop(losses_of_descent(block, X, Y, 0.1, 9_000))
    assert forecast is not None
    assert steps is not None
    assert forecast.steps == pytest.approx(steps, rel=0.02)
