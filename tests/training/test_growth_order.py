"""A growth does not depend on the order of the samples, nor on the process that it happens in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from support.quiet import QUIET
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import ShallowBlock
from relu_diag.callbacks import GrowOnPlateau
from relu_diag.capture import BlockLocation
from relu_diag.growth import grow_in_training


class Net(LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).double()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def grown(order: Tensor, growth: Callback, **options: Any) -> Net:
    draw = torch.Generator().manual_seed(1)
    X, Y = (torch.randn(16, size, generator=draw).double()[order] for size in (3, 2))
    module = Net()
    trainer = Trainer(callbacks=[growth], **{**QUIET, "max_epochs": 4, **options})
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=16 // trainer.world_size))
    return module


def test_one_step_after_a_growth_the_weights_are_the_same_in_any_order_of_the_samples() -> None:
    mixed = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])
    first, second = (grown(order, GrowOnPlateau(at_steps=(3,), units=2)) for order in (torch.arange(16), mixed))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


class GrowAt3(Callback):
    """Doubles the neurons after the third step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 3:
            location = BlockLocation("net.0", "net.2", (0.0, 1.0))
            grow_in_training(trainer, location, twice)


def twice(block: ShallowBlock) -> ShallowBlock:
    W, H = torch.cat([block.W, block.W]), torch.cat([block.H, block.H], dim=1) / 2
    return ShallowBlock(W, H, block.slopes, block.output_bias)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_that_grew_in_a_forked_process_come_back() -> None:
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    module = grown(torch.arange(16), GrowAt3(), strategy=strategy)
    assert module.net[0].out_features == 8
    assert module.hparams["width"] == 8
