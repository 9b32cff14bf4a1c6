"""Other optimizers of a module: found wherever they are, and not searched for where all references are known."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from relu_diag.growth import other_optimizers
from relu_diag.growth._known_holders import are_held_by_known


class Callback:
    """Stands for one of a trainer's."""


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return net, optimizer


def in_a_closure(other: torch.optim.Optimizer, net: nn.Module, callback: Any) -> object:
    return lambda: other


def in_a_list(other: torch.optim.Optimizer, net: nn.Module, callback: Any) -> object:
    return [[other]]


def in_the_module(other: torch.optim.Optimizer, net: nn.Module, callback: Any) -> object:
    net.mine = other  # type: ignore[assignment]
    return None


def in_a_callback(other: torch.optim.Optimizer, net: nn.Module, callback: Any) -> object:
    callback.mine = {"optimizer": other}
    return None


def test_all_references_of_a_module_and_its_optimizer_are_known() -> None:
    net, optimizer = network()
    callback = Callback()
    callback.held = tuple(net.parameters())  # type: ignore[attr-defined]
    assert are_held_by_known(net.parameters(), [optimizer], [net, callback])
    assert not are_held_by_known(net.parameters(), [optimizer], [net])
    assert not are_held_by_known(net.parameters(), [], [net, callback])


@pytest.mark.parametrize("keep", [in_a_closure, in_a_list, in_the_module, in_a_callback])
def test_another_optimizer_is_found_wherever_it_is(keep: Callable[..., object]) -> None:
    net, optimizer = network()
    callback = Callback()
    other = torch.optim.SGD([*net.parameters()][2:], lr=0.1)
    kept = keep(other, net, callback)
    assert other in other_optimizers(net, [optimizer], [callback]).in_use
    del kept


def test_nothing_is_searched_for_where_all_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = network()

    def search(*_: object) -> list[object]:
        raise AssertionError("all objects were searched")

    monkeypatch.setattr(gc, "get_referrers", search)
    assert not other_optimizers(net, [optimizer]).in_use
