"""A regression behind batch norm and dropout, in training."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.regression import MeanSquaredError


class Regression(LightningModule):
    """A shallow block behind batch norm and dropout, logging as users do."""

    def __init__(self, optimizer: str = "SGD", noisy: bool = True) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.3)) if noisy else nn.Identity()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        self.error, self.optimizer = MeanSquaredError(), optimizer
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.before(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch[0])
        self.error(out.contiguous(), batch[1])
        self.log_dict({"train": functional.mse_loss(out, batch[1]), "noise": torch.rand(()), "error": self.error})
        return functional.mse_loss(out, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.05)


def data(samples: int = 20, inputs: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(samples, inputs, generator=generator), torch.randn(samples, 2, generator=generator)
    )


def fit(
    module: LightningModule, *callbacks: Callback, loader: Any = None, ckpt_path: Any = None, **settings: Any
) -> Trainer:
    settings = {"max_epochs": 3, "log_every_n_steps": 1, "logger": False, **settings}
    trainer = Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(
        module, DataLoader(data(), batch_size=8, shuffle=True) if loader is None else loader, ckpt_path=ckpt_path
    )
    return trainer
