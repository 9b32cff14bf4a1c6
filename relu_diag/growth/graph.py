"""Whether an autograd graph is alive that depends on a parameter's shape, and how to let go of it."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping
from typing import Any

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


def drop_graphs(owners: Iterable[object]) -> list[str]:
    """Detach the tensors that objects keep in attributes, lists and dicts: losses and outputs of steps that are over.

    Args:
        owners: The objects, modules and callbacks say.

    Returns:
        Names of the attributes that held graphs.

    Example:
        >>> import torch
        >>> class Keeps:
        ...     pass
        >>> keeps = Keeps()
        >>> keeps.losses = [torch.ones(1, requires_grad=True).sum()]
        >>> drop_graphs([keeps]), keeps.losses[0].grad_fn
        (['Keeps.losses'], None)
    """
    return [
        f"{type(owner).__name__}.{name}"
        for owner in owners
        for name, value in vars(owner).items()
        if name != "_parameters" and _detach(value)
    ]


def _detach(value: Any) -> bool:
    """Detach tensors in nested lists, tuples and dicts; whether one held a graph."""
    if isinstance(value, Tensor):
        held = value.grad_fn is not None and not value._is_view()
        if held:
            value.detach_()
        return held
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple | set):
        return False
    kept = [_detach(part) for part in parts]
    return any(kept)
