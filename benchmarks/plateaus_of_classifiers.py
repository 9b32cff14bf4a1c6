"""What the callbacks say of classifiers that people train, and what early stopping saves.

``python benchmarks/plateaus_of_classifiers.py [--epochs 60] [--widths 64 256]``

Three data sets of scikit-learn, AdamW and SGD with momentum and weight decay. Every run is made twice from one seed:
to the end, watched by PlateauMonitor, EscapeOnPlateau and GrowOnPlateau, and with SaddleAwareEarlyStopping.
EarlyStopping, which changes nothing before it stops, is read off the first run's losses on held-out data.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import EscapeOnPlateau, GrowOnPlateau, PlateauMonitor, SaddleAwareEarlyStopping

PATIENCE = 10
DATA = {"digits": datasets.load_digits, "wine": datasets.load_wine, "breast cancer": datasets.load_breast_cancer}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda weights: AdamW(weights, lr=1e-3, weight_decay=1e-2),
    "SGD with decay": lambda weights: SGD(weights, lr=0.03, momentum=0.9, weight_decay=1e-3),
}
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


@dataclass(frozen=True)
class Problem:
    """Samples to train on, and a quarter held out."""

    train: TensorDataset
    held_out: TensorDataset
    inputs: int
    classes: int

    @classmethod
    def load(cls, name: str) -> Problem:
        X, labels = DATA[name](return_X_y=True)
        X, labels = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(labels).long()
        X = (X - X.mean(0)) / (X.std(0) + 1e-6)
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
        held_out, train = order[: len(X) // 4], order[len(X) // 4 :]
        sets = (TensorDataset(X[some], labels[some]) for some in (train, held_out))
        return cls(*sets, inputs=X.shape[1], classes=int(labels.max()) + 1)


class Classifier(LightningModule):
    """One hidden layer under cross-entropy."""

    def __init__(self, problem: Problem, width: int, optimizer: str) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Linear(problem.inputs, width), nn.ReLU(), nn.Linear(width, problem.classes))
        self.held_out: list[tuple[float, float]] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        outputs = self.net(batch[0])
        loss = functional.cross_entropy(outputs, batch[1])
        self.log("val_loss", loss)
        if not self.trainer.sanity_checking:
            self.held_out.append((float(loss), float((outputs.argmax(1) == batch[1]).float().mean())))

    def configure_optimizers(self) -> Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


def fit(problem: Problem, width: int, optimizer: str, epochs: int, *callbacks: Callback) -> Classifier:
    seed_everything(0, verbose=False)
    module = Classifier(problem, width, optimizer)
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), **QUIET)
    held_out = DataLoader(problem.held_out, batch_size=len(problem.held_out))
    trainer.fit(module, DataLoader(problem.train, batch_size=32, shuffle=True), held_out)
    return module


def epochs_of_early_stopping(losses: list[float]) -> int:
    """Epochs after which EarlyStopping, at a patience, stops; all of them if it does not."""
    best = 0
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best >= PATIENCE:
            return epoch + 1
    return len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("epochs, and held-out loss and accuracy then: to the end, EarlyStopping, SaddleAwareEarlyStopping")
    for name in args.data:
        problem = Problem.load(name)
        for width in args.widths:
            for optimizer in OPTIMIZERS:
                compare(name, problem, width, optimizer, args.epochs)


def compare(name: str, problem: Problem, width: int, optimizer: str, epochs: int) -> None:
    """Both runs of a setting, and what was said of them."""
    monitor, escape, growth = PlateauMonitor(), EscapeOnPlateau(), GrowOnPlateau()
    whole = fit(problem, width, optimizer, epochs, monitor, escape, growth).held_out
    stopping = SaddleAwareEarlyStopping("val_loss", patience=PATIENCE)
    careful = fit(problem, width, optimizer, epochs, stopping).held_out
    early = epochs_of_early_stopping([loss for loss, _ in whole])
    rows = [(len(whole), *whole[-1]), (early, *whole[early - 1]), (len(careful), *careful[-1])]
    cells = "  ".join(f"{count:4} {loss:.4f} {accuracy:6.1%}" for count, loss, accuracy in rows)
    print(f"{name:14}{width:4}  {optimizer:15}{cells}", flush=True)
    for line in [*monitor.timeline, *(plateau.words for plateau in monitor.plateaus)]:
        print(f"    monitor: {line}")
    if monitor.final is not None:
        ending = monitor.final.ending(told=False, named=False)
        print(f"    monitor, at the end: {monitor.final.verdict.kind}; {ending}")
    if stopping.decision:
        print(f"    early stopping: {stopping.decision}")
    print(f"    {len(escape.escapes)} escapes, {len(growth.growths)} growths", flush=True)


if __name__ == "__main__":
    main()
