"""Nodes: exact where the rule is, uniform and independent where drawn, refused where they would not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.quasirandom import SobolEngine
from torch.testing import assert_close

from relu_diag.functional.integral import Box, Gaussian, as_domain, random_shift, sobol_points, tensor_nodes


@pytest.mark.parametrize("d", [1, 2, 3])
def test_tensor_nodes_integrate_polynomials_exactly(d: int) -> None:
    box = Box(((-1.0, 2.0), (0.0, 1.0), (0.5, 3.0))[:d])
    X, weights = tensor_nodes(box, order=4)
    for power in range(8):
        exact = math.prod((b ** (power + 1) - a ** (power + 1)) / (power + 1) for a, b in box.sides)
        assert_close(float(weights @ (X**power).prod(dim=1)), exact)
    X, weights = tensor_nodes(Gaussian(d, mean=1.0, std=2.0), order=4)
    moments = [1.0, 0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 0.0]
    for power, moment in enumerate(moments):
        assert_close(float(weights @ (((X - 1) / 2) ** power).prod(dim=1)), moment**d)


def test_sobol_points_are_those_of_the_engine() -> None:
    engine = SobolEngine(5, scramble=True, seed=3)
    expected = engine.draw(64, dtype=torch.float64)
    found = sobol_points(64, 5, engine.shift, seed=3)
    assert_close(found[1:], expected[1:], rtol=0, atol=2.0**-29)  # at the middle of their cell
    assert_close(found[0], expected[0], rtol=0, atol=1e-7)  # the engine keeps its first point in float32


def test_shifts_keep_points_evenly_spread_and_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (sobol_points(256, 3, random_shift(3, generator)) for _ in range(2))
    for points in (first, second):
        cells = (256 * points).floor().long().sort(dim=0).values
        assert_close(cells, torch.arange(256)[:, None].expand(-1, 3))
        assert points.min() > 0
        assert points.max() < 1
    assert not torch.equal(first, second)


def test_points_are_carried_into_the_domain() -> None:
    u = sobol_points(4096, 2, torch.zeros(2, dtype=torch.long))
    box = Box(((-1.0, 2.0), (5.0, 6.0))).place(u)
    assert_close(box.mean(0), torch.tensor([0.5, 5.5], dtype=torch.float64), rtol=1e-3, atol=1e-3)
    assert (box.amin(0) > torch.tensor([-1.0, 5.0])).all()
    normal = Gaussian(2, mean=3.0, std=0.5).place(u)
    assert_close(normal.mean(0), torch.tensor([3.0, 3.0]).double(), rtol=1e-3, atol=0)
    assert_close(normal.std(0), torch.tensor([0.5, 0.5]).double(), rtol=1e-2, atol=0)


def test_grids_that_would_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"16 nodes in each of 10 inputs needs 9.01e\+04 GiB.* Sobol points: MonteC"):
        tensor_nodes(Gaussian(10), order=16)
    with pytest.raises(ValueError, match="`order` must be at least 1; got 0"):
        tensor_nodes(Gaussian(1), order=0)


def test_domains_are_read_from_what_users_write() -> None:
    assert as_domain((0, 1)) == Box(((0.0, 1.0),))
    assert as_domain([(0, 1), [2, 3]]) == Box(((0.0, 1.0), (2.0, 3.0)))
    assert as_domain(Gaussian(3)) == Gaussian(3)
    for wrong in (3.0, [], [1, 2, 3], "box", [[[1, 2]]], [(1, 2), (3,)]):
        with pytest.raises(TypeError, match="`domain` must be a Box, a Gaussian"):
            as_domain(wrong)
    for wrong in ((1, 0), (0, math.inf), [(0, 1), (1, 1)]):
        with pytest.raises(ValueError, match=r"must be \(low, high\) with finite low < high"):
            as_domain(wrong)
    for options in ({"dimension": 0}, {"dimension": 1, "std": 0.0}, {"dimension": 1, "mean": math.nan}):
        with pytest.raises(ValueError, match=r"`dimension` must be|`mean` must be"):
            Gaussian(**options)
