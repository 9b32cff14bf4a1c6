"""Inputs of a block that the module computes are those of now, or nobody judges the block by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import PlateauMonitor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

SAMPLES = 64


def samples() -> tuple[Tensor, Tensor]:
    X = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))
    return X, X[:, :1].sin() + X[:, 1:2]


def batches(size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples()), batch_size=size)


class Tuned(LightningModule):
    """A network on features that are frozen for an epoch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Linear(3, 4)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.features(x))
        return out

    def on_train_epoch_start(self) -> None:
        self.features.requires_grad_(self.current_epoch > 0)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Followed(Tuned):
    """Features that follow something else, past autograd and its counters, as momentum encoders do."""

    def on_train_epoch_start(self) -> None:
        self.features.requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        self.features.weight.data.mul_(0.99)


class Frozen(Tuned):
    """Features that stay."""

    def on_train_epoch_start(self) -> None:
        self.features.requires_grad_(False)


def watched(
    module: Tuned, size: int, epochs: int, monitor: PlateauMonitor | None = None, steps: int = -1
) -> PlateauMonitor:
    monitor = monitor or PlateauMonitor()
    Trainer(max_epochs=epochs, max_steps=steps, callbacks=[monitor], **QUIET).fit(module, batches(size))
    return monitor


@pytest.mark.parametrize("steps", [-1, 120])
@pytest.mark.parametrize("module", [Tuned, Followed, Frozen])
def test_rows_are_kept_anew_where_what_computes_them_has_moved(module: type[Tuned], steps: int) -> None:
    network = module()
    final = watched(network, 16, 30 if steps < 0 else -1, steps=steps).final
    assert final is not None
    assert final.data is not None
    X, Y = samples()
    with torch.no_grad():
        loss = float(functional.mse_loss(network(X), Y))
    # Of the last epoch, in which the inputs moved a little where they moved.
    assert final.loss == pytest.approx(loss, rel=0.2)


class Asked(PlateauMonitor):
    """A monitor that is asked for a verdict in the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.examiner.want()


@pytest.mark.parametrize(("module", "moved"), [(Tuned, True), (Followed, True), (Frozen, False)])
def test_old_inputs_judge_no_weights_of_now(module: type[Tuned], moved: bool) -> None:
    final = watched(module(), 1, 6, Asked(min_steps=10_000)).final
    assert final is not None
    assert (final.data is None) == moved
    assert ("its inputs have moved since its rows were kept" in final.verdict.reason) == moved


def test_of_several_blocks_the_one_that_is_judged_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Deep(Tuned):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())  # type: ignore[assignment]

        def on_train_epoch_start(self) -> None:
            pass

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = (self(batch[0]) - batch[1]).abs().pow(1.5).mean()  # none that is known
            return loss

    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        monitor = watched(Deep(), 16, 3)
    assert monitor.final is not None
    assert monitor.final.name == "net.0"  # the last one
    assert "training ends; net.0: " in caplog.text
