"""With decay that is part of the loss, the gap to the best network of any width is drawn beside the block's numbers."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.quiet import QUIET
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.capture import BlockLocation, read_block

X = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
Y = 2 * (2 * X.abs() - 1).abs() - 1


class Line(LightningModule):
    """A regression of one input, with SGD's weight decay on everything."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
        self.decay = decay

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=self.decay)

    def gap(self) -> float:
        """That of the weights as they are."""
        decay = F.WeightDecay(self.decay, self.decay, self.decay, self.decay)
        block = read_block(self, BlockLocation("net.0", "net.2", (0.0, 1.0)))
        return F.optimality_gap(block, torch.cat([X, torch.ones_like(X)], dim=1), Y, decay, rounds=0).gap


def fit(module: Line, steps: int, **options: object) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    Trainer(max_steps=steps, max_epochs=-1, **(QUIET | options)).fit(module, loader)  # type: ignore[arg-type]


def test_a_plateau_draws_it_in_tensorboard(tmp_path: Path) -> None:
    module = Line(0.02)
    fit(module, 600, callbacks=[PlateauMonitor()], logger=TensorBoardLogger(tmp_path))
    (folder,) = {path.parent for path in tmp_path.rglob("events*")}
    events = EventAccumulator(str(folder)).Reload()
    drawn = [event.value for event in events.Scalars("landscape/gap")]
    assert drawn[-1] == pytest.approx(module.gap(), rel=1e-6)


@pytest.mark.parametrize("decay", [0.02, 0.0])
def test_the_block_that_is_watched_has_the_same_one(tmp_path: Path, decay: float) -> None:
    module = Line(decay)
    monitor = LandscapeMonitor(every_n_steps=100, verdict="nearby")
    fit(module, 300, callbacks=[monitor], logger=CSVLogger(tmp_path))
    (log,) = tmp_path.rglob("metrics.csv")
    gaps = [
        float(row["landscape/gap"]) for row in csv.DictReader(log.read_text().splitlines()) if row.get("landscape/gap")
    ]
    (watched,) = monitor.watched.values()
    assert watched.nearby is not None
    expected = module.gap() if decay else watched.nearby.loss_gap
    assert gaps[-1] == pytest.approx(expected, rel=1e-3)
