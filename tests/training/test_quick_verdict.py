"""A network whose loss falls at once is not searched around: the verdict says how far it falls."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import PlateauMonitor
from relu_diag.training import judge


class Classifier(LightningModule):
    """Three classes, a few steps after the start."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3))
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(scale)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, weight_decay=1e-3)


def monitored(scale: float, epochs: int) -> PlateauMonitor:
    """A monitor after a short run; a small scale begins at the saddle of a network that computes nothing."""
    X = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(X, X[:, :3].argmax(dim=1)), batch_size=50)
    monitor = PlateauMonitor()
    trainer = Trainer(max_epochs=epochs, callbacks=[monitor], **QUIET)
    trainer.fit(Classifier(scale), data)
    return monitor


def test_a_loss_that_falls_at_once_is_not_searched_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_: object) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr("relu_diag.training._judged.judge", searched)
    found = monitored(scale=1.0, epochs=10).final
    assert found is not None
    assert found.verdict.kind == "not stationary"
    assert "10 steps of descent on all data lower the loss by" in found.verdict.reason
    assert dict(found.verdict.assumptions) == {"full data set": "holds"}


def test_a_loss_that_falls_ever_faster_leaves_a_saddle_and_is_searched_around(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def searched(*arguments: Any) -> Any:
        searches.append(arguments)
        return judge(*arguments)

    monkeypatch.setattr("relu_diag.training._judged.judge", searched)
    found = monitored(scale=0.05, epochs=2).final
    assert found is not None
    assert found.descent is not None
    assert found.descent.fall > 0.01
    assert not found.descent.slows
    assert searches
