"""Kinks that nearly coincide, repeat or are many: the answers of one neuron with its kinks told apart one by one."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from support.reference import Array, Problem, kinked_problem, problems, steepest_by_sign_patterns
from torch import Tensor
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import block as block_module
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import (
    OneNeuron,
    _group_descents,
    _pairs,
    fan_rays,
    geometry_from_sums,
    hyperplanes,
    kink_groups,
    loudest_flat_directions,
    merge_collinear,
    neuron_sums,
    steepest_descent,
)
from relu_diag.functional.tolerances import FLOAT64

near = st.sampled_from([0.0, 1e-16, 1e-13, 1e-12, 1.5e-12, 1e-11, 0.7e-10, 1e-10, 1.5e-10, 2e-10, 1e-9, 1e-8, 1e-6])


@st.composite
def nearly_dependent(draw: st.DrawFn) -> Array:
    """Inputs of which many lie close to a line, a plane or a sum of others, at distances around every tolerance."""
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    d, m = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    X = rng.normal(size=(m, d))
    for k in range(1, m):
        aside = draw(near) * rng.normal(size=d)
        kind = draw(st.sampled_from(["own", "near one", "opposite one", "near a sum", "chain"]))
        if kind == "near one":
            X[k] = X[0] + aside
        if kind == "opposite one":
            X[k] = -3 * X[0] + aside
        if kind == "near a sum":
            X[k] = X[0] + X[k - 1] + aside
        if kind == "chain":
            X[k] = X[k - 1] + aside
    return X


@given(nearly_dependent(), st.integers(0, 1000))
def test_slopes_between_all_tolerances_are_the_minimum(X: Array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g, q = rng.normal(size=X.shape[1]), rng.normal(size=len(X))
    size = float(np.linalg.norm(g) + np.abs(q) @ np.linalg.norm(X, axis=1))
    found = steepest_descent(g, q, X)
    # Merging moves a hyperplane by the tolerance at most, and the slope by so much of its terms.
    assert_allclose(found.slope, steepest_by_sign_patterns(g, q, X), atol=len(X) * 10 * FLOAT64.same_line * size)


@given(nearly_dependent())
def test_rays_leave_all_but_one_dimension_of_hyperplanes(X: Array) -> None:
    normals = hyperplanes(X).X
    rays = fan_rays(normals)
    assert rays is not None
    assert len(rays) >= 2
    assert_allclose(np.linalg.norm(rays, axis=1), 1, rtol=1e-6)
    rank = np.linalg.matrix_rank(normals, tol=FLOAT64.rank * np.sqrt(len(normals)))
    for ray in rays:
        walls = normals[np.abs(normals @ ray) <= FLOAT64.same_side]
        assert len(walls) >= rank - 1


@given(nearly_dependent(), st.integers(0, 1000))
def test_hyperplanes_do_not_depend_on_the_order_of_the_inputs(X: Array, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(X))
    one, two = hyperplanes(X), hyperplanes(X[order])
    alike = one.plane[:, None] == one.plane
    assert (alike[order][:, order] == (two.plane[:, None] == two.plane)).all()


@given(nearly_dependent(), st.integers(1, 6), st.integers(0, 1000))
def test_repeats_change_no_hyperplane(X: Array, times: int, seed: int) -> None:
    q = np.random.default_rng(seed).normal(size=len(X))
    one = merge_collinear(q, X)
    many = merge_collinear(np.tile(q / times, times), np.tile(X, (times, 1)))
    assert_allclose(one[1], many[1], atol=0)
    assert_allclose(one[0], many[0], atol=1e-13 * np.abs(q).max() * np.linalg.norm(X, axis=1).max())


def test_kinks_that_nearly_coincide_and_cancel_pull_nowhere() -> None:
    X = np.array([[1.0, 0.0, 0.0], [1.0, 1e-7, 0.0], [0.0, 1.0, 1.0]])
    kinks = np.array([[1.0], [-1.0], [1e-9]])
    neuron = OneNeuron(np.zeros(3), np.zeros(3), np.zeros((1, 3)), kinks, X)
    deaf, heard = loudest_flat_directions([neuron, neuron], flat=[1e-9, 1e-9], loud=[1e-6, 1e-8])
    assert deaf.decided
    assert not deaf.direction.any()
    assert heard.direction.any()


def crowded(seed: int, d: int, outputs: int, kinks: int, silent: bool) -> tuple[ShallowBlock, BlockSignal]:
    """Twelve neurons on three lines and without input weights: those on a line see the same kinks."""
    problem = kinked_problem(seed, d=d, outputs=outputs, neurons=3, kinks=kinks)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(4, generator=generator, dtype=torch.float64)
    factors[0] = 0.0
    W = torch.cat([factor * problem.block.W for factor in factors])
    H = torch.randn(outputs, 12, generator=generator, dtype=torch.float64)
    if silent:
        H[:, ::5] = 0.0
    block = ShallowBlock(W, H, problem.block.slopes)
    return block, BlockSignal(problem.X, problem.signal.G)


@given(st.integers(0, 500), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.booleans())
def test_neurons_together_are_what_each_is_alone(seed: int, d: int, outputs: int, kinks: int, silent: bool) -> None:
    block, signal = crowded(seed, d, outputs, kinks, silent)
    together = F.stationarity(block, signal)
    for i in (0, 4, 10, 11):
        one = replace(block, W=block.W[[i]], H=block.H[:, [i]])
        alone = F.stationarity(one, signal)
        size = 1e-9 * float(together.scale[i])
        assert float(together.slope[i]) == pytest.approx(float(alone.slope), abs=size)
        assert bool(together.geometry.exact[i]) == bool(alone.geometry.exact)
        if torch.isfinite(together.margin[i]):
            assert float(together.margin[i]) == pytest.approx(float(alone.margin), abs=size)


@given(st.integers(0, 500), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0, 3, 40]))
def test_claims_hold_however_little_is_searched(seed: int, d: int, outputs: int, patterns: int) -> None:
    block, signal = crowded(seed, d, outputs, kinks=3, silent=True)
    exact = F.neuron_geometry(block, signal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_group_descents, "BUDGETS", replace(BUDGETS, all_patterns=patterns))
        found = F.neuron_geometry(block, signal)
    size = 1e-9 * neuron_sums(block, signal).terms
    assert bool((found.steepest >= exact.steepest - size).all())
    assert bool((found.steepest[found.exact] <= exact.steepest[found.exact] + size[found.exact]).all())
    reached = F.tangential_derivatives(block, signal, found.direction)
    assert bool(((reached - found.steepest).abs() <= size).all())


def test_neurons_on_one_line_are_one_group_whatever_their_length_and_side() -> None:
    block, signal = crowded(0, d=3, outputs=2, kinks=2, silent=False)
    sums = neuron_sums(block, signal)
    groups = kink_groups(block, sums.smooth, sums.kinks)
    assert sorted(group.neurons.tolist() for group in groups) == [[0, 1, 2], [3, 6, 9], [4, 7, 10], [5, 8, 11]]


@given(st.integers(0, 500), st.floats(-18, 18))
def test_a_large_neuron_with_the_same_kinks_changes_nothing_for_a_small_one(seed: int, power: float) -> None:
    block, signal = crowded(seed, d=3, outputs=2, kinks=4, silent=False)
    # The large one is deaf to the first sample, which the others feel.
    e = signal.G[0]
    H = block.H.clone()
    H[:, 0] = 10.0**power * torch.stack([-e[1], e[0]])
    one = F.stationarity(block, signal)
    two = F.stationarity(replace(block, H=H), signal)
    others = torch.arange(1, len(block.W))
    assert_close(two.slope[others], one.slope[others])
    assert_close(two.margin[others], one.margin[others], equal_nan=True)


@given(problems(), st.floats(-6, 6))
def test_neurons_without_input_weights_are_judged_alike_whatever_the_size_of_their_output_weights(
    problem: Problem, power: float
) -> None:
    W = problem.block.W.clone()
    W[::2] = 0.0
    signal = replace(problem.signal, C=None)
    H = problem.block.H.clone()
    H[:, ::2] *= 10.0**power
    one = F.stationarity(replace(problem.block, W=W), signal)
    two = F.stationarity(replace(problem.block, W=W, H=H), signal)
    assert one.stationary.tolist() == two.stationary.tolist()
    assert one.decided.tolist() == two.decided.tolist()
    assert_close(one.slope[::2] * 10.0**power, two.slope[::2])


@given(problems())
def test_directions_are_tangential_or_zero(problem: Problem) -> None:
    found = F.neuron_geometry(problem.block, problem.signal)
    along = (found.direction * problem.block.W).sum(1).abs()
    assert bool((along <= 1e-12 * problem.block.W.norm(dim=1)).all())
    length = found.direction.norm(dim=1)
    assert bool(((length - 1).abs() <= 1e-12)[found.steepest < 0].all())
    assert bool((length[found.steepest == 0] == 0).all())


def radial_up_to_rounding(w: Tensor, generator: torch.Generator) -> BlockSignal:
    """Gradients and kinks whose tangential parts are all rounding."""
    c = torch.randn(2, 1, generator=generator, dtype=torch.float64)
    return BlockSignal(torch.stack([w * float(c[0]), -w * float(c[1])]), c.flip(0))


@pytest.mark.parametrize("d", [2, 3, 7])
def test_where_the_slope_is_rounding_the_direction_is_tangential_or_zero(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    for _ in range(200):
        w = torch.randint(-3, 4, (d,), generator=generator).double()
        if not w.any():
            continue
        block = ShallowBlock(w[None], torch.ones(1, 1).double(), (0.5, 1.0))
        direction = F.neuron_geometry(block, radial_up_to_rounding(w, generator)).direction[0]
        assert abs(float(direction @ w)) <= 1e-12 * float(w.norm())


def test_samples_repeated_more_often_than_pairs_are_kept_lose_nothing() -> None:
    problem = kinked_problem(0, d=3, outputs=2, kinks=2)
    once = F.stationarity(problem.block, problem.signal)
    times = BUDGETS.kinks
    often = BlockSignal(problem.X.repeat(times, 1), problem.signal.G.repeat(times, 1) / times)
    found = F.stationarity(problem.block, often)
    assert found.geometry.kink_count.tolist() == [times * count for count in once.geometry.kink_count.tolist()]
    assert not bool(neuron_sums(problem.block, often).lost.any())
    assert bool(found.decided.all())
    assert_close(found.slope, once.slope)
    assert_close(found.margin, once.margin)


@pytest.mark.parametrize("cut", [40, 1000])
def test_repeats_in_other_chunks_and_batches_count_once(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = kinked_problem(1, d=3, neurons=5, kinks=2)
    signal = BlockSignal(problem.X.repeat(100, 1), problem.signal.G.repeat(100, 1))
    whole = neuron_sums(problem.block, signal)
    monkeypatch.setattr(_pairs, "BUDGETS", replace(BUDGETS, kinks=6))
    monkeypatch.setattr(block_module, "BUDGETS", replace(BUDGETS, chunk=1))
    parts = [BlockSignal(signal.X[rows], signal.G[rows]) for rows in (slice(cut), slice(cut, None))]
    sums = neuron_sums(problem.block, parts[0]) + neuron_sums(problem.block, parts[1])
    assert not bool(sums.lost.any())
    assert len(sums.kinks.c) <= 6 * 5
    one, two = (geometry_from_sums(problem.block, each) for each in (whole, sums))
    assert_close(one.steepest, two.steepest)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [4, 5, 60])
def test_a_thousand_neurons_on_fifty_kinks_take_seconds(inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(10_000, inputs, generator=generator, dtype=torch.float64)
    X[:, 0].abs_()
    X[:50, 0] = 0.0
    W = torch.zeros(1000, inputs, dtype=torch.float64)
    W[:, 0] = torch.randn(1000, generator=generator, dtype=torch.float64)
    block = ShallowBlock(W, torch.randn(10, 1000, generator=generator, dtype=torch.float64).abs())
    Y = block(X)
    Y[:50] -= torch.randn(50, 10, generator=generator, dtype=torch.float64).abs()  # held on every kink
    start = time.process_time()
    assert F.classify(block, X, Y).kind == "local minimum"
    assert time.process_time() - start < 10
