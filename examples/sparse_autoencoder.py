"""A sparse autoencoder on the hidden activations of a small network, with and without ReviveDeadUnits.

The network squeezes 256 sparse inputs through 64 neurons. The autoencoder takes their activations apart again: ReLU
with an L1 penalty, raw parameters, a decoder bias taken off the inputs, decoder columns normalised after each step.
Features die while the decoder bias is still on its way to the mean of the inputs, and have no gradient from then on.
"""

from __future__ import annotations

import logging
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.callbacks import ReviveDeadUnits
from relu_diag.nn import ShallowNet

FEATURES = 512
PRICE = 0.1
STEPS = 600


class Squeeze(LightningModule):
    """The network whose hidden activations are taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ShallowNet(256, 64, 256, hidden_bias=True, output_bias=True)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return (self.net(batch[0]) - batch[0]).square().sum(dim=1).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class SparseAutoencoder(LightningModule):
    """Features that are rarely active, and whose sum gives the inputs back."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        directions = functional.normalize(torch.randn(FEATURES, rows.shape[1]), dim=1)
        self.encoder = nn.Parameter(directions.T.clone())
        self.decoder = nn.Parameter(directions.clone())
        self.bias = nn.Parameter(torch.zeros(FEATURES))
        self.centre = nn.Parameter(torch.zeros(rows.shape[1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = functional.relu((x - self.centre) @ self.encoder + self.bias)
        return features @ self.decoder + self.centre, features

    def training_step(self, batch: list[Tensor]) -> Tensor:
        (x,) = batch
        outputs, features = self(x)
        return (outputs - x).square().sum(dim=1).mean() + PRICE * features.sum(dim=1).mean()

    def on_train_batch_end(self, *_: object) -> None:
        with torch.no_grad():
            self.decoder.copy_(functional.normalize(self.decoder, dim=1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def say_step(trainer: Trainer, module: LightningModule) -> None:
    print(f"{type(module).__name__}: step {trainer.global_step:,}", flush=True)


def fit(module: LightningModule, *data: Tensor, steps: int, callbacks: tuple[Callback, ...] = ()) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*callbacks, LambdaCallback(on_train_epoch_end=say_step)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=128, shuffle=True))


def activations() -> Tensor:
    """Hidden activations of the trained network, of mean square 1, one row a sample."""
    seed_everything(0, verbose=False)
    X = (torch.rand(8192, 256) < 0.02) * torch.rand(8192, 256)
    network = Squeeze()
    fit(network, X, steps=1000)
    with torch.no_grad():
        rows = functional.relu(network.net.hidden(X))
    return rows / rows.square().sum(dim=1).mean().sqrt()


def measured(module: SparseAutoencoder, rows: Tensor) -> dict[str, float]:
    with torch.no_grad():
        outputs, features = module(rows)
        miss = (outputs - rows).square().sum(dim=1).mean()
        spread = (rows - rows.mean(dim=0)).square().sum(dim=1).mean()
        return {
            "dead": float((features == 0).all(dim=0).float().mean()),
            "loss": float(miss + PRICE * features.sum(dim=1).mean()),
            "L0": float((features > 0).float().sum(dim=1).mean()),
            "variance explained": 1 - float(miss / spread),
        }


def causes(module: SparseAutoencoder, rows: Tensor) -> F.DeadCauses:
    """Why features are dead, on inputs as the encoder sees them."""
    with torch.no_grad():
        X = torch.cat([rows - module.centre, torch.ones(len(rows), 1)], dim=1)
        W = torch.cat([module.encoder.T, module.bias[:, None]], dim=1)
        G = 2 * (module(rows)[0] - rows) / len(rows)
    return F.dead_causes(ShallowBlock(W.detach(), module.decoder.T.detach()), BlockSignal(X, G), PRICE)


def main() -> None:
    warnings.filterwarnings("ignore", ".*does not have many workers")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = activations()
    results = {}
    for name, callbacks in (("without", ()), ("with", (ReviveDeadUnits(every_n_steps=50),))):
        seed_everything(0, verbose=False)
        module = SparseAutoencoder(rows)
        fit(module, rows, steps=STEPS, callbacks=callbacks)
        results[name] = measured(module, rows)
        print(f"{name} ReviveDeadUnits: {causes(module, rows)}")

    table = Table(title="A sparse autoencoder with 512 features")
    table.add_column("ReviveDeadUnits")
    for column in results["with"]:
        table.add_column(column, justify="right")
    for name, values in results.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    Console().print(table)
    assert results["with"]["dead"] < 0.5 * results["without"]["dead"]
    assert results["with"]["loss"] < 0.95 * results["without"]["loss"]


if __name__ == "__main__":
    main()
