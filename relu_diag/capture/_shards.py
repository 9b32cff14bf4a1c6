"""Layers whose parameters are sharded over processes: gathered while they run (FSDP2), or split by neurons for good.

Tensor parallelism gives every process some of the neurons. A block is put together from all of them after the step, a
collective that all processes enter, as all of them ride on the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from relu_diag.capture._hooks import LayerHook
from relu_diag.capture._ridden import Application, Gradients, Ridden, Weights
from relu_diag.capture._sighting import Block
from relu_diag.capture.plain import is_sharded
from relu_diag.capture.sighting import Sighting

OTHERWISE = "its weights are sharded over processes otherwise than by neurons"


class Shards:
    """The sharded layers of a step."""

    def __init__(self) -> None:
        # Names of the parameters that took part, by identity, and the layer that holds each or its shards.
        self.names: dict[int, str] = {}
        self._holders: dict[int, tuple[nn.Module, str]] = {}

    def listen(
        self, module: nn.Module, seen: Callable[[nn.Parameter], object], guard: Callable[..., None]
    ) -> Iterator[LayerHook]:
        """Hooks that show the parameters of sharded layers as they are about to run.

        Args:
            module: The module.
            seen: Is called with every parameter, which may be gathered for as long as the layer runs.
            guard: Runs the hooks.

        Yields:
            The hooks.
        """
        layers = dict(module.named_modules())
        gathered = any(is_sharded(one) for one in {type(one): one for one in layers.values()}.values())
        roots = [name for name, one in layers.items() if is_sharded(one)] if gathered else []
        for name, layer in layers.items():
            inside = bool(roots) and any(f"{name}.".startswith(f"{root}." if root else "") for root in roots)
            if inside or any(hasattr(one, "to_local") for one in layer._parameters.values()):
                yield LayerHook(layer, partial(guard, self._note, name, seen), before=True)

    def _note(self, name: str, seen: Callable[[nn.Parameter], object], layer: nn.Module, _: object) -> None:
        """Take note of the parameters of a layer, which may stand in for others."""
        for own, parameter in layer._parameters.items():
            if parameter is not None:
                self.names[id(parameter)] = f"{name}.{own}".removeprefix(".")
                self._holders[id(parameter)] = layer, own
                seen(parameter)

    def whole(self, block: Block, seen: Sighting) -> Sighting | str:
        """A sighting with the neurons of all processes, of parameters that optimizers hold; or why there is none.

        A collective where neurons are split.
        """
        readers = [reader.product.weight.parameter for reader in block.readers if reader.noted.G is not None]
        weights = [block.hidden.product.weight.parameter, *readers]
        split = [one for one in weights if hasattr(one, "to_local")]
        if not any(id(one) in self.names for one in weights):
            return seen
        parameters = tuple([self._at_rest(one) for one in seen.parameters])
        seen = replace(seen, parameters=parameters, live=None, sharded=True)
        if not split:
            return seen
        axes = [_sharded_axes(one) for one in weights]
        if axes != [{0}, *({1} for _ in readers)]:
            return OTHERWISE
        join = _Join(weights[0])
        return replace(seen, ridden=join.ridden(seen.ridden), repeated=join.repeats)

    def _at_rest(self, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter whose place another one took while its layer ran."""
        if id(parameter) not in self._holders:
            return parameter
        layer, own = self._holders[id(parameter)]
        return cast(nn.Parameter, layer._parameters[own])


def _sharded_axes(parameter: nn.Parameter) -> set[int] | None:
    """The axes along which a parameter is split over processes; None where it is none of a DTensor, or a sum."""
    placements = getattr(parameter, "placements", None)
    if placements is None or any(one.is_partial() for one in placements):
        return None
    return {one.dim for one in placements if one.is_shard()}


@dataclass(frozen=True, slots=True, eq=False)
class _Join:
    """Joins the neurons of all processes, which an input weight ``(I, d)`` is split into."""

    weight: Any

    @property
    def repeats(self) -> bool:
        """Whether another process saw the same rows, and counts them."""
        return any(self.weight.device_mesh.get_coordinate() or ())

    def ridden(self, part: Ridden) -> Ridden:
        """A block of all neurons."""
        weights = part.weights
        joined = Weights(
            W=self._along(0, weights.W),
            bias=None if weights.bias is None else self._along(0, weights.bias),
            heads=tuple([self._along(1, head) for head in weights.heads]),
            head_biases=weights.head_biases,
            slopes=weights.slopes,
        )
        return Ridden(joined, tuple([self._application(one) for one in part.applications]))

    def _application(self, part: Application) -> Application:
        C = self._along(-1, part.C)
        known = part.gradients
        return replace(
            part,
            Z=None if part.Z is None else self._along(-1, part.Z),
            A=None if part.A is None else self._along(-1, part.A),
            C=C,
            gradients=None
            if known is None
            else Gradients(
                self._along(0, known.W), self._along(0, known.bias), tuple([self._along(1, one) for one in known.heads])
            ),
            totals=(C.sum(), *part.totals[1:]),
            looked=None,
        )

    def _along(self, axis: int, part: Tensor) -> Tensor:
        """A tensor of all neurons along an axis, from the part of this process."""
        from torch.distributed.tensor import DTensor, Shard

        axis %= part.ndim
        shape = list(part.shape)
        shape[axis] = self.weight.shape[0]
        strides = torch.empty(shape, device="meta").stride()
        placements = [Shard(axis) if one.is_shard() else one for one in self.weight.placements]
        sharded = DTensor.from_local(
            part.contiguous(),
            self.weight.device_mesh,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=strides,
        )
        whole: Tensor = sharded.full_tensor()
        return whole
