"""Small sparse autoencoders in training: raw parameters or Linear layers, a normalised dictionary, centred inputs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def sparse_rows(samples: int = 512, d: int = 16, features: int = 32, seed: int = 0) -> Tensor:
    """Sums of a few of many directions."""
    draw = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(features, d, generator=draw), dim=1)
    active = torch.rand(samples, features, generator=draw) < 0.1
    return (active * torch.rand(samples, features, generator=draw) * 2) @ directions


class Dictionary(LightningModule):
    """ReLU and L1, with raw parameters; the decoder's columns are normalised after each step on request."""

    def __init__(
        self,
        d: int = 16,
        width: int = 48,
        price: float = 0.02,
        dead: float = 0.5,
        tied_bias: bool = False,
        normalised: bool = True,
        linear: bool = False,
        optimizer: str = "Adam",
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.price = price
        self.tied_bias = tied_bias
        self.normalised = normalised
        self.optimizer = optimizer
        columns = nn.functional.normalize(torch.randn(width, d), dim=1)
        bias = torch.zeros(width)
        bias[: int(dead * width)] = -20.0
        self.linear = linear
        if linear:
            self.encoder, self.decoder = nn.Linear(d, width), nn.Linear(width, d)
            with torch.no_grad():
                self.encoder.weight.copy_(columns)
                self.encoder.bias.copy_(bias)
                self.decoder.weight.copy_(columns.T)
        else:
            self.into = nn.Parameter(columns.T.clone())
            self.out = nn.Parameter(columns.clone())
            self.bias = nn.Parameter(bias)
            self.centre = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.linear:
            hidden = self.encoder(x).relu()
            return self.decoder(hidden), hidden
        inner = x - self.centre if self.tied_bias else x
        hidden = (inner @ self.into + self.bias).relu()
        return hidden @ self.out + self.centre, hidden

    def training_step(self, batch: list[Tensor]) -> Tensor:
        (x,) = batch
        outputs, hidden = self(x)
        return (outputs - x).square().sum(dim=1).mean() + self.price * hidden.sum(dim=1).mean()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.normalised:
            with torch.no_grad():
                if self.linear:
                    self.decoder.weight.div_(self.decoder.weight.norm(dim=0, keepdim=True))
                else:
                    self.out.div_(self.out.norm(dim=1, keepdim=True))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=1e-2 if self.optimizer == "SGD" else 3e-3)


def fit(module: LightningModule, *callbacks: Callback, rows: Tensor | None = None, **options: Any) -> Trainer:
    """Train on sparse rows, in batches of 64."""
    data = TensorDataset(sparse_rows() if rows is None else rows)
    trainer = Trainer(callbacks=list(callbacks), **{**QUIET, "max_steps": 120, **options})
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))
    return trainer


def dead_share(module: Dictionary) -> float:
    """Share of features that are silent on all rows."""
    with torch.no_grad():
        return float((module(sparse_rows())[1] == 0).all(dim=0).float().mean())


def loss_of(module: Dictionary) -> float:
    """Loss on all rows."""
    with torch.no_grad():
        return float(module.training_step([sparse_rows()]))
