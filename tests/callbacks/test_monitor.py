"""LandscapeMonitor sees what a single pass by hand sees, and training goes on as if nobody had looked."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.regression import Regression, data, fit
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import LandscapeMonitor
from relu_diag.capture import read_block
from relu_diag.metrics import landscape_scalars

EVERYTHING = DataLoader(data(), batch_size=20)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_observation_changes_nothing(optimizer: str) -> None:
    def run(*callbacks: Callback) -> tuple[Any, ...]:
        torch.manual_seed(3)
        module = Regression(optimizer)
        trainer = fit(module, *callbacks)
        own = {name: value for name, value in trainer.callback_metrics.items() if "landscape" not in name}
        modes = [m.training for m in module.modules()]
        return module.state_dict(), trainer.optimizers[0].state_dict(), torch.get_rng_state(), own, modes

    alone, watched = run(), run(LandscapeMonitor(every_n_steps=1))
    for without, with_monitor in zip(alone, watched, strict=True):
        assert_close(with_monitor, without, rtol=0, atol=0)


def by_hand(module: Regression) -> tuple[F.NeuronGeometry, F.NeuronStates]:
    X, Y = data().tensors
    block = read_block(module.net)
    X1 = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    return F.neuron_geometry(block, F.squared_error_signal(block, X1, Y)), F.neuron_states(block, X1, Y)


class Still(Regression):
    """A regression whose weights stand still."""

    def __init__(self) -> None:
        super().__init__(noisy=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("batch_size", [20, 8], ids=["whole", "minibatches"])
def test_sampled_steps_add_up_to_one_pass_by_hand(batch_size: int) -> None:
    module, monitor = Still(), LandscapeMonitor(every_n_steps=1)
    fit(module, monitor, loader=DataLoader(data(), batch_size=batch_size, shuffle=True))
    geometry, states = by_hand(module)
    assert monitor.geometry is not None
    assert monitor.states is not None
    for name in ("radial", "steepest", "direction", "output_gradient", "kink_count"):
        assert_close(getattr(monitor.geometry, name), getattr(geometry, name), rtol=1e-4, atol=1e-6)  # float32 sums
    for name in ("dead", "small_living", "group", "amplitude"):
        assert_close(getattr(monitor.states, name), getattr(states, name))
    X, Y = data().tensors
    assert monitor.loss_value == pytest.approx(functional.mse_loss(module.net(X), Y).item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [20, 8], ids=["whole", "minibatches"])
def test_gradients_are_those_before_clipping(batch_size: int) -> None:
    module, monitor = Still(), LandscapeMonitor(every_n_steps=1)
    fit(module, monitor, loader=DataLoader(data(), batch_size=batch_size), gradient_clip_val=1e-6)
    geometry, _ = by_hand(module)
    assert monitor.geometry is not None
    for name in ("steepest", "output_gradient"):
        assert_close(getattr(monitor.geometry, name), getattr(geometry, name), rtol=1e-4, atol=1e-6)


def test_a_pass_at_fixed_weights_is_made_where_it_is_asked_for() -> None:
    module = Regression(noisy=False)
    monitor = LandscapeMonitor(
        every_n_steps=4, loss=lambda module, batch: functional.mse_loss(module(batch[0]), batch[1])
    )
    fit(module, monitor)
    geometry, states = by_hand(module)
    assert monitor.geometry is not None
    assert monitor.states is not None
    assert monitor.worst is not None
    assert monitor.worst.exact
    assert monitor.step == 9
    assert_close(monitor.geometry.steepest, geometry.steepest, rtol=1e-4, atol=1e-6)
    assert_close(monitor.states.dead, states.dead)


def test_training_step_is_called_as_often_as_without() -> None:
    class Counted(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.calls += 1
            return super().training_step(batch, batch_idx)

    module = Counted()
    fit(module, LandscapeMonitor(every_n_steps=1, verdict="nearby"))
    assert module.calls == 9


def test_scalars_reach_every_logger_and_callback_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = LandscapeMonitor(every_n_steps=1)
    board, table = TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")
    trainer = fit(Regression(), monitor, logger=[board, table])
    assert monitor.geometry is not None
    assert monitor.states is not None
    expected = set(landscape_scalars(monitor.geometry, monitor.states)) | {"loss", "samples", "balancedness_drift"}
    events = EventAccumulator(board.log_dir).Reload()
    in_the_table = Path(table.log_dir, "metrics.csv").read_text().partition("\n")[0].split(",")
    for names in (in_the_table, trainer.callback_metrics):
        assert {name for name in names if name.startswith("landscape/")} == {f"landscape/{name}" for name in expected}
    stacked = {"stacked/none", "stacked/active", "stacked/awake", "width"}
    shown = {"loss", "dead", "effective", "steepest_slope", "slope_to_noise"} | stacked
    assert {name for name in events.Tags()["scalars"] if "/" in name} == {f"landscape/{name}" for name in shown}
    assert [event.step for event in events.Scalars("landscape/dead")] == [2, 5, 8]
    assert events.Tags()["histograms"] == ["landscape/slope"]
    assert events.Tags()["images"] == ["landscape/training"]
    assert "landscape/timeline/text_summary" in events.Tags()["tensors"]
    assert Path(board.log_dir, "landscape", "training.png").stat().st_size > 10_000


def test_early_stopping_can_watch_a_count() -> None:
    trainer = fit(
        Regression(),
        LandscapeMonitor(every_n_steps=1),
        EarlyStopping("landscape/dead", patience=1, check_on_train_epoch_end=True),
        max_epochs=50,
    )
    assert trainer.current_epoch < 50


@pytest.mark.parametrize(
    ("settings", "loader", "steps"),
    [
        ({"every_n_steps": 1}, None, [2, 5, 8]),
        ({"every_n_steps": 2}, None, [2, 4, 8]),
        ({"every_n_steps": 1000}, None, [0]),
        ({}, None, [0]),
        ({"every_n_steps": 1}, EVERYTHING, [0, 1, 2]),
    ],
    ids=["each step", "every second", "the first", "defaults", "the whole data set"],
)
def test_reports_are_made_at_the_ends_of_epochs(settings: dict[str, Any], loader: Any, steps: list[int]) -> None:
    monitor = LandscapeMonitor(**settings)
    fit(Regression(), monitor, loader=loader)
    assert monitor.watched["net.0"].recorder.moments
    assert [moment[0] for moment in monitor.watched["net.0"].recorder.moments] == steps


def test_long_epochs_are_reported_on_the_way() -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Regression(), monitor, loader=DataLoader(data(200), batch_size=4), max_epochs=1)
    assert [moment[0] for moment in monitor.watched["net.0"].recorder.moments] == [19, 39, 49]


def test_reports_are_no_closer_than_log_every_n_steps() -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Regression(), monitor, max_epochs=7, log_every_n_steps=6)
    assert [moment[0] for moment in monitor.watched["net.0"].recorder.moments] == [2, 8, 14, 20]


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.cycle(data())  # type: ignore[arg-type]


def test_an_endless_stream_is_watched_as_it_passes_by() -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Regression(), monitor, loader=DataLoader(Endless(), batch_size=4), max_steps=25, max_epochs=-1)
    assert monitor.worst is not None
    assert monitor.worst.samples == 5 * 4


def test_classifiers_and_dict_outputs_and_short_signatures_are_watched() -> None:
    class Classifier(Regression):
        def training_step(self, batch: Any) -> dict[str, Tensor]:  # type: ignore[override]
            return {"loss": functional.cross_entropy(self(batch[0]), batch[1])}

    X, _ = data().tensors
    labels = DataLoader(TensorDataset(X, torch.arange(20) % 2), batch_size=5)
    monitor = LandscapeMonitor()
    fit(Classifier(), monitor, loader=labels)
    assert monitor.states is not None


def test_history_and_drift_survive_a_checkpoint(tmp_path: Path) -> None:
    monitor, module = LandscapeMonitor(every_n_steps=1), Regression()
    trainer = fit(module, monitor, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = LandscapeMonitor(every_n_steps=1)
    trainer = fit(Regression(), again, max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert [moment[0] for moment in again.watched["net.0"].recorder.moments] == [2, 5, 8]
    assert_close(again.watched["net.0"].balancedness, monitor.watched["net.0"].balancedness)
    assert again.state_key == monitor.state_key != LandscapeMonitor(block="net.0").state_key


def test_history_is_thinned_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relu_diag.training.history._MAX_MOMENTS", 16)
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Regression(), monitor, loader=EVERYTHING, max_epochs=90)
    steps = [moment[0] for moment in monitor.watched["net.0"].recorder.moments]
    assert len(steps) <= 17
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


def test_a_second_fit_starts_anew() -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    for width in (6, 9):
        module = Regression()
        module.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        fit(module, monitor)
        assert monitor.states is not None
        assert len(monitor.states.dead) == width
        assert monitor.step == 8


class Deep(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


class ByHand(Regression):
    """Manual optimization, with a backward pass that the Trainer does not hear of."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        functional.mse_loss(self(batch[0]), batch[1]).backward()
        optimizer.step()


class Smooth(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.GELU()


class Diverged(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


class Skipping(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


def test_every_block_is_watched_and_the_worst_comes_first() -> None:
    module = Deep()
    with torch.no_grad():
        module.net[2].bias.fill_(-100.0)
    monitor = LandscapeMonitor(every_n_steps=1)
    trainer = fit(module, monitor)
    assert list(monitor.reports) == ["net.0", "net.2"]
    assert monitor.worst is monitor.reports["net.2"]
    assert trainer.callback_metrics["landscape/net.2/dead"] == 5
    assert trainer.callback_metrics["landscape/dead_share"] == 1
    assert monitor.reports["net.0"].caveats == ("a later Relu has kinks of its own",)
    assert monitor.reports["net.0"].exactness == "exact"  # no unit of it sits on one


@pytest.mark.parametrize("block", ["net.2", "net.[12]*", ["net.2", "other"]])
def test_blocks_are_chosen_by_name_or_pattern(block: Any) -> None:
    monitor = LandscapeMonitor(block=block)
    trainer = fit(Deep(), monitor)
    assert "landscape/net.2/dead" in trainer.callback_metrics
    assert list(monitor.reports) == ["net.2"]


def test_manual_optimization_is_watched_without_a_word_to_the_trainer() -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(ByHand(), monitor)
    assert monitor.worst is not None
    assert "between it and the loss was not seen" in monitor.worst.caveats[0]


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize("module", [Smooth, Diverged, Skipping])
def test_a_run_goes_on_whatever_it_does(module: type[LightningModule]) -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    trainer = fit(module(), monitor)
    assert trainer.state.finished
    assert not monitor.off
    assert (monitor.states is None) == (module is not Skipping)


def test_what_is_not_watched_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(Smooth(), LandscapeMonitor())
    assert "found no Linear -> ReLU-like -> Linear block to watch: net.0 -> net.2: Gelu between" in caplog.text


def test_an_error_of_ours_switches_the_monitor_off_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relu_diag.training.watch.landscape_scalars", lambda *_: 1 / 0)
    monitor = LandscapeMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="LandscapeMonitor is off for the rest of the run.*ZeroDivisionError"):
        trainer = fit(Regression(), monitor)
    assert trainer.current_epoch == 3
    assert "off: ZeroDivisionError" in repr(monitor)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no whole number": ({"every_n_steps": 1.5}, "`every_n_steps` must be a positive whole number"),
    "not a number": ({"every_n_steps": float("nan")}, "`every_n_steps`"),
    "a word": ({"every_n_steps": "10"}, "`every_n_steps`"),
    "no sample": ({"max_samples": 0}, "`max_samples` must be a positive whole number"),
    "no function": ({"loss": "mse"}, "`loss` must be a function"),
    "no loader": ({"dataloader": 5}, "`dataloader` must be a DataLoader"),
    "another verdict": ({"verdict": "far"}, "'nearby' or None"),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_wrong_arguments_are_named_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        LandscapeMonitor(**settings)


PASSES: dict[str, tuple[type[LightningModule], dict[str, Any], str]] = {
    "no loss": (Regression, {"exact": True}, "needs the loss of a batch, and training_step is never run for it"),
    "several blocks": (Deep, {"loss": lambda module, batch: module(batch[0]).sum()}, r"several blocks.*block="),
    "empty loader": (
        Regression,
        {"loss": lambda module, batch: 0, "dataloader": []},
        "dataloader is empty",
    ),
}


@pytest.mark.parametrize(("module", "settings", "message"), PASSES.values(), ids=PASSES)
def test_a_pass_that_cannot_be_made_is_refused_at_the_start(
    module: type[LightningModule], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(module(), LandscapeMonitor(**settings))


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_accumulated_batches_are_seen_as_if_each_made_a_step(batches: int) -> None:
    module, monitor = Still(), LandscapeMonitor(every_n_steps=1)
    fit(module, monitor, loader=EVERYTHING, accumulate_grad_batches=batches)
    assert monitor.geometry is not None
    X, Y = data().tensors
    assert_close(monitor.geometry.steepest, by_hand(module)[0].steepest, rtol=1e-4, atol=1e-6)
    assert monitor.loss_value == pytest.approx(functional.mse_loss(module.net(X), Y).item(), rel=1e-5)
