"""The five-point problem in training: as the reference run, and as a user would train it."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.experiments import PointsDataModule, ReferenceRegression, reference_problem
from relu_diag.nn import ShallowNet

QUIET = {"accelerator": "cpu", "enable_checkpointing": False, "enable_model_summary": False, "log_every_n_steps": 1}


def reference_run(problem: Any, lr: float, steps: int, *callbacks: Callback, **settings: Any) -> Trainer:
    """The trainer of a reference problem after so many steps, ten a batch."""
    quiet = {**QUIET, "logger": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **(quiet | settings))
    module = ReferenceRegression(problem, lr=lr, steps_per_batch=10)
    trainer.fit(module, PointsDataModule(problem, batches_per_epoch=1000))
    return trainer


class Five(LightningModule):
    """The five-point problem as a user would train it, quickly."""

    def __init__(self, optimizer: str = "SGD", **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = ShallowNet(2, 8, init_scale=1e-3).double()
        self.optimizer, self.settings = optimizer, {"lr": 0.2} | settings

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log_dict({"step_loss": loss, "noise": torch.rand(())})
        self.log("epoch_loss", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), **self.settings)


def points(copies: int = 1, batch: int | None = None, shuffle: bool = False) -> DataLoader[Any]:
    """All points in a batch, or the points a few times over in small ones."""
    X, Y = (tensor.repeat(copies, 1) for tensor in reference_problem("five_points").tensors())
    return DataLoader(TensorDataset(X, Y), batch_size=batch or len(X), shuffle=shuffle)


def fit(module: LightningModule, *callbacks: Callback, loader: Any = None, **settings: Any) -> Trainer:
    quiet = {**QUIET, "logger": False, "enable_progress_bar": False, "max_epochs": -1}
    trainer = Trainer(callbacks=list(callbacks), **(quiet | settings))
    trainer.fit(module, points(100, 5) if loader is None else loader)
    return trainer


class Plain(Five):
    """Five points and more neurons, nothing logged."""

    def __init__(self, optimizer: str = "SGD", **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self.net = ShallowNet(2, 30, init_scale=1e-4).double()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])


class Scheduled(Plain):
    """The same with a schedule."""

    def __init__(self, scheduler: Any, interval: str = "step", frequency: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.scheduler, self.plan = scheduler, {"interval": interval, "frequency": frequency}

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), **self.plan}}


SETTINGS = {
    "plain": {"lr": 0.1},
    "momentum": {"lr": 0.05, "momentum": 0.5},
    "Nesterov's": {"lr": 0.05, "momentum": 0.5, "nesterov": True},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.9},
    "much momentum": {"lr": 0.01, "momentum": 0.9},
    "much of Nesterov's": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
}


SCHEDULES = {
    "cosine": (lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 1_500), "step", 1),
    "warmup, then steps": (
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, 0.01, 1.0, 200), lr_scheduler.StepLR(optimizer, 200, 0.9)],
            [200],
        ),
        "step",
        1,
    ),
    "every other epoch": (lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9), "epoch", 2),
    "a function, now and then": (
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda k: 1 + 0.2 * math.sin(k / 3)),
        "step",
        37,
    ),
    "one cycle with momentum": (
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, 0.02, total_steps=1_001, base_momentum=0.7, max_momentum=0.9
        ),
        "step",
        1,
    ),
}
