"""Hooks that rest where there is nothing to do, and verdicts on large blocks that cost a small part of the steps."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.training import Examiner, PlateauListener, agreement

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

STEPS = 40
PLATEAU = 8


class Noise(LightningModule):
    """A network on labels that cannot be learned in so many steps."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        with torch.no_grad():  # all batches have nearly the same loss
            self.net[-1].weight.mul_(1e-3)
            self.net[-1].bias.zero_()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def data(inputs: int, count: int = 800, batch_size: int = 20) -> DataLoader[Any]:
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(count, inputs), torch.randint(3, (count,))), batch_size=batch_size)


class Awake(Callback):
    """Counts steps whose hooks of another callback are called, by hook, and steps that are ridden."""

    def __init__(self, other: Any) -> None:
        self.other = other
        self.awake: dict[str, int] = {"on_train_batch_start": 0, "on_before_backward": 0, "on_before_zero_grad": 0}

    def on_before_backward(self, *_: Any) -> None:
        for hook in self.awake:
            self.awake[hook] += getattr(self.other, hook) is not None


def fit(module: LightningModule, loader: Any, *callbacks: Callback, steps: int = STEPS) -> None:
    Trainer(**QUIET, callbacks=list(callbacks), max_steps=steps).fit(module, loader)


def test_the_hooks_of_steps_that_are_not_sampled_rest() -> None:
    monitor = LandscapeMonitor(every_n_steps=10)
    awake = Awake(monitor)
    fit(Noise(4, 8, 3), data(4), monitor, awake)
    assert awake.awake == {"on_train_batch_start": STEPS, "on_before_backward": 4, "on_before_zero_grad": 0}
    assert monitor.reports["net.0"].samples > 0
    assert monitor.on_before_zero_grad is not None  # after the run all are as before


def test_a_copy_made_in_training_has_hooks_that_are_called() -> None:
    """A tuner copies callbacks; the copy goes into a run of its own."""

    class Copies(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.copies = [copy.deepcopy(one) for one in trainer.callbacks[:2]]  # type: ignore[attr-defined]

    copies = Copies()
    fit(Noise(4, 8, 3), data(4), LandscapeMonitor(every_n_steps=10), PlateauMonitor(), copies)
    for one in copies.copies:
        assert all(callable(getattr(one, hook)) for hook in dir(one) if hook.startswith("on_"))


def test_hooks_that_a_subclass_adds_are_called_in_every_step() -> None:
    class Mine(PlateauMonitor):
        calls = 0

        def on_before_zero_grad(self, *_: Any) -> None:
            self.calls += 1

        def on_train_batch_start(self, *args: Any) -> None:
            super().on_train_batch_start(*args)
            self.calls += 1

    monitor = Mine(min_steps=PLATEAU)
    fit(Noise(4, 8, 3), data(4), monitor)
    assert monitor.calls == 2 * STEPS


def test_an_error_in_the_run_leaves_no_hook_resting() -> None:
    class Fails(Noise):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 5:
                raise RuntimeError("no more")
            return super().training_step(batch, batch_idx)

    monitors = LandscapeMonitor(every_n_steps=3), PlateauMonitor()
    with pytest.raises(RuntimeError, match="no more"):
        fit(Fails(4, 8, 3), data(4), *monitors)
    for monitor in monitors:
        assert not [name for name, value in vars(monitor).items() if name.startswith("on_") and value is None]


class Ridden(Callback):
    """Notes which steps an examiner rides on."""

    def __init__(self, examiner: Examiner) -> None:
        self.examiner = examiner
        self.steps: list[int] = []

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if self.examiner.rider.riding:
            self.steps.append(trainer.global_step)


def test_a_verdict_on_large_blocks_rides_on_a_few_steps_of_an_epoch_and_keeps_a_few_rows() -> None:
    monitor = PlateauMonitor(min_steps=PLATEAU)
    ridden = Ridden(monitor.examiner)
    fit(Noise(100, 120, 110, 3), data(100), monitor, ridden, steps=80)
    assert len(monitor.plateaus) == 1
    assert "too large to search" in monitor.plateaus[0].verdict.reason
    in_the_epoch = [step for step in ridden.steps if step >= 40]
    assert 6 <= len(in_the_epoch) <= 9
    rows = monitor.examiner._kept.rows
    assert sum(len(X) for X in rows["net.0"].inputs()) <= 6 * 43


def test_who_acts_on_plateaus_gets_the_rows_of_every_step() -> None:
    monitor = PlateauMonitor(min_steps=PLATEAU)
    ridden = Ridden(monitor.examiner)
    fit(Noise(100, 120, 110, 3), data(100), monitor, ridden, PlateauListener(), steps=80)
    assert len([step for step in ridden.steps if step >= 40]) >= 32


def test_small_blocks_are_judged_by_all_rows() -> None:
    monitor = PlateauMonitor(min_steps=PLATEAU)
    fit(Noise(4, 8, 3), data(4), monitor, steps=80)
    assert monitor.final is not None
    assert monitor.final.data is not None
    assert len(monitor.final.data.X) == 800
    assert monitor.final.data.complete


def test_products_of_gradients_are_the_same_by_pairs_of_rows_as_by_gradients() -> None:
    torch.manual_seed(0)
    block = ShallowBlock(torch.randn(40, 50).double(), torch.randn(2, 40).double())
    few = [BlockSignal(torch.randn(2, 50).double(), torch.randn(2, 2).double()) for _ in range(7)]
    # The same rows many times over, each with its part of the gradient, are the same gradients.
    many = [BlockSignal(one.X.repeat(20, 1), one.G.repeat(20, 1) / 20) for one in few]
    assert agreement(block, few) == pytest.approx(agreement(block, many))
