"""GrowOnPlateau in deep networks: inner blocks are grown by the loss at the end of the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau


class Deep(LightningModule):
    """Three hidden layers under the cross-entropy, the first of which is too narrow."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = [nn.ReLU()] if between is None else [nn.ReLU(), between]
        self.net = nn.Sequential(
            nn.Linear(6, 2), *middle, nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def data() -> tuple[Tensor, Tensor]:
    X = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    return X, (X[:, :3].abs() + X[:, 3:]).argmax(dim=1)


def grown(module: Deep, growth: GrowOnPlateau, batch: int = 50, **options: Any) -> float:
    """The loss on all data after some steps, of which the last one grows."""
    trainer = Trainer(callbacks=[growth], **{**QUIET, "max_epochs": 3, **options})
    loader = DataLoader(TensorDataset(*data()), batch_size=batch)
    trainer.fit(module, loader)
    X, y = data()
    with torch.no_grad():
        return float(functional.cross_entropy(module.net(X), y))


def test_the_narrow_layer_is_the_one_that_grows_and_the_loss_falls_by_what_is_said() -> None:
    growth = GrowOnPlateau(at_steps=(18,), units=6)
    module = Deep()
    after = grown(module, growth)
    (one,) = growth.growths
    assert one.block == "net.0"
    assert one.measured_drop > 0.2 * after
    before = grown(Deep(), GrowOnPlateau(at_steps=(10_000,)))
    # The loss before the growth is that without one: the growth comes behind the last step.
    assert_close(before - after, one.measured_drop, rtol=1e-4, atol=1e-6)


def test_one_block_grows_where_a_graph_holds_all_of_them_at_that_step() -> None:
    held: list[Tensor] = []

    class Holding(Deep):
        def training_step(self, batch: list[Tensor]) -> Tensor:
            loss = super().training_step(batch)
            held[:] = [loss] if self.global_step == 11 else []
            return loss

    growth = GrowOnPlateau(at_steps=(12,), units=2)
    with pytest.warns(UserWarning, match="growth waits for it"):
        grown(Holding(), growth)
    assert len(growth.growths) == 1


def test_an_inner_block_can_be_the_only_one_asked_for() -> None:
    growth = GrowOnPlateau(at_steps=(12,), units=4, block="net.2")
    grown(Deep(), growth)
    (one,) = growth.growths
    assert one.block == "net.2"
    assert one.measured_drop > 0


def test_behind_dropout_nothing_can_be_evaluated_and_the_function_is_kept() -> None:
    growth = GrowOnPlateau(at_steps=(12,), units=2, block="net.0")
    grown(Deep(nn.Dropout(0.5)), growth)
    (one,) = growth.growths
    assert one.function_change == 0


class DeadLayer(LightningModule):
    """Nothing passes its second layer, on four samples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(1, 1), nn.ReLU())))[:-1]
        for layer, bias in zip(self.net[::2], (0.0, -9.0, 1.0, 0.0), strict=True):
            nn.init.constant_(layer.weight, 0.7)
            nn.init.constant_(layer.bias, bias)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_layer_that_is_dead_on_a_few_samples_is_the_one_that_grows() -> None:
    X = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    growth = GrowOnPlateau(at_steps=(4,), units=2)
    trainer = Trainer(callbacks=[growth], **{**QUIET, "max_epochs": 5})
    trainer.fit(DeadLayer(), DataLoader(TensorDataset(X, (X - 2).abs()), batch_size=4))
    (one,) = growth.growths
    assert (one.block, one.after) == ("net.2", 3)
    assert one.measured_drop > 0
