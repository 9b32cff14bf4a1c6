"""Which block GrowOnPlateau grows, and which can never grow: said early, once, with the cure."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor
from relu_diag.training import Examination, NoWidening, WideningChoice, choose_widening


class Two(LightningModule):
    """Two regressions side by side; the second block has one neuron for a target that needs many."""

    def __init__(self, hard: str = "second") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        self.second = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        self.hard = hard

    def training_step(self, batch: list[Tensor]) -> Tensor:
        X = batch[0]
        targets = dict.fromkeys(("first", "second"), 0.1 * X[:, :1])
        targets[self.hard] = (3 * X[:, :1]).sin() + X[:, 1:2].abs()
        losses = [functional.mse_loss(self.get_submodule(name)(X), target) for name, target in targets.items()]
        return losses[0] + losses[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        owned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(owned, lr=0.02)


class Deep(LightningModule):
    """Hidden layers of six and two neurons under the cross-entropy: the second holds the loss back."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        one, two = widths
        self.net = nn.Sequential(
            nn.Linear(3, one), nn.ReLU(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, 2), nn.Flatten(0)
        )

    def training_step(self, batch: list[Tensor]) -> Tensor:
        X = batch[0]
        targets = torch.stack([X[:, 0].abs(), X[:, 1].sin()], dim=1)
        return functional.mse_loss(self.net(X), targets.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02)


def fit(module: LightningModule, *callbacks: Callback, **options: Any) -> None:
    X = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    trainer = Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 6, **options})
    trainer.fit(module, DataLoader(TensorDataset(X), batch_size=64))


@pytest.mark.parametrize("hard", ["first", "second"])
def test_without_a_name_the_block_that_gains_most_grows(hard: str) -> None:
    growth = GrowOnPlateau(at_steps=(4,), units=2)
    fit(Two(hard), growth)
    (one,) = growth.growths
    assert one.block == f"{hard}.0"


def test_a_block_at_its_largest_width_leaves_the_growth_to_the_other() -> None:
    module = Two()
    growth = GrowOnPlateau(at_steps=(3, 4, 5), units=2, max_width=4)
    fit(module, growth)
    assert [one.block for one in growth.growths] == ["second.0", "first.0"]


def test_a_block_that_gets_no_neurons_leaves_the_growth_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(trainer: Trainer, module: LightningModule, examination: Examination, *options: Any) -> WideningChoice:
        if examination.name == "second.0":
            raise NoWidening("none here")
        return choose_widening(trainer, module, examination, *options)

    monkeypatch.setattr("relu_diag.callbacks.growth.choose_widening", choose)
    growth = GrowOnPlateau(at_steps=(4,), units=2)
    with pytest.warns(UserWarning, match="no growth of second.0.*none here"):
        fit(Two(), growth)
    assert [one.block for one in growth.growths] == ["first.0"]


def test_a_choice_that_fails_is_one_warning_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> WideningChoice:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("relu_diag.callbacks.growth.choose_widening", fails)
    growth = GrowOnPlateau(at_steps=(2, 4), units=2)
    with pytest.warns(UserWarning, match="GrowOnPlateau is off for the rest of the run.*shapes differ") as seen:
        fit(Two(), growth)
    assert sum("shapes differ" in str(one.message) for one in seen) == 1
    assert not growth.growths


def test_both_blocks_of_a_deep_network_can_be_chosen() -> None:
    growth = GrowOnPlateau(at_steps=(4,), units=2)
    fit(Deep(6, 2), growth)
    (one,) = growth.growths
    assert one.block in {"net.0", "net.2"}


@pytest.mark.parametrize("callbacks", [lambda: [], lambda: [PlateauMonitor()]])
def test_a_frozen_block_is_named_once_and_the_other_grows(callbacks: Any) -> None:
    module = Two()
    module.second[2].weight.requires_grad_(False)
    growth = GrowOnPlateau(at_steps=(2, 4), units=1)
    with pytest.warns(
        UserWarning, match=r"second.0 can never grow: .*second.2.weight.* is frozen.*requires_grad_"
    ) as seen:
        fit(module, *callbacks(), growth)
    assert sum("can never grow" in str(one.message) for one in seen) == 1
    assert [one.block for one in growth.growths] == ["first.0", "first.0"]


def test_the_only_block_is_checked_before_training_even_where_no_step_shows_it() -> None:
    module = Two()
    module.second.requires_grad_(False)
    growth = GrowOnPlateau(at_steps=(2,), block="second.0")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(module, growth)
    assert sum("second.0 can never grow: The hidden.weight" in str(one.message) for one in seen) == 1
    assert not growth.growths


def test_tied_and_computed_weights_are_named_with_the_cure() -> None:
    module = Two()
    module.first[0].weight = module.second[0].weight
    with pytest.warns(UserWarning, match=r"share their weights.*Untie them"):
        fit(module, GrowOnPlateau(at_steps=(4,), block="second.0"))
    module = Two()
    parametrizations.weight_norm(module.second[0])
    with pytest.warns(UserWarning, match=r"second.0 can never grow: .*parametrization.*remove_parametrizations"):
        fit(module, GrowOnPlateau(at_steps=(4,), block="second.0"))


def test_with_a_plateau_monitor_a_block_is_checked_at_its_first_sighting() -> None:
    module = Two()
    module.first[0].bias.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"first.0 can never grow: The hidden.bias"):
        fit(module, PlateauMonitor(), GrowOnPlateau(), max_epochs=2)
