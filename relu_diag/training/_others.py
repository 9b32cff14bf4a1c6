"""Whether anything of a module besides a block has changed: its inputs may then be others than they were."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def lengths_of_others(module: nn.Module, own: Collection[nn.Parameter]) -> list[float]:
    """Lengths of all parameters and buffers but some: by versions alone, what is written to ``.data`` is missed."""
    known = {id(one) for one in own}
    others = [one for one in (*module.parameters(), *module.buffers()) if id(one) not in known and not is_lazy(one)]
    numbers = [_local(one) for one in others if one.is_floating_point() or one.is_complex()]
    return [float(torch.linalg.vector_norm(one)) for one in numbers]


def _local(value: Tensor) -> Tensor:
    """A tensor, or this process's part of one that several share."""
    shard = value.detach()
    return shard.to_local() if hasattr(shard, "to_local") else shard
