"""Whether anything of a module besides a block has changed: its inputs may then be others than they were."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relu_diag.capture import local_part
from relu_diag.training._data import some_numbers


def lengths_of_others(module: nn.Module, own: Collection[nn.Parameter]) -> list[float]:
    """Lengths of all parameters and buffers but some: by versions alone, what is written to ``.data`` is missed."""
    known = {id(one) for one in own}
    return [
        float(torch.linalg.vector_norm(local_part(one.detach()))) for one in _numbers_of(module) if id(one) not in known
    ]


class Before:
    """A few numbers of every parameter and buffer of a module, which tell how far they have changed since.

    Args:
        module: The module.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = Before(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(1.5)
        >>> changes = before.changes()
        >>> round(change_but(changes, [layer.bias]), 3), change_but(changes, [layer.weight])
        (0.5, 0.0)
    """

    def __init__(self, module: nn.Module) -> None:
        self._some = [(one, some_numbers(local_part(one.detach()))) for one in _numbers_of(module)]

    def changes(self) -> dict[int, tuple[float, float]]:
        """Squares of how far each has changed, and of how long it was, by identity; none of those of another shape."""
        known, squares = [], []
        for one, then in self._some:
            now = some_numbers(local_part(one.detach()))
            if len(then) and now.shape == then.shape:
                both = torch.stack([(now - then).abs().square().mean(), then.abs().square().mean()])
                known.append(id(one))
                squares.append(one.numel() * both.double())
        numbers = torch.stack([both.to(squares[0].device) for both in squares]).tolist() if squares else []
        return {key: (moved, length) for key, (moved, length) in zip(known, numbers, strict=True)}


def change_but(changes: Mapping[int, tuple[float, float]], own: Collection[nn.Parameter]) -> float:
    """How far all have changed but some, relative to their length; 0 where there are no others."""
    known = {id(one) for one in own}
    others = [both for key, both in changes.items() if key not in known]
    length = sum(length for _, length in others)
    return (sum(moved for moved, _ in others) / length) ** 0.5 if length else 0.0


def _numbers_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers that are numbers, and not places to be filled."""
    for one in (*module.parameters(), *module.buffers()):
        if not is_lazy(one) and (one.is_floating_point() or one.is_complex()):
            yield one
