"""Whether anything of a module besides a block has changed: its inputs may then be others than they were."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Numbers of a tensor by which its change is measured.
_SAMPLED = 64


def lengths_of_others(module: nn.Module, own: Collection[nn.Parameter]) -> list[float]:
    """Lengths of all parameters and buffers but some: by versions alone, what is written to ``.data`` is missed."""
    known = {id(one) for one in own}
    return [float(torch.linalg.vector_norm(_local(one))) for one in _numbers_of(module) if id(one) not in known]


class Before:
    """A few numbers of every parameter and buffer of a module, which tell how far they have changed since.

    Args:
        module: The module.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = Before(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(1.5)
        >>> round(before.change([layer.bias]), 3), before.change([layer.weight])
        (0.5, 0.0)
    """

    def __init__(self, module: nn.Module) -> None:
        self._some = [(one, _some(one)) for one in _numbers_of(module)]

    def change(self, own: Collection[nn.Parameter]) -> float:
        """How far all have changed but some, relative to their length.

        Args:
            own: Those that do not count.

        Returns:
            The share; 0 where there are no others.
        """
        known = {id(one) for one in own}
        moved = length = 0.0
        for one, then in self._some:
            if id(one) in known or one.shape.numel() == 0:
                continue
            now = _some(one)
            if now.shape != then.shape:  # a layer was widened
                continue
            weight = one.numel() / max(then.numel(), 1)
            moved += weight * float((now - then).abs().square().sum())
            length += weight * float(then.abs().square().sum())
        return (moved / length) ** 0.5 if length else 0.0


def _numbers_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers that are numbers, and not places to be filled."""
    for one in (*module.parameters(), *module.buffers()):
        if not is_lazy(one) and (one.is_floating_point() or one.is_complex()):
            yield one


def _some(value: Tensor) -> Tensor:
    """A copy of some numbers of a tensor, spread over all."""
    flat = _local(value).reshape(-1)
    return flat[:: max(len(flat) // _SAMPLED, 1)].clone()


def _local(value: Tensor) -> Tensor:
    """A tensor, or this process's part of one that several share."""
    shard = value.detach()
    return shard.to_local() if hasattr(shard, "to_local") else shard
