"""SaddleAwareEarlyStopping waits at saddles, stops at minima, and is EarlyStopping otherwise."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from support.five_points import QUIET, Five, points
from torch import Tensor

from relu_diag.callbacks import SaddleAwareEarlyStopping
from relu_diag.experiments import PointsDataModule, ReferenceRegression


def run(stopping: EarlyStopping, lr: float = 2e-2, logger: Any = False, **settings: Any) -> Trainer:
    """Five points, an epoch every hundred steps."""
    quiet = {**QUIET, "logger": logger, "enable_progress_bar": False, "max_steps": 25_000, "max_epochs": -1}
    trainer = Trainer(callbacks=[stopping], **(quiet | settings))
    module = ReferenceRegression("five_points", lr=lr, steps_per_batch=50)
    trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=2))
    return trainer


def test_it_waits_at_both_saddles_and_stops_at_the_minimum() -> None:
    settings = {"patience": 3, "min_delta": 1e-4, "check_on_train_epoch_end": True}
    assert run(EarlyStopping("train_loss", **settings)).global_step < 1_000  # on the first plateau
    stopping = SaddleAwareEarlyStopping("train_loss", **settings)
    trainer = run(stopping)
    assert 9_000 < trainer.global_step < 25_000
    assert stopping.examination is not None
    assert stopping.examination.verdict.kind == "local minimum"
    assert stopping.decision == f"step {trainer.global_step:,} stops: near a local minimum"
    assert stopping.stopping_reason_message == stopping.decision
    assert stopping.stopped_epoch > 0


def test_it_waits_at_a_saddle_no_longer_than_forecast(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # An improvement this large never comes.
    board = TensorBoardLogger(tmp_path)
    stopping = SaddleAwareEarlyStopping("train_loss", 1.0, 3, check_on_train_epoch_end=True, margin=0.1, max_samples=5)
    trainer = run(stopping, logger=board, lr=1e-3, max_steps=100_000)
    assert stopping.min_delta == -1.0
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0}).Reload()
    table = events.Tensors("early_stopping/decision/text_summary")[-1]
    said = [row.strip("| ") for row in table.tensor_proto.string_val[0].decode().splitlines()[2:]]
    assert "waits: near a saddle; escape forecast at step" in said[0]
    until = float(said[0].rpartition(" ")[2].replace(",", ""))
    assert "stops: it has waited long enough; nothing is certain (not stationary: on the way to a saddle" in said[-1]
    assert until < trainer.global_step < until + 3 * 300 + 100  # the loss falls, and the metric counts nothing


def small_run(stopping: EarlyStopping, module: Five, epochs: int = 30, loader: Any = None) -> Trainer:
    trainer = Trainer(callbacks=[stopping], max_epochs=epochs, **QUIET, logger=False, enable_progress_bar=False)
    trainer.fit(module, points() if loader is None else loader)
    return trainer


def stopping_at(**settings: Any) -> SaddleAwareEarlyStopping:
    return SaddleAwareEarlyStopping("epoch_loss", 1.0, 3, check_on_train_epoch_end=True, **settings)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_it_looks_after_a_validation_as_after_an_epoch(inference_mode: bool) -> None:
    class Validated(Five):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    stopping = SaddleAwareEarlyStopping("val_loss", min_delta=1.0, patience=2)
    often = {"val_check_interval": 10, "inference_mode": inference_mode, "num_sanity_val_steps": 0}
    trainer = Trainer(callbacks=[stopping], max_epochs=2, **often, **QUIET, logger=False, enable_progress_bar=False)
    trainer.fit(Validated(lr=1e-6), points(20, 5), points())
    assert stopping.decision.startswith("step 30 waits: near a saddle; escape forecast at step")
    assert stopping.examination is not None
    assert stopping.examination.nearby is not None
    assert not stopping.examination.nearby.block.W.is_inference()  # anybody may go on with it


def test_it_stops_where_every_neuron_is_dead() -> None:
    module = Five()
    with torch.no_grad():
        module.net.hidden.weight[:, 1] = -100.0
    stopping = stopping_at()
    assert small_run(stopping, module).current_epoch == 4
    assert stopping.decision == "step 4 stops: nothing can change any more: all 8 neurons of net.hidden are dead"


def test_it_stops_at_a_saddle_that_no_step_leaves() -> None:
    stopping = stopping_at()
    assert small_run(stopping, Five(lr=0.0)).current_epoch == 4
    assert "no step leaves" in stopping.decision


def test_without_a_forecast_it_waits_and_looks_again() -> None:
    stopping = stopping_at()
    assert small_run(stopping, Five("Adam", lr=1e-6)).current_epoch == 30
    assert stopping.examination is not None
    assert stopping.examination.step == 28  # 4, 7, 10, ...
    assert "no forecast: Adam does not move like gradient descent" in stopping.decision


def test_without_a_verdict_it_waits() -> None:
    class Unknown(Five):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = (self.net(batch[0]) - batch[1]).abs().pow(1.5).mean()
            self.log("epoch_loss", loss, on_epoch=True, on_step=False)
            return loss

    stopping = stopping_at()
    assert small_run(stopping, Unknown(lr=1e-6), epochs=8).current_epoch == 8
    assert "nothing is certain (undecided: the loss is not a squared" in stopping.decision


@pytest.mark.parametrize(
    ("settings", "factor"), [({"check_finite": True}, math.nan), ({"stopping_threshold": 10.0}, 1.0)]
)
def test_nan_and_thresholds_stop_at_once(settings: dict[str, Any], factor: float) -> None:
    class Scaled(Five):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("metric", torch.tensor(factor), on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx)

    stopping = SaddleAwareEarlyStopping("metric", check_on_train_epoch_end=True, **settings)
    assert small_run(stopping, Scaled()).current_epoch == 1
    assert stopping.decision == ""


def test_it_takes_the_place_of_early_stopping(tmp_path: Path) -> None:
    ours, theirs = (
        SaddleAwareEarlyStopping("val_loss", 0.5, 7, True, "max"),
        EarlyStopping("val_loss", 0.5, 7, True, "max"),
    )
    for name in inspect.signature(EarlyStopping).parameters:
        own = {"check_on_train_epoch_end": "_check_on_train_epoch_end"}.get(name, name)
        assert getattr(ours, own) == getattr(theirs, own)
    ours.load_state_dict(theirs.state_dict())  # a run that began with the other one
    ours.wait_until, ours.decision = 40.0, "step 4 waits"
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    other = SaddleAwareEarlyStopping("val_loss")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (other.wait_until, other.decision, other.patience) == (40.0, "step 4 waits", 7)
    with pytest.raises(MisconfigurationException, match="`margin`"):
        SaddleAwareEarlyStopping("val_loss", margin=-1.0)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_it_takes_over_in_a_run_that_began_with_early_stopping(tmp_path: Path) -> None:
    for stopping in (EarlyStopping, SaddleAwareEarlyStopping):
        checks = stopping("epoch_loss", min_delta=1.0, patience=50, check_on_train_epoch_end=True)
        epochs = 6 if stopping is EarlyStopping else 8
        trainer = Trainer(callbacks=[checks], max_epochs=epochs, **QUIET, logger=False, enable_progress_bar=False)
        before = None if stopping is EarlyStopping else str(tmp_path / "begun.ckpt")
        trainer.fit(Five(lr=1e-6), points(), ckpt_path=before)
        trainer.save_checkpoint(tmp_path / "begun.ckpt")
        assert checks.wait_count == epochs - 1  # nothing counts as better than the first loss
