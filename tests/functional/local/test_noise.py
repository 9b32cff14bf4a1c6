"""What samples show by chance: the spread of their own derivatives, and how many of them happen to lie on a kink."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reference import SLOPES, Problem, kinked_problem, problems
from support.tensors import normal
from torch import Tensor
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.local import (
    NeuronSums,
    RunningSums,
    geometry_from_sums,
    kinks_beyond_chance,
    neuron_sums,
    slopes_from_sums,
    without_chance_kinks,
)


def own_derivatives(block: ShallowBlock, signal: BlockSignal) -> Tensor:
    """Derivatives of every sample's own loss by the input weights, one backward pass each, ``(N, I, d)``."""
    found = []
    for x, e in zip(signal.X, signal.G, strict=True):
        W = block.W.clone().requires_grad_()
        ShallowBlock(W, block.H, block.slopes)(x[None]).backward(e[None])
        found.append(W.grad)
    return torch.stack(found)


@pytest.mark.parametrize("slopes", SLOPES)
def test_noise_is_the_root_of_the_squares_of_the_samples_own_derivatives(slopes: tuple[float, float]) -> None:
    problem = kinked_problem(4, slopes, neurons=6, outputs=2, kinks=0)
    expected = own_derivatives(problem.block, replace(problem.signal, C=None)).square().sum((0, 2)).sqrt()
    assert_close(F.neuron_geometry(problem.block, replace(problem.signal, C=None)).noise, expected)


@given(problems(), st.integers(1, 9), st.floats(-3, 3))
def test_noise_adds_in_squares_and_scales_with_the_loss(problem: Problem, cut: int, power: float) -> None:
    signal = replace(problem.signal, unit=None)
    whole = neuron_sums(problem.block, signal)
    parts = [
        neuron_sums(
            problem.block, BlockSignal(signal.X[rows], signal.G[rows], None if signal.C is None else signal.C[rows])
        )
        for rows in (slice(cut), slice(cut, None))
    ]
    assert_close((parts[0] + parts[1]).squares, whole.squares)
    noise = geometry_from_sums(problem.block, whole).noise
    assert_close(geometry_from_sums(problem.block, whole.scaled(-(10.0**power))).noise, 10.0**power * noise)


@given(problems(), st.integers(1, 9))
def test_sums_that_run_are_the_weighted_sums_of_the_batches(problem: Problem, cut: int) -> None:
    signal, running = problem.signal, RunningSums()
    parts = [
        BlockSignal(signal.X[rows], signal.G[rows], None if signal.C is None else signal.C[rows])
        for rows in (slice(cut), slice(cut, None))
    ]
    for weight, batch in zip((2.0, 3.0), parts, strict=True):
        running.add(problem.block, batch, weight=weight)
    found = running.sums()
    expected = neuron_sums(problem.block, parts[0]).scaled(2.0) + neuron_sums(problem.block, parts[1]).scaled(3.0)
    for field in fields(NeuronSums):
        if field.name != "kinks":
            assert_close(getattr(found, field.name), getattr(expected, field.name))
    assert_close(found.kinks.c, expected.kinks.c)


def test_sums_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="Nothing was added"):
        RunningSums().sums()


def test_slopes_of_pure_noise_are_about_their_standard_error_at_any_number_of_samples() -> None:
    draw = torch.Generator().manual_seed(0)
    block = ShallowBlock(normal(draw, 40, 30), normal(draw, 3, 40))
    for samples in (200, 3200):
        signal = BlockSignal(normal(draw, samples, 30), normal(draw, samples, 3))
        found = F.stationarity(block, signal)
        assert 0.9 < float(found.geometry.slope_to_noise.median()) < 1.1
        assert not found.stationary.any()
        assert found.within_noise.all()
        assert str(found).endswith(f"40 more stationary within the noise of {samples:,} samples")


def test_a_signal_stands_out_of_the_noise_the_more_samples_there_are() -> None:
    draw = torch.Generator().manual_seed(0)
    block = ShallowBlock(normal(draw, 40, 5), normal(draw, 1, 40))
    ratios = []
    for samples in (200, 3200):
        X = normal(draw, samples, 5)
        signal = BlockSignal(X, X[:, :1] + normal(draw, samples, 1))
        ratios.append(float(F.neuron_geometry(block, signal).slope_to_noise.median()))
    assert not F.stationarity(block, signal).within_noise.any()
    assert ratios[0] > 2
    assert ratios[1] == pytest.approx(4 * ratios[0], rel=0.2)  # as the root of the number of samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_alone_are_those_of_the_geometry(dtype: torch.dtype) -> None:
    for kinks in (0, 3):
        problem = kinked_problem(5, neurons=300, d=200, outputs=2, kinks=kinks)
        block = problem.block.cast(dtype)
        sums = neuron_sums(block, BlockSignal(problem.X.to(dtype), problem.signal.G.to(dtype)))
        slopes, geometry = slopes_from_sums(block, sums), geometry_from_sums(block, sums)
        for name in ("radial", "steepest", "output_gradient", "noise", "kink_count", "pull", "slope_to_noise"):
            assert_close(getattr(slopes, name).double(), getattr(geometry, name).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("inputs", "samples"), [(2, 300_000), (20, 300_000), (300, 20_000)])
def test_samples_on_a_kink_by_chance_are_no_kink(inputs: int, samples: int) -> None:
    draw = torch.Generator().manual_seed(0)
    block = ShallowBlock(torch.randn(64, inputs, generator=draw), torch.randn(1, 64, generator=draw))
    signal = BlockSignal(torch.randn(samples, inputs, generator=draw), torch.randn(samples, 1, generator=draw))
    sums = neuron_sums(block, signal)
    assert (sums.kink_count > 0).sum() >= 4
    # The cosine of the angle to a random direction has this density at 0.
    density = math.exp(math.lgamma(inputs / 2) - math.lgamma((inputs - 1) / 2)) / math.pi**0.5
    assert_close(float(sums.by_chance.mean()), 2 * samples * 1e-6 * density, rtol=0.1, atol=0.0)
    assert kinks_beyond_chance(sums).sum() <= 1
    assert len(without_chance_kinks(sums).kinks.c) <= 4
    geometry = F.neuron_geometry(block, signal)
    assert torch.equal(geometry.within, sums.kink_count)
    assert (geometry.kink_count > 0).sum() <= 1


def test_a_neuron_that_is_held_on_a_kink_is_told_from_those_there_by_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(100_000, 20, generator=draw)
    X[::1000, 0] = 0.0  # samples that neuron 0 sees the kink on
    X[::1000, 1:] = X[0, 1:]
    W = torch.randn(64, 20, generator=draw)
    W[0] = torch.eye(20)[0]
    geometry = F.neuron_geometry(ShallowBlock(W, torch.ones(1, 64)), BlockSignal(X, torch.ones(100_000, 1)))
    assert geometry.kink_count[0] == 100
    assert (geometry.kink_count > 0).sum() <= 2


def test_of_a_few_samples_each_one_counts() -> None:
    X = torch.tensor([[0.0, 1.0], [1e-3, 1.0], [2e-3, 1.0]]).double()
    block = ShallowBlock(torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 1).double())
    assert F.neuron_geometry(block, BlockSignal(X, torch.ones(3, 1).double()), kink_tol=5e-4).kink_count.tolist() == [1]


def test_pull_is_the_derivative_by_the_output_weights_of_a_neuron_of_length_one() -> None:
    problem = kinked_problem(6, neurons=5, outputs=2, kinks=0)
    block = replace(problem.block, W=problem.block.W / problem.block.W.norm(dim=1, keepdim=True))
    expected = F.neuron_geometry(block, problem.signal).output_gradient.norm(dim=0)
    assert_close(F.neuron_geometry(problem.block, problem.signal).pull, expected)
