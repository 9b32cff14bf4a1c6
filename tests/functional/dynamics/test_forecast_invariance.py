"""What a forecast does not depend on, what it does, and input that it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.forecasts import small_problem
from support.tensors import neuron, normal

from relu_diag import ShallowBlock
from relu_diag import functional as F

X2, Y2 = torch.eye(2).double(), torch.tensor([[3.0], [4.0]]).double()  # G = -Y at the origin: v = (0.6, 0.8), gain 5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_order_of_neurons_and_samples_does_not_matter(seed: int) -> None:
    block, X, Y = small_problem(seed)
    draw = torch.Generator().manual_seed(seed)
    rows, units = torch.randperm(len(X), generator=draw), torch.randperm(8, generator=draw)
    expected = F.forecast_escape(block, X, Y, lr=1e-2)
    found = F.forecast_escape(ShallowBlock(block.W[units], block.H[:, units], block.slopes), X[rows], Y[rows], lr=1e-2)
    assert expected is not None
    assert found is not None
    # Where the flow is followed, its step sizes hang on rounding.
    assert found.steps == pytest.approx(expected.steps, rel=1e-4)
    assert units[found.neurons].sort().values.tolist() == expected.neurons.tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_reduction_only_scales_time(seed: int) -> None:
    block, X, Y = small_problem(seed)
    mean = F.forecast_escape(block, X, Y, lr=1e-2)
    half = F.forecast_escape(block, X, Y, lr=1e-2 * 2 / Y.numel(), reduction="half_sum")
    twice = F.forecast_escape(block, torch.cat([X, X]), torch.cat([Y, Y]), lr=1e-2)
    assert mean is not None
    assert half is not None
    assert twice is not None
    assert half.steps == pytest.approx(mean.steps, rel=1e-6)
    assert half.gain == pytest.approx(mean.gain * Y.numel() / 2)
    assert twice.steps == pytest.approx(mean.steps, rel=1e-6)


def test_rotation_of_the_inputs_does_not_matter() -> None:
    draw = torch.Generator().manual_seed(5)
    X, Y = normal(draw, 7, 2), normal(draw, 7, 2)
    block = ShallowBlock(1e-7 * normal(draw, 12, 2), 1e-7 * normal(draw, 2, 12))
    Q = torch.linalg.qr(normal(draw, 2, 2)).Q
    expected, found = (
        F.forecast_escape(one, x, Y, lr=1e-2) for one, x in ((block, X), (ShallowBlock(block.W @ Q, block.H), X @ Q))
    )
    assert expected is not None
    assert found is not None
    assert found.steps == pytest.approx(expected.steps, rel=1e-6)


def test_float32_weights_with_gradients_are_forecast_as_well() -> None:
    draw = torch.Generator().manual_seed(2)
    X, Y = torch.randn(6, 3, generator=draw), torch.randn(6, 1, generator=draw)
    W, H = 1e-5 * torch.randn(9, 3, generator=draw), 1e-5 * torch.randn(1, 9, generator=draw)
    single = F.forecast_escape(ShallowBlock(W.clone().requires_grad_(), H.clone().requires_grad_()), X, Y, lr=1e-2)
    double = F.forecast_escape(ShallowBlock(W.double(), H.double()), X.double(), Y.double(), lr=1e-2)
    assert single is not None
    assert double is not None
    assert single.steps == pytest.approx(double.steps, rel=1e-5)


# Nothing grows, or no time


def test_nothing_is_forecast_where_nothing_grows() -> None:
    grown = neuron((0.6, 0.8), 1.0)
    assert F.forecast_escape(grown, X2, Y2, lr=0.1) is None
    assert F.forecast_escape(neuron((-1e-6, -1e-6), 1e-6), X2, Y2, lr=0.1) is None  # dead
    assert F.forecast_escape(neuron((0.0, 0.0), 0.0), X2, Y2, lr=0.1) is None  # plain descent never leaves it
    assert (
        F.forecast_escape(neuron((0.0, 0.0), 1e-6), X2, Y2, lr=0.1) is None
    )  # nor a kink of all samples, relu'(0) = 0
    fitted = ShallowBlock(torch.tensor([[3.0, 4.0], [1e-6, 1e-6]]).double(), torch.tensor([[1.0, 1e-6]]).double())
    assert F.forecast_escape(fitted, X2, fitted(X2), lr=0.1) is None
    silent = neuron((1e-6, -1e-6), 1e-6)  # active only where there is no residual
    assert F.forecast_escape(silent, X2, torch.tensor([[0.0], [4.0]]).double() + silent(X2), lr=0.1) is None


def test_learning_rate_of_zero_never_escapes() -> None:
    forecast = F.forecast_escape(neuron((6e-6, 8e-6), 1e-5), X2, Y2, lr=0.0)
    assert forecast is not None
    assert forecast.steps == math.inf
    assert forecast.time == pytest.approx(math.log(0.01 * 12.5 / 5e-10) / 10.0)
    assert str(forecast).startswith("no escape at a learning rate of 0")


def test_drop_that_is_already_there_takes_no_step() -> None:
    forecast = F.forecast_escape(neuron((0.06, 0.08), 0.1), X2, Y2, lr=0.1, drop=1e-4)
    assert forecast is not None
    assert forecast.steps == 0.0


def test_larger_drop_takes_longer_by_its_logarithm() -> None:
    block = neuron((6e-6, 8e-6), 1e-5)
    some, more = (F.forecast_escape(block, X2, Y2, lr=0.1, drop=drop) for drop in (0.01, 0.1))
    assert some is not None
    assert more is not None
    assert more.steps - some.steps == pytest.approx(math.log(10) / (2 * math.log1p(0.5)))


def test_what_is_small_is_the_callers_choice() -> None:
    block = neuron((0.3, 0.4), 0.2)  # contributes 0.08 where the targets are of size 3.5
    assert F.forecast_escape(block, X2, Y2, lr=0.1) is None
    assert F.forecast_escape(block, X2, Y2, lr=0.1, small=0.05) is not None


def test_forecast_says_itself() -> None:
    forecast = F.forecast_escape(neuron((6e-6, 8e-6), 1e-5), X2, Y2, lr=1e-5)
    assert str(forecast) == "escape in ~193,375 steps: 1 neuron of amplitude 1e-10, growth rate 5, time 1.934"


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -0.1}, "`lr` must be finite and not negative"),
        ({"lr": math.nan}, "`lr` must be finite and not negative"),
        ({"drop": 0.0}, "`drop` is a fraction"),
        ({"drop": 1.0}, "`drop` is a fraction"),
        ({"Y": torch.ones(2, 2).double()}, "`Y` needs one row per sample and one column per output"),
        ({"X": torch.ones(2, 1).double()}, "Append a column of ones"),
        ({"Y": torch.full((2, 1), math.inf).double()}, "`Y` has NaN or infinite"),
        ({"reduction": "max"}, "`reduction` must be one of"),
        ({"small": -1.0}, "`small` and `scale` must be finite"),
    ],
)
def test_input_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.forecast_escape(**({"block": neuron((1e-6, 1e-6), 1e-6), "X": X2, "Y": Y2, "lr": 0.1} | change))
