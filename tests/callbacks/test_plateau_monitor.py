"""PlateauMonitor finds the plateaus of a run, judges and forecasts them, and changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from support.five_points import QUIET, Five, fit, points, reference_run
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag.callbacks import PlateauEvent, PlateauMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.training import VERDICT_CODES

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")


FivePointsRun = tuple[PlateauMonitor, list[PlateauEvent]]


# What it finds


@pytest.mark.xdist_group("five points")
def test_five_points_tell_their_story(five_points_run: FivePointsRun) -> None:
    monitor, events = five_points_run
    first, second, last = monitor.plateaus
    assert [plateau.verdict.kind for plateau in monitor.plateaus] == ["saddle", "saddle", "local minimum"]
    assert [plateau.loss for plateau in monitor.plateaus] == pytest.approx([0.03812, 0.03019, 0.02789], rel=1e-3)
    assert (first.end, second.end, last.end) == (pytest.approx(2_447, abs=20), pytest.approx(7_993, abs=30), None)
    for plateau in (first, second):
        assert plateau.forecast is not None
        assert len(plateau.forecasts) > 3
        assert plateau.forecast.end == pytest.approx(plateau.end, rel=0.01)
        assert plateau.forecasts[0].step - plateau.start < 0.1 * (plateau.end - plateau.start)
        assert plateau.forecasts[0].end - plateau.start == pytest.approx(plateau.end - plateau.start, rel=0.02)
        assert plateau.forecast.low <= plateau.forecast.end <= plateau.forecast.high
        assert len(plateau.neurons)
    assert last.forecast is None
    assert last.no_forecast == "a local minimum has no escape"
    assert monitor.final is not None
    assert monitor.final.verdict.kind == "local minimum"
    made = first.forecasts[0]
    ends = f"step {first.end:,} plateau ends (forecast {made.end:,.0f} made at step {made.step:,})"
    assert monitor.timeline[1] == ends
    assert monitor.timeline[-1] == "step 12,000 training ends: local minimum"
    starts = [event for event in events if event.kind == "start"]
    assert [event.plateau.start for event in starts] == [plateau.start for plateau in monitor.plateaus]
    assert [event.plateau.end for event in events if event.kind == "end"] == [first.end, second.end]
    examination = starts[0].examination
    assert examination is not None
    assert examination.verdict.direction is not None
    assert examination.data is not None
    assert examination.data.X.shape == (5, 2)


@pytest.mark.xdist_group("five points")
def test_band_is_the_disagreement_of_the_last_three_forecasts(five_points_run: FivePointsRun) -> None:
    forecasts = five_points_run[0].plateaus[0].forecasts
    assert forecasts[0].low == forecasts[0].high == forecasts[0].end
    for i in range(2, len(forecasts)):
        reach = max(abs(forecasts[i - k].end - forecasts[i].end) for k in (1, 2))
        assert forecasts[i].high - forecasts[i].end == pytest.approx(reach)
        assert forecasts[i].end - forecasts[i].low == pytest.approx(reach)


def test_observation_changes_nothing() -> None:
    def run(*callbacks: Callback) -> tuple[Any, ...]:
        module = Five("SGD", momentum=0.9, lr=1e-3)
        torch.manual_seed(5)
        trainer = fit(module, *callbacks, loader=points(1, shuffle=True), max_steps=300)
        own = {name: value for name, value in trainer.callback_metrics.items() if "plateau" not in name}
        return module.state_dict(), trainer.optimizers[0].state_dict(), torch.get_rng_state(), own

    monitor = PlateauMonitor()
    alone, watched = run(), run(monitor)
    assert monitor.plateaus
    for without, with_monitor in zip(alone, watched, strict=True):
        assert_close(with_monitor, without, rtol=0, atol=0)


def test_everything_is_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path)
    monitor = PlateauMonitor()
    trainer = reference_run("five_points", 2e-2, 4_500, monitor, logger=board)
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0}).Reload()
    assert "plateau/verdict" not in events.Tags()["scalars"]  # a word, and no number to be smoothed
    assert {"plateau/escape_step", "plateau/escape_low", "plateau/escape_high"} <= set(events.Tags()["scalars"])
    assert int(trainer.callback_metrics["plateau/verdict"]) == VERDICT_CODES["saddle"]
    told = events.Tensors("plateau/timeline/text_summary")[-1].tensor_proto.string_val[0].decode().splitlines()
    assert len(told) == 2 + len(monitor.plateaus)
    assert "| 9 | 2,447 | saddle | 0.03812 | 2,447 (0.0 %) | escape |" in told
    assert Path(board.log_dir, "plateau", "loss.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("bar", "wide", "text"),
    [
        (TQDMProgressBar, 10_000, "saddle, escape in ~1.4k steps"),
        (RichProgressBar, 0, "saddle, escape in ~1.4k steps"),
        (RichProgressBar, 10_000, "saddle"),
    ],
    ids=["tqdm", "rich, wide", "rich, narrow"],
)
def test_progress_bar_says_what_the_plateau_is_and_when_it_ends(
    bar: type, wide: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relu_diag.training.lightning_internals._WIDE", wide)

    class Shown(Callback):
        text = ""

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.text = str(trainer.progress_bar_metrics.get("plateau", ""))

    shown = Shown()
    reference_run("five_points", 2e-2, 1_000, PlateauMonitor(), shown, bar(), enable_progress_bar=True)
    assert shown.text == text
    output = capsys.readouterr()
    assert "saddle" in (output.out + output.err).replace("\n", "")


@pytest.mark.xdist_group("five points")
def test_state_survives_a_checkpoint(five_points_run: FivePointsRun, tmp_path: Path) -> None:
    whole, before, after = five_points_run[0], PlateauMonitor(), PlateauMonitor()
    trainer = reference_run("five_points", 2e-2, 5_005, before)  # with losses collected but not looked at
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    module = ReferenceRegression("five_points", lr=2e-2, steps_per_batch=10)
    quiet = {**QUIET, "logger": False, "enable_progress_bar": False, "callbacks": [after]}
    resumed = Trainer(max_steps=9_000, max_epochs=-1, **quiet)
    data = PointsDataModule("five_points", batches_per_epoch=1000)
    resumed.fit(module, data, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    ends = [[plateau.end for plateau in monitor.plateaus[:2]] for monitor in (whole, after)]
    assert ends[1] == pytest.approx(ends[0], abs=15)  # a batch ends at the step of the checkpoint
    assert [plateau.verdict.kind for plateau in after.plateaus] == ["saddle", "saddle"]
    first = [monitor.plateaus[0].forecasts[0] for monitor in (whole, after)]
    assert (first[0].step, first[0].steps, first[0].gain) == (first[1].step, first[1].steps, first[1].gain)
    assert after.state_key == before.state_key != PlateauMonitor(block="net.0").state_key


# What it watches


def test_minibatches_are_watched_and_judged_on_all_data() -> None:
    monitor = PlateauMonitor()
    fit(Five(lr=0.02), monitor, loader=points(60, 20, shuffle=True), max_steps=600)
    plateau, *_ = monitor.plateaus
    assert plateau.verdict.kind == "saddle"
    assert plateau.forecast is not None
    assert monitor.final is not None
    assert monitor.final.data is not None
    assert len(monitor.final.data.X) == 300


class Validated(Five):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))


@pytest.mark.parametrize("monitor", ["step_loss", "epoch_loss", "val_loss"])
def test_logged_metrics_are_watched_instead(monitor: str) -> None:
    watch = PlateauMonitor(monitor=monitor)
    trainer = Trainer(callbacks=[watch], max_epochs=30, **QUIET, logger=False, enable_progress_bar=False)
    trainer.fit(Validated(lr=1e-3), points(20, 5), points())
    plateau, *_ = watch.plateaus
    assert plateau.loss == pytest.approx(0.03812, rel=1e-3)
    assert len(watch._curve.points) == (600 if monitor == "step_loss" else 30)


def test_a_validation_after_many_epochs_is_waited_for() -> None:
    watch = PlateauMonitor(monitor="val_loss")
    now_and_then = {"check_val_every_n_epoch": None, "val_check_interval": 50}
    trainer = Trainer(
        callbacks=[watch], max_epochs=30, **QUIET, **now_and_then, logger=False, enable_progress_bar=False
    )
    trainer.fit(Validated(lr=1e-3), points(20, 5), points())
    assert [step for step, _ in watch._curve.points] == [50 * k - 1 for k in range(1, 13)]


def test_batches_that_share_a_step_are_one_batch() -> None:
    whole, shared = PlateauMonitor(), PlateauMonitor()
    fit(Five(lr=0.35), whole, max_steps=190)
    fit(Five(lr=0.35), shared, loader=points(100, 1), max_steps=190, accumulate_grad_batches=5)
    assert whole.plateaus[0].ended_by == "escape"
    assert [plateau.story() for plateau in shared.plateaus] == [plateau.story() for plateau in whole.plateaus]


def test_one_of_several_blocks_is_judged_by_name() -> None:
    class Deep(Five):
        def __init__(self) -> None:
            super().__init__(lr=0.0)
            self.net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).double()

    monitors = [PlateauMonitor(block="net.0"), PlateauMonitor(block="net.2")]
    trainer = fit(Deep(), *monitors, max_steps=300)
    assert {"plateau/net.0/verdict", "plateau/net.2/verdict"} <= set(trainer.callback_metrics)
    inner, outer = (monitor.plateaus[0] for monitor in monitors)
    assert inner.no_forecast.startswith("the loss is not a squared")
    assert "squared" not in outer.no_forecast
