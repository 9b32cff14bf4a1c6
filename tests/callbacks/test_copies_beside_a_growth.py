"""Copies of a block that users keep - target networks, averages of their own - take its width and compute the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = torch.stack([X[:, 0].abs(), X[:, 1] * X[:, 2]], dim=1)


def layers(width: int) -> Any:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


class Alone(LightningModule):
    """A regression."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = layers(width)
        self.keep(width)

    def keep(self, width: int) -> None:
        """Keep copies."""

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class SoftTarget(Alone):
    """A target network that follows."""

    def keep(self, width: int) -> None:
        self.kept = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        for own, p in zip(self.kept.parameters(), self.net.parameters(), strict=True):
            own.data.lerp_(p.data, 0.1)


class HardTarget(SoftTarget):
    """One that is copied now and then."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step % 4 == 0:
            self.kept.load_state_dict(self.net.state_dict())


class OwnAverage(Alone):
    """An average whose parameters the optimizer holds too."""

    def keep(self, width: int) -> None:
        self.kept = AveragedModel(self.net)

    def on_train_batch_end(self, *_: Any) -> None:
        self.kept.update_parameters(self.net)


class Kept(Callback):
    """Copies that a callback keeps, in one of several ways."""

    def __init__(self, way: str) -> None:
        self.way = way

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        copies = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.held: Any = {
            "module": copy.deepcopy(pl_module.net),
            "names": copies,
            "list": [*copies.values()],
            "tuple in an object": copy.copy(self),
        }[self.way]
        if self.way == "tuple in an object":
            self.held.weights = tuple(copies.values())

    @property
    def tensors(self) -> list[Tensor]:
        held = self.held
        if isinstance(held, nn.Module):
            return [p.data for p in held.parameters()]
        return [*(held.values() if isinstance(held, dict) else getattr(held, "weights", held))]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for own, p in zip(self.tensors, pl_module.parameters(), strict=True):
            own.lerp_(p.data, 0.1)


def grown(module: Alone, *callbacks: Callback) -> Trainer:
    growth = GrowOnPlateau(at_steps=(3,), units=2, block="net.0")
    trainer = Trainer(**{**QUIET, "max_epochs": 8}, callbacks=[growth, *callbacks])
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=32))
    assert [one.after for one in growth.growths] == [8]
    return trainer


@pytest.mark.parametrize("kind", [SoftTarget, HardTarget, OwnAverage])
def test_copies_in_the_module_follow_and_load(kind: type[Alone], tmp_path: Path) -> None:
    module = kind()
    trainer = grown(module)
    assert {len(p) for name, p in module.named_parameters() if name.endswith("0.weight")} == {8}
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "grown.ckpt")
    assert torch.equal(loaded.kept(X), module.kept(X))


@pytest.mark.parametrize("way", ["module", "names", "list", "tuple in an object"])
def test_copies_of_a_callback_follow(way: str) -> None:
    kept = Kept(way)
    module = Alone()
    grown(module, kept)
    assert [one.shape for one in kept.tensors] == [p.shape for p in module.parameters()]


class Watch(Callback):
    """What a copy computes before and after the growth."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.outputs.append(pl_module.kept(X).detach())


class Frozen(Alone):
    """A network that is never trained."""

    def keep(self, width: int) -> None:
        self.kept = copy.deepcopy(self.net).requires_grad_(False)


def test_a_copy_computes_what_it_did() -> None:
    watch = Watch()
    grown(Frozen(), watch)
    for one in watch.outputs:
        assert_close(one, watch.outputs[0])


class Twins(Alone):
    """Two networks of one shape, both trained."""

    def keep(self, width: int) -> None:
        self.kept = layers(6)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return super().training_step(batch) + functional.mse_loss(self.kept(batch[0]), -batch[1])


def test_a_network_that_is_trained_itself_is_no_copy() -> None:
    module = Twins()
    grown(module)
    assert (module.net[0].out_features, module.kept[0].out_features) == (8, 6)


class TwinCritics(Twins):
    """Two networks, each with a target of its own."""

    def keep(self, width: int) -> None:
        super().keep(width)
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.other_target = copy.deepcopy(self.kept).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        for target, own in ((self.target, self.net), (self.other_target, self.kept)):
            for mine, p in zip(target.parameters(), own.parameters(), strict=True):
                mine.data.lerp_(p.data, 0.1)


def test_a_target_follows_the_network_that_it_is_the_target_of() -> None:
    module = TwinCritics()
    grown(module)
    assert (module.target[0].out_features, module.other_target[0].out_features) == (8, 6)
