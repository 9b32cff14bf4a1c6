"""Checkpoints of a network whose width changed: the layers take the shapes of what is loaded into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from relu_diag.capture import BlockLocation
from relu_diag.growth.graph import in_a_graph

# What a hyper-parameter that counts hidden neurons is called.
_WIDTH_WORDS = ("width", "hidden", "units", "neurons")


def resize_on_load(module: nn.Module, location: BlockLocation | None = None) -> None:
    """From now on a block takes the width of any state dict that is loaded into its module, wider or narrower.

    Load before the optimizers are made, or make them anew afterwards: their state is not resized.

    Args:
        module: The module that holds the block. Doing it twice changes nothing.
        location: Which block; None: all Linear layers of which nothing but widths that another one shares differs.

    Example:
        >>> narrow, wide = (nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 1)) for n in (3, 5))
        >>> resize_on_load(narrow)
        >>> narrow.load_state_dict(wide.state_dict())
        <All keys matched successfully>
    """
    if location is not None:
        location.linears(module)  # which names the cure where there are none
    hooks = (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    names = None if location is None else (location.hidden, location.output)
    if not any(isinstance(hook, _Resize) and hook.names in {None, names} for hook in hooks):
        module.register_load_state_dict_pre_hook(_Resize(names))  # type: ignore[no-untyped-call]


class GrowingModule(LightningModule):
    """A LightningModule whose grown checkpoints load everywhere, `load_from_checkpoint` included.

    Derive from it where the width is no hyper-parameter, or one of several. Loading then gives every block its width in
    the checkpoint before it is filled.

    Example:
        >>> class Net(GrowingModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the blocks the width they have in the checkpoint.

        Args:
            checkpoint: The checkpoint to be loaded.
        """
        _Resize(None)(self, checkpoint["state_dict"], "")


def remember_growth(module: nn.Module, location: BlockLocation, added: int) -> None:
    """Put into a module what its checkpoints need to be loaded: the hook, and the width as a hyper-parameter.

    Args:
        module: The module that has grown.
        location: The block.
        added: Number of new neurons.
    """
    resize_on_load(module, location)
    width = location.linears(module)[0].out_features
    _tell_width(module, width - added, width)


def _tell_width(module: nn.Module, before: int, after: int) -> None:
    if isinstance(module, LightningModule) and (name := _width_name(module.hparams, before)):
        module.hparams[name] = after


def _width_name(hparams: Mapping[str, Any], width: int) -> str | None:
    """The hyper-parameter that says how wide the block was: ``width``, or the only one of that value and meaning."""
    equal = [name for name, value in hparams.items() if type(value) is int and value == width]
    if "width" in equal:
        return "width"
    meant = [name for name in equal if any(word in name.lower() for word in _WIDTH_WORDS) and "layers" not in name]
    return meant[0] if len(meant) == 1 else None


@dataclass(frozen=True)
class _Resize:
    """A load_state_dict pre-hook: pairs of layers get the incoming width.

    Attributes:
        names: Hidden and output layer; None: all that fit together.
    """

    names: tuple[str, str] | None

    def __call__(self, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        changes = _consistent(_changes(layers, state_dict, prefix))
        for (layer, axis), sizes in changes.items():
            if self.names is None or layer == self.names[axis]:
                _resize(axis, layers[layer], sizes[1])
                if axis == 0:
                    _tell_width(module, *sizes)


# A layer and the axis of its weight; there, the present and the incoming width.
_Changes = dict[tuple[str, int], tuple[int, int]]


def _changes(layers: dict[str, nn.Linear], state_dict: dict[str, Tensor], prefix: str) -> _Changes:
    found: _Changes = {}
    for name, layer in layers.items():
        incoming = state_dict.get(f"{prefix}{name}.weight" if name else f"{prefix}weight")
        if incoming is None or incoming.ndim != 2:
            continue
        for axis in (0, 1):
            if incoming.shape[axis] != layer.weight.shape[axis]:
                found[name, axis] = (layer.weight.shape[axis], incoming.shape[axis])
    return found


def _consistent(changes: _Changes) -> _Changes:
    """Widths that one layer writes and another reads; a layer where more differs is for load_state_dict to name."""
    odd = {
        name
        for (name, axis), pair in changes.items()
        if not any(other != name and side != axis and pair == theirs for (other, side), theirs in changes.items())
    }
    return _consistent({key: pair for key, pair in changes.items() if key[0] not in odd}) if odd else changes


def _resize(axis: int, layer: nn.Linear, width: int) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.ndim > axis:
            shape = list(parameter.shape)
            shape[axis] = width
            empty = parameter.data.new_empty(shape)
            if in_a_graph([parameter]):  # a loss or a clone kept from before: its graph insists on the old shape
                setattr(layer, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            else:
                parameter.data, parameter.grad = empty, None
    setattr(layer, "in_features" if axis else "out_features", width)
