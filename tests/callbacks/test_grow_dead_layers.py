"""GrowOnPlateau where whole layers are dead: they get new neurons first, or no growth would be felt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor


class Deep(LightningModule):
    """Hidden layers of some neurons, some of which are dead for good."""

    def __init__(self, width: int, dead: Sequence[int], depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [3, *depth * [width], 1]
        self.net = nn.Sequential()
        for place in range(depth + 1):
            self.net.append(nn.Linear(sizes[place], sizes[place + 1])).append(nn.ReLU())
        del self.net[-1]
        with torch.no_grad():
            for place in range(depth):
                self.net[2 * place].bias.fill_(-50.0 if place in dead else 0.1)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def rows(count: int) -> tuple[Tensor, Tensor]:
    X = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return X, X[:, :1].abs() + X[:, 1:2]


def loss_of(module: Deep, count: int) -> float:
    X, Y = rows(count)
    with torch.no_grad():
        return float(functional.mse_loss(module.net(X), Y))


def fit(module: Deep, growth: GrowOnPlateau, count: int, steps: int, **options: Any) -> Trainer:
    trainer = Trainer(callbacks=[growth], **{**QUIET, "max_steps": steps, "max_epochs": -1, **options})
    trainer.fit(module, DataLoader(TensorDataset(*rows(count)), batch_size=count))
    return trainer


def neurons(module: Deep) -> list[int]:
    return [len(module.net[place].weight) for place in range(0, len(module.net) - 1, 2)]


@pytest.mark.parametrize("dead", [(0,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize(("width", "count"), [(2, 9), (4, 300)])  # the smaller one is rehearsed
def test_a_network_that_is_cut_off_learns_again(width: int, count: int, dead: tuple[int, ...]) -> None:
    module = Deep(width, dead)
    growth = GrowOnPlateau(at_steps=(10,), units=2)
    fit(module, growth, count, 200)
    assert sum(neurons(module)) == 3 * width + 2
    # The variance is the loss of the best constant, all that was left.
    assert loss_of(module, count) < 0.5 * rows(count)[1].var().item()


@pytest.mark.parametrize("depth", [1, 3])
def test_dead_layers_of_half_precision_get_new_neurons(depth: int) -> None:
    module = Deep(4, (0,), depth)
    growth = GrowOnPlateau(at_steps=(10,), units=1)
    fit(module, growth, 300, 12, precision="bf16-true")
    assert not growth.off
    assert bool((module.net[0].bias > -50).all())
    assert sum(neurons(module)) == 4 * depth + 1


@pytest.mark.filterwarnings("ignore:GrowOnPlateau")  # that it is frozen
def test_of_several_dead_layers_all_are_replaced_or_none() -> None:
    module = Deep(4, (0, 2))
    module.net[4].weight.requires_grad_(False)
    before = module.net[0].weight.detach().clone()
    fit(module, GrowOnPlateau(at_steps=(10,), units=1), 300, 10)
    torch.testing.assert_close(module.net[0].weight[:4], before)


def test_a_dead_layer_gets_new_neurons_on_a_plateau_too() -> None:
    module = Deep(4, (0,), depth=1)
    growth = GrowOnPlateau(max_growths=1)
    X, Y = rows(300)
    trainer = Trainer(callbacks=[PlateauMonitor(), growth], **{**QUIET, "max_steps": 800, "max_epochs": -1})
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=300))
    assert neurons(module) == [5]
    assert loss_of(module, 300) < 0.1 * float(Y.var())


def test_the_loss_does_not_rise_at_the_growth_itself() -> None:
    for width, count in ((2, 9), (4, 300)):
        module = Deep(width, (0, 2))
        fit(module, GrowOnPlateau(at_steps=(10,), units=1), count, 10)
        without = Deep(width, (0, 2))
        fit(without, GrowOnPlateau(at_steps=(10_000,)), count, 10)
        # Weights are rounded to fewer digits, so that ranks agree.
        assert loss_of(module, count) < 1.001 * loss_of(without, count)


@pytest.mark.filterwarnings("ignore:GrowOnPlateau")  # nothing gains there
@pytest.mark.parametrize("options", [{"nudge": False}, {"block": "net.0"}, {"embedding": "replication"}])
def test_neurons_that_are_there_stay_where_they_or_the_function_are_to(options: dict[str, Any]) -> None:
    module = Deep(4, (2,))
    before = module.net[4].weight.detach().clone()
    fit(module, GrowOnPlateau(at_steps=(10,), units=1, **options), 300, 10)
    torch.testing.assert_close(module.net[4].weight[:4, :4], before)


def test_a_single_dead_neuron_stays_as_it_is() -> None:
    module = Deep(4, ())
    with torch.no_grad():
        module.net[0].bias[0] = -50.0
    before = module.net[0].weight[0].detach().clone()
    fit(module, GrowOnPlateau(at_steps=(10,), units=1), 300, 10)
    torch.testing.assert_close(module.net[0].weight[0], before)


def test_the_first_step_behind_it_is_as_long_as_those_of_a_new_optimizer() -> None:
    module = Deep(4, (0, 2))
    trainer = fit(module, GrowOnPlateau(at_steps=(40,), units=1), 300, 40)
    before = [one.detach().clone() for one in module.parameters()]
    (optimizer,) = trainer.optimizers
    optimizer.zero_grad()
    X, Y = rows(300)
    functional.mse_loss(module.net(X), Y).backward()
    optimizer.step()
    longest = max((now - then).abs().max().item() for now, then in zip(module.parameters(), before, strict=True))
    assert longest == pytest.approx(1e-2, rel=1e-3)
