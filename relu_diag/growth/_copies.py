"""Copies of a block that users keep beside it: target networks, teachers, averages of their own. They take its width.

What they compute stays: new neurons have the input weights of the block there, and no output. So updates of such a copy
by the parameters of the block go on, soft ones and hard ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from relu_diag.capture import BlockLocation, of_lightning, read_block
from relu_diag.functional import ShallowBlock
from relu_diag.growth._parameters import owns
from relu_diag.growth.live import prepared_widening
from relu_diag.growth.optimizer_state import all_within, are_close, held_for

# Whose callbacks keep copies that are known, or none.
_KNOWN = ("relu_diag.", "lightning.", "pytorch_lightning.")


def prepared_copies(
    trainer: Trainer, location: BlockLocation, wider: ShallowBlock, averaged: Iterable[nn.Module]
) -> list[Callable[[], None]]:
    """What widens the copies that the module and callbacks keep of a block, checked.

    Args:
        trainer: The trainer, fitting.
        location: Which block of its module.
        wider: The block as it will be.
        averaged: Averaged copies of the whole module, whose block is widened besides.

    Returns:
        One growth a copy.
    """
    module = trainer.lightning_module
    copies = [module, *averaged]
    users = [one for one in trainer.callbacks if not type(one).__module__.startswith(_KNOWN)]  # type: ignore[attr-defined]
    root = _common_part(location)
    own = {id(copy.get_submodule(root)) for copy in copies}
    found = {id(one): one for holder in (*copies, *users) for one in _modules_of(holder)}
    part = module.get_submodule(root)
    alike = [one for one in found.values() if id(one) not in own and _has_shapes_of(one, part)]
    trained = [one for one in alike if _is_trained(one, part, trainer)]
    twins = [one for one in alike if one not in trained and _is_nearest(part, one, trained)]
    there = replace(location, hidden=_within(location.hidden, root), output=_within(location.output, root))
    growths = [prepared_widening(twin, there, _silently(read_block(twin, there), wider)) for twin in twins]
    for value in (one for holder in (module, *users) for one in _attributes(holder)):
        growths += _prepared_tensors(value, module, location, wider)
    return growths


def _common_part(location: BlockLocation) -> str:
    """The name of the smallest module that holds both layers; empty for the whole."""
    hidden = location.hidden.split(".")[:-1]
    output = location.output.split(".")[:-1]
    shared = 0
    while shared < min(len(hidden), len(output)) and hidden[shared] == output[shared]:
        shared += 1
    return ".".join(hidden[:shared])


def _within(name: str, root: str) -> str:
    """A name as seen from a part of the module."""
    return name.removeprefix(f"{root}.") if root else name


def _attributes(holder: Any) -> list[Any]:
    """What a module or a callback holds under names of its own."""
    return [value for name, value in vars(holder).items() if not name.startswith("_")]


def _modules_of(holder: Any) -> Iterator[nn.Module]:
    """The modules that a module or a callback holds, also in a list or a mapping, and theirs."""
    inside = [*holder.children()] if isinstance(holder, nn.Module) else []
    for value in (*inside, *_attributes(holder)):
        parts = value.values() if isinstance(value, dict) else value if type(value) in {list, tuple} else [value]
        for part in parts:
            if isinstance(part, nn.Module) and part is not holder and not _belongs_to_run(part):
                yield from part.modules()


def _belongs_to_run(part: nn.Module) -> bool:
    """Whether it is the module in training itself."""
    return isinstance(part, LightningModule) and part._trainer is not None


def _has_shapes_of(one: nn.Module, part: nn.Module) -> bool:
    """Whether a module has the parameters of another one by name and shape."""
    shapes = {name: parameter.shape for name, parameter in part.named_parameters()}
    return type(one) is type(part) and {name: p.shape for name, p in one.named_parameters()} == shapes


def _is_trained(one: nn.Module, part: nn.Module, trainer: Trainer) -> bool:
    """Whether a module of the shapes of another one is trained itself, and no copy."""
    owners = all_within(trainer.optimizers)
    held = [p for p in one.parameters() if p.requires_grad and any(owns(optimizer, p) for optimizer in owners)]
    # An optimizer of all parameters of the module holds its copies as well, which have no gradient.
    if any(p.grad is not None or any(optimizer.state.get(p) for optimizer in owners) for p in held):
        return True
    return bool(held) and not are_close([*zip(part.parameters(), one.parameters(), strict=True)])


def _is_nearest(part: nn.Module, copy: nn.Module, others: Iterable[nn.Module]) -> bool:
    """Whether a copy is that of a module, and not of another one: of twin critics each has a target of its own."""
    return all(_apart(copy, part) <= _apart(copy, other) for other in others)


def _apart(one: nn.Module, other: nn.Module) -> float:
    """The squared distance of the parameters of two modules."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(float((mine.detach() - theirs.detach()).square().sum()) for mine, theirs in pairs)


def _silently(block: ShallowBlock, wider: ShallowBlock) -> ShallowBlock:
    """A copy with the new neurons of the block, which have no output."""
    new = len(wider.W) - len(block.W)
    W = torch.cat([block.W, wider.W[-new:].to(block.W)])
    return replace(block, W=W, H=torch.cat([block.H, block.H.new_zeros(len(block.H), new)], dim=1))


def _prepared_tensors(
    value: Any, module: nn.Module, location: BlockLocation, wider: ShallowBlock
) -> list[Callable[[], None]]:
    """What widens tensors that are kept for the block's parameters, by name or in their order."""
    if of_lightning(value, "Trainer"):
        return []
    hidden, output = location.linears(module)
    new = len(wider.W) - hidden.out_features
    W = wider.W.detach()[-new:]
    growths = _prepared_for(value, module, f"{location.hidden}.weight", 0, W[:, : hidden.in_features])
    if hidden.bias is not None:
        growths += _prepared_for(value, module, f"{location.hidden}.bias", 0, W[:, -1])
    return growths + _prepared_for(value, module, f"{location.output}.weight", 1, W.new_zeros(len(output.weight), new))


def _prepared_for(value: Any, module: nn.Module, name: str, axis: int, filling: Tensor) -> list[Callable[[], None]]:
    """What widens tensors that are kept for one parameter; copies of it as said, others by zeros."""
    parameter = module.get_parameter(name)
    everything: list[Tensor] = [*module.parameters()]
    trained = [one for one in everything if one.requires_grad]
    lists: dict[int, Sequence[Tensor]] = {len(ones): ones for ones in (everything, trained)}
    held = {id(one): (one, copy) for one, copy in held_for(value, parameter, lists)}
    named = value.get(name) if isinstance(value, dict) else None
    if isinstance(named, Tensor):
        held[id(named)] = (named, True)
    return [
        partial(_widen, one, axis, filling if copy else torch.zeros_like(filling))
        for one, copy in held.values()
        if one.shape == parameter.shape and not isinstance(one, nn.Parameter)
    ]


def _widen(held: Tensor, axis: int, new: Tensor) -> None:
    """Give a tensor more neurons, in place: who holds it may be a tuple."""
    held.data = torch.cat([held.detach(), new.to(held)], dim=axis)
