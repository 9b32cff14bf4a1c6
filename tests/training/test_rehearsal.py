"""Training on copies goes by the steps of the optimizer in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import ShallowBlock
from relu_diag.callbacks import GrowOnPlateau
from relu_diag.functional import SquaredError
from relu_diag.functional.widening import Network
from relu_diag.nn import ShallowNet
from relu_diag.training._rehearsed import Parts, Rehearsal, random_neurons
from relu_diag.training._training_data import Chain, TrainingData


def trainer(rate: float = 0.01) -> Trainer:
    module = LightningModule()
    module.net = ShallowNet(2, 3)
    found = Trainer(barebones=True, accelerator="cpu")
    found.strategy.connect(module)
    found.optimizers = [torch.optim.Adam(module.parameters(), lr=rate)]
    return found


def chain(size: float = 1.0, width: int = 3) -> Chain:
    block = ShallowBlock(size * torch.ones(width, 2).double(), torch.ones(1, width).double())
    loss = SquaredError(torch.ones(2, 1).double())
    return Chain(("net",), Network.of([block]), TrainingData(torch.eye(2).double(), loss, complete=True))


@pytest.mark.parametrize(("rate", "expected"), [(0.02, 0.02), (1e-6, 1 / 200), (1.0, 0.05)])
def test_the_rate_is_the_optimizer_s_within_what_shows_where_steps_lead(rate: float, expected: float) -> None:
    for size in (1.0, 10.0):
        found = Rehearsal.of(trainer(size * rate), chain(size))
        assert found is not None
        assert found.rate == pytest.approx(size * expected)


def test_of_two_networks_the_one_that_leads_lower_is_the_best_though_it_is_higher_now() -> None:
    dead = ShallowBlock(torch.tensor([[-1.0, -1.0]]).double(), torch.ones(1, 1).double())
    living = ShallowBlock(torch.tensor([[0.5, 0.5]]).double(), torch.full((1, 1), -0.2).double())
    rehearsal = Rehearsal(chain(), rate=0.02)
    networks = [Network.of([one]) for one in (dead, living)]
    now = [float(rehearsal.chain.data.loss(network(rehearsal.chain.data.X))) for network in networks]
    assert now[0] < now[1]
    assert rehearsal.best(networks) == 1


def test_nothing_is_rehearsed_of_large_networks_or_under_descent() -> None:
    assert Rehearsal.of(trainer(), chain(width=400)) is None
    descent = trainer()
    descent.optimizers = [torch.optim.SGD(descent.lightning_module.parameters(), lr=0.1)]
    assert Rehearsal.of(descent, chain()) is None


class Deep(LightningModule):
    """Three layers, of which one's weights decay."""

    def __init__(self, decaying: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        self.decaying = decaying

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": layer.parameters(), "weight_decay": 0.1 * (place == self.decaying)}
            for place, layer in enumerate(self.net)
            if isinstance(layer, nn.Linear)
        ]
        return torch.optim.Adam(groups, lr=0.01)


@pytest.mark.parametrize(("decaying", "rehearsed"), [(None, True), (0, False), (4, False)])
def test_blocks_are_not_ordered_in_rehearsal_where_one_of_them_decays(
    monkeypatch: pytest.MonkeyPatch, decaying: int | None, rehearsed: bool
) -> None:
    tried = []

    def noted(*args: Any) -> list[Parts]:
        tried.append(args)
        return random_neurons(*args)

    monkeypatch.setattr("relu_diag.training.promising.random_neurons", noted)
    X = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    growth = GrowOnPlateau(at_steps=(3,), units=1)
    fit = Trainer(callbacks=[growth], **{**QUIET, "max_steps": 5, "max_epochs": -1}).fit
    fit(Deep(decaying), DataLoader(TensorDataset(X, X[:, :1].relu()), batch_size=9))
    assert len(growth.growths) == 1
    assert bool(tried) == rehearsed
