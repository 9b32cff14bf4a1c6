"""Whether an autograd graph is alive that depends on a parameter's shape."""

from __future__ import annotations

import gc
from collections.abc import Collection

from torch import Tensor


def in_a_graph(parameters: Collection[Tensor]) -> bool:
    """Whether an autograd graph through one of the parameters is still alive.

    Args:
        parameters: The parameters.

    Returns:
        True if something still refers to such a graph.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> in_a_graph([weight])
        False
        >>> loss = weight.sum()
        >>> in_a_graph([weight])
        True
    """
    if any(parameter._use_count() > 1 for parameter in parameters):  # type: ignore[attr-defined]
        gc.collect()  # The graph may be garbage that has not been collected yet.
    return any(parameter._use_count() > 1 for parameter in parameters)  # type: ignore[attr-defined]
