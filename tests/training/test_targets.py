"""Targets that a step computes: the message names the hint, and the hint helps."""

import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import PlateauMonitor


class Standardised(LightningModule):
    """It fits targets in units of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), (batch[1] - 150) / 80)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def test_a_step_that_computes_its_targets_is_told_how_to_show_them() -> None:
    X = torch.randn(30, 2)
    loader = DataLoader(TensorDataset(X, 150 + 80 * X[:, :1]), batch_size=10)
    hidden, shown = PlateauMonitor(), PlateauMonitor(targets=lambda batch: (batch[1] - 150) / 80)
    for monitor in (hidden, shown):
        Trainer(max_epochs=2, callbacks=[monitor], **QUIET).fit(Standardised(), loader)
        assert monitor.final is not None
    assert hidden.final.data is None
    assert hidden.final.verdict.reason.endswith("give the callback targets=lambda batch: ...")
    assert shown.final.data.loss.name == "squared error"
