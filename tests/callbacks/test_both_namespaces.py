"""A project that imports ``pytorch_lightning`` gets what one that imports ``lightning.pytorch`` gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import (
    EscapeOnPlateau,
    GrowOnPlateau,
    LandscapeMonitor,
    PlateauMonitor,
    ReviveDeadUnits,
    SaddleAwareEarlyStopping,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def module_of(package: Any) -> Any:
    class Net(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 6) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def batch_loss(self, batch: Any) -> Any:
            return self.training_step(batch, 0)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    Net.__qualname__ = Net.__name__
    return Net()


def run(package: Any, folder: Path, *callbacks: Any) -> tuple[Any, dict[str, list[str]]]:
    """The module after a run, and the names of all that was logged."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(20, 3, generator=generator), torch.randn(20, 2, generator=generator))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logger = package.loggers.TensorBoardLogger(folder)
    trainer = package.Trainer(
        callbacks=list(callbacks), logger=logger, max_epochs=12, log_every_n_steps=2, accelerator="cpu", **quiet
    )
    module = module_of(package)
    trainer.fit(module, DataLoader(data, batch_size=20))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = events.Tags()
    names = {kind: sorted(tags[kind]) for kind in ("scalars", "histograms", "images", "tensors")}
    return module, names


def callbacks() -> list[Any]:
    return [
        LandscapeMonitor(every_n_steps=2, verdict="nearby"),
        PlateauMonitor(min_steps=3),
        EscapeOnPlateau(),
        SaddleAwareEarlyStopping("loss", patience=2),
        GrowOnPlateau(at_steps=(5,)),
        ReviveDeadUnits(),
    ]


def test_everything_works_in_both(tmp_path: Path) -> None:
    one, logged = run(lightning.pytorch, tmp_path / "one", *callbacks())
    other, logged_there = run(pytorch_lightning, tmp_path / "other", *callbacks())
    assert logged_there == logged
    assert logged["histograms"]
    assert other.net[0].weight.shape == one.net[0].weight.shape
    assert torch.equal(other.net[0].weight, one.net[0].weight)
    assert other.hparams == one.hparams
    assert other.hparams["width"] == len(other.net[0].weight) > 6


COMMAND_LINE = """
import pytorch_lightning as pl
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel

import relu_diag.callbacks as ours

names = [name for name in ours.__all__ if isinstance(getattr(ours, name), type)]
print([name for name in names if name.endswith("Monitor") and not issubclass(getattr(ours, name), pl.Callback)])
args = ["--trainer.accelerator=cpu", "--trainer.callbacks+=relu_diag.callbacks.LandscapeMonitor"]
args += ["--trainer.callbacks.every_n_steps=7", "--trainer.callbacks+=relu_diag.callbacks.SaddleAwareEarlyStopping"]
cli = LightningCLI(BoringModel, run=False, save_config_callback=None, args=[*args, "--trainer.callbacks.monitor=loss"])
print([one.every_n_steps for one in cli.trainer.callbacks if isinstance(one, ours.LandscapeMonitor)])
"""


def test_a_command_line_of_the_other_package_takes_our_callbacks() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMMAND_LINE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:1] == ["[]"]
    assert "[7]" in done.stdout
