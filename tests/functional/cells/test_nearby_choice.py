"""Which stationary point is the nearby one: the point itself, the nearest of all strata, however it is written down."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.iterates import iterate
from support.trained import Problem, descend, draw_problem, exact_minimum, nearest_by_force
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F

STATIONARY = {"saddle", "type-2 candidate", "local minimum", "global minimum"}


def size_of(p: Problem) -> float:
    return float(np.sqrt(np.square(p.W).sum() + np.square(p.H).sum() + np.square(p.b).sum()))


def check_fixed_point(seed: int) -> int:
    """Whether there was a minimum to check."""
    p = exact_minimum(seed)
    if p is None:
        return 0
    near = F.nearby_stationary_point(p.block, *p.data)
    assert near.genuine
    assert near.verdict.kind == F.classify(p.block, *p.data).kind
    assert near.distance <= 1e-8 * size_of(p)
    assert len(near.zeroed) == 0
    return 1


def test_exact_minimum_is_its_own_nearby_point() -> None:
    assert sum(check_fixed_point(seed) for seed in range(12)) >= 4


@pytest.mark.slow
def test_exact_minima_are_their_own_nearby_points() -> None:
    assert sum(check_fixed_point(seed) for seed in range(100, 140)) >= 16


def check_against_force(seed: int) -> bool:
    """Whether there was a point near enough to be asked for."""
    p = draw_problem(seed, small=True)
    descend(p, int(10 ** np.random.default_rng(seed).uniform(1.5, 3.5)))
    near = F.nearby_stationary_point(p.block, *p.data)
    distance, _ = nearest_by_force(p)
    size = max(1.0, size_of(p))
    found = near.verdict.kind in STATIONARY and not near.reason
    assert found or distance > 0.1 * size
    if found and near.distance < 0.1 * size:
        assert near.distance <= 1.05 * distance + 1e-9 * size  # a point without its small neurons may be 5 % farther
    return found


def test_nearby_point_is_the_nearest_of_all_strata() -> None:
    assert sum(check_against_force(seed) for seed in range(15)) >= 8


@pytest.mark.slow
def test_nearby_points_are_the_nearest_of_all_strata() -> None:
    assert sum(check_against_force(seed) for seed in range(100, 140)) >= 20


def test_large_neuron_that_holds_still_is_not_put_to_zero() -> None:
    """Its samples are on the leaky side: it contributes little, and is long."""
    X = torch.tensor([[1.0, 1.0], [-0.5, 1.0], [0.2, 1.0], [2.0, 1.0]]).double()
    W = torch.tensor([[0.0, 0.5], [0.3, -1.0]]).double()
    block = ShallowBlock(W, torch.tensor([[0.1, 1.0]]).double(), (0.01, 1.0))
    Y = block(X)
    assert F.neuron_states(block, X, Y, small=0.5).small_living.any()
    off = 1e-4 * torch.tensor([[1.0, -1.0], [2.0, 1.0]]).double()
    near = F.nearby_stationary_point(ShallowBlock(W + off, block.H, block.slopes), X, Y, small=0.5)
    assert near.verdict.kind == "global minimum"
    assert len(near.zeroed) == 0
    assert near.distance < 1e-2


def test_neurons_held_on_a_kink_are_put_there_though_the_weights_beside_it_are_stationary() -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, 26_000)
    assert F.classify(block, X, Y, reduction).kind == "local minimum"
    held = F.nearby_stationary_point(block, X, Y, reduction)
    assert (held.verdict.kind, held.kink_count) == ("local minimum", 28)
    group = F.neuron_states(block, X, Y).group == 0
    few = torch.nonzero(~group | (group.cumsum(0) <= 2)).squeeze(1)
    scale = float(block.H[0, group] @ block.W[group].norm(dim=1)) / float(
        block.H[0, few][group[few]] @ block.W[few][group[few]].norm(dim=1)
    )
    H = torch.where(group, scale * block.H, block.H)[:, few]
    alone = F.nearby_stationary_point(ShallowBlock(block.W[few], H), X, Y, reduction)
    assert alone.kink_count == 0  # so few may be beside a kink by accident


def test_far_from_every_stationary_point_it_says_so() -> None:
    for seed in range(20):
        p = draw_problem(seed)
        rng = np.random.default_rng(seed)
        p.W[:], p.H[:] = rng.standard_normal(p.W.shape), rng.standard_normal(p.H.shape)
        near = F.nearby_stationary_point(p.block, *p.data)
        assert near.reason or near.distance < 0.4 * max(1.0, size_of(p))


@pytest.mark.parametrize(("x", "w", "y"), [(1e200, 1, 1), (1, 1e200, 1), (1, 1, 1e200), (1e-200, 1, 1e200)])
def test_numbers_whose_squares_are_no_numbers_are_refused_in_words(x: float, w: float, y: float) -> None:
    X = x * torch.tensor([[1.0, 0.3], [0.2, 1.0], [-0.4, 1.0]]).double()
    block = ShallowBlock(w * torch.tensor([[0.5, 0.2]]).double(), torch.ones(1, 1).double())
    near = F.nearby_stationary_point(block, X, y * torch.tensor([[1.0], [-0.5], [0.3]]).double())
    assert (near.genuine, near.verdict.kind, near.distance) == (False, "undecided", 0.0)
    assert "rescale" in near.reason


# What it does not depend on


def rotation(draw: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(draw.standard_normal((d, d)))[0]


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 200),
    trained=st.booleans(),
    powers=st.tuples(st.integers(-8, 8), st.integers(-8, 8)),
    spread=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_order_rotation_and_units_change_nothing(
    seed: int, trained: bool, powers: tuple[int, int], spread: float
) -> None:
    p = draw_problem(seed)
    descend(p, 2000 if trained else 100)
    draw = np.random.default_rng(seed)
    x, y = (10.0**power for power in powers)
    order, rows = draw.permutation(len(p.W)), draw.permutation(len(p.X))
    Q, c = rotation(draw, p.X.shape[1]), 10 ** (spread * draw.standard_normal(len(p.W)))
    W, H = (c[:, None] * np.sqrt(y / x) * p.W @ Q)[order], (p.H * np.sqrt(y / x) / c)[:, order]
    other = Problem(x * (p.X @ Q)[rows], y * p.Y[rows], W, H, y * p.b, p.slopes, p.biased)
    near = F.nearby_stationary_point(p.block, *p.data)
    moved = F.nearby_stationary_point(other.block, *other.data)
    assert (moved.genuine, moved.verdict.kind) == (near.genuine, near.verdict.kind)
    assert moved.kink_count == near.kink_count
    if near.genuine:
        X, X_other = (torch.as_tensor(value) for value in (p.X, other.X))
        # Steps of the search are solved to 1e-6, and points need not be isolated.
        assert_close(moved.block(X_other) / y, near.block(X)[torch.as_tensor(rows)], rtol=1e-4, atol=1e-4)
        assert_close(moved.loss / y**2, near.loss, rtol=1e-5, atol=1e-10)
