"""What a revival remembers from one to the next: neurons without a place wait, and losses are looked for again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import ReviveDeadUnits
from relu_diag.capture import find_blocks, read_block
from relu_diag.growth import replace_units
from relu_diag.training import revival
from relu_diag.training._scene import Scene

STEPS = 170


class Regression(LightningModule):
    """A regression that its living neurons can solve, or not; the loss is a squared error from some step on."""

    def __init__(self, dead: int, squared_from: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
        self.squared_from = squared_from
        with torch.no_grad():
            self.net[0].bias[:dead] = -50.0

    def training_step(self, batch: list[Tensor]) -> Tensor:
        miss = self.net(batch[0]) - batch[1]
        known = self.global_step >= self.squared_from
        return miss.square().mean() if known else (1 + miss.square()).log().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Kill(Callback):
    """Makes neurons silent at some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Regression, *_: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.net[0].bias[8:12] = -50.0


def fit(module: Regression, *callbacks: Callback, noise: bool = False) -> ReviveDeadUnits:
    draw = torch.Generator().manual_seed(2)
    X = torch.randn(96, 3, generator=draw)
    Y = torch.stack([X.prod(dim=1), (2 * X[:, 0]).sin()], dim=1)
    revive = ReviveDeadUnits(every_n_steps=10, samples=64, dormant=0)
    trainer = Trainer(callbacks=[*callbacks, revive], **{**QUIET, "max_steps": STEPS})
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=32))
    assert not revive.off
    return revive


def no_place(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No neuron finds a place; how many are looked for, search by search."""
    asked: list[int] = []

    def best(scene: Scene) -> Any:
        asked.append(len(scene.states.silent))
        return revival.nothing_new(scene.block, scene.states)

    monkeypatch.setattr(Scene, "best", best)
    return asked


def test_neurons_without_a_place_are_looked_at_again_after_longer_and_longer_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = no_place(monkeypatch)
    revive = fit(Regression(dead=4))
    # At steps 10, 30, 60, 110: one, two and four are passed over.
    assert asked == [4, 4, 4, 4]
    assert [one.step for one in revive.revivals] == list(range(10, STEPS, 10))
    assert {one.dead for one in revive.revivals} == {4}


def test_neurons_that_die_meanwhile_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = no_place(monkeypatch)
    fit(Regression(dead=4), Kill(step=72))
    # Those that die at step 72 were active after step 70: they are seen to be dead at step 90.
    assert asked[:4] == [4, 4, 4, 8]


def test_a_loss_that_becomes_one_that_is_known_is_recognised() -> None:
    deaths = [Kill(step) for step in range(11, STEPS, 10)]
    revive = fit(Regression(dead=8, squared_from=80), *deaths)
    assert all(one.drop == 0 for one in revive.revivals if one.step <= 80)
    assert any(one.revived and one.drop > 0 for one in revive.revivals if one.step > 80)


def test_a_loss_that_is_never_known_is_asked_for_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    recognise = revival.recognise

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return recognise(*arguments, **named)

    monkeypatch.setattr(revival, "recognise", counted)
    monkeypatch.setattr(ReviveDeadUnits, "_look_for_jumps", lambda *_: None)
    fit(Regression(dead=8, squared_from=10**9), *(Kill(step) for step in range(11, STEPS, 10)))
    assert 3 <= len(calls) <= 8


def test_naming_no_unit_changes_nothing() -> None:
    module = Regression(dead=0).net
    (location,) = find_blocks(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    replace_units(module, location, [], read_block(module, location))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
