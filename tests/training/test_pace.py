"""What a step of SGD makes of a weight, now and as scheduled."""

import itertools
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.five_points import SCHEDULES, SETTINGS, Five, Scheduled, fit, points
from torch import nn
from torch.optim import lr_scheduler

from relu_diag.callbacks import PlateauMonitor
from relu_diag.training import Pace, Schedule, Stretch, is_plain_descent, schedule_of


def test_steps_are_counted_along_the_stretches_of_a_schedule() -> None:
    doubling, tripling = Pace(1.0), Pace(2.0)  # the factor a step at a growth rate of 1
    schedule = Schedule([
        Stretch(10, doubling),
        Stretch(5, Pace(0.0)),
        Stretch(10, tripling),
        Stretch(math.inf, Pace(3.0)),
    ])
    assert schedule.steps_until(5 * math.log(2), rate=1.0) == pytest.approx(5.0)
    assert schedule.steps_until(10 * math.log(2) + 4 * math.log(3), rate=1.0) == pytest.approx(19.0)
    assert schedule.steps_until(10 * math.log(6) + 2 * math.log(4), rate=1.0) == pytest.approx(27.0)
    assert Schedule([Stretch(10, doubling), Stretch(math.inf, Pace(0.0))]).steps_until(7.0, rate=1.0) == math.inf
    # A rate that falls to the smallest number is no rate.
    assert Schedule([Stretch(10, doubling), Stretch(math.inf, Pace(5e-324))]).steps_until(7.0, rate=1.0) == math.inf


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.7])
def test_growth_in_a_step_is_that_of_torch(settings: dict[str, Any], weight_decay: float) -> None:
    weight = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], weight_decay=weight_decay, **settings)
    values = []
    for _ in range(300):
        (-3.0 * weight.square() / 2).backward()  # grows at rate 3
        optimizer.step()
        optimizer.zero_grad()
        values.append(math.log(weight.item()))
    pace = Pace(weight_decay=weight_decay, **settings)
    assert values[-1] - values[-2] == pytest.approx(pace.log_growth(3.0), rel=1e-10)


@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize(("interval", "frequency"), [("step", 1), ("step", 4), ("epoch", 1), ("epoch", 2)])
def test_schedule_is_foreseen_as_it_comes(interval: str, frequency: int, shared: int) -> None:
    class Foresee(Callback):
        """What is foreseen after every step, and what comes."""

        def __init__(self) -> None:
            self.foreseen: list[list[float]] = []
            self.came: list[float] = []

        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == len(self.came):
                self.came.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step > len(self.foreseen):
                schedule = schedule_of(trainer, pl_module, list(pl_module.parameters()))
                stretches = itertools.islice(schedule.stretches, 40)
                coming = [one.pace.lr for one in stretches for _ in range(int(min(one.steps, 40)))]
                self.foreseen.append(coming[:8])

    foresee = Foresee()
    module = Scheduled(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9), interval, frequency)
    loader = points(10, 5)  # ten batches an epoch
    fit(module, foresee, loader=loader, max_steps=40, accumulate_grad_batches=shared)
    assert len(foresee.foreseen) == 40
    for step, coming in enumerate(foresee.foreseen[:31], start=1):
        assert coming == foresee.came[step : step + 8]


def test_rate_in_a_tensor_is_left_alone() -> None:
    module = Scheduled(SCHEDULES["cosine"][0], lr=torch.tensor(0.1), foreach=False)
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))

    fit(module, PlateauMonitor(dataloader=points()), Rates(), max_steps=200)
    assert rates[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 200 / 1500)))


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({}, True),
        ({"momentum": 0.9}, False),
        ({"weight_decay": 1e-4}, False),
        ({"maximize": True}, False),
    ],
)
def test_plain_descent_is_sgd_without_extras(settings: dict[str, Any], plain: bool) -> None:
    seen = []

    class Ask(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(is_plain_descent(trainer))

    fit(Five(**settings), Ask(), max_steps=1)
    fit(Five(**settings), Ask(), max_steps=1, gradient_clip_val=1.0)
    assert seen == [plain, False]
