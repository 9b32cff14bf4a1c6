"""Steps of which only silent neurons are asked for: what a report says of them is what all their rows say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor
from relu_diag.training import Window

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
STEPS = 20


class Noting(LightningModule):
    """A classifier with neurons that few samples reach, which notes what each step sees."""

    def __init__(self, *first: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(first or (nn.Linear(200, 16), nn.ReLU())), nn.Linear(16, 3))
        hidden = self.net[0]
        assert isinstance(hidden, nn.Linear)
        hidden.bias.data -= torch.linspace(0, 3, 16)
        self.seen: list[Tensor] = []
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(self.net[0](batch[0]).detach().clone())
        loss = functional.cross_entropy(self.outputs(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def outputs(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Quiet(Noting):
    """Notes without a second pass under gradients."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.seen.append(self.net[0](batch[0]).clone())
        loss = functional.cross_entropy(self.outputs(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss


class Twice(Quiet):
    """Halves of a batch go through the block one after the other."""

    def outputs(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(part) for part in x.chunk(2)])


class InPlace(Quiet):
    """The activation overwrites the pre-activations."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(200, 16), nn.ReLU(inplace=True))


def watched(module: Noting, monkeypatch: pytest.MonkeyPatch) -> tuple[LandscapeMonitor, list[str]]:
    """A run of as many steps as make a report, each sampled, and how each was looked at."""
    kinds: list[str] = []
    for kind in ("add", "glance"):
        method: Callable[..., None] = getattr(Window, kind)

        def noting(window: Window, *args: Any, kind: str = kind, method: Callable[..., None] = method) -> None:
            kinds.append(kind)
            method(window, *args)

        monkeypatch.setattr(Window, kind, noting)
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(200 * STEPS, 200, generator=generator)
    y = torch.randint(3, (len(X),), generator=generator)
    monitor = LandscapeMonitor(every_n_steps=1)
    trainer = Trainer(**QUIET, callbacks=[monitor], max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(X, y), batch_size=200))
    assert monitor.off == ""
    return monitor, kinds


@pytest.mark.parametrize("module", [Quiet, Twice, InPlace])
def test_silent_neurons_are_those_of_all_rows(module: type[Noting], monkeypatch: pytest.MonkeyPatch) -> None:
    noting = module()
    monitor, kinds = watched(noting, monkeypatch)
    assert kinds.count("add") == 4
    assert len(kinds) == STEPS
    report = monitor.reports["net.0"]
    Z = torch.cat(noting.seen)
    assert report.samples == len(Z)
    assert int(report.sums.samples) == 4 * 200
    # Where the activations of the first step are all that is left, those of silent neurons do not say how silent.
    assert_close(report.sums.z_max.float().relu(), Z.amax(0).relu())
    assert_close(report.sums.z_min.float(), Z.amin(0))
    assert 0 < report.dead_share < 1
    assert_close(report.states.dead, (Z <= 0).all(0))
    assert monitor.loss_value == pytest.approx(sum(noting.losses) / STEPS)


def test_a_layer_that_is_passed_beside_the_loss_is_not_glanced_at(monkeypatch: pytest.MonkeyPatch) -> None:
    _, kinds = watched(Noting(), monkeypatch)
    assert set(kinds) == {"add"}


def test_a_layer_that_grows_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(Quiet):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 7:
                self.net = nn.Sequential(nn.Linear(200, 20), nn.ReLU(), nn.Linear(20, 3))

    monitor, kinds = watched(Growing(), monkeypatch)
    assert kinds[6:9] == ["glance", "add", "glance"]
    assert monitor.reports["net.0"].states.dead.shape == (20,)
