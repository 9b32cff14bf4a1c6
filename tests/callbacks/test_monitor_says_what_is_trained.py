"""LandscapeMonitor's verdict is on the loss that the optimizer descends, or says what it does besides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor


class AtTheOrigin(LightningModule):
    """Six neurons without weights, which stay where they are: a saddle of the loss."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], **settings: Any) -> None:
        super().__init__()
        X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.data = TensorDataset(X, X[:, :1] + X[:, 1:] ** 2)
        self.net = nn.Sequential(nn.Linear(2, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
        for parameter in self.parameters():
            parameter.data.zero_()
        self.optimizer = optimizer
        self.settings = {"lr": 1e-9} | settings

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), **self.settings)


def loss_of(module: AtTheOrigin, batch: list[Tensor]) -> Tensor:
    return module.training_step(batch)


def watched(module: AtTheOrigin, **settings: Any) -> LandscapeMonitor:
    monitor = LandscapeMonitor(every_n_steps=1, verdict="nearby", **settings)
    trainer = Trainer(max_steps=3, callbacks=[monitor], **QUIET, max_epochs=-1)
    trainer.fit(module, DataLoader(module.data, batch_size=40))
    return monitor


APART = {
    "decoupled": (torch.optim.AdamW, {"weight_decay": 0.1}, "of the loss alone a saddle, but AdamW decays the weights"),
    "climbing": (torch.optim.SGD, {"maximize": True}, "of the loss alone a saddle, but SGD climbs it (maximize=True)"),
}


@pytest.mark.parametrize("settings", [{}, {"loss": loss_of}], ids=["ridden", "in a pass"])
@pytest.mark.parametrize(("optimizer", "extra", "words"), APART.values(), ids=APART)
def test_what_the_optimizer_does_besides_is_in_the_verdict(
    optimizer: type[torch.optim.Optimizer], extra: dict[str, Any], words: str, settings: dict[str, Any]
) -> None:
    nearby = watched(AtTheOrigin(optimizer, **extra), **settings).nearby
    assert nearby is not None
    assert (nearby.verdict.kind, nearby.verdict.reason) == ("undecided", words)
    assert nearby.verdict.direction is None


@pytest.mark.parametrize("settings", [{}, {"loss": loss_of}], ids=["ridden", "in a pass"])
@pytest.mark.parametrize(("decay", "kind"), [(0.0, "saddle"), (100.0, "global minimum")])
def test_a_decay_that_is_a_part_of_the_loss_is_judged_with_it(
    decay: float, kind: str, settings: dict[str, Any]
) -> None:
    nearby = watched(AtTheOrigin(torch.optim.SGD, weight_decay=decay), **settings).nearby
    assert nearby is not None
    assert nearby.verdict.kind == kind
    assert nearby.verdict.assumptions.broken == ()


def test_a_minimum_of_a_block_says_that_the_layers_below_are_trained() -> None:
    module = AtTheOrigin(torch.optim.SGD)
    first, hidden = nn.Linear(2, 3), nn.Linear(3, 6, bias=False)
    nn.init.constant_(first.bias, 10.0)
    nn.init.constant_(hidden.weight, -1.0)  # every neuron is dead
    module.net = nn.Sequential(first, hidden, *module.net[1:]).double()
    nearby = watched(module, block="net.1").nearby
    assert nearby is not None
    assert nearby.verdict.assumptions["nothing else is trained"] == "broken"
    assert nearby.verdict.kind not in {"local minimum", "global minimum"}
