"""One callback object in several runs: each begins anew, and a run that goes on keeps what it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from support.trainers import Drawn, Net
from torch.utils.data import DataLoader

from relu_diag.callbacks import (
    EscapeOnPlateau,
    GrowOnPlateau,
    LandscapeMonitor,
    PlateauMonitor,
    SaddleAwareEarlyStopping,
)

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = {
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


class Plain(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def callbacks() -> list[Any]:
    return [
        LandscapeMonitor(every_n_steps=1),
        PlateauMonitor(min_steps=3),
        SaddleAwareEarlyStopping("loss", patience=2, check_on_train_epoch_end=True),
        GrowOnPlateau(at_steps=(3,)),
        EscapeOnPlateau(),
    ]


def fold(monitors: list[Any], steps: int = 20) -> tuple[Trainer, Plain]:
    torch.manual_seed(3)
    module = Plain()
    trainer = Trainer(callbacks=monitors, max_steps=steps, max_epochs=-1, accelerator="cpu", **QUIET)
    trainer.fit(module, DataLoader(Drawn(), batch_size=20))
    return trainer, module


def said(monitors: list[Any]) -> list[str]:
    landscape, plateau, stopping, growth, escape = monitors
    return [
        str(landscape.reports["net.0"].step),
        str(landscape.watched["net.0"].recorder.offered),
        str(plateau.timeline),
        str(plateau._curve.points),
        stopping.decision,
        str((stopping.wait_count, stopping.stopped_epoch, stopping.best_score)),
        str(growth.growths),
        str(escape.escapes),
    ]


def test_a_second_fold_says_what_the_first_one_said() -> None:
    monitors = callbacks()
    _, first = fold(monitors)
    before = said(monitors)
    _, second = fold(monitors)
    assert said(monitors) == before
    assert len(first.net[0].weight) == len(second.net[0].weight) == 7
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_a_run_that_goes_on_keeps_what_it_has() -> None:
    monitors = callbacks()[:2]
    trainer, module = fold(monitors, steps=10)
    trainer.fit_loop.epoch_loop.max_steps = 20
    trainer.fit(module, DataLoader(Drawn(), batch_size=20))
    steps = [step for step, _ in monitors[1]._curve.points]
    assert steps == list(range(20))
