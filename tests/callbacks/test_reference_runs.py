"""The reference problems do what is printed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close

from relu_diag.experiments import PointsDataModule, ReferenceRegression


class LossCurve(Callback):
    """Loss after every batch, and the step."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        self.points.append((trainer.global_step, float(outputs["loss"])))

    def at(self, step: int) -> float:
        return next(loss for seen, loss in self.points if seen >= step)

    def first_below(self, loss: float) -> int:
        return next(seen for seen, value in self.points if value < loss)


def reproduce(tmp_path: Path, problem: Any, max_steps: int, lr: float = 1e-3) -> tuple[LossCurve, Tensor]:
    """Loss curve, and errors at the end."""
    module, curve = ReferenceRegression(problem, lr=lr, steps_per_batch=500), LossCurve()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_steps=max_steps, default_root_dir=tmp_path, callbacks=[curve], **quiet)
    trainer.fit(module, PointsDataModule(problem, batches_per_epoch=1000))
    X, Y = module.problem.tensors()
    return curve, module.block(X) - Y


@pytest.mark.slow
def test_five_points_pass_the_printed_plateaus_at_the_printed_steps(tmp_path: Path) -> None:
    curve, _ = reproduce(tmp_path, "five_points", 220_000)
    plateaus = [curve.at(step) for step in (20_000, 100_000, 220_000)]
    assert plateaus == pytest.approx([0.03812, 0.03019, 0.02789], abs=5e-6)  # half a unit of the printed digits
    # The steps are read off a figure, where a plateau ends when the eye sees the curve bend: 0.3 % here.
    escapes = [curve.first_below(0.997 * plateau) for plateau in plateaus[:2]]
    assert escapes == pytest.approx([42_000, 152_000], rel=0.1)


@pytest.mark.slow
def test_two_outputs_escape_three_saddles_and_miss_the_fourth_sample(tmp_path: Path) -> None:
    curve, error = reproduce(tmp_path, "two_outputs", 150_000)
    # Printed to three digits at most, again read off a figure: here where 5 % of the plateau's loss are gone.
    escapes = [curve.first_below(0.95 * curve.at(step)) for step in (5_000, 20_000, 60_000)]
    assert escapes == pytest.approx([12_000, 26_500, 100_000], rel=0.1)
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-0.8, -0.2]]).double()
    assert_close(error, expected, rtol=0, atol=1e-6)  # what is left of an exponential approach


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "lr"), [("three_inputs", 5e-3), ("five_points_wide_init", 1e-2)])
def test_loss_falls_to_zero(tmp_path: Path, problem: Any, lr: float) -> None:
    curve, _ = reproduce(tmp_path, problem, 80_000, lr)
    assert curve.points[-1][1] < 1e-7
