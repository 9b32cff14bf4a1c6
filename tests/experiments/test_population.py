"""Training on integral losses: any device and precision, monitors on their nodes, configs, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.experiments import Affine, PopulationNodes, PopulationRegression, Sine, Teacher
from relu_diag.losses import Gaussian, IntegralLoss, IntervalL2Loss, MonteCarloLoss, QuadratureLoss


def trainer(tmp_path: Path, max_steps: int, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(
        default_root_dir=tmp_path, max_steps=max_steps, enable_model_summary=False, max_epochs=-1, **(quiet | options)
    )


def losses() -> list[IntegralLoss]:
    return [
        IntervalL2Loss(Sine(2.0), (0.0, 3.0)),
        QuadratureLoss(Teacher(inputs=2, width=3), [(-1, 1), (0, 2)], order=12),
        MonteCarloLoss(Teacher(inputs=6, width=3), Gaussian(6), samples=256),
    ]


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_training_lowers_the_loss_in_every_precision(loss: IntegralLoss, precision: Any, tmp_path: Path) -> None:
    module = PopulationRegression(loss, width=30, lr=2e-2)
    before = float(loss.error(module.net) + loss(module.net).detach())
    fit = trainer(tmp_path, 150, precision=precision)
    fit.fit(module, PopulationNodes(50))
    assert float(fit.callback_metrics["train_loss"]) < 0.7 * before
    assert float(fit.callback_metrics["train_loss_error"]) >= 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_training_on_a_gpu_never_makes_the_host_wait(loss: IntegralLoss, precision: Any, tmp_path: Path) -> None:
    module = PopulationRegression(loss, width=30, lr=2e-2).cuda()
    optimizer = module.configure_optimizers()
    try:
        for step in range(20):
            if step == 5:
                torch.cuda.set_sync_debug_mode("error")
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
                value = module.training_step(None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = PopulationRegression(loss, width=30, lr=2e-2)
    fit = trainer(tmp_path, 50, precision=precision, accelerator="gpu", devices=1)
    fit.fit(module, PopulationNodes(50))
    trainer(tmp_path, 50).fit(on_cpu, PopulationNodes(50))
    assert torch.isfinite(fit.callback_metrics["train_loss"])


def test_steps_are_those_of_the_loss_and_plain_descent(tmp_path: Path) -> None:
    module, by_hand = (PopulationRegression(IntervalL2Loss(Affine(), (0.0, 1.0)), width=5, seed=3) for _ in range(2))
    trainer(tmp_path, 20).fit(module, PopulationNodes(7))
    for _ in range(20):
        gradients = torch.autograd.grad(by_hand.loss(by_hand.net), list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= by_hand.lr * gradient
    assert_close(list(module.parameters()), list(by_hand.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("output_bias", [True, False])
@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_monitor_looks_at_the_nodes_and_judges(loss: IntegralLoss, output_bias: bool, tmp_path: Path) -> None:
    """Weights that differ are no obstacle, and looking changes nothing."""
    monitor = LandscapeMonitor(every_n_steps=20, verdict="nearby")
    module = PopulationRegression(loss, width=8, output_bias=output_bias, slopes=(0.1, 1.0), init_scale=1e-4)
    alone = PopulationRegression(loss, width=8, output_bias=output_bias, slopes=(0.1, 1.0), init_scale=1e-4)
    trainer(tmp_path, 40, callbacks=[monitor]).fit(module, PopulationNodes(10))
    trainer(tmp_path, 40).fit(alone, PopulationNodes(10))
    assert_close(list(module.parameters()), list(alone.parameters()), rtol=0, atol=0)
    assert_close(monitor.loss_value, float(loss(module.net).detach()), rtol=0.2, atol=0)
    assert monitor.nearby is not None
    assert monitor.nearby.verdict.kind in {"saddle", "not stationary"}  # the origin, all neurons small


def test_plateaus_are_found_and_judged_on_integral_losses(tmp_path: Path) -> None:
    monitor = PlateauMonitor()
    module = PopulationRegression(IntervalL2Loss(Affine(), (0.0, 1.0)), width=20, lr=0.1, init_scale=1e-3, seed=1)
    trainer(tmp_path, 400, callbacks=[monitor]).fit(module.double(), PopulationNodes(100))
    plateau = monitor.plateaus[0]
    assert_close(plateau.loss, 1 / 12, rtol=1e-2, atol=0)  # the highest critical level
    assert plateau.verdict is not None
    assert plateau.verdict.kind == "saddle"
    assert plateau.end is not None


def test_weighted_nodes_are_judged_as_the_integral(tmp_path: Path) -> None:
    """The nearby point's loss is that of the weighted sum, not of the nodes."""
    loss = QuadratureLoss(Teacher(inputs=1, width=3), (0.0, 5.0), order=40)
    monitor = LandscapeMonitor(verdict="nearby")
    module = PopulationRegression(loss, width=8, output_bias=False, init_scale=1e-6, lr=0.0).double()
    trainer(tmp_path, 1, callbacks=[monitor]).fit(module, PopulationNodes(1))
    _, Y, weight = loss.nodes(module)
    assert monitor.nearby is not None
    assert_close(monitor.nearby.loss, float((weight * Y.square().sum(dim=1)).mean()), rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_resumed_runs_draw_the_nodes_of_uninterrupted_ones(tmp_path: Path) -> None:
    def loss() -> MonteCarloLoss:
        return MonteCarloLoss(Teacher(2, 2), [(0, 1)] * 2, samples=16)

    def fit(module: PopulationRegression, steps: int, accumulate: int = 1, **options: Any) -> Path:
        checkpoint = ModelCheckpoint(tmp_path, filename=f"{steps} of {accumulate}")
        saved = {"enable_checkpointing": True, "accumulate_grad_batches": accumulate}
        trainer(tmp_path, steps, callbacks=[checkpoint], **saved).fit(
            module, PopulationNodes(10 * accumulate), **options
        )
        return Path(checkpoint.best_model_path)

    whole, half, resumed = (PopulationRegression(loss(), width=4, lr=0.1) for _ in range(3))
    fit(whole, 20)
    fit(resumed, 20, ckpt_path=fit(half, 10), weights_only=True)
    assert_close(list(resumed.parameters()), list(whole.parameters()), rtol=0, atol=0)
    twice = fit(half, 10, accumulate=2)
    loaded = PopulationRegression.load_from_checkpoint(twice, loss=loss(), weights_only=True)
    assert loaded.loss.draws == 20


class OwnLosses(PopulationRegression):
    """Writes down the losses of its process."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with (Path(self.trainer.default_root_dir) / f"rank {self.global_rank}").open("a") as file:
            file.write(f"{float(outputs['loss'])!r}\n")


@pytest.mark.slow
def test_two_processes_draw_their_own_nodes_and_do_every_step(tmp_path: Path) -> None:
    loss = MonteCarloLoss(Teacher(2, 2), [(0, 1)] * 2, samples=16)
    module, monitor = OwnLosses(loss, width=4, lr=0.1), LandscapeMonitor(every_n_steps=5)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(tmp_path, 10, strategy=strategy, devices=2, callbacks=[monitor]).fit(module, PopulationNodes(10))
    first, second = ((tmp_path / f"rank {rank}").read_text().split() for rank in range(2))
    assert len(first) == len(second) == 10
    assert not set(first) & set(second)


def test_a_teacher_is_the_same_for_everyone_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    x = torch.ones(2, 3)
    assert_close(Teacher(3, 4, seed=1)(x), Teacher(3, 4, seed=1)(x))
    assert not torch.equal(Teacher(3, 4, seed=1)(x), Teacher(3, 4, seed=2)(x))
    PopulationRegression(IntervalL2Loss(Sine(), (0.0, 1.0)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_absent_is_asked_for_in_vain(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"No supported gpu backend found"):
        trainer(tmp_path, 1, accelerator="gpu")


def test_misuse_is_refused(tmp_path: Path) -> None:
    loss = IntervalL2Loss(Sine(), (0.0, 1.0))
    for options in ({"width": 0}, {"out_features": 0}, {"lr": float("nan")}):
        with pytest.raises(ValueError, match=r"`width` and|`lr` must"):
            PopulationRegression(loss, **options)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be at least 1; got 0"):
        PopulationNodes(0)
    with pytest.raises(MisconfigurationException, match=r"takes its nodes from the module's integral loss.*NoneType"):
        PopulationNodes().train_dataloader()

    class Other(LightningModule):
        def training_step(self, batch: Any) -> None:
            return None

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"got Other. Fit a PopulationRegression"):
        trainer(tmp_path, 1).fit(Other(), PopulationNodes())


def test_an_affine_run_ends_where_classify_affine_says(tmp_path: Path) -> None:
    module = PopulationRegression(IntervalL2Loss(Affine(), (0.0, 1.0)), width=6, lr=0.2, seed=0).double()
    trainer(tmp_path, 2500).fit(module, PopulationNodes(500))
    net = module.net
    w, b, h = net.hidden.weight.flatten(), net.hidden.bias, net.output.weight.flatten()
    verdict = F.classify_affine(w, b, h, net.output.bias, 1.0, 0.0, (0.0, 1.0), tol=1e-3)
    assert verdict.kind == "global minimum", verdict
