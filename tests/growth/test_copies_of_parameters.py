"""Copies that an optimizer keeps of its parameters follow a growth and new neurons, however they are kept."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.testing import assert_close

from relu_diag.capture import find_blocks, read_block
from relu_diag.functional import ShallowBlock
from relu_diag.growth import grow, replace_units

Holders = Callable[[SGD, list[nn.Parameter], list[Tensor]], Callable[[], list[Tensor]]]


def by_id(optimizer: SGD, own: list[nn.Parameter], copies: list[Tensor]) -> Callable[[], list[Tensor]]:
    held = {id(p): copy for p, copy in zip(own, copies, strict=True)}
    optimizer.slow = held
    return lambda: [held[id(p)] for p in own]


def by_name(optimizer: SGD, own: list[nn.Parameter], copies: list[Tensor]) -> Callable[[], list[Tensor]]:
    optimizer.shadow = {f"parameter {i}": copy for i, copy in enumerate(copies)}
    return lambda: list(optimizer.shadow.values())


def in_a_tuple(optimizer: SGD, own: list[nn.Parameter], copies: list[Tensor]) -> Callable[[], list[Tensor]]:
    optimizer.slow = tuple(copies)
    return lambda: list(optimizer.slow)


def in_an_object(optimizer: SGD, own: list[nn.Parameter], copies: list[Tensor]) -> Callable[[], list[Tensor]]:
    optimizer.average = SimpleNamespace(weights=copies, steps=3)
    return lambda: optimizer.average.weights


def in_the_groups(optimizer: SGD, own: list[nn.Parameter], copies: list[Tensor]) -> Callable[[], list[Tensor]]:
    (group,) = optimizer.param_groups
    group["z"] = tuple(copies)
    return lambda: list(group["z"])


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("holder", [by_id, by_name, in_a_tuple, in_an_object, in_the_groups])
def test_copies_outside_the_state_take_the_new_values(holder: Holders, growing: bool) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    own = list(net.parameters())
    optimizer = SGD(own, lr=0.1)
    copies = holder(optimizer, own, [p.detach() + 0.01 for p in own])
    (place,) = find_blocks(net)
    block = read_block(net, place)
    if growing:
        W, H = torch.cat([block.W, block.W[:1] + 1]), torch.cat([block.H, block.H[:, :1] + 1], dim=1)
        grow(net, place, ShallowBlock(W, H, block.slopes, block.output_bias), [optimizer])
        changed = [4]
    else:
        replace_units(net, place, [1], ShallowBlock(block.W + 1, block.H + 1, block.slopes), [optimizer])
        changed = [1]
    now = copies()
    others = [0, 2, 3]
    for copy, parameter, axis in zip(now[:3], own[:3], (0, 0, 1), strict=True):
        assert copy.shape == parameter.shape
        assert_close(
            copy.index_select(axis, torch.tensor(changed)), parameter.index_select(axis, torch.tensor(changed))
        )
        kept = copy.index_select(axis, torch.tensor(others))
        assert_close(kept, parameter.index_select(axis, torch.tensor(others)) + 0.01)
    assert_close(now[3], own[3] + 0.01)
