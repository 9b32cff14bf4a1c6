"""Forecasts made in training hold for what the optimizer really does, and where they would not there is none."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.five_points import SCHEDULES, SETTINGS, Five, Plain, Scheduled, fit, points
from torch import Tensor, nn
from torch.optim import lr_scheduler

from relu_diag.callbacks import PlateauEvent, PlateauListener, PlateauMonitor


class UntilTheEnd(PlateauListener):
    """Stops when the first plateau has ended."""

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        trainer.should_stop = event.kind == "end"


def watched(module: Five, steps: int = 1_000, **settings: Any) -> PlateauMonitor:
    monitor = PlateauMonitor(dataloader=points())
    fit(module, monitor, UntilTheEnd(), max_steps=steps, **settings)
    return monitor


@pytest.mark.parametrize("name", SETTINGS)
def test_escape_comes_when_forecast_for_sgd(name: str) -> None:
    first, *_ = watched(Plain(**SETTINGS[name])).plateaus
    assert first.end is not None
    assert first.forecasts[0].end == pytest.approx(first.end, rel=0.01)


def test_escape_comes_when_forecast_under_weight_decay_from_a_saddle_of_the_decayed_loss() -> None:
    decayed, plain = watched(Plain(lr=0.1, weight_decay=0.02)), watched(Plain(lr=0.1))
    first = decayed.plateaus[0]
    assert first.end is not None
    assert first.end > 1.1 * (plain.plateaus[0].end or 0)  # it takes that much longer
    assert first.forecasts[0].end == pytest.approx(first.end, rel=0.02)
    assert first.verdict.kind == "saddle"
    assert first.verdict.assumptions["no other regulariser"] == "holds"
    stronger = watched(Plain(lr=0.1, weight_decay=1.0), 200).plateaus[0]  # than every growth
    assert (stronger.verdict.kind, stronger.no_forecast) == ("global minimum", "a global minimum has no escape")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_escape_comes_when_forecast_under_a_schedule(name: str) -> None:
    scheduler, interval, frequency = SCHEDULES[name]
    settings = {"lr": 0.1} | ({"momentum": 0.9} if "momentum" in name else {})
    first, *_ = watched(Scheduled(scheduler, interval, frequency, **settings)).plateaus
    assert first.end is not None
    assert len(first.forecasts) > 1
    for forecast in first.forecasts:
        assert forecast.end == pytest.approx(first.end, rel=0.01)


def test_schedule_is_looked_at_and_not_touched() -> None:
    class Compare(Callback):
        states: list[Any]

        def on_train_end(self, trainer: Trainer, *_: Any) -> None:
            self.states = [trainer.lr_scheduler_configs[0].scheduler.state_dict(), trainer.optimizers[0].state_dict()]

    seen = []
    for monitors in ([], [PlateauMonitor(dataloader=points())]):
        torch.manual_seed(1)
        compare = Compare()
        fit(Scheduled(SCHEDULES["cosine"][0], lr=0.02), compare, *monitors, max_steps=200)
        seen.append(compare.states)
    assert str(seen[0]) == str(seen[1])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_that_are_clipped_are_not_forecast(algorithm: str) -> None:
    first, *_ = watched(Five(lr=1e-3), 200, gradient_clip_algorithm=algorithm, gradient_clip_val=1e-6).plateaus
    assert first.forecast is None
    assert first.no_forecast == "gradients are clipped at 1e-06"


@pytest.mark.parametrize("share", [0.8, 1.2])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_that_are_clipped_before_the_escape_are_not_forecast(algorithm: str, share: float) -> None:
    # At the escape, where a hundredth of the loss is lost, the gradient is sqrt(2 gain loss / 100) long; half of it
    # belongs to the output weights, and of that two thirds to one of them.
    limit = share * math.sqrt((2.0 if algorithm == "norm" else 0.67) * 0.1513 * 3.81e-4)
    module = Plain(lr=0.1)
    seen: list[float] = []

    class Longest(Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
            seen.append(float(gradient.norm() if algorithm == "norm" else gradient.abs().max()))

    clip = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    monitor = PlateauMonitor(dataloader=points())
    fit(module, monitor, UntilTheEnd(), Longest(), max_steps=1_000, **clip)
    first = monitor.plateaus[0]
    assert first.end is not None
    assert (max(seen[: first.end]) > limit) == (share < 1)
    assert first.no_forecast == (f"gradients are clipped at {limit}" if share < 1 else "")
    if share > 1:
        assert first.forecasts[0].end == pytest.approx(first.end, rel=0.01)


def groups(module: Five) -> list[dict[str, Any]]:
    return [
        {"params": module.net.hidden.parameters(), "lr": 1e-3},
        {"params": module.net.output.parameters(), "lr": 1e-4},
    ]


class TwoRates(Five):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(groups(self))


class Frozen(Five):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.output.parameters(), lr=1e-3)


class Turns(Five):
    """Two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def batch_loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.optimizers()[batch_idx % 2].step()
        return self.batch_loss(batch)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([group], lr=1e-3) for group in groups(self)]


class OwnWay(Scheduled):
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Rates stay."""


class Reduced(Five):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-4)
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "epoch_loss"}}


NONE = {
    "Adam": (Five("Adam", lr=1e-7), "Adam does not move like gradient descent; only SGD is forecast"),
    "ascent": (Five(lr=1e-7, maximize=True), "SGD does not move like gradient descent; only SGD is forecast"),
    "two rates": (TwoRates(), "the layers of the block are trained at different rates"),
    "a frozen layer": (Frozen(), "the block is not trained as a whole"),
    "two optimizers": (Turns(), "2 optimizers take turns"),
    "ReduceLROnPlateau": (Reduced(), "ReduceLROnPlateau may lower the learning rate at any time"),
    "stepped by the module": (
        OwnWay(lambda optimizer: lr_scheduler.StepLR(optimizer, 1), lr=1e-7),
        "the schedule of the learning rate is not the trainer's",
    ),
}


@pytest.mark.parametrize("name", NONE)
def test_where_there_is_no_forecast_it_is_said_why(name: str) -> None:
    module, reason = NONE[name]
    first, *_ = watched(module, 200).plateaus
    assert first.forecast is None
    assert first.no_forecast == reason
    # Whoever climbs the loss is at no saddle of what it descends.
    assert first.short(200) == ("undecided" if name == "ascent" else "saddle")
    assert reason in str(first)


def test_a_penalty_on_the_weights_is_not_taken_for_the_squared_error() -> None:
    class Penalised(Five):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + 100 * self.net.hidden.weight.square().sum()

    first, *_ = watched(Penalised(lr=1e-7), 200).plateaus
    assert first.verdict.kind == "undecided"
    assert first.no_forecast == "the loss has a part besides the squared error"


def test_iterable_data_are_judged_on_data_given_for_it() -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            while True:
                yield from zip(*points().dataset.tensors, strict=True)

    loader = torch.utils.data.DataLoader(Endless(), batch_size=5)
    monitor = PlateauMonitor(dataloader=points())
    fit(Five(lr=0.02), monitor, loader=loader, max_steps=300)
    assert monitor.plateaus[0].verdict.kind == "saddle"
