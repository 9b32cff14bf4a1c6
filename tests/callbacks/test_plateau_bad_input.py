"""What PlateauMonitor and its like make of bad input."""

import math
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from support.five_points import Five, fit, points, reference_run
from support.regression import Regression
from support.regression import fit as fit_regression
from torch import Tensor, nn

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor, SaddleAwareEarlyStopping


class Destroy(Callback):
    """Weights that are NaN after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == self.step:
            nn.init.constant_(pl_module.net.hidden.weight, math.nan)  # type: ignore[union-attr]


def test_loss_that_is_not_finite_is_reported_and_no_plateau() -> None:
    class Diverging(Five):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.trainer.global_step >= 200 and self.net.training else loss

    monitor = PlateauMonitor()
    with pytest.warns(UserWarning, match="the loss is nan at step 200"):
        fit(Diverging(lr=1e-3), monitor, loader=points(100, 5), max_steps=400)
    assert monitor.not_finite == 200
    (plateau,) = monitor.plateaus
    assert (plateau.end, plateau.ended_by) == (200, "not finite")


@pytest.mark.parametrize("step", [112, 113, 176, 200])
def test_weights_that_are_not_finite_never_stop_a_run(step: int) -> None:
    # At 112 a plateau would be found, at 176 judged again, at 200 is the end: no loss has told yet.
    monitor = PlateauMonitor(dataloader=points())
    with pytest.warns(UserWarning, match=f"the loss is nan at step {step}"):
        fit(Five(lr=1e-3), Destroy(step), monitor, max_steps=200)
    assert monitor.not_finite == step
    assert monitor.final is None
    assert [plateau.ended_by for plateau in monitor.plateaus] == ["not finite"] * (step > 113)


def test_early_stopping_and_growth_survive_weights_that_are_not_finite() -> None:
    settings = {"check_finite": False, "patience": 3, "check_on_train_epoch_end": True}
    stopping = SaddleAwareEarlyStopping("epoch_loss", **settings)
    trainer = fit(Five(lr=1e-3), Destroy(1), stopping, loader=points(), max_epochs=30)
    assert stopping.decision == f"step {trainer.global_step:,} stops: the loss is not finite"
    with pytest.warns(UserWarning, match="no growth at step 5: the loss is not finite"):
        fit(Five(lr=1e-3), Destroy(3), GrowOnPlateau(at_steps=[5]), max_steps=10)


def test_learning_rate_of_zero_never_escapes() -> None:
    monitor = PlateauMonitor()
    reference_run("five_points", 0.0, 2_000, monitor)
    (plateau,) = monitor.plateaus
    assert plateau.forecast is not None
    assert plateau.forecast.steps == math.inf
    assert plateau.short(2_000) == "saddle, no escape at this learning rate"
    assert "no escape at the learning rates to come" in monitor.timeline[0]


def test_short_run_has_no_plateau() -> None:
    monitor = PlateauMonitor()
    fit(Five(), monitor, max_steps=50)
    assert monitor.plateaus == []
    assert monitor.final is not None
    assert monitor.timeline == [f"step 50 training ends: {monitor.final.verdict.kind}"]


def test_metric_that_is_never_logged_is_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"monitor='loss'.*Metrics logged: epoch_loss, noise, step_l"):
        fit(Five(), PlateauMonitor(monitor="loss"), max_epochs=2)


def test_misuse_is_named() -> None:
    with pytest.raises(MisconfigurationException, match="`drop` must be in"):
        PlateauMonitor(drop=2.0)
    with pytest.raises(MisconfigurationException, match="`max_samples` must be a positive whole number"):
        PlateauMonitor(max_samples=0)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_batches_that_the_module_skips_are_skipped_in_a_look() -> None:
    class Skipping(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)

    monitor = PlateauMonitor()
    fit_regression(Skipping(noisy=False), monitor)
    assert monitor.final is not None
