"""The pace of an optimizer as a forecast needs it: what growing weights grow by in a step, now and as scheduled."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from relu_diag.callbacks.judge import SquaredData
from relu_diag.capture import BlockLocation
from relu_diag.functional import EscapeForecast, ShallowBlock, squared_loss

# Steps of a scheduler that are looked ahead; from then on its last rate is taken to stay.
_AHEAD = 100_000
_NEVER = 1e15  # steps


class NoForecast(Exception):
    """Why nothing is said about the end of a plateau."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The settings of SGD, by torch's names.

    Attributes:
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum ``mu``.
        dampening: Dampening ``tau`` of the momentum.
        nesterov: Whether the momentum is Nesterov's.
    """

    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def log_growth(self, rate: float) -> float:
        """How weights that grow under gradient flow grow in a step, once the momentum has built up.

        They are multiplied by the larger root ``z`` of ``(z - 1) (z - mu) = lr rate (1 - tau) z``, with Nesterov's
        momentum of ``(z - 1) (z - mu) = lr rate ((1 + mu) z - mu)``: like plain descent at the learning rate
        ``lr (1 - tau) / (1 - mu)`` where that is small.

        Args:
            rate: Their growth rate, weight decay not counted, per unit of time.

        Returns:
            ``ln z``.
        """
        push = self.lr * (rate - self.weight_decay)
        if not self.momentum:
            return math.log1p(push)
        pull = push * (1 - self.dampening)
        linear = 1 - self.momentum - (push * (1 + self.momentum) if self.nesterov else pull)
        # x = z - 1 solves x^2 + linear x = pull.
        return math.log1p(2 * pull / (linear + math.sqrt(linear**2 + 4 * pull)))


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """How an optimizer will move a block.

    Attributes:
        pieces: Numbers of steps and their paces, the last number infinite; looked ahead no further than needed.
    """

    pieces: Iterable[tuple[float, Pace]]

    def steps_until(self, growth: float, rate: float) -> float:
        """Steps from now until weights have grown.

        Args:
            growth: Logarithm of the factor by which they grow.
            rate: Their growth rate under gradient flow, per unit of time, weight decay not counted.

        Returns:
            Number of steps; inf where they never do.
        """
        steps = 0.0
        for count, pace in self.pieces:
            each = pace.log_growth(rate)
            if each > 0 and each * count >= growth:
                return steps + growth / each if steps + growth / each < _NEVER else math.inf
            steps, growth = steps + count, growth - (each * count if each else 0.0)
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


def schedule_of(trainer: Trainer, module: LightningModule, location: BlockLocation) -> Schedule:
    """How the optimizer will move a block, if it is SGD.

    Args:
        trainer: The trainer.
        module: Its module.
        location: The block.

    Returns:
        The schedule.

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
    if any(_pace(other) != _pace(group) for _, other in found):
        raise NoForecast("the layers of the block are trained at different rates")
    index = next(i for i, one in enumerate(optimizer.param_groups) if one is group)
    return Schedule(_pieces(trainer, module, optimizer, index))


def check_unclipped(trainer: Trainer, block: ShallowBlock, data: SquaredData, found: EscapeForecast) -> None:
    """Refuse gradients that the trainer clips: clipped, they are slower than forecast.

    Args:
        trainer: The trainer.
        block: The block.
        data: All its data.
        found: The escape in gradient flow.

    Raises:
        NoForecast: If the full gradient of the block alone is longer than the trainer allows, now or at the escape.
    """
    if not trainer.gradient_clip_val:
        return
    weights = [weight.detach().clone().requires_grad_() for weight in (block.W, block.H)]
    moving = ShallowBlock(weights[0], weights[1], block.slopes, block.output_bias)
    with torch.enable_grad():
        gradients = torch.autograd.grad(squared_loss(moving, data.X, data.Y, data.reduction), weights)
    flat: Tensor = torch.cat([gradient.flatten() for gradient in gradients])
    # What grows has equal parts in both weights, and its gradient is `gain` times as long.
    escaping = found.gain * math.sqrt(found.amplitude) * math.exp(found.gain * found.time)
    if str(trainer.gradient_clip_algorithm or "norm") in {"value", "GradClipAlgorithmType.VALUE"}:
        amplitude = block.W[found.neurons].double().norm(dim=1) * block.H[:, found.neurons].double().norm(dim=0)
        largest = max(float(flat.abs().max()), escaping * float((amplitude.max() / amplitude.sum()).sqrt()))
    else:
        largest = math.hypot(float(flat.norm()), math.sqrt(2) * escaping)
    if largest >= trainer.gradient_clip_val:
        raise NoForecast(f"gradients are clipped at {trainer.gradient_clip_val}")


def _pace(group: dict[str, Any]) -> Pace:
    lr, decay, momentum, dampening = (float(group[k]) for k in ("lr", "weight_decay", "momentum", "dampening"))
    return Pace(lr, decay, momentum, dampening, bool(group["nesterov"]))


def _pieces(
    trainer: Trainer, module: LightningModule, optimizer: Optimizer, index: int
) -> Iterator[tuple[float, Pace]]:
    """Numbers of steps and their paces, from a copy of the scheduler that is stepped ahead.

    Raises:
        NoForecast: If the schedule is not known.
    """
    configs = trainer.lr_scheduler_configs
    stand_in = _stand_in(optimizer)
    if configs:
        if len(configs) > 1 or not module.automatic_optimization or is_overridden("lr_scheduler_step", module):
            raise NoForecast("the schedule of the learning rate is not the trainer's")
        config = configs[0]
        if isinstance(config.scheduler, ReduceLROnPlateau):
            raise NoForecast("ReduceLROnPlateau may lower the learning rate at any time")
        scheduler = copy.deepcopy(config.scheduler, {id(optimizer): stand_in})
        counts = _by_step(trainer, config) if config.interval == "step" else _by_epoch(trainer, config)
        for count, due in itertools.islice(counts, _AHEAD):
            yield count, _pace(stand_in.param_groups[index])
            if due and not _step(scheduler):
                break
    yield math.inf, _pace(stand_in.param_groups[index])


def _step(scheduler: Any) -> bool:
    """Step a scheduler ahead; False where OneCycleLR is over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own optimizer, it says, has taken no step
        try:
            scheduler.step()
        except ValueError:
            return False
    return True


def _by_step(trainer: Trainer, config: LRSchedulerConfig) -> Iterator[tuple[int, bool]]:
    """Single steps, and whether the scheduler follows: Lightning counts the batches of the epoch."""
    batch, batches = float(trainer.fit_loop.epoch_loop.batch_idx + 1), trainer.num_training_batches
    shared = trainer.accumulate_grad_batches
    while True:
        batch = min((batch % batches // shared + 1) * shared, batches)
        yield 1, batch % config.frequency == 0


def _by_epoch(trainer: Trainer, config: LRSchedulerConfig) -> Iterator[tuple[int, bool]]:
    """Steps to the ends of the epochs after which the scheduler follows.

    Raises:
        NoForecast: If nobody knows how long an epoch is.
    """
    batches, shared = trainer.num_training_batches, trainer.accumulate_grad_batches
    if not math.isfinite(batches):
        raise NoForecast("the schedule goes by epochs of unknown length")
    epochs, batch = divmod(trainer.fit_loop.epoch_loop.batch_idx + 1, int(batches))
    epochs, steps = trainer.current_epoch + epochs, math.ceil(batches / shared)
    # Lightning has stepped the scheduler before anybody hears of the last batch of an epoch.
    yield steps * (config.frequency - epochs % config.frequency) - batch // shared, True
    while True:
        yield steps * config.frequency, True


def _stand_in(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same settings and nothing to train."""
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        | {"params": [nn.Parameter(torch.zeros(()))]}
        for group in optimizer.param_groups
    ]
    return SGD(groups, lr=0.0)
