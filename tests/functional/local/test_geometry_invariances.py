"""What the geometry must not depend on, and how it must change where it may."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reference import Problem, kinked_problem, problems
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag.functional import neuron_geometry, tangential_derivatives


def assert_same_geometry(block: ShallowBlock, signal: BlockSignal, other: BlockSignal) -> None:
    one, two = neuron_geometry(block, signal), neuron_geometry(block, other)
    for name in ("radial", "steepest", "output_gradient", "smooth"):
        assert_close(getattr(one, name), getattr(two, name))


@given(problems())
def test_neurons_can_be_renumbered(problem: Problem) -> None:
    order = torch.randperm(len(problem.block.W), generator=torch.Generator().manual_seed(0))
    signal = problem.signal
    block = replace(problem.block, W=problem.block.W[order], H=problem.block.H[:, order])
    other = replace(signal, C=None if signal.C is None else signal.C[:, order])
    one, two = neuron_geometry(problem.block, signal), neuron_geometry(block, other)
    for name in ("radial", "steepest", "smooth", "kink_count"):
        assert_close(getattr(one, name)[order], getattr(two, name))
    assert_close(one.output_gradient[:, order], two.output_gradient)


@given(problems(), st.floats(1e-3, 1e3))
def test_rescaled_neurons_have_rescaled_slopes(problem: Problem, factor: float) -> None:
    """``(c w, h / c)`` is the same function: slopes per length of w shrink by c, the gradient of h grows by c."""
    problem = replace(problem, penalty=0.0)
    block = replace(problem.block, W=factor * problem.block.W, H=problem.block.H / factor)
    one, two = neuron_geometry(problem.block, problem.signal), neuron_geometry(block, problem.signal)
    assert_close(one.radial, factor * two.radial)
    assert_close(one.steepest, factor * two.steepest)
    assert_close(factor * one.output_gradient, two.output_gradient)
    assert one.kink_count.tolist() == two.kink_count.tolist()


@given(problems())
def test_samples_can_be_shuffled_and_split_in_two_of_half_the_weight(problem: Problem) -> None:
    signal = problem.signal
    order = torch.randperm(2 * len(signal.X), generator=torch.Generator().manual_seed(0)) % len(signal.X)
    halves = BlockSignal(signal.X[order], signal.G[order] / 2, None if signal.C is None else signal.C[order] / 2)
    assert_same_geometry(problem.block, halves, signal)


@given(problems())
def test_input_space_can_be_rotated(problem: Problem) -> None:
    d = problem.X.shape[1]
    generator = torch.Generator().manual_seed(d)
    Q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
    block, signal = replace(problem.block, W=problem.block.W @ Q), replace(problem.signal, X=problem.X @ Q)
    one, two = neuron_geometry(problem.block, problem.signal), neuron_geometry(block, signal)
    for name in ("radial", "steepest", "output_gradient", "kink_count"):
        assert_close(getattr(one, name), getattr(two, name))
    assert_close(one.smooth @ Q, two.smooth)
    assert_close(tangential_derivatives(block, signal, one.direction @ Q), one.steepest)


def test_samples_at_zero_change_nothing_and_are_on_no_kink() -> None:
    problem = kinked_problem(8, d=3)
    signal = problem.signal
    padded = BlockSignal(
        torch.cat([torch.zeros(2, 3), signal.X, torch.zeros(1, 3)]),
        torch.cat([torch.ones(2, 1), signal.G, torch.ones(1, 1)]).double(),
    )
    assert_same_geometry(problem.block, padded, signal)
