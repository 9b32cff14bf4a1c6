"""LandscapeMonitor with the verdict on the stationary point nearby."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from support.regression import Regression, data, fit
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import LandscapeMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.training import VERDICT_CODES, TrainingData


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
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0}).Reload()
    told = events.Tensors("landscape/timeline/text_summary")[-1].tensor_proto.string_val[0].decode().splitlines()
    assert told[2].startswith("| 0 | saddle | saddle at distance")
    assert [row.split(" | ")[1] for row in told[2:]] == ["saddle", "local minimum", ""]


def kept(loss: Any, *more: Tensor, batch_size: int = 8) -> tuple[TrainingData | None, str]:
    """The data that a run keeps of its training set, and why it keeps none."""

    class Own(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self(batch[0]), *batch[1:])

    monitor = LandscapeMonitor(verdict="nearby")
    loader = DataLoader(TensorDataset(*data().tensors, *more), batch_size=batch_size, shuffle=True)
    fit(Own(noisy=False), monitor, loader=loader)
    return monitor.watched["net.0"].rows.data(), monitor.watched["net.0"].rows.reason


SQUARED: dict[str, tuple[Any, float]] = {
    "mean": (functional.mse_loss, 1.0),
    "half": (lambda out, Y: 0.5 * functional.mse_loss(out, Y), 0.5),
    "ten times": (lambda out, Y: 10 * functional.mse_loss(out, Y), 10.0),
    "output by output": (lambda out, Y: sum(functional.mse_loss(out[:, j], Y[:, j]) for j in range(2)), 2.0),
    "sum": (lambda out, Y: functional.mse_loss(out, Y, reduction="sum"), 8.0),
}


@pytest.mark.parametrize(("loss", "scale"), SQUARED.values(), ids=SQUARED)
def test_a_squared_error_is_recognised_up_to_a_factor_and_every_sample_kept_once(loss: Any, scale: float) -> None:
    found, reason = kept(loss, batch_size=4)
    assert found is not None, reason
    assert found.complete
    X, Y = data().tensors
    order = found.X[:, 0].argsort()
    assert_close(found.X[order][:, :-1], X[X[:, 0].argsort()])
    zeros = torch.zeros_like(Y)
    expected = scale * functional.mse_loss(zeros, Y)
    assert_close(found.loss(zeros), expected, rtol=1e-3, atol=0)
    assert isinstance(found.loss, F.SquaredError)
    assert_close(found.loss.Y[order], Y[X[:, 0].argsort()])


def test_weights_of_samples_are_found_in_the_batch() -> None:
    class Weighted(Regression):
        def __init__(self) -> None:
            super().__init__(noisy=False)
            self.net[2] = torch.nn.Linear(6, 2, bias=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (batch[2] * (self(batch[0]) - batch[1]).square().mean(1)).mean()

    X, Y = data().tensors
    weight = torch.rand(20, generator=torch.Generator().manual_seed(0)) + 0.5
    monitor = LandscapeMonitor(verdict="nearby")
    module = Weighted()
    fit(module, monitor, loader=DataLoader(TensorDataset(X, Y, weight), batch_size=20))
    found = monitor.watched["net.0"].rows.data()
    assert found is not None
    assert monitor.parameters is not None
    expected = (weight[:, None] * (module(X) - Y).square()).mean()
    live = monitor.watched["net.0"]._seen
    assert live is not None
    assert live.live is not None
    assert found.loss_of(live.live()) == pytest.approx(float(expected.detach()))


OTHERS: dict[str, tuple[Any, str]] = {
    "a root": (lambda out, Y: (out - Y).abs().sqrt().mean(), "not a squared"),
    "penalty on the outputs": (lambda out, Y: functional.mse_loss(out, Y) + out.square().mean(), "not a squared"),
    "a constant": (lambda out, Y: functional.mse_loss(out, Y) + 1.0, "a part besides the squared error"),
}


@pytest.mark.parametrize(("loss", "words"), OTHERS.values(), ids=OTHERS)
def test_other_losses_have_no_verdict(loss: Any, words: str) -> None:
    found, reason = kept(loss)
    assert found is None
    assert words in reason


def test_a_batch_without_targets_says_so() -> None:
    class Own(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).square().mean()

    monitor = LandscapeMonitor(verdict="nearby")
    trainer = fit(Own(noisy=False), monitor, loader=DataLoader(TensorDataset(data().tensors[0]), batch_size=8))
    assert monitor.nearby is None
    assert "no tensor of the batch has the shape of targets" in monitor.watched["net.0"].rows.reason
    assert int(trainer.callback_metrics["landscape/verdict"]) == VERDICT_CODES["undecided"]
