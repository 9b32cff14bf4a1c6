"""Training on copies goes by the steps of the optimizer in use."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from relu_diag import ShallowBlock
from relu_diag.functional import SquaredError, WeightDecay
from relu_diag.functional.widening import Network
from relu_diag.nn import ShallowNet
from relu_diag.training._rehearsed import Rehearsal
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
        found = Rehearsal.of(trainer(size * rate), chain(size), WeightDecay())
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


def test_nothing_is_rehearsed_of_large_networks_with_decay_or_under_descent() -> None:
    assert Rehearsal.of(trainer(), chain(width=400), WeightDecay()) is None
    assert Rehearsal.of(trainer(), chain(), WeightDecay(W=0.1, H=0.1)) is None
    descent = trainer()
    descent.optimizers = [torch.optim.SGD(descent.lightning_module.parameters(), lr=0.1)]
    assert Rehearsal.of(descent, chain(), WeightDecay()) is None
