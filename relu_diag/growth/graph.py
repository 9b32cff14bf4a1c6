"""Whether a graph is alive that a parameter's shape is written into."""

from __future__ import annotations

import gc
from collections.abc import Collection

from torch import Tensor


def in_a_graph(parameters: Collection[Tensor]) -> bool:
    """Whether a graph through one of some parameters can still be reached.

    Args:
        parameters: The parameters.

    Returns:
        True where somebody holds one.

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
        gc.collect()  # the graph may be one that nobody can reach any more
    return any(parameter._use_count() > 1 for parameter in parameters)  # type: ignore[attr-defined]
