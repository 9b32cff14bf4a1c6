"""What this process holds of a tensor."""

from __future__ import annotations

from torch import Tensor


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor that is split over several (DTensor); of others, all of it."""
    if not hasattr(value, "to_local"):
        return value
    part: Tensor = value.to_local()
    return part
