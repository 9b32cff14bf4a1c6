"""LandscapeMonitor sees what a single pass by hand sees, and training goes on as if nobody had looked."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.regression import Regression, data, fit
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import LandscapeMonitor
from relu_diag.capture import read_block, read_signal
from relu_diag.metrics import landscape_scalars


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


def test_a_look_over_batches_equals_one_pass_by_hand() -> None:
    module, monitor = Regression(noisy=False), LandscapeMonitor(every_n_steps=1)
    fit(module, monitor)
    X, Y = data().tensors
    block = read_block(module.net)
    X1 = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    geometry = F.neuron_geometry(block, F.squared_error_signal(block, X1, Y))
    states = F.neuron_states(block, X1, Y)
    assert monitor.geometry is not None
    assert monitor.states is not None
    for name in ("radial", "steepest", "direction", "output_gradient", "kink_count"):
        assert_close(getattr(monitor.geometry, name), getattr(geometry, name), rtol=1e-4, atol=1e-6)  # float32 sums
    for name in ("dead", "small_living", "group", "amplitude"):
        assert_close(getattr(monitor.states, name), getattr(states, name))
    assert monitor.loss_value == pytest.approx(functional.mse_loss(module.net(X), Y).item(), rel=1e-5)
    assert monitor.step == 9


def test_scalars_reach_every_logger_and_callback_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = LandscapeMonitor(every_n_steps=3)
    board, table = TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")
    trainer = fit(Regression(), monitor, logger=[board, table])
    assert monitor.geometry is not None
    assert monitor.states is not None
    expected = set(landscape_scalars(monitor.geometry, monitor.states)) | {"loss", "balancedness_drift"}
    events = EventAccumulator(board.log_dir).Reload()
    for names in (set(events.Tags()["scalars"]), set(trainer.callback_metrics)):
        assert {name for name in names if name.startswith("landscape/")} == {f"landscape/{name}" for name in expected}
    assert [event.step for event in events.Scalars("landscape/dead")] == [0, 3, 6, 9]
    assert set(events.Tags()["histograms"]) == {f"landscape/{name}" for name in ("amplitude", "angle", "slope")}
    assert events.Tags()["images"] == ["landscape/training"]
    assert "landscape/steepest_slope" in Path(table.log_dir, "metrics.csv").read_text()
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
    ("settings", "looks"),
    [
        ({"every_n_steps": 2}, [0, 2, 4, 6, 8, 9]),
        ({"every_n_steps": 1000}, [0, 9]),
        ({}, [0, 3, 6, 9]),
        ({"every_n_epochs": 2}, [0, 6, 9]),
    ],
)
def test_looks_are_made_when_due(settings: dict[str, int], looks: list[int]) -> None:
    steps: list[int] = []

    class Watched(LandscapeMonitor):
        def _look(self, trainer: Trainer, module: LightningModule, step: int, judging: bool) -> None:
            super()._look(trainer, module, step, judging)
            steps.append(step)

    fit(Regression(), Watched(**settings))
    assert steps == looks


def test_epoch_looks_are_no_closer_than_log_every_n_steps() -> None:
    monitor = LandscapeMonitor()
    fit(Regression(), monitor, max_epochs=7, log_every_n_steps=6)
    assert monitor._history.offered == 5  # steps 0, 6, 12, 18 and the end at 21


@pytest.mark.parametrize(("max_samples", "read"), [(7, 7), (12, 10), (20, 20), (1000, 20)])
def test_at_most_so_many_samples_are_read(max_samples: int, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def counted(*args: Any) -> Any:
        signal, loss = read_signal(*args)
        rows.append(len(signal.X))
        return signal, loss

    monkeypatch.setattr("relu_diag.training.look.read_signal", counted)
    fit(Regression(), LandscapeMonitor(max_samples=max_samples), max_steps=1)
    assert sum(rows) == 2 * read  # one look before the step, one after it
    with pytest.raises(MisconfigurationException, match="max_samples"):
        LandscapeMonitor(max_samples=0)


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
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Regression(), monitor)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    other = LandscapeMonitor(every_n_steps=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [moment[0] for moment in other._history.moments] == list(range(10))
    assert other.state_key == monitor.state_key != LandscapeMonitor(block="net.0").state_key


def test_history_is_thinned_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relu_diag.training.history._MAX_MOMENTS", 16)
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(Regression(), monitor, max_epochs=30)
    steps = [moment[0] for moment in monitor._history.moments]
    assert len(steps) <= 17
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


class Deep(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


class ByHand(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Smooth(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.GELU()


class Diverged(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


BAD = {
    "several blocks": (Deep, {}, None, r"several blocks; choose one .*'net.0'.*'net.2'.*block="),
    "wrong name": (Deep, {"block": "net.4"}, None, "No block starts at 'net.4'"),
    "manual optimization": (ByHand, {}, None, "optimizes by hand"),
    "not ReLU-like": (Smooth, {}, None, "GELU 'net.1'"),
    "empty loader": (Regression, {"dataloader": []}, None, "dataloader is empty"),
    "a list as loader": (Regression, {}, [data()[:8]], "cannot be read a second time"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named_at_the_start(name: str) -> None:
    module, settings, loader, message = BAD[name]
    with pytest.raises(MisconfigurationException, match=message):
        fit(module(), LandscapeMonitor(**settings), loader=loader)


def test_a_diverged_run_is_reported_as_such() -> None:
    with pytest.raises(ValueError, match="The loss is nan"):
        fit(Diverged(), LandscapeMonitor())


def test_one_of_several_blocks_is_watched_by_name() -> None:
    monitor = LandscapeMonitor(block="net.2")
    trainer = fit(Deep(), monitor)
    assert "landscape/net.2/dead" in trainer.callback_metrics
    assert monitor.parameters is not None
    assert monitor.parameters.W.shape == (5, 7)
