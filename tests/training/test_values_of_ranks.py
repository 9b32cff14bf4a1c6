"""What the first process finds comes to the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from relu_diag import ShallowBlock
from relu_diag.training import of_first_rank


def rank(place: int, sent: list[bytes], device: str) -> Any:
    """A trainer on one of two processes, which keeps what the first one sends."""

    def broadcast(value: bytes) -> bytes:
        if place == 0:
            sent.append(value)
        return sent[0]

    strategy = SimpleNamespace(broadcast=broadcast, root_device=torch.device(device))
    return SimpleNamespace(world_size=2, is_global_zero=place == 0, strategy=strategy)


def test_tensors_of_the_first_process_come_to_the_device_of_each() -> None:
    sent: list[bytes] = []
    block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
    first = of_first_rank(rank(0, sent, "cpu"), [block])
    (there,) = of_first_rank(rank(1, sent, "meta"), [ShallowBlock(-torch.eye(2), torch.ones(1, 2))])
    assert torch.equal(first[0].W, block.W)
    assert there.W.device.type == there.H.device.type == "meta"
    assert there.slopes == block.slopes
