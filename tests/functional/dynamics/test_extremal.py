import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tensors import normal
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -0.5), (0.0, -1.5)]


def problem(seed: int, d: int) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Inputs, loss gradients and slopes, degenerate in one way or another more often than not."""
    draw = torch.Generator().manual_seed(seed)
    samples, outputs = (int(torch.randint(1, high, (1,), generator=draw)) for high in (9, 4))
    X, G = normal(draw, samples, d), normal(draw, samples, outputs)
    if seed % 3 == 0:
        X[:, -1] = 1.0
    if seed % 5 == 0:
        X[-1] = -2.0 * X[0]
    if seed % 7 == 0:
        X[0] = 0.0
    if seed % 4 == 0:
        G[-1] = 0.0
    return X, G, SLOPES[seed % len(SLOPES)]


def strength(V: Tensor, X: Tensor, G: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The definition of ``||D(v)||``."""
    Z = V @ X.T
    return (torch.where(Z >= 0, slopes[1] * Z, slopes[0] * Z) @ G).norm(dim=1)


def on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=1)


# All maxima in one and two dimensions


@pytest.mark.parametrize("seed", range(60))
def test_sweep_finds_the_local_maxima_of_a_dense_scan(seed: int) -> None:
    X, G, slopes = problem(seed, d=2)
    found = F.extremal_directions(X, G, slopes)
    angle = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)[:-1]
    height = strength(on_circle(angle), X, G, slopes)
    peak = (height > height.roll(1)) & (height >= height.roll(-1)) & (height > 1e-9)
    # 3e-5 rad between neighbours: next to a kink the scan misses that share of the height.
    assert_close(found.gain, height[peak].sort(descending=True).values, rtol=1e-3, atol=1e-4)
    assert_close(strength(found.v, X, G, slopes), found.gain)
    cosine = found.v @ on_circle(angle[peak]).T
    assert len(cosine) == 0 or cosine.amax(dim=1).min() > math.cos(1e-4)


def test_one_dimension_has_its_two_directions() -> None:
    X, G = torch.tensor([[2.0], [-1.0]]).double(), torch.tensor([[-1.0], [3.0]]).double()
    found = F.extremal_directions(X, G)
    assert_close(found.v, torch.tensor([[-1.0], [1.0]]).double())
    assert_close(found.gain, torch.tensor([3.0, 2.0]).double())
    assert_close(found.o, torch.tensor([[-1.0], [1.0]]).double())


def test_maximum_on_a_kink_is_found_on_it() -> None:
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    # Without the second sample D would be largest at (1, 0); with it, it falls to that side as it does to the other.
    found = F.extremal_directions(X, torch.tensor([[1.0], [-2.0]]).double(), slopes=(-1.0, 1.0))
    assert_close(found.v.abs().sort(dim=1).values, torch.tensor([[0.0, 1.0]]).double().expand(4, 2), rtol=0, atol=1e-15)
    assert_close(found.gain, torch.tensor([2.0, 2.0, 1.0, 1.0]).double())


# More dimensions: what is found is a maximum


@pytest.mark.parametrize("seed", range(24))
def test_no_direction_nearby_is_higher(seed: int) -> None:
    X, G, slopes = problem(seed, d=3 + seed % 2)
    draw = torch.Generator().manual_seed(seed)
    found = F.extremal_directions(X, G, slopes, starts=normal(draw, 20, X.shape[1]))
    assert_close(found.v.norm(dim=1), torch.ones_like(found.gain))
    for radius in (1e-5, 1e-7):
        for v, gain in zip(found.v, found.gain, strict=True):
            nearby = torch.nn.functional.normalize(v + radius * normal(draw, 500, len(v)), dim=1)
            # A slope of 1e-9 of the height counts as level.
            # A slope of 1e-9 of the height counts as level; the steps are up to four radii long.
            assert strength(nearby, X, G, slopes).max() <= gain * (1 + 4e-9 * radius + 1e-14)


@pytest.mark.parametrize("seed", range(24))
def test_highest_is_higher_than_everything_sampled(seed: int) -> None:
    X, G, slopes = problem(seed, d=3)
    draw = torch.Generator().manual_seed(seed)
    found = F.extremal_directions(X, G, slopes, starts=normal(draw, 50, 3))
    sampled = torch.nn.functional.normalize(normal(draw, 20_000, 3), dim=1)
    assert found.gain[0] >= strength(sampled, X, G, slopes).max()


def test_many_samples_are_searched_as_well() -> None:
    draw = torch.Generator().manual_seed(0)
    X, G = normal(draw, 300, 5), normal(draw, 300, 2)
    found = F.extremal_directions(X, G)
    sampled = torch.nn.functional.normalize(normal(draw, 50_000, 5), dim=1)
    # Dense kinks hide a maximum by less than this, and samples this sparse are lower by more.
    assert found.gain[0] >= strength(sampled, X, G, (0.0, 1.0)).max() * (1 - 1e-3)
    closest = torch.cdist(found.v, found.v).fill_diagonal_(2.0).min()
    assert closest > 0.05


@pytest.mark.parametrize("seed", range(12))
def test_plane_in_four_dimensions_has_no_maxima_but_those_of_the_plane(seed: int) -> None:
    X, G, slopes = problem(seed, d=2)
    draw = torch.Generator().manual_seed(seed)
    plane = torch.linalg.qr(normal(draw, 4, 2)).Q.T
    flat = F.extremal_directions(X, G, slopes)
    found = F.extremal_directions(X @ plane, G, slopes, starts=normal(draw, 40, 2) @ plane)
    assert len(found.gain) == 0 or len(found.gain) >= len(flat.gain) - 1  # a narrow one may be missed
    assert_close(found.gain[:1], flat.gain[:1])
    lifted = flat.v @ plane
    nearest = (found.v @ lifted.T).argmax(dim=1)
    assert_close(found.v, lifted[nearest], rtol=0, atol=1e-7)  # slopes of 1e-9 of the height count as level


def test_directions_level_to_first_order_are_left_where_a_quarter_turn_away_is_higher() -> None:
    X, G = torch.eye(4).double(), torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).double()
    found = F.extremal_directions(X, G)  # every start is one of the axes, all of them level
    assert_close(found.gain, torch.tensor([4.0]).double())
    assert_close(found.v, X[3:])


# Conventions and invariances


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_output_weights_are_those_that_grow(seed: int, d: int) -> None:
    X, G, slopes = problem(seed, d)
    found = F.extremal_directions(X, G, slopes)
    Z = found.v @ X.T
    D = torch.where(Z >= 0, slopes[1] * Z, slopes[0] * Z) @ G
    assert_close(-found.o * found.gain[:, None], D)
    assert (found.gain.diff() <= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_order_scale_and_rotation_of_the_samples_do_not_matter(seed: int, d: int) -> None:
    X, G, slopes = problem(seed, d)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(X), generator=draw)
    Q = torch.linalg.qr(normal(draw, d, d)).Q
    scale = torch.rand(len(X), 1, generator=draw).double() + 0.5
    expected = F.extremal_directions(X, G, slopes)
    found = F.extremal_directions((scale * X)[order] @ Q, (3e-8 * G / scale)[order], slopes)
    if d == 2:
        assert_close(found.gain, 3e-8 * expected.gain)
    elif len(expected.gain):  # which of the lower ones are reached depends on the starts
        assert_close(found.gain[:1], 3e-8 * expected.gain[:1])


def test_starts_find_more() -> None:
    draw = torch.Generator().manual_seed(3)
    X, G = normal(draw, 30, 6), normal(draw, 30, 1)
    few, many = F.extremal_directions(X, G), F.extremal_directions(X, G, starts=normal(draw, 300, 6))
    assert len(many.gain) > len(few.gain)


def test_nothing_felt_gives_no_direction() -> None:
    X = torch.eye(3).double()
    for inputs in (X[:, :1], X[:, :2], X):
        found = F.extremal_directions(inputs, torch.zeros(3, 2).double())
        assert found.v.shape == (0, inputs.shape[1])
        assert found.o.shape == (0, 2)
        assert str(found) == "0 extremal directions"


def test_float32_inputs_give_no_direction_of_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(50, 2, generator=draw)
    X = torch.cat([X, X])
    G = torch.randn(50, 1, generator=draw)
    G = torch.cat([G, -G * (1 + 1e-7)])  # cancels but for rounding
    assert len(F.extremal_directions(X, G).gain) == 0


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": torch.ones(2, 2).double()}, "`starts` needs the columns of X"),
        ({"starts": torch.ones(3).double()}, "`starts` needs the columns of X"),
        ({"G": torch.ones(4, 1).double()}, "`G` needs one row per sample"),
        ({"X": torch.full((3, 3), math.nan).double()}, "`X` has NaN"),
        ({"slopes": (1.0, 1.0)}, "`slopes` must differ"),
    ],
)
def test_input_that_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.extremal_directions(**({"X": torch.eye(3).double(), "G": torch.ones(3, 1).double()} | change))
