"""Whether an inner block is stationary, and whether its slopes are exact, is said as perturbations show it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from relu_diag.capture import Sighting, riding
from relu_diag.training import first_order_words

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
Y = X[:, :1].abs()


def net(seed: int) -> Any:
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)]
    return nn.Sequential(*layers).double()


def loss_of(module: nn.Module) -> Tensor:
    return functional.mse_loss(module(X), Y)


def first_block(module: nn.Module) -> Sighting:
    with riding(module) as ride:
        loss = loss_of(module)
        ride.board(loss)
        loss.backward()
        return next(one for one in ride.end() if one.hidden == "0")


def steepest_fall(module: Any, size: float = 1e-6, draws: int = 400) -> float:
    """The largest fall of the loss over the length of a random move of the first block alone."""
    own = [*module[0].parameters(), *module[2].parameters()]
    draw = torch.Generator().manual_seed(1)
    falls = []
    with torch.no_grad():
        before = loss_of(module)
        for _ in range(draws):
            moves = [torch.randn(p.shape, generator=draw).double() for p in own]
            length = sum(float(move.square().sum()) for move in moves) ** 0.5
            for p, move in zip(own, moves, strict=True):
                p += size / length * move
            falls.append(float(before - loss_of(module)) / size)
            for p, move in zip(own, moves, strict=True):
                p -= size / length * move
    return max(falls)


@pytest.mark.parametrize("seed", range(3))
def test_a_block_that_no_loss_gradient_reaches_is_stationary(seed: int) -> None:
    module = net(seed)
    module[2].bias.data -= 100  # the next layer is dead
    assert first_order_words(first_block(module)) == "stationary in this block, slopes exact"
    assert steepest_fall(module) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_block_that_can_fall_is_not(seed: int) -> None:
    module = net(seed)
    words = first_order_words(first_block(module))
    assert re.fullmatch(r"not stationary in this block, a slope is \S+ of its terms, slopes exact", words)
    assert steepest_fall(module) > 1e-4


def test_later_kinks_are_counted() -> None:
    module = net(0)
    with torch.no_grad():
        hidden = module[:2](X)
        module[2].bias[0] = -(module[2].weight[0] @ hidden[3])  # sample 3 sits on the kink of a later neuron
        z = module[:3](X)[3, 0]
        module[2].bias[0] -= z
    assert float(module[:3](X)[3, 0].detach()) == 0
    assert first_order_words(first_block(module)).endswith("slopes not exact: 1 later kink")
