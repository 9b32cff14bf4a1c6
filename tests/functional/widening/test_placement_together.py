"""Neurons placed together: many at once do not cancel each other, few find the best, and none is placed for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from relu_diag import BlockSignal, ShallowBlock
from relu_diag.functional.output_loss import SquaredError
from relu_diag.functional.widening import Placement, place_units, placement

FEATURES = 96
PRICE = 0.2


def dictionary(missing: int) -> tuple[ShallowBlock, Tensor, Tensor, SquaredError]:
    """A dictionary that knows every feature of its rows but the first, which are dead; their units, and the loss."""
    draw = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(FEATURES, 32, generator=draw).double(), dim=1)
    active = torch.rand(2048, FEATURES, generator=draw) < 0.02
    rows = (active * (0.5 + torch.rand(2048, FEATURES, generator=draw))).double() @ directions
    bias = torch.full((FEATURES, 1), -0.3).double()
    bias[:missing] = -20.0
    block = ShallowBlock(torch.cat([directions, bias], dim=1), directions.T, (0.0, 1.0), torch.zeros(32).double())
    X = torch.cat([rows, torch.ones(2048, 1).double()], dim=1)
    return block, torch.arange(missing), X, SquaredError(rows, reduction="mean")


def placed(missing: int, units: int | None = None, price: float = PRICE) -> tuple[Placement, float]:
    block, dead, X, loss = dictionary(missing)
    signal = BlockSignal(X, loss.gradient(block(X)))
    return place_units(block, dead[:units], signal, loss, price / 32), float(loss(block(X)))


@pytest.mark.parametrize("missing", [8, 64])
def test_many_neurons_placed_at_once_do_not_cancel_each_other(missing: int) -> None:
    found, loss = placed(missing)
    assert len(found.units) >= missing / 3
    assert found.drop > 0.2 * loss


def test_two_neurons_bring_as_much_as_the_first_two_of_many() -> None:
    """They are looked for from more samples than there are neurons to place."""
    few, _ = placed(48, units=2)
    one, _ = placed(48, units=1)
    assert len(few.units) == 2
    assert few.drop > 1.2 * one.drop > 0


def test_a_price_keeps_faint_neurons_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every feature is known, and half the price too small, as is best for each: sums of two would lower the cost."""
    draw = torch.Generator().manual_seed(0)
    sizes = (torch.rand(2048, 8, generator=draw) < 0.2) * (0.5 + torch.rand(2048, 8, generator=draw))
    rows = sizes.double()
    X = torch.cat([rows, torch.ones(2048, 1).double()], dim=1)
    dead = torch.arange(8, 16)
    W = torch.cat([torch.eye(8), torch.zeros(8, 8)]).double()
    bias = torch.cat([torch.full((8, 1), -PRICE / 2), torch.full((8, 1), -9.0)]).double()
    H = torch.cat([torch.eye(8), torch.eye(8)], dim=1).double()
    block = ShallowBlock(torch.cat([W, bias], dim=1), H, (0.0, 1.0), torch.zeros(8).double())
    loss = SquaredError(rows, reduction="mean")
    signal = BlockSignal(X, loss.gradient(block(X)))
    assert len(place_units(block, dead, signal, loss, PRICE / 8).units) == 0
    monkeypatch.setattr(placement, "FLOAT64", replace(placement.FLOAT64, faint=0.0))
    assert len(place_units(block, dead, signal, loss, PRICE / 8).units) > 0
