"""With weight decay as part of the loss, GrowOnPlateau grows where the gap says so, and stops where it does not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import GrowOnPlateau, PlateauEvent, PlateauListener, PlateauMonitor
from relu_diag.capture import BlockLocation, read_block
from relu_diag.training import coupled_decay, gap_in_training


class Line(LightningModule):
    """A regression of one input, with weight decay on everything."""

    def __init__(self, width: int, optimizer: str = "SGD", decay: float = 0.02) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1)).double()
        self.optimizer = optimizer
        self.decay = decay

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = {"lr": 0.1} if self.optimizer == "SGD" else {"lr": 0.01}
        return getattr(torch.optim, self.optimizer)(self.parameters(), weight_decay=self.decay, **options)


class Seen(PlateauListener):
    """Notes the gaps of the plateaus."""

    def __init__(self) -> None:
        self.gaps: list[Any] = []
        self.decays: list[Any] = []

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        for examination in event.examinations:
            self.gaps.append(gap_in_training(trainer, examination))
            self.decays.append(coupled_decay(trainer, examination))


def data() -> tuple[Tensor, Tensor]:
    X = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    return X, 2 * (2 * X.abs() - 1).abs() - 1


def fit(module: Line, *callbacks: Callback, steps: int, **options: Any) -> Trainer:
    X, Y = data()
    trainer = Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": steps, **options})
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=16))
    return trainer


def objective_and_bound(module: Line, rounds: int = 0) -> tuple[float, float]:
    X, Y = data()
    block = read_block(module, BlockLocation("net.0", "net.2", (0.0, 1.0)))
    X = torch.cat([X, torch.ones_like(X)], dim=1)
    decay = F.WeightDecay(module.decay, module.decay, None, module.decay)
    gap = F.optimality_gap(block, X, Y, decay, rounds=rounds)
    return gap.primal, gap.dual


def test_it_grows_until_the_gap_is_closed_and_then_no_more() -> None:
    growth, seen = GrowOnPlateau(), Seen()
    module = Line(1, "Adam", decay=0.01)
    fit(module, PlateauMonitor(min_steps=50), growth, seen, steps=2500)
    primal, dual = objective_and_bound(module, rounds=8)
    assert 1 <= len(growth.growths) <= 8
    assert primal - dual < 0.02 * dual
    assert seen.gaps[0].share > 0.1
    assert growth.growths[-1].step < 2200


def test_a_network_that_is_wide_enough_does_not_grow() -> None:
    growth = GrowOnPlateau(verdicts=("local minimum", "undecided", "not stationary"))
    module = Line(24, "Adam", decay=0.01)
    fit(module, PlateauMonitor(), growth, steps=1500)
    assert not growth.growths


@pytest.mark.parametrize(("optimizer", "known"), [("SGD", True), ("Adam", True), ("AdamW", False)])
def test_only_decay_that_is_part_of_the_loss_has_a_gap(optimizer: str, known: bool) -> None:
    seen = Seen()
    module = Line(2, optimizer)
    fit(module, PlateauMonitor(min_steps=20), seen, steps=800)
    assert seen.gaps
    assert all((gap is not None) == known for gap in seen.gaps)
    if known:
        assert seen.decays[0] == F.WeightDecay(0.02, 0.02, 0.02, 0.02)


def test_the_monitor_logs_the_gap_and_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = CSVLogger(tmp_path)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(Line(24, "Adam", decay=0.01), PlateauMonitor(), steps=1500, logger=logger)
    (log,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(log.read_text().splitlines()))
    gaps = [float(row["plateau/gap"]) for row in rows if row.get("plateau/gap")]
    assert gaps
    assert 0 <= gaps[-1] < 0.01
    assert "% of the best network of any width" in caplog.text


def test_growth_at_a_step_lowers_loss_and_decay_together() -> None:
    module = Line(1)
    objectives: list[float] = []

    class Around(GrowOnPlateau):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            count, before = len(self.growths), objective_and_bound(module)[0]
            super().on_train_batch_end(trainer, pl_module, *args)
            if len(self.growths) > count:
                objectives.extend([before, objective_and_bound(module)[0]])

    fit(module, Around(at_steps=(60,), units=3), steps=62)
    assert objectives[1] < objectives[0]
