"""Steps put together until they tell the loss: of residuals of one sign further steps do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relu_diag import functional as F
from relu_diag.capture import riding
from relu_diag.training.rows import KeptRows


def kept(loss_of: Callable[[Tensor, Tensor], Tensor], sides: list[float]) -> KeptRows:
    """Rows of steps of forty samples; of each all targets are above the outputs (1), below (-1), or on both sides."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    rows = KeptRows()
    for step, side in enumerate(sides):
        X, size = torch.randn(40, 2), torch.randn(40, 1)
        Y = net(X).detach() + (side * size.abs() if side else size)
        with riding(net) as ride:
            loss = loss_of(net(X), Y)
            ride.board(loss)
            loss.backward()
            (seen,) = ride.end()
        rows.keep(seen, float(loss.detach()), (X, Y), step)
    return rows


def pinball(outputs: Tensor, Y: Tensor) -> Tensor:
    return torch.maximum(0.9 * (Y - outputs), 0.1 * (outputs - Y)).mean()


def test_the_absolute_error_is_known_once_targets_are_on_both_sides() -> None:
    waiting = kept(nn.functional.l1_loss, [1, 1])
    assert waiting.recipe is None
    assert waiting.waiting
    rows = kept(nn.functional.l1_loss, [1, 1, 0])
    assert rows.recipe is not None
    data = rows.data()
    assert data is not None
    assert isinstance(data.loss, F.AbsoluteError)


@pytest.mark.parametrize("sides", [[1, 1], [1, 0], [-1] * 17])
def test_a_quantile_is_not_taken_for_the_absolute_error(sides: list[float]) -> None:
    assert kept(pinball, sides).recipe is None


def test_a_gradient_of_zero_is_not_waited_for() -> None:
    assert "zero" in kept(lambda outputs, Y: 0 * outputs.sum(), [0]).reason
