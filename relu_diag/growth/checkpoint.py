"""Checkpoints of a network whose width changed: the layers take the shapes of what is loaded into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from relu_diag.capture import BlockLocation

_KEY = "relu_diag_grown_blocks"


def resize_on_load(module: nn.Module, location: BlockLocation) -> None:
    """From now on a block takes the width of any state dict that is loaded into its module, wider or narrower.

    Load before the optimizers are made, or make them anew afterwards: their state is not resized.

    Args:
        module: The module that holds the block. Doing it twice changes nothing.
        location: Which block.

    Example:
        >>> narrow, wide = (nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 1)) for n in (3, 5))
        >>> resize_on_load(narrow, BlockLocation("0", "2", (0.0, 1.0)))
        >>> narrow.load_state_dict(wide.state_dict())
        <All keys matched successfully>
    """
    location.linears(module)  # which names the cure where there are none
    hooks = (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    names = (location.hidden, location.output)
    if not any(isinstance(hook, _Resize) and hook.names == names for hook in hooks):
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
    """A load_state_dict pre-hook: a pair of layers gets the incoming width."""

    names: tuple[str, str]

    def __call__(self, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        layers = dict(module.named_modules())
        for axis, (name, width) in enumerate(zip(self.names, ("out_features", "in_features"), strict=True)):
            path, layer = f"{prefix}{name}." if name else prefix, layers[name]
            for kind, parameter in layer.named_parameters(recurse=False):
                incoming = state_dict.get(path + kind)
                if incoming is not None and _differ_in(axis, incoming, parameter):
                    parameter.data, parameter.grad = parameter.data.new_empty(incoming.shape), None
                    setattr(layer, width, incoming.shape[axis])


def _differ_in(axis: int, one: Tensor, other: Tensor) -> bool:
    """Whether two shapes differ in this axis and no other; where more differs, load_state_dict says so."""
    if one.ndim != other.ndim or one.ndim <= axis or one.shape == other.shape:
        return False
    return all(a == b for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if i != axis)
