"""Two processes grow an inner block of a deep network as one process with all data does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau
from relu_diag.callbacks import growth as growing
from relu_diag.training import widening

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Deep(LightningModule):
    """Three hidden layers under the cross-entropy, in double precision."""

    def __init__(self, optimizer: str = "SGD") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
        ).double()
        self.optimizer = optimizer

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=1e-2)


class AllTheSame(Callback):
    """Every process has the same weights at the end, to the bit."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for one in pl_module.parameters():
            gathered = pl_module.all_gather(one.detach())
            if trainer.world_size > 1 and not torch.equal(gathered[0], gathered[1]):
                raise RuntimeError("processes have parted")


def trained(
    growth: GrowOnPlateau,
    batch: int = 160,
    optimizer: str = "SGD",
    order: Tensor | None = None,
    seed: int = 1,
    also: Sequence[Callback] = (),
    **options: Any,
) -> Deep:
    X = torch.randn(160, 6, generator=torch.Generator().manual_seed(seed)).double()
    y = (X[:, :3].abs() + X[:, 3:]).argmax(dim=1)
    if order is not None:
        X, y = X[order], y[order]
    module = Deep(optimizer)
    trainer = Trainer(callbacks=[growth, AllTheSame(), *also], **{**QUIET, "max_epochs": 5, **options})
    trainer.fit(module, DataLoader(TensorDataset(X, y), batch_size=batch))
    return module


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_an_inner_block_grows_the_same_in_any_order_of_the_samples(seed: int) -> None:
    mixed = torch.cat([torch.arange(0, 160, 2), torch.arange(1, 160, 2)])
    nets = [
        trained(GrowOnPlateau(at_steps=(3,), units=3, block="net.2"), order=order, seed=seed)
        for order in (torch.arange(160), mixed)
    ]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("block", "optimizer"), [("net.2", "Adam"), ("net.2", "SGD"), (None, "SGD")])
def test_two_processes_grow_an_inner_block_as_one(block: str | None, optimizer: str) -> None:
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    one, other = (
        trained(GrowOnPlateau(at_steps=(3,), units=3, block=block), optimizer=optimizer, **options)
        for options in ({}, {"strategy": strategy, "devices": 2, "batch": 80})
    )
    assert sum(p.numel() for p in one.parameters()) > sum(p.numel() for p in Deep().parameters())
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(mine, theirs, rtol=0, atol=1e-12)


class Off(Callback):
    """Every process has switched the growth off, and none has grown."""

    def __init__(self, growth: GrowOnPlateau) -> None:
        self.growth = growth

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "out of memory" not in self.growth.off or self.growth.growths:
            raise RuntimeError(f"still on: {self.growth!r}")


@pytest.mark.parametrize(("room", "part"), [(widening, "_by_rows"), (growing, "growth_order")])
def test_a_choice_that_fails_on_one_process_leaves_none_waiting(
    room: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_is = getattr(room, part)

    def fails(*arguments: Any) -> Any:
        if torch.distributed.get_rank() == 1:
            raise MemoryError("out of memory")
        return as_it_is(*arguments)

    monkeypatch.setattr(room, part, fails)
    growth = GrowOnPlateau(at_steps=(3,), units=3)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=30))
    trained(growth, strategy=strategy, devices=2, batch=80, also=[Off(growth)])
