"""What the optimizer is, and how fast it moves: plain SGD, momentum, weight decay, the schedule, clipping."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from relu_diag.functional import EscapeForecast, ShallowBlock
from relu_diag.training._groups import groups_of
from relu_diag.training._training_data import TrainingData
from relu_diag.training.lightning_internals import batches_done_in_epoch

# Steps for which a scheduler is looked ahead; after them its last learning rate is taken to stay.
_AHEAD = 100_000
# Steps beyond which an escape never comes.
_NEVER = 1e15


class NoForecast(Exception):
    """The reason why the end of a plateau is not forecast.

    Example:
        >>> raise NoForecast("Adam does not move like gradient descent; only SGD is forecast")
        Traceback (most recent call last):
        relu_diag.training.pace.NoForecast: Adam does not move like gradient descent; only SGD is forecast
    """


@dataclass(frozen=True, slots=True)
class Pace:
    """The settings of SGD, by torch's names.

    Attributes:
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum ``mu``.
        dampening: Dampening ``tau`` of the momentum.
        nesterov: Whether the momentum is Nesterov's.

    Example:
        >>> round(Pace(lr=0.1).log_growth(rate=1.0), 4)
        0.0953
    """

    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def log_growth(self, rate: float) -> float:
        """How much weights that grow under gradient flow grow in one step, once the momentum has built up.

        They are multiplied by the larger root ``z`` of ``(z - 1) (z - mu) = lr rate (1 - tau) z``, with Nesterov's
        momentum of ``(z - 1) (z - mu) = lr rate ((1 + mu) z - mu)``. Where ``lr rate`` is small that is plain descent
        at the learning rate ``lr (1 - tau) / (1 - mu)``.

        Args:
            rate: Their growth rate without weight decay, per unit of time.

        Returns:
            ``ln z``.
        """
        push = self.lr * (rate - self.weight_decay)
        if not self.momentum:
            return math.log1p(push)
        damped = push * (1 - self.dampening)
        linear = 1 - self.momentum - (push * (1 + self.momentum) if self.nesterov else damped)
        # x = z - 1 solves x^2 + linear x = damped.
        return math.log1p(2 * damped / (linear + math.sqrt(linear**2 + 4 * damped)))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that are taken at the same pace.

    Attributes:
        steps: Number of steps, inf for the last stretch.
        pace: Their pace.

    Example:
        >>> Stretch(100, Pace(lr=0.1)).pace.lr
        0.1
    """

    steps: float
    pace: Pace


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """How an optimizer will move a block.

    Attributes:
        stretches: The stretches from now on, the last one infinite; computed only as far as they are read.

    Example:
        >>> schedule = Schedule([Stretch(10, Pace(0.1)), Stretch(math.inf, Pace(0.01))])
        >>> round(schedule.steps_until(growth=2.0, rate=1.0))
        115
    """

    stretches: Iterable[Stretch]

    def steps_until(self, growth: float, rate: float) -> float:
        """Steps from now until growing weights have grown by a factor.

        Args:
            growth: Logarithm of the factor.
            rate: Their growth rate under gradient flow without weight decay, per unit of time.

        Returns:
            Number of steps; inf if they never grow that much.
        """
        steps = 0.0
        for stretch in self.stretches:
            each = stretch.pace.log_growth(rate)
            if each > 0 and each * stretch.steps >= growth:
                total = steps + growth / each
                return total if total < _NEVER else math.inf
            steps += stretch.steps
            growth -= each * stretch.steps if each else 0.0
        return math.inf


def is_plain_descent(trainer: Trainer) -> bool:
    """Whether training is plain gradient descent at one constant learning rate.

    Args:
        trainer: The trainer.

    Returns:
        True if every optimizer is SGD without momentum or weight decay, all at the same learning rate, without a
        schedule and without gradient clipping.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> layer = nn.Linear(2, 1)
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.1)]
        >>> is_plain_descent(trainer)
        True
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.1, momentum=0.9)]
        >>> is_plain_descent(trainer)
        False
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    extras = ("momentum", "weight_decay", "maximize", "nesterov")
    plain = all(isinstance(optimizer, SGD) for optimizer in trainer.optimizers) and not any(
        group[extra] for group in groups for extra in extras
    )
    one_rate = len({float(group["lr"]) for group in groups}) == 1
    return plain and one_rate and not trainer.lr_scheduler_configs and not trainer.gradient_clip_val


def why_still(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> str:
    """Why no step moves a block, whatever its gradient.

    Args:
        trainer: The trainer.
        parameters: The parameters of the block.

    Returns:
        A few words; empty where steps move it.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> layer = nn.Linear(2, 1)
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.0)]
        >>> why_still(trainer, list(layer.parameters()))
        'the learning rate is 0'
        >>> why_still(trainer, list(nn.Linear(2, 1).parameters()))
        'no optimizer holds its weights'
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = groups_of(trainer, trained)
    if trained and trainer.optimizers and not groups:
        return "no optimizer holds its weights"
    if groups and all(float(one.group.get("lr", 1.0)) == 0 for one in groups):
        return "the learning rate is 0"
    return ""


def schedule_of(trainer: Trainer, module: LightningModule, parameters: Sequence[nn.Parameter]) -> Schedule:
    """How the optimizer will move a block, if it is SGD.

    Args:
        trainer: The trainer.
        module: Its module.
        parameters: The parameters of the block.

    Returns:
        The schedule.

    Raises:
        NoForecast: If the optimizer is another one, or its settings in the future are not known.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> layer = nn.Linear(2, 1)
        >>> trainer.optimizers = [SGD(layer.parameters(), lr=0.1)]
        >>> schedule = schedule_of(trainer, LightningModule(), list(layer.parameters()))
        >>> round(schedule.steps_until(growth=2.0, rate=1.0), 2)
        20.98
    """
    groups = groups_of(trainer, parameters)
    trained = sum(parameter.requires_grad for parameter in parameters)
    held = sum(parameter.requires_grad for one in groups for parameter in one.group["params"])
    if not groups or trained < len(parameters) or held < trained:
        raise NoForecast("the block is not trained as a whole")
    if len(trainer.optimizers) > 1:
        raise NoForecast(f"{len(trainer.optimizers)} optimizers take turns")
    optimizer = groups[0].optimizer
    group = groups[0].group
    if not isinstance(optimizer, SGD) or group.get("maximize"):
        raise NoForecast(f"{type(optimizer).__name__} does not move like gradient descent; only SGD is forecast")
    if any(_pace(other.group) != _pace(group) for other in groups):
        raise NoForecast("the layers of the block are trained at different rates")
    index = next(i for i, one in enumerate(optimizer.param_groups) if one is group)
    return Schedule(_stretches(trainer, module, optimizer, index))


def gradient_share(trainer: Trainer) -> float:
    """How large the gradient of a step is on average, over that of a step of ``accumulate_grad_batches`` batches.

    Lightning steps at the end of an epoch with the batches that are left, and divides their sum by the full number.

    Args:
        trainer: The trainer, fitting.

    Returns:
        Share, 1 where no step has fewer batches.

    Example:
        >>> gradient_share(Trainer(barebones=True, accelerator="cpu"))
        1.0
    """
    shared = trainer.accumulate_grad_batches
    batches = trainer.num_training_batches
    if shared == 1 or not math.isfinite(batches):
        return 1.0
    return batches / shared / math.ceil(batches / shared)


def check_unclipped(trainer: Trainer, block: ShallowBlock, data: TrainingData, forecast: EscapeForecast) -> None:
    """Refuse a forecast if the trainer clips gradients on the way: clipped descent is slower.

    Args:
        trainer: The trainer.
        block: The block.
        data: All its data.
        forecast: The escape under gradient flow.

    Raises:
        NoForecast: If the full gradient of the block is larger than the trainer allows, now or at the escape.

    Example:
        >>> from relu_diag import functional as F
        >>> block = ShallowBlock(1e-3 * torch.ones(1, 2).double(), 1e-3 * torch.ones(1, 1).double())
        >>> data = TrainingData(torch.eye(2).double(), F.SquaredError(torch.ones(2, 1).double()))
        >>> forecast = F.forecast_escape(block, data.X, data.loss, lr=0.1)
        >>> check_unclipped(Trainer(barebones=True, accelerator="cpu", gradient_clip_val=1e-3), block, data, forecast)
        Traceback (most recent call last):
        relu_diag.training.pace.NoForecast: gradients are clipped at 0.001
    """
    if not trainer.gradient_clip_val:
        return
    weights = [weight.detach().clone().requires_grad_() for weight in (block.W, block.H)]
    moving = ShallowBlock(weights[0], weights[1], block.slopes, block.output_bias)
    with torch.enable_grad():
        loss = data.loss(moving(data.X))
        gradients = torch.autograd.grad(loss, weights)
    flat: Tensor = torch.cat([gradient.flatten() for gradient in gradients])
    # The growing neurons have input and output weights of equal size, and a gradient `gain` times as large.
    escaping = forecast.gain * math.sqrt(forecast.amplitude) * math.exp(forecast.gain * forecast.time)
    if str(trainer.gradient_clip_algorithm or "norm") in {"value", "GradClipAlgorithmType.VALUE"}:
        neurons = forecast.neurons
        amplitude = block.W[neurons].double().norm(dim=1) * block.H[:, neurons].double().norm(dim=0)
        share = float((amplitude.max() / amplitude.sum()).sqrt())
        largest = max(float(flat.abs().max()), escaping * share)
    else:
        largest = math.hypot(float(flat.norm()), math.sqrt(2) * escaping)
    if largest >= trainer.gradient_clip_val:
        raise NoForecast(f"gradients are clipped at {trainer.gradient_clip_val}")


def _pace(group: dict[str, Any]) -> Pace:
    """The settings of a parameter group of SGD."""
    numbers = {name: float(group[name]) for name in ("lr", "weight_decay", "momentum", "dampening")}
    return Pace(**numbers, nesterov=bool(group["nesterov"]))


def _stretches(trainer: Trainer, module: LightningModule, optimizer: Optimizer, index: int) -> Iterator[Stretch]:
    """The stretches of a parameter group, from a copy of the scheduler that is stepped ahead.

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
        waits = _waits_by_step(trainer, config) if config.interval == "step" else _waits_by_epoch(trainer, config)
        for wait in itertools.islice(waits, _AHEAD):
            yield Stretch(wait.steps, _pace(stand_in.param_groups[index]))
            if wait.scheduler_steps and not _step(scheduler):
                break
    yield Stretch(math.inf, _pace(stand_in.param_groups[index]))


@dataclass(frozen=True, slots=True)
class _Wait:
    """Steps of the optimizer, and whether the scheduler steps after them."""

    steps: int
    scheduler_steps: bool


def _step(scheduler: Any) -> bool:
    """Step a scheduler ahead; False if it is OneCycleLR at its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns that its optimizer has not taken a step.
        try:
            scheduler.step()
        except ValueError:
            return False
    return True


def _waits_by_step(trainer: Trainer, config: LRSchedulerConfig) -> Iterator[_Wait]:
    """Single steps; Lightning decides by the number of the batch in its epoch whether the scheduler steps."""
    batch = float(batches_done_in_epoch(trainer))
    batches = trainer.num_training_batches
    shared = trainer.accumulate_grad_batches
    while True:
        batch = min((batch % batches // shared + 1) * shared, batches)
        yield _Wait(1, batch % config.frequency == 0)


def _waits_by_epoch(trainer: Trainer, config: LRSchedulerConfig) -> Iterator[_Wait]:
    """Steps to the ends of the epochs after which the scheduler steps.

    Raises:
        NoForecast: If the length of an epoch is unknown.
    """
    batches = trainer.num_training_batches
    shared = trainer.accumulate_grad_batches
    if not math.isfinite(batches):
        raise NoForecast("the schedule goes by epochs of unknown length")
    more_epochs, batch = divmod(batches_done_in_epoch(trainer), int(batches))
    # Lightning steps the scheduler before it reports the last batch of an epoch to callbacks.
    epoch = trainer.current_epoch + more_epochs
    steps = math.ceil(batches / shared)
    yield _Wait(steps * (config.frequency - epoch % config.frequency) - batch // shared, True)
    while True:
        yield _Wait(steps * config.frequency, True)


def _stand_in(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same settings for parameters of its own."""
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        | {"params": [nn.Parameter(torch.zeros(()))]}
        for group in optimizer.param_groups
    ]
    return SGD(groups, lr=0.0)
