"""Checks of what names a unit and its copies, and how long a new one is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from relu_diag.functional._checks import check_values
from relu_diag.functional.block import ShallowBlock


def check_unit(block: ShallowBlock, unit: SupportsIndex) -> int:
    """Refuse what is not the index of a hidden neuron.

    Args:
        block: The network.
        unit: The index.

    Returns:
        The index as a number of Python.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If there is no such neuron.
    """
    try:
        index = operator.index(unit)
    except TypeError:
        raise TypeError(f"`unit` must be the index of one hidden neuron; got {unit!r}.") from None
    if not 0 <= index < len(block.W):
        raise ValueError(f"`unit` must be a hidden neuron of the block, 0 to {len(block.W) - 1}; got {index}.")
    return index


def check_factors(name: str, value: Sequence[float] | Tensor) -> Tensor:
    """Refuse what is not a list of factors, one per copy.

    Args:
        name: Name of the argument, for the message.
        value: The argument.

    Returns:
        The factors, float64 on the CPU, shape ``(L,)``.

    Raises:
        ValueError: If it is not a vector with at least one finite entry.
    """
    factors = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    check_values(name, factors)
    if factors.ndim != 1 or not len(factors):
        raise ValueError(f"`{name}` needs one number per copy, shape (L,); got {tuple(factors.shape)}.")
    return factors


def usual_length(block: ShallowBlock) -> float:
    """The median length of the input weights that are not zero, 1 where all are."""
    norm = block.double().W.norm(dim=1)
    norm = norm[norm > 0]
    return float(norm.median()) if len(norm) else 1.0
