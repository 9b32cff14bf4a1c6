"""Amplitudes of neurons that are placed together: those of a slow descent, whichever way they are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from relu_diag.functional import BlockSignal, CrossEntropy, ShallowBlock, SquaredError
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.widening import place_units
from relu_diag.functional.widening._amplitudes import AmplitudeFit, Remainder, _curvatures

SAMPLES, NEURONS, OUTPUTS = 60, 7, 3


def losses() -> dict[str, Loss]:
    draw = torch.Generator().manual_seed(1)
    Y = torch.randn(SAMPLES, OUTPUTS, generator=draw).double()
    rows = torch.rand(SAMPLES, 1, generator=draw).double()
    numbers = torch.rand(SAMPLES, OUTPUTS, generator=draw).double()
    labels = torch.randint(0, OUTPUTS, (SAMPLES,), generator=draw)
    return {
        "squared": SquaredError(Y),
        "samples weighted": SquaredError(Y, weight=rows),
        "numbers weighted": SquaredError(Y, weight=numbers),
        "cross-entropy": CrossEntropy(labels),
    }


def scene(name: str) -> tuple[Remainder, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    A = torch.randn(SAMPLES, NEURONS, generator=draw).double().clamp(min=0)
    o = normalize(torch.randn(NEURONS, OUTPUTS, generator=draw).double(), dim=1)
    outputs = torch.randn(SAMPLES, OUTPUTS, generator=draw).double()
    loss = losses()[name]
    return Remainder(A, outputs, loss.gradient(outputs), loss, biased=False), A, o


def cost(data: Remainder, A: Tensor, o: Tensor, amplitude: Tensor, price: float) -> Tensor:
    assert data.loss is not None
    return data.loss(data.outputs + (A * amplitude) @ o) + price * A.mean(dim=0) @ amplitude


def slow_descent(data: Remainder, A: Tensor, o: Tensor, price: float, among: Tensor) -> Tensor:
    amplitude = torch.zeros(NEURONS).double().requires_grad_()
    for _ in range(4000):
        (gradient,) = torch.autograd.grad(cost(data, A, o, amplitude, price), amplitude)
        with torch.no_grad():
            amplitude.sub_(0.3 * gradient).clamp_(min=0).mul_(among)
    return amplitude.detach()


@pytest.mark.parametrize("price", [0.0, 0.05])
@pytest.mark.parametrize("name", losses())
def test_the_cost_is_near_the_lowest(name: str, price: float) -> None:
    data, A, o = scene(name)
    among = torch.ones(NEURONS, dtype=torch.bool)
    among[2] = False
    fitted = AmplitudeFit(data, A, o, price).best(among)
    zero, best, found = (
        float(cost(data, A, o, amplitude, price))
        for amplitude in (torch.zeros(NEURONS).double(), slow_descent(data, A, o, price, among), fitted)
    )
    assert float(fitted[2]) == 0
    assert bool((fitted >= 0).all())
    assert zero - found > 0.95 * (zero - best)


@pytest.mark.parametrize("name", losses())
def test_curvatures_are_those_of_second_differences(name: str) -> None:
    data, A, o = scene(name)
    assert data.loss is not None
    bends = _curvatures(data.loss, data.outputs, A, o)
    expected = []
    for i in range(NEURONS):
        amplitude = torch.zeros(NEURONS).double()
        amplitude[i] = 1e-4
        ends = cost(data, A, o, amplitude, 0.0) + cost(data, A, o, -amplitude, 0.0)
        expected.append((ends - 2 * data.loss(data.outputs)) / 1e-8)
    # Differences of numbers near 1 over 1e-8.
    assert_close(bends, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_outputs_that_are_known_are_not_asked_for_again() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(80, 3, generator=draw).double()
    block = ShallowBlock(torch.randn(6, 3, generator=draw).double(), torch.randn(2, 6, generator=draw).double())
    loss = SquaredError(torch.randn(80, 2, generator=draw).double())
    units = torch.tensor([1, 4])
    H = block.H.clone()
    H[:, units] = 0
    signal = BlockSignal(X, loss.gradient(block(X)))
    asked = place_units(block, units, signal, loss, everything=True)
    given = place_units(block, units, signal, loss, everything=True, rest=ShallowBlock(block.W, H)(X))
    assert len(asked.units) > 0
    assert_close(given.W, asked.W)
    assert_close(given.H, asked.H)
    assert given.drop == pytest.approx(asked.drop)
