"""The weight decay of an optimizer as a penalty, where it is the gradient of one."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, NAdam, Optimizer, RAdam, RMSprop

from relu_diag.capture import BlockLocation, LiveBlock
from relu_diag.functional import WeightDecay
from relu_diag.training._groups import groups_of

# These add the decay to the gradient, unless they are told to decouple it: it is that of a penalty.
_COUPLED = (SGD, Adam, Adagrad, NAdam, RAdam, RMSprop)


def decaying(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> str:
    """The optimizer that decays the weights of a block.

    Args:
        trainer: The trainer.
        parameters: The parameters of the block.

    Returns:
        Name of its class; empty if none decays.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> layer = nn.Linear(2, 1)
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.1, weight_decay=1e-4)]
        >>> decaying(trainer, list(layer.parameters()))
        'SGD'
    """
    groups = groups_of(trainer, parameters)
    names = [type(one.optimizer).__name__ for one in groups if float(one.group.get("weight_decay", 0.0)) > 0]
    return names[0] if names else ""


def climbing(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> str:
    """The optimizer that raises the loss of a block instead of lowering it.

    Args:
        trainer: The trainer.
        parameters: The parameters of the block.

    Returns:
        Name of its class; empty if all lower it.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> layer = nn.Linear(2, 1)
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.1, maximize=True)]
        >>> climbing(trainer, list(layer.parameters()))
        'SGD'
    """
    groups = groups_of(trainer, parameters)
    return next((type(one.optimizer).__name__ for one in groups if one.group.get("maximize")), "")


def largest_weight_decay(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> float:
    """The largest weight decay on a block.

    Args:
        trainer: The trainer.
        parameters: The parameters of the block.

    Returns:
        Weight decay, in the optimizer's own convention; 0 if it has none.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> layer = nn.Linear(2, 1)
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.1, weight_decay=1e-4)]
        >>> largest_weight_decay(trainer, list(layer.parameters()))
        0.0001
    """
    groups = groups_of(trainer, parameters)
    return max((float(one.group.get("weight_decay", 0.0)) for one in groups), default=0.0)


def penalty_of(trainer: Trainer, location: BlockLocation) -> WeightDecay | None:
    """The weight decay of a block as a penalty on its parts.

    Args:
        trainer: The trainer, fitting.
        location: The place of the block in its module.

    Returns:
        The decay, zero where there is none; None where it is no gradient of a loss, as under AdamW, or parts of the
        block are not decayed as they are: computed weights, raw parameters.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from relu_diag.nn import ShallowNet
        >>> module = LightningModule()
        >>> module.net = ShallowNet(2, 3, hidden_bias=False, output_bias=False)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> trainer.strategy.connect(module)
        >>> trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.01)]
        >>> penalty_of(trainer, BlockLocation("net.hidden", "net.output", (0.0, 1.0)))
        WeightDecay(W=0.01, H=0.01, hidden_bias=None, output_bias=0.0)
    """
    return penalty_on(trainer, LiveBlock.at(trainer.lightning_module, location))


def penalty_on(trainer: Trainer, block: LiveBlock) -> WeightDecay | None:
    """The weight decay of a block's parameters as a penalty on its parts.

    Args:
        trainer: The trainer, fitting.
        block: The parameters.

    Returns:
        The decay, as of `penalty_of`; None also where two layers that read the block are decayed differently.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 1, False))
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> trainer.strategy.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)]
        >>> penalty_on(trainer, LiveBlock.at(net, BlockLocation("0", "2", (0.0, 1.0))))
        WeightDecay(W=0.01, H=0.01, hidden_bias=None, output_bias=0.0)
    """
    W = _decay_of(trainer, block.hidden.parameter)
    by_reader = {_decay_of(trainer, reader.parameter) for reader in block.readers}
    by_bias = {_decay_of(trainer, bias) for bias in block.reader_biases if bias is not None} or {0.0}
    hidden_bias = None if block.hidden_bias is None else _decay_of(trainer, block.hidden_bias)
    if W is None or (block.hidden_bias is not None and hidden_bias is None):
        return None
    if len(by_reader) != 1 or len(by_bias) != 1:
        return None
    H, output_bias = by_reader.pop(), by_bias.pop()
    return None if H is None or output_bias is None else WeightDecay(W, H, hidden_bias, output_bias)


def _decay_of(trainer: Trainer, parameter: Tensor) -> float | None:
    """The decay of a parameter as the factor of a penalty; None where it is none, or the parameter is in no group."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if any(one is parameter for one in group["params"]):
                decay = float(group.get("weight_decay", 0.0))
                return decay if decay == 0 or _is_coupled(optimizer, group) else None
    return None


def _is_coupled(optimizer: Optimizer, group: dict[str, object]) -> bool:
    return isinstance(optimizer, _COUPLED) and not group.get("decoupled_weight_decay")
