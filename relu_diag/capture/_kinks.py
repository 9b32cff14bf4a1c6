"""Kinks between a block and the loss: how many numbers sit on one, and have a say in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
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
        # Tensors with their version; None where there is no zero.
        self._kept: dict[tuple[Node, int], tuple[Tensor | None, int]] = {}

    def keep(self, z: Tensor, overwritten: bool = False, look: bool = False) -> None:
        """Hold on to a tensor; where it is about to be overwritten, to its zeros; or look at once that it has none."""
        if z.grad_fn is None:
            return
        edge = z.grad_fn, z.output_nr
        if edge in self._kept and not overwritten:
            return
        kept = z.detach()
        if look and kept.device.type == "cpu" and _is_off(kept, 0.0):
            self._kept[edge] = None, 0
        elif self._kept.get(edge, (z, 0))[0] is not None:
            kept = kept == 0 if overwritten else kept
            self._kept[edge] = kept, kept._version

    def of(self, node: Node, index: int) -> tuple[bool, Tensor | None]:
        """Whether the tensor of an edge is known, and it, or where it is zero, bool; None where it has no zero."""
        while (node, index) not in self._kept and is_layout(node):
            below, index = node.next_functions[0]
            if below is None:
                return False, None
            node = below
        if (node, index) not in self._kept:
            return False, None
        kept, version = self._kept[node, index]
        return kept is None or kept._version == version, kept

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
        self.counted, z = _input(self.node, self.inputs)
        if self.counted:
            self.count = _none(gradient.device) if z is None else _count(z, _places(self.node), gradient)


def later_kinks(kinks: Iterable[LaterKink], like: Tensor) -> Tensor:
    """How many numbers sit on the kinks that could be counted, shape ``()``, on the device of `like`."""
    none = _none(like.device)
    counts = [kink.count.to(like.device) for kink in kinks if kink.count is not None and kink.count is not none]
    return torch.stack(counts).sum() if counts else none


def _input(node: Node, inputs: Inputs) -> tuple[bool, Tensor | None]:
    """Whether the input of an operation is known, and it, or where it is zero, bool; None where it has no zero."""
    if node.name() == "ReluBackward0":
        below, index = node.next_functions[0]
        return (False, None) if below is None else inputs.of(below, index)
    if node.name() not in BENT:
        return False, None
    z = saved_tensor(node, "result" if node.name() == "LeakyReluBackward1" else "self")
    return z is not None, z


def _places(node: Node) -> list[Any]:
    """Where an operation bends: numbers and tensors."""
    kept = [getattr(node, f"_saved_{name}", None) for name in _PLACES]
    return [place for place in kept if place is not None] or _OTHER_PLACES.get(node.name(), [0.0])


def _count(z: Tensor, places: list[Any], gradient: Tensor) -> Tensor:
    """How many inputs are at one of some places and have a gradient, shape ``()``."""
    if z.device.type == "cpu" and z.dtype != torch.bool and all(_is_off(z, place) for place in places):
        return _none(z.device)
    on_kink = z if z.dtype == torch.bool else torch.stack([z == place for place in places]).any(dim=0)
    return (on_kink.reshape(gradient.shape) & (gradient != 0)).sum()


def _is_off(z: Tensor, place: Any) -> bool:
    """Whether no number is at a place: faster than comparing, but for a GPU that would have to be waited for."""
    distance = z if isinstance(place, float | int) and place == 0 else z - place
    return distance.numel() > 0 and bool(distance.abs().amin() > 0)


@lru_cache(maxsize=8)
def _none(device: torch.device) -> Tensor:
    """A count of zero."""
    return torch.zeros((), dtype=torch.long, device=device)
