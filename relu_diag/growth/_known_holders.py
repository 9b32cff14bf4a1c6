"""Whether all that refers to parameters is known, without a search through all objects that are alive."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

# What is not looked into: it holds no parameter, or more than can be looked through.
_CLOSED = (
    str,
    int,
    float,
    bytes,
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    CodeType,
    FrameType,
    Tensor,
    Trainer,
)
# Objects beyond which a search through all that are alive takes little longer.
_MOST = 20_000


def are_held_by_known(parameters: Iterable[nn.Parameter], owners: Sequence[Optimizer], known: Iterable[Any]) -> bool:
    """Whether every reference to parameters comes from what is reached from known objects.

    Then no other optimizer holds one of them.

    Args:
        parameters: The parameters.
        owners: Optimizers in use.
        known: Objects that may refer to them, a module and callbacks for example.

    Returns:
        Whether it is; False as well where other optimizers are among what is reached, or that is too much.
    """
    held = {id(one): one for one in parameters}
    numbers = _reference_counts(list(held.values()))
    found = _references(held.keys(), [*owners, *known], {id(owner) for owner in owners})
    if found is None:
        return False
    # One reference is that of the dictionary.
    return all(number - 1 == found[key] for key, number in zip(held, numbers, strict=True))


def _reference_counts(things: list[Any]) -> list[int]:
    """How many references to each there are besides that of the list."""
    # What this function itself adds is seen on a parameter that nothing else refers to.
    things.append(nn.Parameter(torch.empty(0)))
    counts = [sys.getrefcount(one) for one in things]
    alone = counts.pop()
    return [count - alone for count in counts]


def _references(wanted: Iterable[int], roots: list[Any], owners: set[int]) -> Counter[int] | None:
    """How often what is reached from some objects refers to others, by identity; None if that cannot be said."""
    wanted = set(wanted)
    counts: Counter[int] = Counter()
    seen = {id(root) for root in roots}
    rim = roots
    while rim:
        found = gc.get_referents(*rim)
        rim = []
        for thing in found:
            key = id(thing)
            if key in wanted:
                counts[key] += 1
            if key in seen or isinstance(thing, _CLOSED):
                continue
            if isinstance(thing, Optimizer) and key not in owners:
                return None
            seen.add(key)
            rim.append(thing)
        if len(seen) > _MOST:
            return None
    return counts
