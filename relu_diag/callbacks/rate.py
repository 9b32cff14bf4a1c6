"""The pace of an optimizer as a forecast needs it: the rate of plain descent it amounts to, now and as scheduled."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from relu_diag.callbacks.judge import SquaredData
from relu_diag.capture import BlockLocation
from relu_diag.functional import ShallowBlock, squared_loss

# Steps of a scheduler that are looked ahead; from then on its last rate is taken to stay.
_AHEAD = 100_000


class NoForecast(Exception):
    """Why nothing is said about the end of a plateau."""


@dataclass(frozen=True, slots=True, eq=False)
class DescentPace:
    """Plain gradient descent as which an optimizer moves a block.

    Attributes:
        rate: Its learning rate now.
        decay: Weight decay, per unit of time.
        pieces: How the rate goes on: numbers of steps and their rates, the last number infinite.
    """

    rate: float
    decay: float
    pieces: list[tuple[float, float]]

    def steps_until(self, time: float) -> float:
        """Steps from now that make up a time of gradient flow.

        Args:
            time: The time, rates times steps.

        Returns:
            Number of steps; inf where the rates are too small ever to get there.
        """
        steps = 0.0
        for count, rate in self.pieces:
            if rate * count >= time:
                return steps + (time / rate if rate > 0 else 0.0)
            steps, time = steps + count, time - (rate * count if rate > 0 else 0.0)
        return math.inf


def optimizers_of(trainer: Trainer, module: LightningModule, location: BlockLocation) -> list[tuple[Optimizer, Any]]:
    """What trains a block.

    Args:
        trainer: The trainer.
        module: Its module.
        location: The block.

    Returns:
        Every pair of an optimizer and one of its groups that holds parameters of the block.
    """
    own = {id(parameter) for parameter in block_parameters(module, location)}
    return [
        (optimizer, group)
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if any(id(parameter) in own for parameter in group["params"])
    ]


def block_parameters(module: LightningModule, location: BlockLocation) -> list[nn.Parameter]:
    """The parameters of a block.

    Args:
        module: The module.
        location: The block.

    Returns:
        Those of its two layers.
    """
    return [parameter for linear in location.linears(module) for parameter in linear.parameters()]


def weight_decay(trainer: Trainer, module: LightningModule, location: BlockLocation) -> float:
    """The largest weight decay on a block.

    Args:
        trainer: The trainer.
        module: Its module.
        location: The block.

    Returns:
        Weight decay, as the optimizer names it.
    """
    groups = optimizers_of(trainer, module, location)
    return max((float(group.get("weight_decay", 0.0)) for _, group in groups), default=0.0)


def descent_pace(trainer: Trainer, module: LightningModule, location: BlockLocation) -> DescentPace:
    """The plain gradient descent as which the optimizer moves a block: SGD, with momentum ``lr / (1 - mu)``.

    Args:
        trainer: The trainer.
        module: Its module.
        location: The block.

    Returns:
        The pace.

    Raises:
        NoForecast: If the optimizer is another one, or its future is not known.
    """
    found = optimizers_of(trainer, module, location)
    trained = sum(parameter.requires_grad for parameter in block_parameters(module, location))
    held = sum(len([p for p in group["params"] if p.requires_grad]) for _, group in found)
    if not found or trained < len(block_parameters(module, location)) or held < trained:
        raise NoForecast("the block is not trained as a whole")
    if len(trainer.optimizers) > 1:
        raise NoForecast(f"{len(trainer.optimizers)} optimizers take turns")
    optimizer, group = found[0]
    if not isinstance(optimizer, SGD) or group.get("maximize"):
        raise NoForecast(f"{type(optimizer).__name__} does not move like gradient descent; only SGD is forecast")
    paces = [(_rate(group), float(group["weight_decay"])) for _, group in found]
    if any(pace != paces[0] for pace in paces):
        raise NoForecast("the layers of the block are trained at different rates")
    index = next(i for i, one in enumerate(optimizer.param_groups) if one is group)
    return DescentPace(*paces[0], list(_pieces(trainer, module, optimizer, index)))


def check_unclipped(trainer: Trainer, block: ShallowBlock, data: SquaredData) -> None:
    """Refuse gradients that the trainer clips: clipped, they are slower than forecast.

    Args:
        trainer: The trainer.
        block: The block.
        data: All its data.

    Raises:
        NoForecast: If the full gradient of the block alone is longer than the trainer allows.
    """
    if not trainer.gradient_clip_val:
        return
    weights = [weight.detach().clone().requires_grad_() for weight in (block.W, block.H)]
    moving = ShallowBlock(weights[0], weights[1], block.slopes, block.output_bias)
    with torch.enable_grad():
        gradients = torch.autograd.grad(squared_loss(moving, data.X, data.Y, data.reduction), weights)
    flat: Tensor = torch.cat([gradient.flatten() for gradient in gradients])
    by_value = str(trainer.gradient_clip_algorithm or "norm") in {"value", "GradClipAlgorithmType.VALUE"}
    if float(flat.abs().max() if by_value else flat.norm()) >= trainer.gradient_clip_val:
        raise NoForecast(f"gradients are clipped at {trainer.gradient_clip_val}")


def _rate(group: dict[str, Any]) -> float:
    """After many equal gradients each step is longer by ``(1 - dampening) / (1 - momentum)``."""
    momentum = float(group["momentum"])
    return float(group["lr"]) * ((1 - float(group["dampening"])) / (1 - momentum) if momentum else 1.0)


def _pieces(
    trainer: Trainer, module: LightningModule, optimizer: Optimizer, index: int
) -> Iterator[tuple[float, float]]:
    """Numbers of steps at a rate, from a copy of the scheduler that is stepped ahead.

    Raises:
        NoForecast: If the schedule is not known.
    """
    configs = trainer.lr_scheduler_configs
    stand_in = _stand_in(optimizer)
    if not configs:
        yield math.inf, _rate(stand_in.param_groups[index])
        return
    if len(configs) > 1 or not module.automatic_optimization:
        raise NoForecast("the schedule of the learning rate is not the trainer's")
    config = configs[0]
    if isinstance(config.scheduler, ReduceLROnPlateau):
        raise NoForecast("ReduceLROnPlateau may lower the learning rate at any time")
    period = config.frequency * (1 if config.interval == "step" else _steps_per_epoch(trainer))
    scheduler = copy.deepcopy(config.scheduler, {id(optimizer): stand_in})
    count = period - trainer.global_step % period
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own optimizer, it says, has taken no step
        for _ in range(_AHEAD):
            yield count, _rate(stand_in.param_groups[index])
            try:
                scheduler.step()
            except ValueError:  # OneCycleLR is over
                break
            count = period
    yield math.inf, _rate(stand_in.param_groups[index])


def _stand_in(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same settings and nothing to train."""
    groups = [
        {
            **{name: value for name, value in group.items() if name != "params"},
            "params": [nn.Parameter(torch.zeros(()))],
        }
        for group in optimizer.param_groups
    ]
    return SGD(groups, lr=0.0)


def _steps_per_epoch(trainer: Trainer) -> int:
    """Steps in an epoch.

    Raises:
        NoForecast: If nobody knows.
    """
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        raise NoForecast("the schedule goes by epochs of unknown length")
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))
