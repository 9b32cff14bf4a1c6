"""What GrowOnPlateau says of a growth under any loss is true; it holds the graph of one batch at a time."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from support.classifier import Classifier, TwoBlocks, fit, loader, loss_over_all
from torch import Tensor
from torch.utils.data import DataLoader

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor

UNDECIDED = ("local minimum", "undecided")


class Token:
    """Lives as long as the graph it is hung on."""


class StandsStill(TwoBlocks):
    """Two blocks that do not move: a plateau from the first step."""

    def training_step(self, batch: list[Tensor]) -> Tensor:
        outputs = self.first(batch[0]) + self.second(batch[0])
        return torch.nn.functional.softplus(outputs * (1 - 2 * batch[1][:, None])).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loss_of(module: StandsStill) -> float:
    with torch.no_grad():
        return float(module.training_step(list(next(iter(DataLoader(loader().dataset, batch_size=50))))))


def in_another_order_each_time() -> DataLoader[tuple[Tensor, ...]]:
    """Its generator is its own, which no observation can put back."""
    return DataLoader(loader().dataset, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))


def test_data_in_another_order_at_every_look_are_those_of_one_look() -> None:
    module, data = StandsStill(), in_another_order_each_time()
    start = loss_of(module)
    growth = GrowOnPlateau(verdicts=UNDECIDED, max_growths=1, block="first.0")
    fit(module, PlateauMonitor(block="first.0", dataloader=data), growth, steps=300)
    (one,) = growth.growths
    assert start - loss_of(module) == pytest.approx(one.measured_drop, abs=1e-6)


def test_no_more_than_one_batch_is_held_in_a_graph() -> None:
    class Watched(Classifier):
        most = 0

        def training_step(self, batch: list[Tensor]) -> Tensor:
            loss = super().training_step(batch)
            if not self.training and loss.requires_grad:
                self.seen = [one for one in getattr(self, "seen", []) if one() is not None]
                self.most = max(self.most, len(self.seen))
                loss.grad_fn.metadata["token"] = token = Token()
                self.seen.append(weakref.ref(token))
            return loss

    module, growth = Watched(), GrowOnPlateau(at_steps=(4,))
    fit(module, growth, steps=5)
    assert len(growth.growths) == 1
    assert module.most <= 1


def test_two_monitored_blocks_grow_each_on_its_own_plateau(tmp_path: Any) -> None:
    growths = [
        GrowOnPlateau(verdicts=UNDECIDED, max_growths=1, units=2, block="first.0"),
        GrowOnPlateau(verdicts=UNDECIDED, max_width=4, block="second.0"),
    ]
    monitors = [PlateauMonitor(block=growth.block) for growth in growths]
    module = StandsStill()
    trainer = Trainer(
        max_steps=300,
        callbacks=[*monitors, *growths],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
    )
    trainer.fit(module, loader())
    assert [[(one.block, one.before, one.after) for one in growth.growths] for growth in growths] == [
        [("first.0", 2, 4)],
        [("second.0", 3, 4)],
    ]
    assert (module.first[0].out_features, module.second[0].out_features) == (4, 4)
    # Widths of two blocks under one name would be one curve.
    assert {"growth/first.0/width", "growth/second.0/width"} <= trainer.callback_metrics.keys()


def test_what_is_said_to_be_measured_is_what_the_module_loses() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        module = Classifier()

        class Checked(GrowOnPlateau):
            def on_train_batch_end(self, trainer: Trainer, pl_module: Classifier, *args: Any) -> None:
                before, count = loss_over_all(pl_module), len(self.growths)
                super().on_train_batch_end(trainer, pl_module, *args)
                if len(self.growths) > count:
                    drop = before - loss_over_all(pl_module)
                    assert drop == pytest.approx(self.growths[-1].measured_drop, abs=2e-6)

        growth = Checked(at_steps=(2, 6, 10), units=1 + seed)
        fit(module, growth, steps=12)
        assert len(growth.growths) == 3
