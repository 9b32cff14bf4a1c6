"""Grow an MLP on images of digits: four neurons at first, more at every plateau, until accuracy stops improving.

Beside it, a network of the final width trained from scratch for as many gradient steps, and one that stays at four.
"""

from __future__ import annotations

import logging
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, Growth, PlateauMonitor


class Classifier(LightningModule):
    """A 64-width-10 MLP: biases, cross-entropy, AdamW."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.first(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), test_size=0.25, random_state=0)
    return TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])


def say_step(trainer: Trainer, module: LightningModule) -> None:
    if trainer.current_epoch % 50 == 49:
        accuracy = float(trainer.callback_metrics["accuracy"])
        print(f"step {trainer.global_step:,}: {module.first.out_features} neurons, accuracy {accuracy:.1%}", flush=True)


def train(width: int, *callbacks: Callback, steps: int) -> tuple[Trainer, float]:
    """The trainer after the run, and the accuracy on held-out images."""
    seed_everything(0, verbose=False)
    training, held_out = digits()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*callbacks, LambdaCallback(on_validation_end=say_step)],
        logger=TensorBoardLogger("runs", name="grow_digits"),
        check_val_every_n_epoch=5,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model, test = Classifier(width), DataLoader(held_out, batch_size=len(held_out))
    trainer.fit(model, DataLoader(training, batch_size=64, shuffle=True), test)
    return trainer, trainer.validate(model, test, verbose=False)[0]["accuracy"]


def table_of(growths: list[Growth]) -> Table:
    table = Table(title="How it grew")
    for column in ("at step", "to width", "new neurons", "replicas", "training loss falls by"):
        table.add_column(column, justify="right")
    for one in growths:
        replicas = sum("replica" in line for line in one.embedding)
        new = len(one.embedding) - replicas
        table.add_row(f"{one.step:,}", str(one.after), str(new), str(replicas), f"{one.measured_drop:.3f}")
    return table


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", ".*checkpoint callback")
    # Under the cross-entropy no theorem says that a plateau is a minimum: we choose to grow on it. Minibatches are
    # noisy, so we ask for plateaus of hundreds of steps on which the loss falls by less than a tenth.
    growth = GrowOnPlateau(units=4, verdicts=("local minimum", "undecided"), max_width=32)
    enough = EarlyStopping("accuracy", mode="max", min_delta=0.002, patience=15)
    trainer, accuracy = train(4, PlateauMonitor(drop=0.1, min_steps=500), growth, enough, steps=20_000)
    steps, width = trainer.global_step, growth.growths[-1].after
    small, large = (train(fixed, steps=steps)[1] for fixed in (4, width))

    console = Console()
    console.print(table_of(growth.growths))
    results = Table(title=f"Held-out accuracy after {steps:,} gradient steps")
    for column in ("width", "accuracy"):
        results.add_column(column, justify="right")
    for name, value in (("4", small), (f"4, grown to {width}", accuracy), (f"{width} from the start", large)):
        results.add_row(name, f"{value:.1%}")
    console.print(results)
    console.print(f"figure: {trainer.log_dir}/plateau/loss.png", soft_wrap=True)

    assert width > 4
    assert all(one.measured_drop > 0 for one in growth.growths), "every growth lowers the loss at once"
    assert accuracy > small + 0.05, "four neurons are too few"
    assert accuracy > large - 0.03, "growing costs little against the final width from the start"


if __name__ == "__main__":
    main()
