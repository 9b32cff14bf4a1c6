"""Checkpoints of a network whose width changed: the layers take the shapes of what is loaded into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from relu_diag.capture import BlockLocation

_KEY = "relu_diag_grown_blocks"


def resize_on_load(module: nn.Module, location: BlockLocation | None = None) -> None:
    """From now on a block takes the width of any state dict that is loaded into its module, wider or narrower.

    Load before the optimizers are made, or make them anew afterwards: their state is not resized.

    Args:
        module: The module that holds the block. Doing it twice changes nothing.
        location: Which block; None: each pair of Linear layers of which nothing but the common width differs.

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

    Derive from it where the width is not a hyper-parameter called ``width``. A checkpoint then names the blocks that
    have grown, and loading gives them their width before it fills them.

    Example:
        >>> class Net(GrowingModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the blocks that have grown.

        Args:
            checkpoint: The checkpoint to be saved.
        """
        checkpoint[_KEY] = [[hidden, output] for hidden, output in sorted(grown_blocks(self))]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the blocks that have grown the width of the checkpoint.

        Args:
            checkpoint: The checkpoint to be loaded.
        """
        for hidden, output in checkpoint.get(_KEY, ()):
            grown_blocks(self).add((hidden, output))
            _Resize((hidden, output))(self, checkpoint["state_dict"], "")


def grown_blocks(module: nn.Module) -> set[tuple[str, str]]:
    """Names of the Linear pairs of a module that have grown.

    Args:
        module: The module.

    Returns:
        Qualified names of hidden and output layer; adding to the set is remembered.
    """
    found: set[tuple[str, str]] = module.__dict__.setdefault("_relu_diag_grown", set())
    return found


def remember_growth(module: nn.Module, location: BlockLocation, added: int) -> None:
    """Put into a module what its checkpoints need to be loaded: the hook, the names, the hyper-parameter ``width``.

    Args:
        module: The module that has grown.
        location: The block.
        added: Number of new neurons.
    """
    resize_on_load(module, location)
    grown_blocks(module).add((location.hidden, location.output))
    width = location.linears(module)[0].out_features
    if isinstance(module, LightningModule) and module.hparams.get("width") == width - added:
        module.hparams["width"] = width


@dataclass(frozen=True)
class _Resize:
    """A load_state_dict pre-hook: pairs of layers get the incoming width.

    Attributes:
        names: Hidden and output layer; None: all that fit together.
    """

    names: tuple[str, str] | None

    def __call__(self, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        widths = [
            {name: width for name in layers if (width := _incoming_width(axis, name, layers[name], state_dict, prefix))}
            for axis in (0, 1)
        ]
        for axis, (mine, theirs) in enumerate((widths, widths[::-1])):
            for name, width in mine.items():
                chosen = name == self.names[axis] if self.names else width in theirs.values()
                if chosen:
                    _resize(axis, layers[name], width[1])


def _incoming_width(
    axis: int, name: str, layer: nn.Linear, state_dict: dict[str, Tensor], prefix: str
) -> tuple[int, int] | None:
    """Present and incoming width of a layer, if they are all that differs; where more does, load_state_dict says so."""
    incoming = state_dict.get(f"{prefix}{name}.weight" if name else f"{prefix}weight")
    if incoming is None or incoming.ndim != 2 or incoming.shape[1 - axis] != layer.weight.shape[1 - axis]:
        return None
    before, after = layer.weight.shape[axis], incoming.shape[axis]
    return (before, after) if before != after else None


def _resize(axis: int, layer: nn.Linear, width: int) -> None:
    for parameter in (layer.weight, layer.bias):
        if parameter is not None and parameter.ndim > axis:
            shape = list(parameter.shape)
            shape[axis] = width
            parameter.data, parameter.grad = parameter.data.new_empty(shape), None
    setattr(layer, "in_features" if axis else "out_features", width)
