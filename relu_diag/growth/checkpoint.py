"""Checkpoints of a network whose width has changed: layers take the width of the state dict loaded into them."""

from __future__ import annotations

import argparse
import copy
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from relu_diag.capture import BlockLocation, of_lightning
from relu_diag.growth.graph import in_a_graph

# Words in the name of a hyper-parameter that counts hidden neurons.
_WIDTH_WORDS = ("width", "hidden", "units", "neurons")
# How a width may be written: a command line passes strings.
_NUMBERS = (int, float, str)
# Where a number stands among hyper-parameters: the name of one, then keys and indices within it.
_Place = tuple[Any, ...]


def resize_on_load(module: nn.Module, location: BlockLocation | None = None) -> None:
    """Let a block take the width of any state dict that is loaded into its module from now on, wider or narrower.

    Load before the optimizers are made, or make new ones afterwards: their state is not resized. A second call changes
    nothing.

    Args:
        module: The module that holds the block.
        location: Which block; None: every pair of Linear layers that differs from the state dict only in the width
            between them.

    Example:
        >>> narrow, wide = (nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 1)) for n in (3, 5))
        >>> resize_on_load(narrow)
        >>> narrow.load_state_dict(wide.state_dict())
        <All keys matched successfully>
    """
    if location is not None:
        location.linears(module)  # Raises if the layers are missing.
    hooks = (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    names = None if location is None else (location.hidden, location.output)
    if not any(isinstance(hook, _Resize) and hook.names in {None, names} for hook in hooks):
        module.register_load_state_dict_pre_hook(_Resize(names))  # type: ignore[no-untyped-call]


class GrowingModule(LightningModule):
    """A LightningModule that loads checkpoints of any width, also with `load_from_checkpoint`.

    Derive from it if the width is no hyper-parameter, or if there are several widths. Before the weights are loaded,
    every block gets the width that it has in the checkpoint.

    Example:
        >>> class Net(GrowingModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give every block the width that it has in the checkpoint.

        Args:
            checkpoint: The checkpoint that is being loaded.
        """
        _Resize(None)(self, checkpoint["state_dict"], "")


def remember_growth(module: nn.Module, location: BlockLocation, added: int) -> None:
    """Prepare a widened module for its checkpoints: register the load hook, update the width among hyper-parameters.

    Args:
        module: The module, after the widening.
        location: The block.
        added: Number of new neurons.
    """
    resize_on_load(module, location)
    width = location.linears(module)[0].out_features
    _update_hparams(module, width - added, width)


def _update_hparams(module: nn.Module, before: int, after: int) -> None:
    """Replace the width among the module's hyper-parameters, if one of them is it."""
    if not of_lightning(module, "LightningModule"):
        return
    module = cast(LightningModule, module)
    equal = [(name, *place) for name, value in module.hparams.items() for place in _places(value, before)]
    made = {place: _makes(module, place, after) for place in equal}
    # A name says something only where the module cannot be made to see what it makes.
    place = next((place for place in equal if made[place]), None)
    if place is None and made and all(one is None for one in made.values()):
        place = _width_place([one for one in equal if type(_at(dict(module.hparams), one)) is int])
    if place is not None:
        _set(module, place, after)
    else:
        _update_factor(module, before, after)


def _set(module: LightningModule, place: _Place, number: int) -> None:
    """Give a hyper-parameter another number."""
    module.hparams[place[0]] = _replaced(module.hparams[place[0]], place[1:], number)


def _update_factor(module: LightningModule, before: int, after: int) -> None:
    """Replace the factor that a width is computed from, as ``expansion`` in ``width * expansion``, if one is it."""
    for factor in range(1, before):
        if before % factor or (factor * after) % before:
            continue
        other = factor * after // before
        for name, value in module.hparams.items():
            for place in _places(value, factor):
                if _makes(module, (name, *place), other):
                    _set(module, (name, *place), other)
                    return


def _places(value: Any, number: int) -> Iterator[_Place]:
    """Where a number stands in a hyper-parameter, which may be a configuration of many: keys, indices and names."""
    if type(value) in _NUMBERS and value == type(value)(number):
        yield ()
    for key, part in _parts(value).items():
        for place in _places(part, number):
            yield (key, *place)


def _parts(value: Any) -> dict[Any, Any]:
    """What a configuration is made of, by keys, indices, or the names of attributes."""
    if isinstance(value, dict):
        return value
    if type(value) in {list, tuple}:
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return vars(value) if isinstance(value, argparse.Namespace | SimpleNamespace) else {}


def _at(value: Any, place: _Place) -> Any:
    """What stands at a place."""
    return _at(_parts(value)[place[0]], place[1:]) if place else value


def _replaced(value: Any, place: _Place, number: int) -> Any:
    """A hyper-parameter with another number at a place; the one given stays as it is."""
    if not place:
        return type(value)(number)
    key, *rest = place
    part = _replaced(_parts(value)[key], tuple(rest), number)
    if isinstance(value, tuple):
        return (*value[:key], part, *value[key + 1 :])
    changed = copy.copy(value)
    if isinstance(value, dict | list):
        changed[key] = part
    else:
        object.__setattr__(changed, key, part)  # a frozen dataclass lets nobody else
    return changed


def _makes(module: LightningModule, place: _Place, width: int) -> bool | None:
    """Whether a module made with the width there has the shapes of this one; None where it cannot be made.

    It is made without memory, and without drawing random numbers that anything else would have drawn.
    """
    wanted = {key: value.shape for key, value in module.state_dict().items()}
    known = inspect.signature(type(module).__init__).parameters.values()
    named = {one.name for one in known if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}}
    open_ended = any(one.kind is one.VAR_KEYWORD for one in known)
    given = {key: value for key, value in module.hparams.items() if open_ended or key in named}
    changed = {place[0]: _replaced(module.hparams[place[0]], place[1:], width)}
    try:
        with torch.random.fork_rng(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = type(module)(**copy.deepcopy(given | changed))
            return {key: value.shape for key, value in other.state_dict().items()} == wanted
    except Exception:  # A user's constructor may raise anything, and may need what is no hyper-parameter.
        return None


def _width_place(equal: list[_Place]) -> _Place | None:
    """The place of a width's value whose name says so: ``width``, or the only one with such a name."""
    named = [(place, next(key for key in reversed(place) if isinstance(key, str)).lower()) for place in equal]
    for place, name in named:
        if name == "width":
            return place
    meant = [place for place, name in named if any(word in name for word in _WIDTH_WORDS) and "layers" not in name]
    return meant[0] if len(meant) == 1 else None


@dataclass(frozen=True)
class _Resize:
    """A load_state_dict pre-hook that gives pairs of layers the incoming width.

    Attributes:
        names: Names of the hidden and the output layer; None: all pairs that fit together.
    """

    names: tuple[str, str] | None

    def __call__(self, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        widths: list[_Change] = []
        for change in _consistent(_changes(layers, state_dict, prefix)):
            if self.names is None or change.layer == self.names[change.axis]:
                _resize(change.axis, layers[change.layer], change.incoming)
                if change.axis == 0:
                    widths.append(change)
        for change in widths:  # all layers have their shapes now
            _update_hparams(module, change.current, change.incoming)


@dataclass(frozen=True, slots=True)
class _Change:
    """A width that differs in the state dict: which layer, which axis of its weight, and both widths."""

    layer: str
    axis: int
    current: int
    incoming: int

    def fits(self, other: _Change) -> bool:
        """Whether another layer has the same change on the other side of the activation."""
        sizes = (self.current, self.incoming)
        return self.layer != other.layer and self.axis != other.axis and sizes == (other.current, other.incoming)


def _changes(layers: dict[str, nn.Linear], state_dict: dict[str, Tensor], prefix: str) -> list[_Change]:
    """All widths in which the layers differ from the state dict."""
    changes = []
    for name, layer in layers.items():
        incoming = state_dict.get(f"{prefix}{name}.weight" if name else f"{prefix}weight")
        if not isinstance(incoming, Tensor) or incoming.ndim != 2:
            continue
        for axis in (0, 1):
            if incoming.shape[axis] != layer.weight.shape[axis]:
                changes.append(_Change(name, axis, layer.weight.shape[axis], incoming.shape[axis]))
    return changes


def _consistent(changes: list[_Change]) -> list[_Change]:
    """The changes of layers that all fit another one's; load_state_dict reports the layers that differ otherwise."""
    odd = {change.layer for change in changes if not any(change.fits(other) for other in changes)}
    return _consistent([change for change in changes if change.layer not in odd]) if odd else changes


def _resize(axis: int, layer: nn.Linear, width: int) -> None:
    """Give a layer a width along one axis of its weight, 0 for its outputs; the values are not set."""
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.ndim > axis:
            shape = list(parameter.shape)
            shape[axis] = width
            empty = parameter.data.new_empty(shape)
            if in_a_graph([parameter]):  # The graph of a loss kept from before needs a tensor of the old shape.
                setattr(layer, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            else:
                parameter.data = empty
                parameter.grad = None
    setattr(layer, "in_features" if axis else "out_features", width)
