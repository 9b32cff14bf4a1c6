"""A small regression that grows twice while it trains, as a function and as a script that may be killed."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau
from relu_diag.nn import ShallowNet

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class LineFit(LightningModule):
    def __init__(self, width: int = 4, optimizer: str = "SGD") -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = ShallowNet(1, width, hidden_bias=True, output_bias=True).double()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.hparams["optimizer"])(self.parameters(), lr=0.01)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    X = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    return DataLoader(TensorDataset(X, torch.sin(4 * X)), batch_size=16)


def fit(
    *callbacks: Callback, steps: int, optimizer: str = "SGD", ckpt_path: Path | None = None, **options: Any
) -> LineFit:
    module = LineFit(optimizer=optimizer)
    options = {"enable_checkpointing": False, **QUIET, **options}
    trainer = Trainer(max_epochs=steps, log_every_n_steps=1, callbacks=list(callbacks), **options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return module


def growing_run(folder: Path, optimizer: str, *callbacks: Callback, resume: bool = False) -> dict[str, Any]:
    """Weights and growths after sixty steps, with a checkpoint in the folder after every fifth."""
    growth = GrowOnPlateau(at_steps=(20, 40))
    saving = ModelCheckpoint(folder, "last", every_n_epochs=5, enable_version_counter=False)
    path = folder / "last.ckpt" if resume else None
    module = fit(growth, saving, *callbacks, steps=60, optimizer=optimizer, ckpt_path=path, enable_checkpointing=True)
    return {"growths": [str(one) for one in growth.growths], **module.state_dict()}


class WaitAt(Callback):
    """Waits to be killed, once a checkpoint is there."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step, self.folder = step, folder

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            (self.folder / "waiting").touch()
            time.sleep(600)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("optimizer")
    parser.add_argument("wait_at", type=int)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    growing_run(args.folder, args.optimizer, WaitAt(args.wait_at, args.folder))


if __name__ == "__main__":
    main()
