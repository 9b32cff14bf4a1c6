"""Callbacks that are called by another callback, epochs that a module ends early, batches of no one size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

BATCHES = 40


class Still(LightningModule):
    """A network that hardly moves; its epochs may end early."""

    def __init__(self, width: int = 8, batches: int = BATCHES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batches = batches
        self.net = nn.Sequential(nn.Linear(100, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 3)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=1e-4)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.batches else None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def samples() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(20 * BATCHES, 100), torch.randint(3, (20 * BATCHES,)))


def fit(module: LightningModule, loader: Any, *callbacks: Callback, steps: int) -> None:
    Trainer(**QUIET, callbacks=list(callbacks), max_steps=steps).fit(module, loader)


class PassesOn(Callback):
    """Calls the hooks of another callback, as projects do that switch callbacks on and off."""

    def __init__(self, other: Callback) -> None:
        for name in dir(other):
            if name.startswith("on_") or name in {"setup", "teardown"}:
                setattr(self, name, lambda *args, name=name, **more: getattr(other, name)(*args, **more))


@pytest.mark.parametrize("make", [LandscapeMonitor, PlateauMonitor])
def test_hooks_do_not_rest_where_another_callback_calls_them(make: Any) -> None:
    monitor = make()
    fit(Still(), DataLoader(samples(), 20), PassesOn(monitor), steps=BATCHES)
    assert monitor.reports if isinstance(monitor, LandscapeMonitor) else monitor.final


class StillRiding(Callback):
    """Notes steps that have ended and are ridden all the same."""

    def __init__(self, monitor: PlateauMonitor) -> None:
        self.monitor = monitor
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.monitor.examiner.rider.riding:
            self.steps.append(trainer.global_step)


@pytest.mark.parametrize("width", [8, 120])
def test_a_ride_ends_with_its_step_where_epochs_end_early(width: int) -> None:
    monitor = PlateauMonitor(min_steps=16)
    riding = StillRiding(monitor)
    fit(Still(width, batches=20), DataLoader(samples(), 20), monitor, riding, steps=70)
    assert monitor.plateaus
    assert not riding.steps


class Buckets(Sampler[list[int]]):
    """Batches of several sizes, without the last one."""

    def __init__(self, count: int) -> None:
        self.sampler = RandomSampler(range(count))
        self.drop_last = True

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        return iter([order[:10], order[10:30]])

    def __len__(self) -> int:
        return 2


def test_batches_of_the_users_own_sampler_need_no_size() -> None:
    monitor = LandscapeMonitor()
    data = samples()
    fit(Still(), DataLoader(data, batch_sampler=Buckets(len(data))), monitor, steps=6)
    assert not monitor.off


def test_a_layer_that_another_use_refutes_is_watched_in_its_block() -> None:
    class Twice(Still):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            X, y = batch
            far = self.net[0](2 * X)
            gap = torch.where(far > 0.3, far, torch.zeros_like(far))
            return functional.cross_entropy(self.net[2](self.net[0](X).relu()) + self.net[2](gap), y)

    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Twice(), DataLoader(samples(), 20), monitor, steps=6)
    assert not monitor.off
    assert "net.0" in monitor.watched
