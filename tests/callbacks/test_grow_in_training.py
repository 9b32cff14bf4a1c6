"""Growing inside Trainer.fit: precision, clipping, accumulation, compiled and averaged models, two processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import ShallowBlock
from relu_diag.capture import BlockLocation
from relu_diag.growth import averaged_copies, grow_in_training, resize_on_load
from relu_diag.nn import ShallowNet

LOCATION = BlockLocation("net.hidden", "net.output", (0.0, 1.0))
pytestmark = pytest.mark.filterwarnings("ignore:Swapping scheduler")


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = ShallowNet(2, 4, hidden_bias=True)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = AdamW(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)}


def halves(block: ShallowBlock) -> ShallowBlock:
    """Neuron 0 twice, at half its output weights."""
    H = torch.cat([block.H[:, :1] / 2, block.H[:, 1:], block.H[:, :1] / 2], dim=1)
    return ShallowBlock(torch.cat([block.W, block.W[:1]]), H, block.slopes, block.output_bias)


class GrowAt(Callback):
    """Grows at some batches, and notes by how much that changes the function."""

    def __init__(self, *batches: int) -> None:
        self.batches, self.changes = batches, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if rest[-1] in self.batches:
            X = torch.linspace(-1, 1, 20).reshape(10, 2).to(pl_module.dtype)
            with torch.no_grad():
                before = pl_module.net(X)
                grow_in_training(trainer, LOCATION, halves)
                self.changes.append(float((pl_module.net(X) - before).abs().max()))


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(64, 2, generator=generator), torch.randn(64, 1, generator=generator)
    return DataLoader(TensorDataset(X, Y), batch_size=8)


def fitted(*callbacks: Callback, **options: Any) -> tuple[Trainer, Regression]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module = Regression()
    resize_on_load(module, LOCATION)  # for what processes send back at the end
    trainer = Trainer(callbacks=list(callbacks), enable_checkpointing=False, **{"max_epochs": 3, **quiet, **options})
    trainer.fit(module, loader())
    return trainer, module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 4},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.1},
    ],
)
def test_training_goes_on(options: dict[str, Any]) -> None:
    growth = GrowAt(2, 5)
    trainer, module = fitted(growth, **options)
    assert module.net.hidden.weight.shape == (4 + 2 * 3, 2)
    assert max(growth.changes) < (1e-2 if options.get("precision") == "bf16-true" else 1e-6)
    optimizer: Optimizer = trainer.optimizers[0]
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in module.parameters():
        assert id(parameter) in owned
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    assert torch.isfinite(module.net.hidden.weight).all()


@pytest.mark.parametrize("make", [lambda: EMAWeightAveraging(decay=0.9), lambda: StochasticWeightAveraging(0.01, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_averaged_copies_grow_with_the_model(make: Callable[[], Callback], last: bool) -> None:
    growth, averaging = GrowAt(2), make()
    trainer, module = fitted(*([growth, averaging] if last else [averaging, growth]))
    (copy,) = averaged_copies(trainer)
    assert copy.net.hidden.weight.shape == module.net.hidden.weight.shape == (7, 2)
    assert copy.net.output.in_features == 7


def test_a_compiled_module_grows() -> None:
    module = Regression()
    module.compile(backend="eager")
    trainer = Trainer(
        callbacks=[GrowAt(1)],
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(module, loader())
    assert module.net.hidden.weight.shape == (6, 2)


def test_the_optimizer_of_an_earlier_trainer_is_no_obstacle() -> None:
    earlier, module = fitted(max_epochs=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    later = Trainer(callbacks=[GrowAt(1)], enable_checkpointing=False, max_epochs=1, **quiet)
    later.fit(module, loader())
    weight = module.net.hidden.weight
    assert weight.shape == (5, 2)
    for trainer in (earlier, later):
        assert trainer.optimizers[0].state[weight]["exp_avg"].shape == (5, 2)


@pytest.mark.slow
def test_two_processes_grow_together() -> None:
    trainer, module = fitted(
        GrowAt(1, 2), strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"), devices=2, max_epochs=2
    )
    assert trainer.state.finished
    assert module.state_dict()["net.hidden.weight"].shape == (8, 2)


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = fitted(max_epochs=1)
    monkeypatch.setattr(Trainer, "strategy", FSDPStrategy())
    with pytest.raises(MisconfigurationException, match=r"FSDPStrategy shards.*strategy='ddp'"):
        grow_in_training(trainer, LOCATION, halves)
