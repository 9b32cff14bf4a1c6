"""A glance at a step: which neurons of known blocks are silent on its rows, and nothing of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relu_diag.capture._hooks import LayerHook


@dataclass(slots=True, eq=False)
class Glimpse:
    """What a glance shows of a block.

    Attributes:
        hidden: Name of its first layer.
        X: Inputs of each application, shapes ``(N, d)``.
        lows: Least pre-activation of every neuron, of each application, shape ``(I,)``.
        highs: Largest one.
        count: Number of rows.

    Example:
        >>> Glimpse("encoder").count
        0
    """

    hidden: str
    X: tuple[Tensor, ...] = ()
    lows: tuple[Tensor, ...] = ()
    highs: tuple[Tensor, ...] = ()
    count: int = 0


class Glance:
    """Looks at the outputs of first layers while somebody else's forward pass runs.

    It is for layers of which a ride has seen that every pass through them is a pass through their block: then their
    outputs are all there is to know of silent neurons, and neither the graph nor gradients are looked at.

    Args:
        layers: First layers of blocks, by name.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> glance = Glance({"0": layer})
        >>> _ = layer(torch.eye(2))
        >>> (seen,) = glance.end()
        >>> seen.count, bool(seen.highs[0] == layer.weight.max())
        (2, True)
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self._seen = {id(layer): Glimpse(name) for name, layer in layers.items()}
        self._handles = [LayerHook(layer, self._note) for layer in layers.values()]
        self._error: Exception | None = None

    def end(self) -> list[Glimpse]:
        """Take the hooks off, and tell what was seen.

        Returns:
            One glimpse a layer; none where one of them did not run, or a number is not finite. What went wrong in a
            hook is raised here, and not in the step.
        """
        self.leave()
        if self._error is not None:
            raise self._error
        seen = list(self._seen.values())
        if not all(one.count for one in seen):
            return []
        numbers = [part for one in seen for part in (*one.lows, *one.highs)]
        return seen if math.isfinite(torch.cat(numbers).sum()) else []

    def leave(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, layer: nn.Linear, args: tuple[Any, ...], Z: Tensor) -> None:
        """Look at what comes out of a layer; passes without gradient, and repeated ones, are none of training."""
        if not args or not isinstance(Z, Tensor) or not Z.numel() or Z.grad_fn is None:
            return
        if torch._C._current_graph_task_id() != -1:
            return
        try:
            seen = self._seen[id(layer)]
            low, high = extremes_of(Z.detach())
            seen.X += (args[0].detach().reshape(-1, args[0].shape[-1]),)
            seen.lows += (low,)
            seen.highs += (high,)
            seen.count += len(seen.X[-1])
        except Exception as error:
            self._error = error


def extremes_of(Z: Tensor) -> tuple[Tensor, Tensor]:
    """Extremes of every neuron.

    Args:
        Z: Pre-activations, shape ``(..., I)``.

    Returns:
        Least and largest ones, shapes ``(I,)``.

    Example:
        >>> extremes_of(torch.eye(2))
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    rows = Z if Z.ndim == 2 else Z.reshape(-1, Z.shape[-1])
    return rows.amin(0), rows.amax(0)
