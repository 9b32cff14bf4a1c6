"""Steps that leave a block out, route no rows to it, or end before they ran; and what is said of it then."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from support.quiet import QUIET
from support.sines import Net, batches, network
from torch import Tensor
from torch.nn import functional

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Experts(Net):
    """Each batch goes to one of two networks, the other one gets no row."""

    def __init__(self) -> None:
        super().__init__()
        self.other = network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        X, Y = batch
        chosen = torch.full((len(X),), batch_idx % 2 == 0)
        outputs = torch.zeros_like(Y).index_add(0, chosen.nonzero()[:, 0], self.net(X[chosen]))
        outputs = outputs.index_add(0, (~chosen).nonzero()[:, 0], self.other(X[~chosen]))
        return functional.mse_loss(outputs, Y)


class Noisy(Net):
    """Inputs are drawn anew around the data in every step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])


class Scaled(Net):
    """Inputs are made of the data in the same way in every step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(self.net((batch[0] - 1) / 2), batch[1])


class Ending(Net):
    """Epochs end after three batches."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


def watch(module: Net, data: Any = None, **settings: Any) -> tuple[LandscapeMonitor, PlateauMonitor]:
    monitors = LandscapeMonitor(every_n_steps=3), PlateauMonitor()
    trainer = Trainer(**QUIET, callbacks=list(monitors), **{"max_epochs": 4, "log_every_n_steps": 1, **settings})
    trainer.fit(module, batches(48) if data is None else data)
    assert monitors[0].off == monitors[1].off == ""
    return monitors


@pytest.mark.parametrize(
    ("module", "complete"), [(Net, True), (Scaled, True), (Noisy, False), (Ending, False), (Experts, False)]
)
def test_only_all_samples_are_all_data(module: type[Net], complete: bool) -> None:
    landscape, plateau = watch(module())
    assert landscape.reports
    assert plateau.final is not None
    assert plateau.final.data is not None, plateau.final.verdict.reason
    assert plateau.final.data.complete is complete
    if module is Experts:
        assert len(plateau.final.data.X) <= 24
        assert landscape.reports.keys() == {"net.0", "other.0"}


def test_a_step_that_ends_its_epoch_leaves_no_hook() -> None:
    module = Ending()
    landscape, _ = watch(module)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert landscape.step is not None
    assert landscape.step > 3


def test_monitors_can_be_pickled_after_a_run() -> None:
    landscape, plateau = pickle.loads(pickle.dumps(watch(Net())))
    Trainer(**QUIET, callbacks=[landscape, plateau], max_epochs=1).fit(Net(), batches(48))
    assert landscape.off == plateau.off == ""
    assert plateau.final is not None


def test_a_block_that_is_frozen_is_said_to_be_seen_last_before(caplog: pytest.LogCaptureFixture) -> None:
    class Freezing(Net):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch < 2)

    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        watch(Freezing(), max_epochs=6)
    assert "neurons living (last seen at step 9)" in caplog.text or "distinct (last seen at step 9)" in caplog.text


def test_a_layer_put_in_place_of_another_does_not_stand_still() -> None:
    class Replacing(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                self.net = network()
                self.trainer.strategy.setup_optimizers(self.trainer)

    _, plateau = watch(Replacing(), max_epochs=6)
    assert plateau.final is not None
    assert plateau.final.fact == ""


def test_a_single_row_tells_no_spread_of_the_inputs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        watch(Net(), batches(6, 1))
    assert "born dead" not in caplog.text


@pytest.mark.parametrize(
    ("size", "count", "epochs", "said"),
    [(48, 48, 9, "all 6 neurons dead on 48 samples"), (8, 16, 60, "dead on 320 samples drawn from 16")],
)
def test_samples_are_counted_once(
    size: int, count: int, epochs: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Net()
    module.net[0].bias.data -= 30
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        watch(module, batches(count, size), max_epochs=epochs)
    assert said in caplog.text


def test_networks_that_take_turns_are_all_seen_where_samples_are_rare() -> None:
    landscape = LandscapeMonitor(every_n_steps=60)
    trainer = Trainer(**QUIET, callbacks=[landscape], max_epochs=62, log_every_n_steps=1)
    trainer.fit(Experts(), batches(32, 8))
    assert landscape.watched.keys() == {"net.0", "other.0"}
