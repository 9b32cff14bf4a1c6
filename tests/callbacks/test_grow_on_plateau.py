"""GrowOnPlateau: the network widens where it is stuck, training goes on, and a run that is killed can be resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from support.grown_run import LineFit, fit, growing_run, loader
from torch import Tensor

from relu_diag.callbacks import GrowOnPlateau, LandscapeMonitor, PlateauMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.growth import averaged_copies


@pytest.fixture(scope="module")
def five_points() -> tuple[Trainer, ReferenceRegression, GrowOnPlateau]:
    """The run of theory and demo, at twenty times the learning rate."""
    growth = GrowOnPlateau(max_growths=2)
    module = ReferenceRegression("five_points", lr=0.02, steps_per_batch=100)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_steps=160_000, max_epochs=1, callbacks=[PlateauMonitor(), growth], enable_checkpointing=False, **quiet
    )
    trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=1600))
    return trainer, module, growth


@pytest.mark.slow
@pytest.mark.xdist_group("grown five points")
def test_five_points_grow_twice_and_reach_zero_loss(five_points: Any) -> None:
    trainer, module, growth = five_points
    X, Y = module.problem.tensors()
    assert [(one.before, one.after) for one in growth.growths] == [(50, 51), (51, 52)]
    assert [one.verdict_before for one in growth.growths] == ["local minimum"] * 2
    assert [one.verdict_after for one in growth.growths] == ["not stationary"] * 2
    assert float((module(X) - Y).detach().square().mean()) < 1e-12
    losses = [plateau.loss for plateau in trainer.callbacks[0].plateaus if plateau.verdict.kind == "local minimum"]
    assert losses == pytest.approx([0.02789, 0.01876], rel=1e-3)


@pytest.mark.slow
@pytest.mark.xdist_group("grown five points")
def test_every_growth_lowers_the_loss_as_predicted(five_points: Any) -> None:
    for one in five_points[2].growths:
        assert 0 < one.measured_drop < one.predicted_drop
        assert one.function_change > 0
        assert f"grows from {one.before} to {one.after} neurons" in str(one)


@pytest.mark.parametrize("nudge", [True, False])
@pytest.mark.parametrize("embedding", ["replication", "inactive propagation"])
def test_growth_at_given_steps(nudge: bool, embedding: Any) -> None:
    growth = GrowOnPlateau(at_steps=(10, 20), units=2, embedding=embedding, nudge=nudge, max_width=7)
    module = fit(growth, steps=40)
    assert [(one.step, one.before, one.after) for one in growth.growths] == [(10, 4, 6), (20, 6, 7)]
    assert module.net.hidden.out_features == 7
    if not nudge:
        assert max(one.function_change for one in growth.growths) < 1e-15


def test_data_and_loss_of_ones_own_are_what_it_chooses_by() -> None:
    data, seen = [next(iter(loader()))], []  # as under an optimization by hand, or with several dataloaders

    def loss(module: LineFit, batch: list[Tensor]) -> Tensor:
        seen.append(batch[0])
        return module.training_step(batch)

    growth = GrowOnPlateau(at_steps=(10,), dataloader=data, loss=loss)
    fit(growth, steps=12)
    assert [one.after for one in growth.growths] == [5]
    assert seen
    assert all(torch.equal(X, data[0][0]) for X in seen)


def test_averaged_copies_grow_too() -> None:
    growth, averaging = GrowOnPlateau(at_steps=(10,)), EMAWeightAveraging(decay=0.9)
    module = fit(growth, averaging, steps=20)
    (copy,) = averaged_copies(module.trainer)
    assert copy.net.hidden.out_features == module.net.hidden.out_features == 5


def test_patience_and_limits() -> None:
    growth = GrowOnPlateau(at_steps=(5, 10, 15), max_growths=1)
    assert fit(growth, steps=20).net.hidden.out_features == 5
    for units in (0, 1.5):
        with pytest.raises(MisconfigurationException, match=f"`units` must be a positive whole number; got {units}"):
            GrowOnPlateau(units=units)
    for steps in (5, (0,)):
        with pytest.raises(MisconfigurationException, match="`at_steps` must be a list of gradient steps"):
            GrowOnPlateau(at_steps=steps)
    with pytest.raises(MisconfigurationException, match="`embedding` must be one of"):
        GrowOnPlateau(embedding="other")


def test_without_a_plateau_monitor_and_steps_nothing_would_ever_grow() -> None:
    with pytest.raises(MisconfigurationException, match=r"there is none. Add PlateauMonitor\(\)"):
        fit(GrowOnPlateau(), steps=5)


class Stopped(Exception):
    """Raised in the middle of a run."""


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            raise Stopped


def resumes_to_the_bit(folder: Path, optimizer: str) -> None:
    """A run whose last checkpoint is in a folder ends as one that nothing interrupts."""
    expected = growing_run(folder / "whole", optimizer)
    found = growing_run(folder / "broken", optimizer, resume=True)
    assert len(expected["growths"]) == 2
    assert found.keys() == expected.keys()
    assert found.pop("growths") == expected.pop("growths")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_stopped_by_an_error_between_growths_resumes_to_the_bit(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        growing_run(tmp_path / "broken", "SGD", StopAt(30))
    resumes_to_the_bit(tmp_path, "SGD")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_killed_between_growths_resumes_to_the_bit(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "support" / "grown_run.py"
    (tmp_path / "broken").mkdir()
    victim = subprocess.Popen([sys.executable, script, tmp_path / "broken", "Adam", "30"])
    while not (tmp_path / "broken" / "waiting").exists():
        assert victim.poll() is None
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    resumes_to_the_bit(tmp_path, "Adam")


def test_a_grown_checkpoint_loads_into_a_fresh_module_with_the_callback(tmp_path: Path) -> None:
    module = fit(GrowOnPlateau(at_steps=(5,)), steps=10)
    module.trainer.save_checkpoint(tmp_path / "grown.ckpt")
    again = GrowOnPlateau(at_steps=(5,))
    resumed = fit(again, steps=15, ckpt_path=tmp_path / "grown.ckpt")
    assert resumed.net.hidden.out_features == 5
    assert [one.step for one in again.growths] == [5]
    assert LineFit.load_from_checkpoint(tmp_path / "grown.ckpt").net.hidden.out_features == 5


def test_the_landscape_goes_on_through_a_growth() -> None:
    monitor = LandscapeMonitor(every_n_steps=1)
    fit(GrowOnPlateau(at_steps=(5,)), monitor, steps=10)
    angle = monitor.history.angle
    assert angle.shape == (10, 5)  # one moment for each step that was ridden
    assert torch.isnan(angle[:5, 4]).all()
    assert torch.isfinite(angle[5:]).all()
    assert torch.isfinite(angle[:, :4]).all()
