"""The Trainer counts gradient steps, and the reference problems do what is printed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.testing import assert_close

from relu_diag.experiments import PointsDataModule, ReferenceRegression, gradient_descent_, reference_problem
from relu_diag.functional.block import residual_factor, squared_loss


def trainer(tmp_path: Path, max_steps: int, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=max_steps,
        enable_model_summary=False,
        **(quiet | options),
    )


def weights(module: ReferenceRegression) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def steps_by_hand(steps: int, lr: float = 1e-3) -> ReferenceRegression:
    """The five points after so many steps outside of any Trainer."""
    module = ReferenceRegression("five_points")
    X, Y = module.problem.tensors()
    gradient_descent_(module.block, X, Y, lr * residual_factor(Y, "mean"), steps)
    return module


class StepRecorder(Callback):
    """The step counts a callback sees."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.logged_at: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.global_step)
        self.logged_at.append(trainer.fit_loop.epoch_loop._batches_that_stepped)


# The initial weights


def test_default_weights_are_the_draw_of_manual_seed_12_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    module = ReferenceRegression("five_points")
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        W, H = torch.randn(50, 2), torch.randn(1, 50)
    assert torch.equal(module.block.W, W.double() * 50**-3)
    assert torch.equal(module.block.H, H.double() * 50**-3)


def test_wide_initialisation_has_the_directions_of_the_narrow_one() -> None:
    narrow, wide = ReferenceRegression("five_points"), ReferenceRegression("five_points_wide_init")
    assert_close(wide.block.W, narrow.block.W * (8.75e-4 * 50**3))
    assert_close(ReferenceRegression("five_points", init_scale=8.75e-4).block.H, wide.block.H)


def test_seed_and_width_change_the_draw() -> None:
    assert not torch.equal(ReferenceRegression(seed=13).block.W, ReferenceRegression().block.W)
    assert ReferenceRegression("two_outputs", width=7, slopes=(-1.0, 1.0)).block.H.shape == (2, 7)


# What the Trainer counts


def test_trainer_counts_gradient_steps_and_stops_at_max_steps(tmp_path: Path) -> None:
    module, recorder = ReferenceRegression("five_points", steps_per_batch=500), StepRecorder()
    fit = trainer(tmp_path, 1234, callbacks=[recorder])
    fit.fit(module, PointsDataModule("five_points", batches_per_epoch=2))
    assert recorder.seen == [500, 1000, 1234]
    assert recorder.logged_at == [499, 999, 1233]
    assert fit.global_step == 1234
    assert fit.fit_loop.epoch_loop._batches_that_stepped == 1234
    for trained, expected in zip(weights(module), weights(steps_by_hand(1234)), strict=True):
        assert torch.equal(trained, expected)


def test_epochs_alone_end_the_run(tmp_path: Path) -> None:
    fit = trainer(tmp_path, -1, max_epochs=3)
    fit.fit(ReferenceRegression("five_points", steps_per_batch=10), PointsDataModule("five_points", 4))
    assert fit.global_step == 120


@pytest.mark.parametrize(("every", "expected"), [(50, [99, 199, 299, 349]), (200, [199])])
def test_loss_is_logged_at_the_true_step(tmp_path: Path, every: int, expected: list[int]) -> None:
    logger = CSVLogger(tmp_path)
    module = ReferenceRegression("five_points", steps_per_batch=100)
    trainer(tmp_path, 350, logger=logger, log_every_n_steps=every).fit(module, PointsDataModule("five_points", 300))
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    logged = {
        int(row.split(",")[columns.index("step")]): float(row.split(",")[columns.index("train_loss")])
        for row in rows[1:]
    }
    assert list(logged) == expected
    X, Y = module.problem.tensors()
    for step, loss in logged.items():
        assert loss == pytest.approx(float(squared_loss(steps_by_hand(step).block, X, Y)), rel=1e-12)


def test_checkpoints_carry_the_true_step_in_their_names(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    fit = trainer(tmp_path, 500, callbacks=[checkpoint], enable_checkpointing=True)
    fit.fit(ReferenceRegression("five_points", steps_per_batch=100), PointsDataModule("five_points", 2))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=200.ckpt", "step=400.ckpt", "step=500.ckpt"]
    again = ReferenceRegression.load_from_checkpoint(tmp_path / "step=400.ckpt", weights_only=True)
    assert again.steps_per_batch == 100
    for loaded, expected in zip(weights(again), weights(steps_by_hand(400)), strict=True):
        assert torch.equal(loaded, expected)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("interval", [{"every_n_epochs": 1}, {"every_n_train_steps": 300}], ids=["epoch", "mid-epoch"])
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, interval: dict[str, int]) -> None:
    def run(resume: str | None) -> tuple[ReferenceRegression, StepRecorder]:
        module, recorder = ReferenceRegression("five_points", steps_per_batch=100), StepRecorder()
        checkpoint = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **interval)
        fit = trainer(tmp_path, 1050, callbacks=[recorder, checkpoint], enable_checkpointing=True)
        fit.fit(module, PointsDataModule("five_points", batches_per_epoch=4), ckpt_path=resume)
        return module, recorder

    straight, all_steps = run(None)
    saved = 800 if "every_n_epochs" in interval else 600
    resumed, later_steps = run(str(tmp_path / f"step={saved}.ckpt"))
    assert later_steps.seen == [step for step in all_steps.seen if step > saved]
    assert later_steps.logged_at == [step for step in all_steps.logged_at if step > saved]
    for one, other in zip(weights(straight), weights(resumed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_run_stopped_off_the_grid_goes_back_to_it(tmp_path: Path) -> None:
    first = trainer(tmp_path, 150)
    first.fit(ReferenceRegression(steps_per_batch=100), PointsDataModule())
    first.save_checkpoint(tmp_path / "last.ckpt")
    recorder = StepRecorder()
    second = trainer(tmp_path, 320, callbacks=[recorder])
    second.fit(ReferenceRegression(steps_per_batch=100), PointsDataModule(), ckpt_path=tmp_path / "last.ckpt")
    assert recorder.seen == [200, 300, 320]


def test_learning_rate_is_the_optimizers(tmp_path: Path) -> None:
    class Halve(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] = 5e-4

    module = ReferenceRegression("five_points", lr=1e-3, steps_per_batch=100)
    trainer(tmp_path, 200, callbacks=[Halve()]).fit(module, PointsDataModule("five_points"))
    expected = steps_by_hand(100)
    X, Y = expected.problem.tensors()
    gradient_descent_(expected.block, X, Y, 5e-4 * residual_factor(Y, "mean"), 100)
    assert torch.equal(module.block.W, expected.block.W)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fast_path_on_a_gpu_takes_the_steps_of_the_cpu(tmp_path: Path) -> None:
    module = ReferenceRegression("five_points", lr=2e-2, steps_per_batch=100)
    Trainer(accelerator="gpu", devices=1, max_steps=200, logger=False, enable_checkpointing=False).fit(
        module, PointsDataModule("five_points")
    )
    for moved, expected in zip(weights(module), weights(steps_by_hand(200, lr=2e-2)), strict=True):
        assert_close(moved.cpu(), expected)


# The loss other code reads


@pytest.mark.parametrize("problem", ["five_points", "two_outputs"])
def test_batch_loss_is_the_loss_that_training_descends(problem: Any) -> None:
    module = ReferenceRegression(problem, init_scale=0.5)
    X, Y = batch = module.problem.tensors()
    loss, before = module.batch_loss(batch), weights(module)
    error = module(X) - Y
    expected = error.square().mean() if problem == "five_points" else 0.5 * error.square().sum()
    assert_close(loss, expected)
    loss.backward()
    gradient_descent_(module.block, X, Y, residual_factor(Y, module.problem.reduction), steps=1)
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert_close(old - parameter.detach(), parameter.grad)


def test_data_set_of_the_loader_is_the_points_once() -> None:
    loader = PointsDataModule("three_inputs", batches_per_epoch=3).train_dataloader()
    X, Y = reference_problem("three_inputs").tensors()
    batches = list(loader)
    assert len(loader.dataset) == 7
    assert len(batches) == 3
    assert all(torch.equal(x, X) and torch.equal(y, Y) for x, y in batches)


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReferenceRegression("six_points"), "must be one of"),
        (lambda: PointsDataModule("six_points"), "must be one of"),
        (lambda: PointsDataModule("five_points", batches_per_epoch=0), "batches_per_epoch"),
        (lambda: ReferenceRegression(width=0), "width"),
        (lambda: ReferenceRegression(steps_per_batch=0), "steps_per_batch"),
        (lambda: ReferenceRegression(lr=-1.0), "lr"),
        (lambda: ReferenceRegression(lr=math.nan), "lr"),
        (lambda: ReferenceRegression(init_scale=-1.0), "scale"),
        (lambda: ReferenceRegression(slopes=(1.0, 1.0)), "slopes"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_divergence_is_an_error_that_names_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss is (inf|nan) between gradient steps .* Lower `lr`"):
        trainer(tmp_path, 2000).fit(
            ReferenceRegression("two_outputs", init_scale=1.0, lr=2.0), PointsDataModule("two_outputs")
        )


def test_data_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    points = PointsDataModule("five_points")
    points.points.tensors[1][2] = math.nan
    with pytest.raises(ValueError, match="`Y` has NaN"):
        trainer(tmp_path, 100).fit(ReferenceRegression("five_points"), points)


@pytest.mark.parametrize("points", ["two_outputs", "three_inputs"])
def test_data_of_another_problem_are_refused(tmp_path: Path, points: Any) -> None:
    with pytest.raises(ValueError, match="column"):
        trainer(tmp_path, 100).fit(ReferenceRegression("five_points"), PointsDataModule(points))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.Adam(parameters),
        lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=1e-3, weight_decay=0.1),
    ],
    ids=["adam", "momentum", "weight decay"],
)
def test_another_optimizer_is_refused_and_not_ignored(tmp_path: Path, optimizer: Callable[[Any], Any]) -> None:
    module = ReferenceRegression("five_points")
    module.configure_optimizers = lambda: optimizer(module.parameters())
    with pytest.raises(MisconfigurationException, match="plain gradient steps"):
        trainer(tmp_path, 100).fit(module, PointsDataModule("five_points"))


def test_scheduler_is_refused_and_not_ignored(tmp_path: Path) -> None:
    module = ReferenceRegression("five_points")
    sgd = torch.optim.SGD(module.parameters(), lr=1e-3)
    module.configure_optimizers = lambda: ([sgd], [torch.optim.lr_scheduler.StepLR(sgd, 10)])
    with pytest.raises(MisconfigurationException, match="1 schedulers"):
        trainer(tmp_path, 100).fit(module, PointsDataModule("five_points"))
