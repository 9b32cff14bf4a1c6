"""A classifier around a block, and two blocks side by side, in training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    """A block in the middle of a model: normalised before, with dropout and another layer behind."""

    def __init__(self, penalty: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.penalty = penalty
        self.norm, self.hidden, self.output = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(3, 5)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(5, 3)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        A = functional.relu(self.hidden(self.norm(batch[0])))
        logits = self.last(self.drop(functional.softplus(self.output(A))))
        return functional.cross_entropy(logits, batch[1]) + self.penalty * A.abs().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class TwoBlocks(LightningModule):
    """Two regressions side by side, of widths 2 and 3, each held at a minimum of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
        self.second = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        target = batch[1][:, None].to(batch[0])
        return functional.mse_loss(self.first(batch[0]), target) + functional.mse_loss(self.second(batch[0]), -target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(50, 4, generator=generator)
    return DataLoader(TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 1).long()), batch_size=16)


def loss_over_all(module: Classifier) -> float:
    module.eval()
    with torch.no_grad():
        total = sum(len(batch[0]) * float(module.training_step(batch)) for batch in loader())
    module.train()
    return total / 50


def fit(module: LightningModule, *callbacks: Callback, steps: int, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), enable_checkpointing=False, **quiet)
    trainer.fit(module, loader(), weights_only=True, **options)
    return trainer
