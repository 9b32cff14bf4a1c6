"""Neurons for which no gain is sure are placed as well on request."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from relu_diag.functional import BlockSignal, ShallowBlock, SquaredError
from relu_diag.functional.widening import Placement, place_units

INPUTS, FEATURES, MISSING, ROWS = 32, 128, 64, 2048
PRICE = 0.3


def drawn_rows(directions: Tensor, seed: int, rows: int = ROWS) -> Tensor:
    """Sums of three of many features, with a constant input."""
    draw = torch.Generator().manual_seed(seed)
    present = torch.rand(rows, FEATURES, generator=draw) < 3 / FEATURES
    size = 0.5 + 0.5 * torch.rand(rows, FEATURES, generator=draw)
    return torch.cat([(present * size).double() @ directions, torch.ones(rows, 1).double()], dim=1)


def dictionary() -> ShallowBlock:
    """A dictionary whose first half is dead."""
    draw = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(FEATURES, INPUTS, generator=draw).double(), dim=1)
    W = torch.cat([directions, torch.full((FEATURES, 1), -0.3).double()], dim=1)
    W[:MISSING, -1] = -10.0
    return ShallowBlock(W, directions.T.clone())


def cost(block: ShallowBlock, X: Tensor) -> float:
    """Loss and price, written out."""
    miss = (block(X) - X[:, :-1]).square().sum(dim=1).mean()
    return float(miss + PRICE * (X @ block.W.T).clamp(min=0).sum(dim=1).mean())


def placed(block: ShallowBlock, X: Tensor, fill: bool) -> Placement:
    loss = SquaredError(X[:, :-1]).scaled(INPUTS)
    signal = BlockSignal(X, loss.gradient(block(X)))
    return place_units(block, torch.arange(MISSING), signal, loss, PRICE, fill=fill)


def test_all_neurons_are_placed_where_few_samples_make_few_gains_sure() -> None:
    """And on samples that nobody has seen the loss is no higher for it."""
    block = dictionary()
    X = drawn_rows(block.H.T, 1)
    unseen = drawn_rows(block.H.T, 2, 4 * ROWS)
    sure, filled = placed(block, X, fill=False), placed(block, X, fill=True)
    assert len(sure.units) <= 0.8 * MISSING
    assert len(filled.units) >= 0.95 * MISSING
    assert cost(filled.applied_to(block), unseen) < cost(sure.applied_to(block), unseen) < cost(block, unseen)


def test_without_a_known_loss_they_are_placed_without_a_change_of_the_function() -> None:
    """By gradients that are pure noise, of which hardly any gain is sure."""
    draw = torch.Generator().manual_seed(0)
    X = torch.cat([torch.randn(600, 20, generator=draw), torch.ones(600, 1)], dim=1).double()
    signal = BlockSignal(X, torch.randn(600, 8, generator=draw).double())
    block = ShallowBlock(torch.randn(64, 21, generator=draw).double(), torch.zeros(8, 64).double())
    found = place_units(block, torch.arange(64), signal, fill=True)
    assert len(place_units(block, torch.arange(64), signal).units) < 32
    assert len(found.units) == 64
    assert found.function_change == 0
    assert bool((X @ found.W.T > 0).any(dim=0).all())


def test_nothing_fills_the_places_of_neurons_that_would_not_be_worth_their_price() -> None:
    block = dictionary()
    X = drawn_rows(block.H.T, 1)
    loss = SquaredError(X[:, :-1]).scaled(INPUTS)
    signal = BlockSignal(X, loss.gradient(block(X)))
    assert len(place_units(block, torch.arange(MISSING), signal, loss, 100.0, fill=True).units) == 0


def test_what_is_placed_last_is_seldom_what_was_placed_before() -> None:
    draw = torch.Generator().manual_seed(2)
    X = torch.cat([torch.randn(600, 20, generator=draw), torch.ones(600, 1)], dim=1).double()
    wanted = (X @ torch.randn(21, 3, generator=draw).double()).relu() @ torch.randn(3, 8, generator=draw).double()
    signal = BlockSignal(X, 100 * torch.randn(600, 8, generator=draw).double() - wanted)
    block = ShallowBlock(torch.zeros(256, 21).double(), torch.zeros(8, 256).double())
    sure = len(place_units(block, torch.arange(256), signal).units)
    found = place_units(block, torch.arange(256), signal, fill=True)
    A = normalize((X @ found.W.T).relu(), dim=0)
    felt = normalize((signal.G - signal.G.mean(dim=0)).T @ A, dim=0)
    alike = ((A.T @ A) * (felt.T @ felt) > 0.5)[sure:, :sure].any(dim=1)
    assert 0 < sure < 200
    # Half of the share that it is of those placed without a look at the ones before.
    assert float(alike.double().mean()) < 0.18
