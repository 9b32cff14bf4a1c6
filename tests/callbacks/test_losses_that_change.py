"""A loss that is another one than it was, or than it is elsewhere, is not judged as if it stayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Net(LightningModule):
    """A regression that starts at a squared error above 1 and ends below it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        outputs = self.net(batch[0])
        return self.loss_of(functional.mse_loss(outputs, batch[1]), functional.l1_loss(outputs, batch[1]))

    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Larger(Net):
    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        return torch.maximum(squared, absolute)


class Stacked(Net):
    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        return torch.stack([squared, absolute]).max()


class Flooded(Net):
    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        return (squared - 0.1).abs() + 0.1


class LargerByPython(Net):
    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        return max(squared, 1.2 * absolute)


class Switched(Net):
    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        return squared if self.current_epoch < 5 else absolute


class Growing(Net):
    def loss_of(self, squared: Tensor, absolute: Tensor) -> Tensor:
        return (1 + self.current_epoch / 20) * squared


class Weighted(Net):
    """A mean by weights of classes, in which each batch weighs its rows differently."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[2], weight=torch.tensor([1.0, 8.0]))


def fit(module: Net) -> tuple[LandscapeMonitor, PlateauMonitor, float]:
    """Monitors after a run, and the mean loss of its data at its end."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(96, 4, generator=generator)
    data = TensorDataset(X, torch.stack([X.sin().sum(1), (2 * X).sin().sum(1)], 1), (X[:, 0] > 1).long())
    monitors = LandscapeMonitor(every_n_steps=1, verdict="nearby"), PlateauMonitor()
    trainer = Trainer(**QUIET, callbacks=list(monitors), max_epochs=30, log_every_n_steps=1)
    trainer.fit(module, DataLoader(data, batch_size=16))
    assert monitors[0].off == monitors[1].off == ""
    trainer.fit_loop.epoch_progress.current.completed = 29
    loss = torch.stack([module.training_step(list(batch), 0) for batch in DataLoader(data, batch_size=16)]).mean()
    return *monitors, float(loss.detach())


@pytest.mark.parametrize(("module", "words"), [(Larger, "Maximum"), (Stacked, "Max"), (Flooded, "Abs")])
def test_a_loss_that_is_chosen_among_others_is_not_known(module: type[Net], words: str) -> None:
    _, plateau, _ = fit(module())
    assert plateau.final is not None
    assert (
        plateau.final.verdict.reason == f"a later {words} chooses what the loss is, which may be another one elsewhere"
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [(Switched, "absolute error"), (Growing, "squared error"), (Weighted, "cross-entropy")],
)
def test_the_weights_at_the_end_are_judged_by_the_loss_of_then(module: type[Net], name: str) -> None:
    landscape, plateau, loss = fit(module())
    assert plateau.final is not None
    assert plateau.final.data is not None, plateau.final.verdict.reason
    assert plateau.final.data.loss.name == name
    assert plateau.final.loss == pytest.approx(loss, rel=1e-5)
    rows = landscape.watched["net.0"].rows
    if name != "absolute error":
        assert landscape.nearby is not None
        assert landscape.nearby.loss + landscape.nearby.loss_gap == pytest.approx(loss, rel=1e-5)
    else:
        assert rows.reason == "the loss is another one than when its rows were kept"


def test_a_loss_that_is_another_one_in_some_batches_is_not_known() -> None:
    _, plateau, _ = fit(LargerByPython())
    assert plateau.final is not None
    assert plateau.final.verdict.reason == "the loss changes from batch to batch"


def test_the_sum_over_a_smaller_batch_tells_no_other_factor() -> None:
    class Summed(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return functional.mse_loss(self.net(batch[0]), batch[1], reduction="sum") / 50

    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(90, 4, generator=generator), torch.randn(90, 2, generator=generator))
    module, plateau = Summed(), PlateauMonitor()
    Trainer(**QUIET, callbacks=[plateau], max_epochs=5).fit(module, DataLoader(data, batch_size=16))
    assert plateau.final is not None
    whole = module.training_step(list(data.tensors), 0)
    assert plateau.final.loss == pytest.approx(float(whole.detach()) * 16 / 90, rel=1e-5)
