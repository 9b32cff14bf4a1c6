"""Objects of ours as plain numbers, texts and tensors, as checkpoints may hold, and back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

# The key under which the kind of an object stands.
_KIND = "kind of object"


def to_plain(value: Any, kinds: Collection[type]) -> Any:
    """A value as plain numbers, texts, containers and tensors on the CPU.

    Args:
        value: The value.
        kinds: Classes of which it may be made.

    Returns:
        What `from_plain` takes.

    Raises:
        TypeError: If it is made of something else.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)  # it may be changed in place
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, dict):
        return {key: to_plain(part, kinds) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part, kinds) for part in value]
    if type(value) not in kinds:
        raise TypeError(f"a {type(value).__name__} is not plain.")
    return {_KIND: type(value).__name__, **to_plain(_contents(value), kinds)}


def from_plain(value: Any, kinds: Collection[type], device: torch.device | str = "cpu") -> Any:
    """The value that was made plain; tuples come as lists.

    Args:
        value: What `to_plain` returned.
        kinds: The classes of which it was made.
        device: Where its tensors shall be.

    Returns:
        The value.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [from_plain(part, kinds, device) for part in value]
    if not isinstance(value, dict):
        return value
    parts = {key: from_plain(part, kinds, device) for key, part in value.items() if key != _KIND}
    if _KIND not in value:
        return parts
    kind = next(one for one in kinds if one.__name__ == value[_KIND])
    made: Any = object.__new__(kind)
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    return made


def _contents(value: Any) -> dict[str, Any]:
    """The attributes of an object."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(vars(value))
