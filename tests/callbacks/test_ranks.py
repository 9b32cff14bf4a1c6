"""Two processes with uneven data and collectives in the step: none waits for the other, and both say the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from support.trainers import Drawn, Net
from torch import Tensor
from torch.utils.data import DataLoader

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor, SaddleAwareEarlyStopping

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Contrastive(Net):
    """A step in which the processes exchange what they computed."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.note()
        out = self(batch[0])
        others: Any = self.all_gather(out.detach().mean())
        loss = torch.nn.functional.mse_loss(out, batch[1]) + 0 * others.sum()
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Told(Callback):
    """Writes down what this process was told, for the test to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        landscape, plateau, stopping = (
            next(one for one in trainer.callbacks if isinstance(one, kind))  # type: ignore[attr-defined]
            for kind in (LandscapeMonitor, PlateauMonitor, SaddleAwareEarlyStopping)
        )
        told = {
            "samples": [(name, report.samples, report.step) for name, report in landscape.reports.items()],
            "nearby": str(landscape.nearby),
            "off": [landscape.off, plateau.examiner.careful.off, stopping.examiner.careful.off],
            "timeline": plateau.timeline,
            "plateaus": [str(one) for one in plateau.plateaus],
            "decision": stopping.decision,
            "seen": [list(one.examiner.seen) for one in (plateau, stopping)],
            "step": trainer.global_step,
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(told))


class FailsOnOne(Callback):
    """In one process the code of the monitors fails at some step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != 3 or trainer.global_rank != 1:
            return
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            for careful in (getattr(one, "_careful", None), getattr(getattr(one, "examiner", None), "careful", None)):
                if careful is not None:
                    careful.switch_off("RuntimeError: on purpose")


def told_by_both(folder: Path, *before: Callback) -> list[dict[str, Any]]:
    monitors = [
        LandscapeMonitor(every_n_steps=2, verdict="nearby"),
        PlateauMonitor(min_steps=10),
        SaddleAwareEarlyStopping("loss", patience=2, min_delta=1e9, check_on_train_epoch_end=True),
    ]
    fit_both(25, *before, *monitors, Told(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def fit_both(epochs: int, *callbacks: Callback) -> None:
    trainer = Trainer(
        callbacks=list(callbacks),
        strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"),
        devices=2,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Contrastive(), DataLoader(Drawn(9), batch_size=4))


def test_ranks_agree_on_what_they_see(tmp_path: Path) -> None:
    first, second = told_by_both(tmp_path)
    assert first == second
    assert first["off"] == ["", "", ""]
    assert first["samples"]
    assert first["decision"]


def test_where_one_rank_is_off_all_are(tmp_path: Path) -> None:
    first, second = told_by_both(tmp_path, FailsOnOne())
    assert second["off"] == ["RuntimeError: on purpose"] * 3
    assert first["off"] == ["on another process, RuntimeError: on purpose"] * 3
    assert first["step"] == second["step"]


class BreaksBeforeACollective(Callback):
    """In one process our own code fails right before all processes are to add up what they have seen."""

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            room, _, name = self.broken.rpartition(".")
            pytest.MonkeyPatch().setattr(importlib.import_module(room), name, self.fail)

    def fail(self, *_: object, **__: object) -> None:
        raise RuntimeError("on purpose")


class TellsWhatIsOff(Callback):
    """Writes down which monitors are off in this process, and how far it came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        landscape, stopping, _ = trainer.callbacks[1:4]  # type: ignore[attr-defined]
        told = [bool(landscape.off), bool(stopping.examiner.careful.off), trainer.global_step]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("broken", "off"),
    [
        ("relu_diag.capture.sampled.RunningSums", [True, False]),
        ("relu_diag.training.examine.all_dead", [False, True]),
        ("relu_diag.training._judged.judge", [False, True]),
        ("relu_diag.training.chain.followers_of", [False, True]),
        ("relu_diag.training.rows.joined", [False, True]),
    ],
)
def test_an_error_between_collectives_leaves_no_process_waiting(broken: str, off: list[bool], tmp_path: Path) -> None:
    stopping = SaddleAwareEarlyStopping("loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    watching = [LandscapeMonitor(every_n_steps=2), stopping, TellsWhatIsOff(tmp_path)]
    fit_both(4, BreaksBeforeACollective(broken), *watching)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[:2] == off
