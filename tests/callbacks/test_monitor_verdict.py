"""LandscapeMonitor with the verdict on the stationary point nearby."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from support.regression import Regression, data, fit
from torch import Tensor
from torch.nn import functional

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.callbacks import LandscapeMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.training import VERDICT_CODES, Judge


def five_points(**settings: Any) -> tuple[LandscapeMonitor, Trainer]:
    monitor = LandscapeMonitor(every_n_steps=1000, verdict="nearby")
    module = ReferenceRegression("five_points", lr=2e-2, steps_per_batch=1000)
    trainer = fit(
        module,
        monitor,
        loader=PointsDataModule("five_points", batches_per_epoch=25),
        max_steps=25_000,
        max_epochs=-1,
        **settings,
    )
    return monitor, trainer


def test_the_end_of_the_five_point_run_is_near_a_local_minimum(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path)
    monitor, trainer = five_points(logger=board)
    assert monitor.nearby is not None
    assert monitor.nearby.verdict.kind == "local minimum"
    assert monitor.judged_step == monitor.step == 25_000
    assert int(trainer.callback_metrics["landscape/verdict"]) == VERDICT_CODES["local minimum"]
    events = EventAccumulator(board.log_dir).Reload()
    codes = {event.step: int(event.value) for event in events.Scalars("landscape/verdict")}
    assert codes[0] == VERDICT_CODES["saddle"]
    assert set(codes.values()) <= set(VERDICT_CODES.values())
    assert {"landscape/verdict/text_summary", "landscape/verdict_legend/text_summary"} <= set(events.Tags()["tensors"])
    assert max(event.value for event in events.Scalars("landscape/verdict_seconds")) < 10


def test_a_loss_that_is_not_the_squared_error_has_no_verdict() -> None:
    class Huber(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.huber_loss(self(batch[0]), batch[1], delta=0.1)

    monitor = LandscapeMonitor(verdict="nearby")
    trainer = fit(Huber(noisy=False), monitor)
    assert monitor.nearby is None
    assert "not the squared error" in str(monitor._judge)
    assert int(trainer.callback_metrics["landscape/verdict"]) == VERDICT_CODES["undecided"]
    with pytest.raises(MisconfigurationException, match="'nearby' or None"):
        LandscapeMonitor(verdict="far")  # type: ignore[arg-type]


def test_minibatches_add_up_to_the_verdict_of_the_whole_set() -> None:
    X, Y = (tensor.double() for tensor in data().tensors)
    origin = ShallowBlock(X.new_zeros(4, 3), X.new_zeros(2, 4))
    judge = Judge()
    for rows in (slice(0, 13), slice(13, 20)):
        signal = F.squared_error_signal(origin, X[rows], Y[rows])
        judge.collect(signal, F.squared_loss(origin, X[rows], Y[rows]), (None, Y[rows]))
    judge.judge(origin, sampled=False)
    expected = F.nearby_stationary_point(origin, X, Y)
    assert judge.nearby is not None
    assert judge.nearby.verdict.kind == expected.verdict.kind == "saddle"
    assert judge.nearby.loss == expected.loss


def test_a_verdict_waits_until_the_last_one_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 9.0, 10.1])
    # The judge's name for the clock only: threads of pytest and Lightning read the clock itself.
    monkeypatch.setattr("relu_diag.training.judge.time", SimpleNamespace(monotonic=lambda: next(clock)))
    judge = Judge()
    assert judge._ended == -float("inf")
    judge.reason = "nothing to judge"
    judge.judge(ShallowBlock(torch.ones(1, 1), torch.ones(1, 1)), sampled=False)  # from 0 s to 1 s
    assert judge.seconds == 1.0
    assert [judge.due, judge.due, judge.due] == [False, False, True]  # at 1 s, 9 s and 10.1 s
