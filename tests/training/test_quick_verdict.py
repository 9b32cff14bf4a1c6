"""A network whose loss falls at once is not searched around: the verdict says how far it falls."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import PlateauMonitor


class Classifier(LightningModule):
    """Three classes, a few steps after the start."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(10, neurons), nn.ReLU(), nn.Linear(neurons, 3))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, weight_decay=1e-3)


def test_a_loss_that_falls_at_once_is_not_searched_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_: object) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr("relu_diag.training.examination.judge", searched)
    X = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(X, X[:, :3].argmax(dim=1)), batch_size=50)
    monitor = PlateauMonitor()
    trainer = Trainer(
        max_epochs=10,
        logger=False,
        accelerator="cpu",
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(neurons=64), data)
    assert monitor.final is not None
    verdict = monitor.final.verdict
    assert verdict.kind == "not stationary"
    assert "10 steps of descent on all data lower the loss by" in verdict.reason
    assert dict(verdict.assumptions) == {"full data set": "holds"}
