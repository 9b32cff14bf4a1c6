"""All activation cells of a data set, and the best of all their minima."""

from __future__ import annotations

import math

import pytest
import torch
from support.tensors import column, normal
from torch.testing import assert_close

from relu_diag.functional import cells

AXES = torch.eye(2, dtype=torch.float64)
FIVE = torch.tensor([[-1.0, 1.0], [-0.6, 1.0], [-0.1, 1.0], [0.3, 1.0], [0.7, 1.0]], dtype=torch.float64)
FIVE_TARGETS = torch.tensor([[0.28], [-0.1], [0.03], [0.23], [-0.22]], dtype=torch.float64)


@pytest.mark.parametrize(("samples", "d"), [(1, 1), (4, 1), (1, 2), (5, 2), (9, 2), (2, 3), (6, 3), (8, 3), (5, 4)])
def test_the_number_of_cells_is_covers(samples: int, d: int) -> None:
    W = cells.cell_directions(normal(torch.Generator().manual_seed(samples), samples, d))
    assert len(W) == 2 * sum(math.comb(samples - 1, j) for j in range(d) if d > 1 or j == 0)
    assert_close(W.norm(dim=1), torch.ones(len(W), dtype=torch.float64))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_direction_falls_in_a_listed_cell_and_no_cell_is_listed_twice(d: int) -> None:
    draw = torch.Generator().manual_seed(d)
    X = normal(draw, 7, d)
    X[1] = 0.0
    X[2] = -3.0 * X[0]
    if d == 3:
        X[3] = X[0] + X[4]  # three hyperplanes through one line
    listed = {tuple(row) for row in (X @ cells.cell_directions(X).T > 0).T.tolist()}
    assert len(listed) == len(cells.cell_directions(X))
    # The narrowest cell of these draws is far wider than the spacing of so many directions.
    drawn = {tuple(row) for row in (X @ normal(draw, 50_000, d).T > 0).T.tolist()}
    assert drawn == listed


def test_samples_in_a_plane_leave_its_orthogonal_direction_alone() -> None:
    X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).double()
    W = cells.cell_directions(X)
    assert len(W) == 6
    assert_close(W[:, 2], torch.zeros(6).double())
    assert len(cells.cell_directions(torch.zeros(2, 3))) == 1


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="cells"):
        cells.cell_directions(torch.randn(200, 3))
    with pytest.raises(ValueError, match="combinations"):
        cells.all_cell_minima(FIVE, FIVE_TARGETS, width=7)


def test_the_best_cell_of_one_neuron_is_the_best_of_a_dense_sweep() -> None:
    # Least squares over the length of R along each direction, both signs.
    angle = torch.linspace(0, 2 * torch.pi, 20001, dtype=torch.float64)
    A = torch.stack([angle.cos(), angle.sin()], dim=1) @ FIVE.T
    A = A.clamp(min=0)
    fit = (A @ FIVE_TARGETS).squeeze(1) ** 2 / A.square().sum(1).clamp(min=1e-300)
    swept = (FIVE_TARGETS.square().sum() - fit.max()) / 5
    genuine = [cell for cell in cells.all_cell_minima(FIVE, FIVE_TARGETS) if cell.genuine]
    # The sweep is off by the square of its spacing.
    assert_close(min(cell.loss for cell in genuine), swept.item(), rtol=0, atol=1e-6)


def test_two_neurons_have_one_entry_per_pair_of_cells() -> None:
    minima = cells.all_cell_minima(AXES, column(1.0, -1.0), width=2)
    assert len(minima) == 10
    assert len({tuple(sorted(map(tuple, cell.pattern.T.tolist()))) for cell in minima}) == 10
    assert [cell.loss for cell in minima] == sorted(cell.loss for cell in minima)
