"""Which directions no search may miss: with dead starts, with starts that pull nowhere, and all where faces are few."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics import extremal

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, -0.5), (0.0, -1.5)]


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def pull(V: Tensor, X: Tensor, G: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The definition of ``||D(v)||``."""
    Z = V @ X.T
    return (torch.where(Z >= 0, slopes[1] * Z, slopes[0] * Z) @ G).norm(dim=1)


def problem(seed: int) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Up to eight samples in three to five dimensions: integers, so that many are collinear or coplanar, or not."""
    draw = torch.Generator().manual_seed(seed)
    samples, d, outputs = 2 + seed % 6, 3 + seed % 3, 1 + seed % 2
    X, G = normal(draw, samples, d), normal(draw, samples, outputs)
    if seed % 4 == 0:
        X, G = (2 * X).round(), (2 * G).round()
    if seed % 4 == 1:
        X[:, -1] = 1.0
    if seed % 7 == 0:
        X[-1] = -2.0 * X[0]
    return X, G, SLOPES[seed % len(SLOPES)]


@pytest.mark.parametrize("seed", range(14))
def test_every_maximum_that_ascents_reach_is_listed_where_faces_are_few(seed: int, monkeypatch: Any) -> None:
    X, G, slopes = problem(seed)
    found = F.extremal_directions(X, G, slopes)
    assert found.exhaustive
    monkeypatch.setattr(extremal, "BUDGETS", dataclasses.replace(BUDGETS, few_samples=0))
    monkeypatch.setattr(extremal, "face_maxima", None)
    starts = normal(torch.Generator().manual_seed(seed), 60, X.shape[1])
    reached = F.extremal_directions(X, G, slopes, starts)
    if not len(reached.gain):
        assert not len(found.gain)
    elif seed % 4:
        assert torch.cdist(reached.v, found.v).amin(dim=1).max() < 1e-6
    else:  # integers have ridges, of which one point is listed
        assert_close(found.gain[0], reached.gain[0])


@pytest.mark.parametrize("seed", range(14))
def test_highest_is_higher_than_everything_sampled(seed: int) -> None:
    X, G, slopes = problem(seed)
    found = F.extremal_directions(X, G, slopes)
    V = torch.nn.functional.normalize(normal(torch.Generator().manual_seed(seed), 20_000, X.shape[1]), dim=1)
    highest = pull(V, X, G, slopes).max()
    assert float(found.gain[0] if len(found.gain) else 0.0) >= highest - 1e-12


@pytest.mark.parametrize(("samples", "d"), [(30, 6), (14, 12), (100, 3)])
def test_where_faces_are_many_it_says_so_and_is_higher_than_everything_sampled(samples: int, d: int) -> None:
    draw = torch.Generator().manual_seed(samples)
    X, G = normal(draw, samples, d), normal(draw, samples, 1)
    found = F.extremal_directions(X, G)
    V = torch.nn.functional.normalize(normal(draw, 50_000, d), dim=1)
    assert not found.exhaustive
    assert str(found).endswith("there may be others")
    assert found.gain[0] >= pull(V, X, G, (0.0, 1.0)).max() * (1 - 1e-3)


def test_dead_starts_hide_nothing() -> None:
    """Exclusive or at an output of 1/2: every sample alone is felt, and all of them together are not."""
    X = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]).double()
    G = torch.tensor([[0.25], [-0.25], [-0.25], [0.25]]).double()
    dead = torch.tensor([[-1.0, -1.0, -0.5], [-0.6, -0.4, -0.7]]).double()
    found = F.extremal_directions(X, G, starts=dead)
    V = torch.nn.functional.normalize(normal(torch.Generator().manual_seed(0), 50_000, 3), dim=1)
    assert len(found.gain) == 4
    assert found.gain[0] >= pull(V, X, G, (0.0, 1.0)).max()


def test_samples_without_a_pull_hide_nothing() -> None:
    X = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, -1.0, 1.0]]).double()
    G, slopes = torch.tensor([[-2.0], [-2.0], [2.0]]).double(), (-1.0, 1.0)
    assert pull(torch.cat([X, -X]), X, G, slopes).max() < 1e-12
    assert float(F.extremal_directions(X, G, slopes).gain[0]) == pytest.approx(8 / 6**0.5)


@pytest.mark.parametrize("seed", range(10))
def test_what_no_sample_spans_adds_nothing(seed: int) -> None:
    X, G, slopes = problem(seed)
    draw = torch.Generator().manual_seed(seed)
    plane = torch.linalg.qr(normal(draw, 9, X.shape[1])).Q.T
    expected, found = (F.extremal_directions(inputs, G, slopes) for inputs in (X, X @ plane))
    assert found.exhaustive
    assert_close(found.gain, expected.gain)
    assert_close(pull(found.v, X @ plane, G, slopes), found.gain)


def test_samples_that_cancel_leave_no_kink_and_no_direction() -> None:
    X = torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0)
    G = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)[:, None]
    found = F.extremal_directions(X, G)
    assert len(found.gain) == 0
    assert found.exhaustive


def test_a_short_sample_with_a_large_residual_counts_as_a_dimension() -> None:
    X = torch.tensor([[5e5, 5e5], [2e-7, 0.0]], dtype=torch.float64)
    G = torch.tensor([[1.2e-5], [-1e7]], dtype=torch.float64)
    found = F.extremal_directions(X, G, slopes=(-1.0, 1.0))  # of 6 |v_1 + v_2| - 2 |v_1|
    assert found.exhaustive
    assert_close(found.gain[0], torch.tensor(52.0, dtype=torch.float64).sqrt())
