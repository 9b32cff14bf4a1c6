"""Hooks of ours on the user's layers, of which a copy that the user's step makes of a layer takes nothing along."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import ReferenceType, ref

from torch import nn


class LayerHook:
    """A hook on a layer, which a copy of the layer does not have once the hook is removed.

    Args:
        layer: The layer.
        run: Called with what hooks of layers are called with.
        before: Whether to run before the layer, and not after it.
        always: Whether to run also after a layer that failed.

    Example:
        >>> import copy
        >>> layer = nn.Linear(2, 1)
        >>> hook = LayerHook(layer, print)
        >>> twin = copy.deepcopy(layer)
        >>> hook.remove()
        >>> len(layer._forward_hooks), len(twin._forward_hooks)
        (0, 0)
    """

    def __init__(self, layer: nn.Module, run: Callable[..., None], before: bool = False, always: bool = False) -> None:
        self._run = run
        self._copies: list[ReferenceType[dict[int, Any]]] = []
        if before:
            self._handle = layer.register_forward_pre_hook(self)
        else:
            self._handle = layer.register_forward_hook(self, always_call=always)

    def __call__(self, *args: Any) -> None:
        """Run."""
        self._run(*args)

    def remove(self) -> None:
        """Take it off the layer, and what stands for it off the copies that were made since."""
        self._handle.remove()
        for copy in self._copies:
            hooks = copy()
            if hooks is not None:
                hooks.pop(self._handle.id, None)
        self._copies.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        """What a copy of the layer gets: a ride, with the graph of the step, is nothing to be copied."""
        hooks = memo.get(id(self._handle.hooks_dict_ref()))
        if hooks is not None:
            self._copies.append(ref(hooks))
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        """What a saved copy gets: a function that takes anything and does nothing, and needs none of our modules."""
        return getattr, (nullcontext(), "__exit__")


def _nothing(*_: Any) -> None:
    """Does nothing."""
