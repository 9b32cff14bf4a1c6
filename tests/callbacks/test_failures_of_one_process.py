"""What fails on one of two processes is not done on the other one either, and leaves none waiting."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor, ReviveDeadUnits
from relu_diag.callbacks import growth as growing
from relu_diag.growth import training as growth_in_training
from relu_diag.training import BlockRevival, KeptRows, on_all_ranks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Net(LightningModule):
    """A regression with two dead neurons and weight decay."""

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        self.net[0].bias.data[:2] -= 100  # type: ignore[union-attr]

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=self.decay)


class AsOne(Callback):
    """Both processes have the same weights at the end, and something holds on each of them."""

    def __init__(self, holds: Callable[[LightningModule], bool]) -> None:
        self.holds = holds

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for one in pl_module.parameters():
            gathered = pl_module.all_gather(one.detach())
            if not torch.equal(gathered[0], gathered[1]):
                raise RuntimeError("processes have parted")
        if not self.holds(pl_module):
            raise RuntimeError(f"on process {trainer.global_rank} it does not hold")


def fit(*callbacks: Callback, epochs: int = 12, decay: float = 0.01) -> None:
    X = torch.randn(32, 3, generator=torch.Generator().manual_seed(1)).double()
    data = TensorDataset(X, torch.stack([X[:, 0].abs(), X[:, 1] * X[:, 2]], dim=1))
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=30))
    options = {**QUIET, "max_epochs": epochs, "strategy": strategy, "devices": 2}
    trainer = Trainer(**options, callbacks=list(callbacks))
    trainer.fit(Net(decay), DataLoader(data, batch_size=16))


def failing(monkeypatch: pytest.MonkeyPatch, room: Any, part: str, rank: int, error: Exception) -> None:
    as_it_is = getattr(room, part)

    def fails(*arguments: Any, **named: Any) -> Any:
        if torch.distributed.get_rank() == rank:
            raise error
        return as_it_is(*arguments, **named)

    monkeypatch.setattr(room, part, fails)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_growth_that_is_refused_on_one_process_is_none(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, growth_in_training, "prepared_growth", rank, ValueError("frozen here"))
    growth = GrowOnPlateau(at_steps=(3,))
    fit(growth, AsOne(lambda module: module.net[0].out_features == 6 and not growth.growths))


@pytest.mark.parametrize(
    ("room", "part", "rank"),
    [(growth_in_training, "prepared_growth", 1), (KeptRows, "_read_noted", 0)],
)
def test_an_error_of_one_process_switches_growth_off_on_both(
    room: Any, part: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, room, part, rank, MemoryError("too little"))
    growth = GrowOnPlateau(at_steps=(3, 6))
    fit(growth, AsOne(lambda module: module.net[0].out_features == 6 and "too little" in growth.off))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_on_a_plateau_switches_growth_off_on_both(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, growth_in_training, "prepared_growth", rank, MemoryError("too little"))
    growth = GrowOnPlateau(verdicts=("not stationary", "local minimum", "saddle", "undecided"))
    monitor = PlateauMonitor(min_steps=10, drop=0.5)
    holds = AsOne(lambda module: "too little" in growth.off and not growth.growths)
    fit(monitor, growth, holds, epochs=30, decay=0.0)


def test_a_gap_that_one_process_cannot_tell_is_no_reason_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, growing, "against_growing", 1, MemoryError("too little"))
    growth = GrowOnPlateau(verdicts=("not stationary", "local minimum", "saddle", "undecided"))
    monitor = PlateauMonitor(min_steps=10, drop=0.5)
    fit(monitor, growth, AsOne(lambda module: "too little" in growth.off and not growth.growths), epochs=30)


def test_a_search_that_fails_on_the_first_process_revives_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, BlockRevival, "find", 0, MemoryError("too little"))
    revive = ReviveDeadUnits(every_n_steps=4, samples=16)
    fit(revive, AsOne(lambda module: "too little" in revive.off and not revive.revivals))


def test_an_error_is_raised_as_it_is_on_one_process() -> None:
    with pytest.raises(ZeroDivisionError):
        on_all_ranks(lambda: 1 // 0)
