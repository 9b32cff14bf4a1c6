"""A layer with a forward or a hook of its own is read only where it computes what its weight says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_net import LOCATION, net, with_replica
from torch import Tensor, nn

from relu_diag.capture import check_plain, find_blocks, read_block, write_block
from relu_diag.growth import check_growable, grow


class Lora(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, dtype=torch.float64)
        self.A = nn.Parameter(torch.randn(2, inputs, dtype=torch.float64))
        self.B = nn.Parameter(torch.randn(outputs, 2, dtype=torch.float64))

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X) + X @ self.A.T @ self.B.T


class Equalised(nn.Linear):
    def forward(self, X: Tensor) -> Tensor:
        return nn.functional.linear(X, self.weight / self.in_features**0.5, self.bias)


class Counting(nn.Linear):
    calls = 0

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.linear(X, self.weight, self.bias)


def with_hook(module: nn.Sequential, hook: Callable[..., Any]) -> nn.Sequential:
    module[0].register_forward_hook(hook)
    return module


def with_layer(place: int, layer: nn.Linear) -> nn.Sequential:
    module = net()
    module[place] = layer.double()
    return module


ODD = {
    "lora first": lambda: with_layer(0, Lora(3, 6)),
    "lora last": lambda: with_layer(2, Lora(6, 2)),
    "equalised": lambda: with_layer(0, Equalised(3, 6)),
    "hook": lambda: with_hook(net(), lambda _layer, _args, out: 1.5 * out),
}


@pytest.mark.parametrize("module", ODD.values(), ids=ODD)
def test_what_computes_something_else_is_refused(module: Callable[[], nn.Module]) -> None:
    odd = module()
    wide = with_replica(read_block(net()))
    for attempt in (
        lambda: read_block(odd, LOCATION),
        lambda: write_block(odd, LOCATION, read_block(net())),
        lambda: grow(odd, LOCATION, wide),
        lambda: check_growable(odd, LOCATION),
    ):
        with pytest.raises(ValueError, match="something else than W x"):
            attempt()


@pytest.mark.parametrize("module", [with_layer(0, Counting(3, 6)), with_hook(net(), lambda *_: None)])
def test_what_computes_its_weight_is_read(module: nn.Module) -> None:
    block = read_block(module, find_blocks(module)[0])
    assert block.W.shape == (6, 4)


def test_plain_layers_are_not_run() -> None:
    check_plain("0", nn.Linear(3, 2, device="meta"))
