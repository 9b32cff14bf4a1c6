"""Kinks between a block and the loss: how many numbers sit on one, and have a say in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from relu_diag.capture._nodes import BENT, is_layout, saved_tensor

# Where an operation bends: the numbers and tensors that its node keeps by these names, at 0 where it keeps none.
_PLACES = ("threshold", "min_val", "max_val", "min", "max", "other")
_OTHER_PLACES = {"HardswishBackward0": [-3.0, 3.0], "HardsigmoidBackward0": [-3.0, 3.0]}


class Inputs:
    """Inputs of activations that autograd does not keep: a ReLU remembers what came out of it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Node, int], tuple[Tensor, int]] = {}

    def keep(self, z: Tensor, overwritten: bool = False) -> None:
        """Hold on to a tensor; where it is about to be overwritten, to its zeros."""
        if z.grad_fn is not None:
            kept = z.detach() == 0 if overwritten else z.detach()
            self._kept[z.grad_fn, z.output_nr] = kept, kept._version

    def zeros(self, node: Node, index: int) -> Tensor | None:
        """Where the tensor of an edge is zero, bool; None where it was not kept, or was overwritten."""
        while (node, index) not in self._kept and is_layout(node):
            below, index = node.next_functions[0]
            if below is None:
                return None
            node = below
        kept, version = self._kept.get((node, index), (None, 0))
        if kept is None or kept._version != version:
            return None
        return kept if kept.dtype == torch.bool else kept == 0

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()


@dataclass(slots=True, eq=False)
class LaterKink:
    """An operation with a kink behind a block.

    Attributes:
        node: Its node.
        inputs: Inputs that autograd does not keep.
        count: Number of its inputs that sit on the kink and get a gradient, shape ``()``; None where no gradient came.
        counted: Whether its inputs were known when the gradient came.
    """

    node: Node
    inputs: Inputs
    count: Tensor | None = None
    counted: bool = True

    def listen(self, guard: Callable[..., None]) -> RemovableHandle:
        """The hook on its node."""
        return self.node.register_prehook(partial(guard, self._note))

    def _note(self, grads: tuple[Tensor | None, ...]) -> None:
        gradient = grads[0]
        if gradient is None:
            return
        on_kink = _on_kink(self.node, self.inputs)
        self.counted = on_kink is not None
        if on_kink is not None:
            self.count = (on_kink.reshape(gradient.shape) & (gradient != 0)).sum()


def later_kinks(kinks: Iterable[LaterKink], like: Tensor) -> Tensor:
    """How many numbers sit on the kinks that could be counted, shape ``()``, on the device of `like`."""
    counts = [kink.count.to(like.device) for kink in kinks if kink.count is not None]
    return torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long, device=like.device)


def _on_kink(node: Node, inputs: Inputs) -> Tensor | None:
    """Which inputs of an operation sit on its kink, bool; None where they are not known."""
    if node.name() == "ReluBackward0":
        below, index = node.next_functions[0]
        return None if below is None else inputs.zeros(below, index)
    if node.name() not in BENT:
        return None
    z = saved_tensor(node, "result" if node.name() == "LeakyReluBackward1" else "self")
    if z is None:
        return None
    kept: list[Any] = [getattr(node, f"_saved_{name}", None) for name in _PLACES]
    places = [place for place in kept if place is not None] or _OTHER_PLACES.get(node.name(), [0.0])
    return torch.stack([z == place for place in places]).any(dim=0)
