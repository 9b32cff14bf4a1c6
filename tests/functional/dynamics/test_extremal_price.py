"""Extremal directions where activity has a price: against a dense scan, random search and the definition."""

from __future__ import annotations

import math

import pytest
import torch
from support.tensors import normal
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F

ZERO_LEG = [(0.0, 1.0), (0.5, 0.0), (0.0, -1.5), (-1.0, 0.0)]


def problem(seed: int, d: int, samples: int | None = None) -> tuple[Tensor, Tensor, tuple[float, float], float]:
    """Inputs, gradients, slopes and a price of which some directions are worth it."""
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 12, (1,), generator=draw)) if samples is None else samples
    X, G = normal(draw, count, d), normal(draw, count, 1 + seed % 3)
    if seed % 4 == 0:
        X[:, -1] = 1.0
    return X, G, ZERO_LEG[seed % 4], float(torch.rand(1, generator=draw)) * count


def height(V: Tensor, X: Tensor, G: Tensor, slopes: tuple[float, float], price: float) -> Tensor:
    """The definition."""
    Z = V @ X.T
    A = torch.where(Z >= 0, slopes[1] * Z, slopes[0] * Z)
    return (A @ G).norm(dim=1) - price * A.abs().mean(dim=1)


@pytest.mark.parametrize("seed", range(40))
def test_the_circle_has_the_positive_maxima_of_a_dense_scan(seed: int) -> None:
    X, G, slopes, price = problem(seed, d=2)
    found = F.extremal_directions(X, G, slopes, price=price)
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)[:-1]
    scan = height(torch.stack([angle.cos(), angle.sin()], dim=1), X, G, slopes, price)
    peak = (scan > scan.roll(1)) & (scan >= scan.roll(-1)) & (scan > 1e-9)
    assert found.exhaustive
    assert_close(found.gain, scan[peak].sort(descending=True).values, rtol=1e-3, atol=3e-4)
    assert_close(height(found.v, X, G, slopes, price), found.gain)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("samples", [None, 60])
def test_in_more_dimensions_none_of_many_random_directions_is_higher(seed: int, samples: int | None) -> None:
    X, G, slopes, price = problem(seed, d=3 + seed % 2, samples=samples)
    found = F.extremal_directions(X, G, slopes, price=price)
    draw = torch.Generator().manual_seed(99)
    V = torch.nn.functional.normalize(normal(draw, 20_000, X.shape[1]), dim=1)
    best = float(height(V, X, G, slopes, price).max())
    assert_close(height(found.v, X, G, slopes, price), found.gain)
    assert bool((found.gain > 0).all())
    if best > 1e-9:
        assert float(found.gain[0]) >= (1 - 1e-3) * best


@pytest.mark.parametrize("seed", range(12))
def test_no_direction_nearby_is_higher(seed: int) -> None:
    X, G, slopes, price = problem(seed, d=3)
    found = F.extremal_directions(X, G, slopes, price=price)
    draw = torch.Generator().manual_seed(5)
    for v, gain in zip(found.v, found.gain, strict=True):
        near = torch.nn.functional.normalize(v + 1e-3 * normal(draw, 500, 3), dim=1)
        assert float(height(near, X, G, slopes, price).max()) <= float(gain) * (1 + 1e-9)


def test_the_output_weights_are_those_of_the_steepest_fall() -> None:
    X, G, slopes, price = problem(5, d=3)
    found = F.extremal_directions(X, G, slopes, price=price)
    D = F.rho(found.v @ X.T, slopes) @ G
    assert_close(found.o, -D / D.norm(dim=1, keepdim=True))


def test_without_a_price_it_is_as_before_and_at_a_high_price_nothing_pays() -> None:
    X, G, slopes, _ = problem(3, d=3)
    assert torch.equal(F.extremal_directions(X, G, slopes).v, F.extremal_directions(X, G, slopes, price=0.0).v)
    assert len(F.extremal_directions(X, G, slopes, price=1e4).v) == 0
    assert len(F.extremal_directions(X[:, :2], G, slopes, price=1e4).v) == 0


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_a_price_is_a_finite_number_not_below_zero(price: float) -> None:
    with pytest.raises(ValueError, match="`price`"):
        F.extremal_directions(torch.eye(2), torch.ones(2, 1), price=price)


def test_a_price_on_an_activation_that_is_never_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="one zero slope"):
        F.extremal_directions(torch.eye(2), torch.ones(2, 1), (0.1, 1.0), price=1.0)
