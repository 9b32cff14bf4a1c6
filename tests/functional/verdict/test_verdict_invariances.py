"""What a verdict must not depend on: the same landscape written differently has the same verdict, and a true witness.

The points are stationary by construction, on kinks of every structure, or random; degenerate samples and neurons are
added to them: repeated and zero samples, samples no neuron sees, dead giants, neurons without input weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.reference_stationarity import random_problem, stationary_problem
from support.tensors import tensor, zeros
from support.verdicts import fall_seen
from torch import Tensor

from relu_diag import ShallowBlock, Verdict
from relu_diag import functional as F

POWERS = st.integers(-27, 27)  # of two: 1e-8 to 1e8


@dataclass(frozen=True)
class Landscape:
    """A block and its data; the loss is the sum of the squares."""

    block: ShallowBlock
    X: Tensor
    Y: Tensor

    def verdict(self, reduction: F.Reduction = "sum") -> Verdict:
        return F.classify(self.block, self.X, self.Y, reduction)

    def with_samples(self, X: Tensor, Y: Tensor) -> Landscape:
        return replace(self, X=torch.cat([self.X, X]), Y=torch.cat([self.Y, Y]))

    def with_neuron(self, w: Tensor, h: Tensor) -> Landscape:
        block = replace(
            self.block, W=torch.cat([self.block.W, w[None]]), H=torch.cat([self.block.H, h[:, None]], dim=1)
        )
        return replace(self, block=block)


@st.composite
def landscapes(draw: st.DrawFn) -> Landscape:
    """Stationary points of all kinds, and one random point in five."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    problem = random_problem(rng) if draw(st.integers(0, 4)) == 0 else stationary_problem(rng)
    W, H, X, Y = (torch.as_tensor(part) for part in (problem.W, problem.H, problem.X, problem.targets))
    return Landscape(ShallowBlock(W, H, problem.slopes), X, Y)


def same(one: Landscape, other: Landscape) -> None:
    before, after = one.verdict(), other.verdict()
    assert after.kind == before.kind, f"{before} -> {after}"


@given(landscapes(), st.randoms(use_true_random=False))
def test_neurons_and_samples_can_be_renumbered(landscape: Landscape, random: object) -> None:
    neurons, samples = list(range(len(landscape.block.W))), list(range(len(landscape.X)))
    random.shuffle(neurons)
    random.shuffle(samples)
    block = replace(landscape.block, W=landscape.block.W[neurons], H=landscape.block.H[:, neurons])
    same(landscape, Landscape(block, landscape.X[samples], landscape.Y[samples]))


@given(landscapes(), st.lists(st.integers(-40, 40), min_size=8, max_size=8))
def test_each_neuron_can_be_rescaled(landscape: Landscape, powers: list[int]) -> None:
    """``(c w, h / c)`` with c from 1e-12 to 1e12 is the same function to the last bit."""
    block = landscape.block
    c = 2.0 ** torch.tensor(powers[: len(block.W)], dtype=torch.float64)
    same(landscape, replace(landscape, block=replace(block, W=block.W * c[:, None], H=block.H / c)))


@given(landscapes(), st.lists(st.floats(1e-6, 1e6), min_size=8, max_size=8))
def test_a_rescaling_that_rounds_is_one_too(landscape: Landscape, factors: list[float]) -> None:
    block = landscape.block
    c = torch.tensor(factors[: len(block.W)], dtype=torch.float64)
    same(landscape, replace(landscape, block=replace(block, W=block.W * c[:, None], H=block.H / c)))


@given(landscapes(), POWERS, POWERS)
def test_inputs_and_outputs_have_no_unit(landscape: Landscape, by_X: int, by_Y: int) -> None:
    x, y = 2.0**by_X, 2.0**by_Y
    block = replace(landscape.block, W=landscape.block.W / x, H=landscape.block.H * y)
    same(landscape, Landscape(block, landscape.X * x, landscape.Y * y))


@given(landscapes(), POWERS)
def test_units_of_the_inputs_may_go_into_the_outputs(landscape: Landscape, power: int) -> None:
    x = 2.0**power
    same(landscape, Landscape(landscape.block, landscape.X * x, landscape.Y * x))


@given(landscapes(), st.integers(0, 10_000))
def test_the_input_space_can_be_rotated(landscape: Landscape, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    d = landscape.X.shape[1]
    Q = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64)).Q
    same(landscape, Landscape(replace(landscape.block, W=landscape.block.W @ Q), landscape.X @ Q, landscape.Y))


@given(landscapes(), st.integers(2, 5))
def test_samples_given_several_times_are_samples_of_that_weight(landscape: Landscape, times: int) -> None:
    """Without biases ``sqrt(n) (x, y)`` counts as ``n`` times ``(x, y)``."""
    repeated = Landscape(landscape.block, landscape.X.repeat(times, 1), landscape.Y.repeat(times, 1))
    same(landscape, repeated)
    root = times**0.5
    same(repeated, Landscape(landscape.block, landscape.X * root, landscape.Y * root))


@given(landscapes(), st.integers(-20, 27))
def test_samples_at_zero_and_their_targets_have_no_say_in_a_minimum(landscape: Landscape, power: int) -> None:
    d, J = landscape.X.shape[1], landscape.Y.shape[1]
    more = landscape.with_samples(zeros(2, d), torch.full((2, J), 2.0**power).double())
    before, after = landscape.verdict(), more.verdict()
    if before.theorem != "zero loss":
        assert after.kind == before.kind, f"{before} -> {after}"


@given(landscapes(), st.integers(0, 30))
def test_dead_giants_have_no_say(landscape: Landscape, power: int) -> None:
    """In a coordinate in which all samples are 1 there is a neuron that sees none of them."""
    block, X = landscape.block, landscape.X
    assume(0.0 in block.slopes)
    ones = Landscape(
        replace(block, W=torch.cat([block.W, zeros(len(block.W), 1)], dim=1)),
        torch.cat([X, torch.ones(len(X), 1).double()], dim=1),
        landscape.Y,
    )
    size = 2.0**power
    dead = size * off_side(block) * torch.eye(ones.X.shape[1], dtype=torch.float64)[-1]
    same(ones, ones.with_neuron(dead, torch.full((len(block.H),), size, dtype=torch.float64)))


@given(landscapes(), st.integers(0, 30))
def test_samples_that_no_neuron_sees_have_no_say_in_first_order(landscape: Landscape, power: int) -> None:
    """In a coordinate in which all samples are 0 and all neurons are off there is a sample that none of them sees."""
    block, X = landscape.block, landscape.X
    assume(0.0 in block.slopes)
    off = torch.full((len(block.W), 1), off_side(block), dtype=torch.float64)
    still = Landscape(
        replace(block, W=torch.cat([block.W, off], dim=1)),
        torch.cat([X, zeros(len(X), 1)], dim=1),
        landscape.Y,
    )
    unseen = 2.0**power * torch.eye(still.X.shape[1], dtype=torch.float64)[-1:]
    before, after = still.verdict(), still.with_samples(unseen, torch.ones(1, len(block.H)).double()).verdict()
    if before.kind != "global minimum":
        assert after.kind == before.kind, f"{before} -> {after}"


def off_side(block: ShallowBlock) -> float:
    """The side of the kink on which the unit is flat."""
    return -1.0 if block.slopes[0] == 0 else 1.0


@given(landscapes(), POWERS)
def test_output_weights_of_a_neuron_without_input_weights_have_no_size(landscape: Landscape, power: int) -> None:
    draw = torch.Generator().manual_seed(len(landscape.X))
    h = torch.randn(len(landscape.block.H), generator=draw, dtype=torch.float64)
    w = torch.zeros(landscape.X.shape[1], dtype=torch.float64)
    same(landscape.with_neuron(w, h), landscape.with_neuron(w, 2.0**power * h))


@settings(max_examples=60)
@given(landscapes(), st.lists(st.integers(-20, 20), min_size=8, max_size=8), st.integers(-20, 20))
def test_a_witness_falls_in_the_units_that_came_in(landscape: Landscape, powers: list[int], by_X: int) -> None:
    block = landscape.block
    c = 2.0 ** torch.tensor(powers[: len(block.W)], dtype=torch.float64)
    x = 2.0**by_X
    moved = Landscape(replace(block, W=block.W * c[:, None] / x, H=block.H / c), landscape.X * x, landscape.Y)
    verdict = moved.verdict()
    if verdict.direction is not None:
        parts = (verdict.direction.dW, verdict.direction.dH)
        assert float(torch.cat([part.flatten() for part in parts]).norm()) == pytest.approx(1.0)
        assert fall_seen(verdict, moved.block, moved.X, moved.Y, "sum") < 0


@given(landscapes())
def test_the_loss_never_rises_on_the_way_along_a_witness(landscape: Landscape) -> None:
    verdict = landscape.verdict()
    assume(verdict.direction is not None)
    along = verdict.direction
    losses = [
        float(F.squared_loss(along.applied_to(landscape.block, share * along.step), landscape.X, landscape.Y, "sum"))
        for share in np.linspace(0, 1, 201)
    ]
    lowest = np.minimum.accumulate(losses)
    assert (np.array(losses) - lowest <= 1e-13 * losses[0] + 1e-9 * (losses[0] - losses[-1])).all()


def test_a_witness_stops_before_a_rise_between_kinks() -> None:
    """The loss along the full step is lower at 8, 20, 40 and 70 per cent of it, and higher in between."""
    X = tensor(
        [1.0, 1.0], [-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0], [2.0, 1.0], [-2.0, 1.0], [-1.0, 1.0], [0.0, 1.0]
    )
    Y = tensor([1.0], [3.0], [-2.0], [0.0], [1.0], [1.0], [-3.0], [0.0], [-3.0])
    block = ShallowBlock(tensor([-2.0, 1.0], [0.0, 0.0]), tensor([-1.0, 0.0]))
    along = F.classify(block, X, Y).direction
    losses = [float(F.squared_loss(along.applied_to(block, t * along.step), X, Y)) for t in np.linspace(0, 1, 101)]
    assert (np.diff(losses) <= 1e-12).all()
    assert losses[-1] - losses[0] == pytest.approx(along.loss_change)


@pytest.mark.parametrize("length", [1.0, 1e4, 1e8])
def test_a_sample_the_neuron_does_not_see_hides_no_descent(length: float) -> None:
    X, Y = tensor([1.0, 0.0], [0.0, -length]), tensor([1.9], [10.0])
    block = ShallowBlock(tensor([1.0, 0.3]), tensor([1.0]))
    assert F.classify(block, X, Y).kind == "not stationary"


@pytest.mark.parametrize("length", [1.0, 1e4, 1e8, 1e12])
def test_long_samples_in_conflict_make_no_global_minimum(length: float) -> None:
    X, Y = tensor([length, 0.0], [length, 0.0], [0.0, 1.0]), tensor([1.0], [-1.0], [0.19])
    dead = ShallowBlock(tensor([-1.0, -1.0], [-1.0, -2.0]), tensor([1.0, 1.0]))
    assert F.classify(dead, X, Y).kind == "local minimum"
    spare = Landscape(dead, X, Y).with_neuron(zeros(2), zeros(1)).block
    verdict = F.classify(spare, X, Y)
    assert verdict.kind == "saddle"
    assert verdict.neurons.tolist() == [2]


@pytest.mark.parametrize("units", [-4, -1, 0, 1, 4])
def test_what_is_met_to_the_last_bit_is_met(units: int) -> None:
    """A sample at zero keeps its residual whatever the weights are: the point is a global minimum."""
    X, Y = tensor([1.0, 0.3], [0.2, 1.0], [0.0, 0.0]), tensor([1.0], [0.7], [5.0])
    W = tensor([1.0, 0.1], [0.1, 1.0])
    H = torch.linalg.lstsq((X @ W.T).relu(), Y).solution.T * (1 + units * 2.3e-16)
    assert F.classify(ShallowBlock(W, H), X, Y).kind == "global minimum"
    signal = F.squared_error_signal(ShallowBlock(W, H), X, Y)
    assert F.stationarity(ShallowBlock(W, H), signal).stationary.all()


def test_outputs_that_cancel_to_rounding_are_undecided_not_a_minimum() -> None:
    """Two neurons of 1e18 against each other: what is left of the loss, and of its slopes, is rounding."""
    X, Y = tensor([1.0, 0.3], [0.4, 1.0]), tensor([1.0], [2.0])
    W = tensor([1e9, 1e9], [1e9, 1e9 + 1e-6])
    verdict = F.classify(ShallowBlock(W, tensor([1e9, -1e9])), X, Y)
    assert verdict.kind in {"undecided", "not stationary"}


def test_inputs_of_very_different_lengths_hide_no_descent_of_a_neuron_that_sees_both() -> None:
    """Long samples in balance set the scale; across them a short one pulls, and fitting it lowers the loss."""
    X = tensor([1e11, 0.0], [1e11, 0.0], [0.0, 1.0])
    block = ShallowBlock(tensor([1.0, 1.0]), tensor([1.0]))
    Y = block(X) - tensor([1.0], [-1.0], [0.7])
    verdict = F.classify(block, X, Y)
    assert verdict.kind == "not stationary"
