"""A run with revivals that is stopped and resumed is the run without a break, wherever it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import ReviveDeadUnits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = torch.stack([X[:, 0] * X[:, 1], X[:, 2].sin()], dim=1)
LABELS = (X[:, 0] * X[:, 1] > 0).long()


class Net(LightningModule):
    """Many dead neurons, under one of several losses."""

    def __init__(self, loss: str, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16, bias=bias), nn.ReLU(), nn.Linear(16, 2))
        if bias:
            self.net[0].bias.data[:6] -= 100  # type: ignore[union-attr]
        self.loss = loss

    def training_step(self, batch: list[Tensor]) -> Tensor:
        outputs = self.net(batch[0])
        if self.loss == "cross-entropy":
            return functional.cross_entropy(outputs, batch[2])
        if self.loss == "unknown":
            return (outputs - batch[1]).abs().pow(1.5).mean()
        return functional.mse_loss(outputs, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-2)


class Save(Callback):
    """Writes a checkpoint after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def run(module: Net, revive: ReviveDeadUnits, *also: Callback, path: Path | None = None) -> list[Tensor]:
    trainer = Trainer(**{**QUIET, "max_epochs": 5}, callbacks=[revive, *also])
    data = DataLoader(TensorDataset(X, Y, LABELS), batch_size=16)
    trainer.fit(module, data, ckpt_path=None if path is None else str(path), weights_only=True)
    return list(module.state_dict().values())


# With 16 rows a step: rows of 4 steps in 10, of 2 in 3, and of all steps.
@pytest.mark.parametrize(
    ("loss", "every", "samples"),
    [("squared", 10, 64), ("squared", 3, 32), ("cross-entropy", 7, 2048), ("unknown", 10, 64)],
)
def test_wherever_it_is_stopped(loss: str, every: int, samples: int, tmp_path: Path) -> None:
    def options() -> Any:
        return Net(loss, bias=True), ReviveDeadUnits(every_n_steps=every, samples=samples)

    module, revive = options()
    whole = run(module, revive, Save(tmp_path))
    assert sum(one.revived for one in revive.revivals) > 0
    for epoch in (0, 1):
        module, resumed = options()
        again = run(module, resumed, path=tmp_path / f"{epoch}.ckpt")
        assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
        assert resumed.revivals == revive.revivals


def test_without_hidden_biases(tmp_path: Path) -> None:
    revive, resumed = (ReviveDeadUnits(every_n_steps=10, samples=64, dormant=0.4) for _ in range(2))
    whole = run(Net("squared", bias=False), revive, Save(tmp_path))
    again = run(Net("squared", bias=False), resumed, path=tmp_path / "1.ckpt")
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    assert resumed.revivals == revive.revivals
