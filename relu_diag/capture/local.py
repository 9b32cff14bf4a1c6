"""What this process holds of a tensor."""

from __future__ import annotations

from torch import Tensor


def local_part(value: Tensor) -> Tensor:
    """This process's part of a tensor that is split over several (DTensor); of others, all of it.

    Args:
        value: A tensor.

    Returns:
        Its part, in the same memory.

    Example:
        >>> import torch
        >>> local_part(torch.ones(2))
        tensor([1., 1.])
    """
    if not hasattr(value, "to_local"):
        return value
    part: Tensor = value.to_local()
    return part
