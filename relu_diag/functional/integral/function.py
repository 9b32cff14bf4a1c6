"""Functions of one input, as users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What it returns is checked when it is called; configs name such functions, and their parser would build a Tensor.
Function1d = Callable[[Tensor], Any]


def evaluate(name: str, function: Function1d, x: Tensor) -> Tensor:
    """A vectorised function at the nodes, checked: a finite number for each.

    On a GPU the values are not read, because that would make the host wait; there a NaN shows in the loss.

    Args:
        name: What the function is, for the message.
        function: The function.
        x: Nodes, float64, shape ``(n,)``.

    Returns:
        Values, float64, shape ``(n,)``.

    Raises:
        TypeError: If it returns no tensor.
        ValueError: If the shape is another, or a value is not finite.

    Example:
        >>> evaluate("target", torch.square, torch.tensor([0.0, 3.0], dtype=torch.float64))
        tensor([0., 9.], dtype=torch.float64)
    """
    values = function(x)
    if not isinstance(values, Tensor):
        raise TypeError(
            f"`{name}` must return a torch.Tensor; got {type(values).__name__}. Build it from torch functions."
        )
    if values.shape != x.shape:
        raise ValueError(
            f"`{name}` must return one number per node, shape {tuple(x.shape)}; got {tuple(values.shape)}. "
            "It is called on a vector of nodes and has to be vectorised."
        )
    if x.device.type == "cpu" and not bool(torch.isfinite(values).all()):
        where = float(x[~torch.isfinite(values)][0])
        raise ValueError(f"`{name}` is not finite at x = {where:.6g}; integrate where it is defined.")
    return values.to(x)
