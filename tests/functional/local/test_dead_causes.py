"""Why neurons are dead: each cause alone, against its definition; how many are born dead, against counting."""

from __future__ import annotations

import math

import pytest
import torch
from support.tensors import normal
from torch import Tensor

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.local import born_dead_share


def with_ones(X: Tensor) -> Tensor:
    return torch.cat([X, X.new_ones(len(X), 1)], dim=1)


def centred(draw: torch.Generator, samples: int, d: int) -> Tensor:
    X = normal(draw, samples, d)
    return X - X.mean(dim=0)


def test_each_cause_alone_is_named_and_has_a_cure() -> None:
    draw = torch.Generator().manual_seed(0)
    X = centred(draw, 50, 4)
    mean = torch.tensor([30.0, 0, 0, 0]).double()
    G = normal(draw, 50, 2)
    along = torch.tensor([1.0, 0, 0, 0]).double()
    across = torch.tensor([0, 1.0, 0, 0]).double()
    far = BlockSignal(with_ones(X + mean), G)
    W = torch.stack([-along, across, across - 0.01 * along, along, along * 0, across * 2])
    bias = torch.tensor([0.0, -20.0, -20.0, 0.0, -1.0, 0.0]).double()
    block = ShallowBlock(torch.cat([W, bias[:, None]], dim=1), normal(draw, 2, 6))
    found = F.dead_causes(block, far)
    assert found.cause == ("offset", "bias", "bias", "alive", "zero", "alive")
    assert [bool(cure) for cure in found.cure] == [word != "alive" for word in found.cause]
    assert found.gamma == pytest.approx(float(mean.norm() / X.square().sum(1).mean().sqrt()))
    assert F.dead_causes(block, BlockSignal(far.X, 0 * G)).cause[:3] == ("nothing",) * 3
    assert F.dead_causes(block, far, price=1e6).cause[:3] == ("price",) * 3


def test_removing_the_named_offset_brings_the_neuron_back() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        X = normal(draw, 40, 3) + 2 * normal(draw, 1, 3)
        block = ShallowBlock(normal(draw, 60, 4), normal(draw, 2, 60))
        found = F.dead_causes(block, BlockSignal(with_ones(X), normal(draw, 40, 2)))
        without_bias = block.W.clone()
        without_bias[:, -1] = 0
        alive = {
            "alive": with_ones(X) @ block.W.T,
            "offset": with_ones(X - X.mean(0)) @ block.W.T,
            "bias": with_ones(X) @ without_bias.T,
        }
        either = (alive["offset"] > 0).any(dim=0) | (alive["bias"] > 0).any(dim=0)
        for i, word in enumerate(found.cause):
            assert (word == "alive") == bool((alive["alive"][:, i] > 0).any()) or word == "duplicate"
            if word in {"offset", "bias"} and bool(either[i]):
                assert bool((alive[word][:, i] > 0).any())


def test_the_price_is_the_cause_where_activity_costs_more_than_it_brings() -> None:
    draw = torch.Generator().manual_seed(2)
    X, G = centred(draw, 30, 3), normal(draw, 30, 2)
    W = normal(draw, 20, 3)
    block = ShallowBlock(torch.cat([W, W.new_full((20, 1), -50.0)], dim=1), normal(draw, 2, 20))
    A = (X @ W.T).relu()
    worth = (A.T @ G).norm(dim=1) / A.mean(dim=0)
    price = 1.001 * float(worth.median())
    expected = tuple("price" if price >= one else "bias" for one in worth.tolist())
    assert F.dead_causes(block, BlockSignal(with_ones(X), G), price).cause == expected


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.1, 1.0)])
def test_neurons_of_one_direction_repeat_the_loudest_of_them(slopes: tuple[float, float]) -> None:
    W = torch.tensor([[1.0, 0.0], [2.0, 1e-4], [0.0, 1.0], [-1.0, 0.0]]).double()
    block = ShallowBlock(W, torch.tensor([[1.0, 5.0, 1.0, 1.0]]).double(), slopes)
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]).double()
    found = F.dead_causes(block, BlockSignal(X, X[:, :1]))
    assert found.cause == ("duplicate", "alive", "alive", "alive")


def test_an_activation_that_is_flat_above_is_held_up() -> None:
    draw = torch.Generator().manual_seed(3)
    X = with_ones(centred(draw, 30, 3))
    W = torch.cat([normal(draw, 2, 3), torch.tensor([[40.0], [-40.0]]).double()], dim=1)
    found = F.dead_causes(ShallowBlock(W, normal(draw, 1, 2), (1.0, 0.0)), BlockSignal(X, normal(draw, 30, 1)))
    assert found.cause == ("bias", "alive")


def test_no_neuron_of_a_leaky_activation_is_dead() -> None:
    draw = torch.Generator().manual_seed(4)
    block = ShallowBlock(normal(draw, 9, 3) - 5, normal(draw, 1, 9), (0.1, 1.0))
    found = F.dead_causes(block, BlockSignal(normal(draw, 20, 3) + 5, normal(draw, 20, 1)))
    assert set(found.cause) <= {"alive", "duplicate"}
    assert found.born_dead == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_the_share_born_dead_is_what_counting_finds(gamma: float, level: float) -> None:
    draw = torch.Generator().manual_seed(5)
    d, samples, units = 100, 200, 4000
    X = normal(draw, samples, d)
    X = X + gamma * math.sqrt(d) * torch.nn.functional.normalize(normal(draw, 1, d), dim=1)
    W = normal(draw, units, d)
    bias = W.new_full((units, 1), level * math.sqrt(d))
    counted = float(((X @ W.T + bias.T) <= 0).all(dim=0).double().mean())
    block = ShallowBlock(torch.cat([W, bias], dim=1), normal(draw, 1, units))
    found = F.dead_causes(block, BlockSignal(with_ones(X), normal(draw, samples, 1)))
    assert found.born_dead == pytest.approx(counted, abs=0.03)
    assert born_dead_share(found.gamma, level, samples) == pytest.approx(counted, abs=0.03)


def test_bad_prices_are_refused() -> None:
    block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
    for price in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`price`"):
            F.dead_causes(block, BlockSignal(torch.eye(2), torch.ones(2, 1)), price)
    with pytest.raises(ValueError, match="`gamma`"):
        born_dead_share(-1.0)
