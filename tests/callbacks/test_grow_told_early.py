"""What can never grow is said at the first steps: what stands between layers, and optimizers of one flat vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor, ReviveDeadUnits
from relu_diag.capture import find_blocks, read_block
from relu_diag.functional import replicate_unit
from relu_diag.growth import check_growable, grow, other_optimizers

BETWEEN = {
    "BatchNorm": lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)],
    "LayerNorm": lambda: [nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2)],
    "Gelu": lambda: [nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)],
    "no two Linear layers": lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 5)],
}


class Net(LightningModule):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers, nn.Flatten())

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize(
    "callbacks", [lambda: [GrowOnPlateau(at_steps=(50,))], lambda: [PlateauMonitor(), GrowOnPlateau()]]
)
def test_what_stands_between_layers_is_said_before_a_growth_is_due(name: str, callbacks: Callable[[], Any]) -> None:
    trainer = Trainer(callbacks=callbacks(), **{**QUIET, "max_steps": 3, "max_epochs": 1})
    loader = DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=16)
    with pytest.warns(UserWarning, match=rf"can never grow: .*{name}.*name another block"):
        trainer.fit(Net(BETWEEN[name]()), loader)


class TwoReaders(nn.Module):
    """Two layers read one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.mean = nn.Linear(6, 2)
        self.scale = nn.Linear(6, 2)

    def forward(self, X: Tensor) -> Tensor:
        hidden = self.first(X).relu()
        return torch.cat([self.mean(hidden), self.scale(hidden)], dim=1)


def normed() -> list[nn.Module]:
    return [nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)]


def tied() -> list[nn.Module]:
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    layers[2].weight = layers[0].weight
    return layers


OTHERS: list[tuple[Callable[[], list[nn.Module]], str]] = [
    (normed, "remove_parametrizations"),
    (tied, "share a weight.*Untie them"),
    (lambda: [TwoReaders()], "net.0.mean and net.0.scale read its activations"),
]


@pytest.mark.parametrize(("layers", "words"), OTHERS)
def test_weights_that_are_not_those_of_two_layers_are_named_with_the_cure(
    layers: Callable[[], list[nn.Module]], words: str
) -> None:
    trainer = Trainer(callbacks=[GrowOnPlateau(at_steps=(50,))], **{**QUIET, "max_steps": 3, "max_epochs": 1})
    with pytest.warns(UserWarning, match=f"can never grow: .*{words}"):
        trainer.fit(Net(layers()), DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=16))


@pytest.mark.parametrize(("layers", "words"), [(normed, "remove the parametrization"), (tied, "untie them")])
def test_layers_whose_neurons_cannot_be_placed_anew_are_named_at_once(
    layers: Callable[[], list[nn.Module]], words: str
) -> None:
    trainer = Trainer(callbacks=[ReviveDeadUnits(50)], **{**QUIET, "max_steps": 3, "max_epochs": 1})
    with pytest.warns(UserWarning, match=f"ReviveDeadUnits places no neurons of net.0 anew: .*{words}"):
        trainer.fit(Net(layers()), DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=16))


def test_layers_that_are_frozen_at_first_may_grow_later() -> None:
    class Thawing(Net):
        def on_train_epoch_start(self) -> None:
            self.net[:3].requires_grad_(self.current_epoch > 0)

    module = Thawing([nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 2)])
    growth = GrowOnPlateau(at_steps=(8,))
    trainer = Trainer(callbacks=[growth], **{**QUIET, "max_epochs": 2})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=16))
    assert not [one for one in seen if "can never grow" in str(one.message)]
    assert [one.block for one in growth.growths] == ["net.0"]


class Flat(torch.optim.SGD):
    """Keeps one vector of all parameters somewhere."""

    def __init__(self, parameters: Any, place: str) -> None:
        super().__init__(parameters, lr=0.1)
        members = self.param_groups[0]["params"]
        vector = torch.zeros(sum(one.numel() for one in members))
        if place == "an attribute":
            self.average = vector
        elif place == "a list":
            self.history = [vector, vector]
        elif place == "a group":
            self.param_groups[0]["average"] = vector
        else:
            self.state[members[0]]["average"] = vector


@pytest.mark.parametrize("place", ["an attribute", "a list", "a group", "the state"])
def test_an_optimizer_with_one_vector_of_all_parameters_is_refused_by_name(place: str) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    optimizer = Flat(net.parameters(), place)
    (location,) = find_blocks(net)
    wider = replicate_unit(read_block(net, location), 0, (1.0, 1.0), (0.5, 0.5))
    for attempt in (
        lambda: check_growable(net, location, [optimizer]),
        lambda: grow(net, location, wider, [optimizer]),
    ):
        with pytest.raises(ValueError, match=r"Flat keeps one vector of all parameters .*parameter by parameter"):
            attempt()
    assert net[0].out_features == 2


def test_a_bias_of_as_many_numbers_as_another_group_has_is_no_vector_of_all_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))  # of 5 weights
    groups = [list(net[:3].parameters()), list(net[4].parameters())]
    optimizer = torch.optim.Adam([{"params": some} for some in groups])
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    check_growable(net, find_blocks(net)[0], [optimizer])


def test_an_optimizer_that_was_not_given_is_told_before_a_growth() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    used, other = (torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    (location,) = find_blocks(net)
    with pytest.raises(ValueError, match="SGD that was not given"):
        check_growable(net, location, [used], other_optimizers(net, [used]))
    assert other.param_groups
