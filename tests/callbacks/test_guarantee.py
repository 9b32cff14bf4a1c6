"""GuaranteeMonitor: the step from which the end is certain, what it stands on, where it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.callbacks import GuaranteeMonitor
from relu_diag.capture import choose_block
from relu_diag.experiments import Affine, PopulationNodes, PopulationRegression, Sine
from relu_diag.functional import guarantee, integral
from relu_diag.growth import grow_in_training
from relu_diag.losses import IntervalL2Loss, QuadratureLoss

INTERVAL = (0.0, 1.0)


def module(width: int = 6, seed: int = 1, **options: Any) -> PopulationRegression:
    given = {"lr": 0.1, "init_scale": 0.1} | options
    return PopulationRegression(IntervalL2Loss(Affine(), INTERVAL), width=width, seed=seed, **given).double()


def fit(module: PopulationRegression, monitor: GuaranteeMonitor, tmp_path: Path, steps: int, **options: Any) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=steps,
        max_epochs=-1,
        enable_model_summary=False,
        callbacks=[monitor, *options.pop("callbacks", [])],
        **(quiet | options),
    )
    trainer.fit(module, PopulationNodes(100), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize(("width", "theorem"), [(6, "Theorem 1.2"), (5, "Proposition 4.5")])
def test_certain_from_the_step_below_the_threshold(width: int, theorem: str, tmp_path: Path) -> None:
    monitor, net = GuaranteeMonitor(every_n_steps=10), module(width)
    trainer = fit(net, monitor, tmp_path, 800)
    assert monitor.guarantee is not None
    assert monitor.certain_from is not None
    assert theorem in monitor.guarantee.theorem
    threshold = F.critical_levels(1.0, INTERVAL, width)[-2 if width % 2 == 0 else -1]
    assert_close(monitor.guarantee.threshold, float(threshold))
    for step, loss in zip(monitor.steps, monitor.losses, strict=True):
        assert (loss < monitor.guarantee.threshold) == (step >= monitor.certain_from)
    assert 0 < monitor.certain_from < 800
    assert f"from step {monitor.certain_from}" in str(monitor)
    assert "the steps converge" in str(monitor)
    assert monitor.assumptions["the exact gradient of the integral loss"] == "holds"
    logged = trainer.callback_metrics
    w, b, h = net.net.hidden.weight.flatten(), net.net.hidden.bias, net.net.output.weight.flatten()
    parameters = [value.detach().requires_grad_() for value in (w, b, h, net.net.output.bias)]
    loss = F.interval_l2_loss(*parameters, lambda x: x, INTERVAL)
    assert_close(float(logged["guarantee/loss"]), float(loss.detach()), rtol=1e-6, atol=0)
    rate = float(guarantee.lojasiewicz_ratio(loss, parameters))
    assert_close(float(logged["guarantee/lojasiewicz"]), rate, rtol=1e-5, atol=0)
    assert_close(float(logged["guarantee/threshold_ratio"]), float(loss.detach() / threshold), rtol=1e-6, atol=0)
    assert float(logged["guarantee/certain"]) == 1.0
    assert monitor.level == integral.nearest_level(monitor.losses[-1], 1.0, INTERVAL, width)
    assert_close(
        float(logged["guarantee/smallest_invariant"]), float(integral.invariant(*parameters[:3]).min().detach())
    )
    assert 0 < float(logged["guarantee/invariant_drift"]) < 0.01


def test_looking_changes_nothing(tmp_path: Path) -> None:
    with_monitor, without = module(), module()
    fit(with_monitor, GuaranteeMonitor(every_n_steps=1), tmp_path, 30)
    fit(without, GuaranteeMonitor(every_n_steps=1000), tmp_path, 30)
    assert_close(list(with_monitor.parameters()), list(without.parameters()), rtol=0, atol=0)
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in without.parameters())


def test_a_loss_that_rises_above_the_threshold_is_certain_no_more(tmp_path: Path) -> None:
    monitor = GuaranteeMonitor(every_n_steps=10)
    fit(module(), monitor, tmp_path, 800)
    assert monitor.certain_from is not None
    assert monitor.guarantee is not None
    last, threshold = monitor.steps[-1], monitor.guarantee.threshold
    monitor._decide(last + 10, 2 * threshold)
    assert monitor.certain_from is None
    assert "not certain" in str(monitor)
    monitor._decide(last + 20, 0.5 * threshold)
    assert monitor.certain_from == last + 20
    monitor._decide(last + 30, 0.7 * threshold)  # below, but not falling: it starts anew
    assert monitor.certain_from == last + 30


class Momentum(PopulationRegression):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def test_another_optimizer_breaks_an_assumption(tmp_path: Path) -> None:
    monitor = GuaranteeMonitor(every_n_steps=10)
    net = Momentum(IntervalL2Loss(Affine(), INTERVAL), width=6, seed=1, lr=0.02, init_scale=0.1).double()
    fit(net, monitor, tmp_path, 800)
    assert monitor.guarantee is not None
    assert monitor.losses[-1] < monitor.guarantee.threshold
    assert monitor.certain_from is None
    assert "broken: the exact gradient of the integral loss" in str(monitor)


def test_leaky_units_need_no_threshold(tmp_path: Path) -> None:
    monitor = GuaranteeMonitor(every_n_steps=10)
    trainer = fit(module(5, slopes=(0.1, 1.0)), monitor, tmp_path, 50)
    assert monitor.certain_from == 0
    assert "no neuron degenerates in the limit" in str(monitor)
    assert monitor.level is None
    assert "guarantee/level" not in trainer.callback_metrics


class TwoRates(PopulationRegression):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        rates = {self.net.hidden: 0.1, self.net.output: 0.2}
        return torch.optim.SGD([{"params": layer.parameters(), "lr": lr} for layer, lr in rates.items()])


@pytest.mark.parametrize("why", ["clipped", "two rates", "no output bias", "frozen"])
def test_what_the_theorems_do_not_know_makes_nothing_certain(why: str, tmp_path: Path) -> None:
    kind = TwoRates if why == "two rates" else PopulationRegression
    loss = IntervalL2Loss(Affine(), INTERVAL)
    net = kind(loss, width=5, slopes=(0.1, 1.0), output_bias=why != "no output bias", lr=0.1)
    net.net.hidden.bias.requires_grad_(why != "frozen")
    monitor = GuaranteeMonitor(every_n_steps=10)
    fit(net, monitor, tmp_path, 20, gradient_clip_val=1.0 if why == "clipped" else None)
    assert monitor.certain_from is None
    broken = [name for name, state in monitor.assumptions.items() if state == "broken"]
    untrained = why in {"no output bias", "frozen"}
    assert broken == ["all weights and biases are trained" if untrained else "the exact gradient of the integral loss"]


class GrowAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            location = choose_block(pl_module, example=torch.ones(1, 1).double())
            grow_in_training(trainer, location, two_more)


def two_more(block: ShallowBlock) -> ShallowBlock:
    halves = (1.0, 1.0), (0.5, 0.5)
    return F.replicate_unit(F.replicate_unit(block, 0, *halves), 1, *halves)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_grown_network_has_the_threshold_of_its_width_and_no_generic_start(tmp_path: Path) -> None:
    monitor, checkpoint = GuaranteeMonitor(every_n_steps=10), ModelCheckpoint(tmp_path, filename="grown")
    net = module(4)
    fit(net, monitor, tmp_path, 100, callbacks=[GrowAt(30), checkpoint], enable_checkpointing=True)
    assert monitor.guarantee == F.convergence_threshold(1.0, INTERVAL, 6)
    assert monitor.assumptions["the start is drawn from a density"] == "broken"
    resumed = GuaranteeMonitor(every_n_steps=10)
    fit_again = {"callbacks": [checkpoint], "enable_checkpointing": True, "ckpt_path": tmp_path / "grown.ckpt"}
    fit(module(6), resumed, tmp_path, 120, **fit_again)
    assert resumed.assumptions["the start is drawn from a density"] == "broken"


def test_a_monitor_of_another_run_starts_anew(tmp_path: Path) -> None:
    monitor = GuaranteeMonitor(every_n_steps=10)
    fit(module(6), monitor, tmp_path, 40)
    fit(module(5), monitor, tmp_path, 20)
    assert monitor.steps == [0, 10, 20]
    assert monitor.guarantee == F.convergence_threshold(1.0, INTERVAL, 5)
    assert monitor.assumptions == {**monitor.assumptions, "the steps converge": "assumed"}


def test_figures_scalars_and_text_reach_the_loggers(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    trainer = fit(module(), GuaranteeMonitor(), tmp_path, 60, logger=loggers, log_every_n_steps=20)
    assert (Path(trainer.log_dir or "") / "guarantee" / "ladder.png").exists()
    assert (Path(trainer.log_dir or "") / "guarantee" / "function.png").exists()
    table = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "guarantee/threshold_ratio" in table


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_remembers_the_step(tmp_path: Path) -> None:
    monitor = GuaranteeMonitor(every_n_steps=10)
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    fit(module(), monitor, tmp_path, 600, callbacks=[checkpoint], enable_checkpointing=True)
    again = GuaranteeMonitor(every_n_steps=10)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, max_steps=620, max_epochs=-1, callbacks=[again, checkpoint], **quiet)
    trainer.fit(module(), PopulationNodes(100), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert monitor.certain_from is not None
    assert again.certain_from == monitor.certain_from
    assert again.steps[: len(monitor.steps)] == monitor.steps


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (QuadratureLoss(Affine(), INTERVAL), "needs the exact loss.*has QuadratureLoss. The theorems say nothing"),
        (IntervalL2Loss(F.IntervalTarget(Affine(), density=torch.cosh), INTERVAL), "IntervalL2Loss without density"),
        (IntervalL2Loss(Sine(), INTERVAL), r"`target` is not affine on \[0, 1\]"),
        (IntervalL2Loss(Affine(0.0, 1.0), INTERVAL), "The target is constant"),
    ],
)
def test_losses_without_a_theorem_are_refused(loss: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(PopulationRegression(loss, width=4), GuaranteeMonitor(), tmp_path, 1)


def test_intervals_between_looks_are_positive() -> None:
    with pytest.raises(MisconfigurationException, match="`every_n_steps` must be a positive whole number; got 0"):
        GuaranteeMonitor(every_n_steps=0)
    assert str(GuaranteeMonitor()) == "nothing was looked at yet"
