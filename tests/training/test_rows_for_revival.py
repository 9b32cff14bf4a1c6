"""How many rows a revival keeps, and which neurons count as dead at the end of a long window."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from relu_diag.callbacks import ReviveDeadUnits
from relu_diag.training import BlockRevival


@pytest.mark.parametrize(
    ("samples", "rows_a_step", "every", "few_dead", "expected"),
    [
        (100, 64, 1000, False, 100),
        (None, 64, 100, False, 2048),
        (None, 128, 1000, False, 4000),
        (None, 128, 2000, False, 8000),
        (None, 128, 2000, True, 4000),
        (None, 256, 2000, False, 8192),
        (None, 1, 1, False, 2048),
    ],
)
def test_as_many_rows_are_kept_as_a_small_share_of_the_steps_brings(
    samples: int | None, rows_a_step: int, every: int, few_dead: bool, expected: int
) -> None:
    one = BlockRevival("encoder", samples, dormant=0.0, every_n_steps=every)
    one.rows_a_step = rows_a_step
    one._few_dead = few_dead
    assert one.samples == expected
    assert one.steps_needed == -(-expected // rows_a_step)


class Rows(IterableDataset[Tensor]):
    def __iter__(self):  # noqa: ANN204
        draw = torch.Generator().manual_seed(0)
        while True:
            yield torch.randn(512, 4, generator=draw)


class Regression(LightningModule):
    def __init__(self, dead: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        with torch.no_grad():
            self.net[0].bias[:dead] = -50.0

    def training_step(self, batch: Tensor) -> Tensor:
        return (self.net(batch) - batch[:, :2].abs()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Kill(Callback):
    """Neurons that die in the middle of training."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, pl_module: Regression, *_: object) -> None:
        if trainer.global_step == self.at:
            with torch.no_grad():
                pl_module.net[0].bias[:3] = -50.0


def dead_at_the_revivals(module: Regression, every: int, steps: int, *callbacks: Callback) -> list[int]:
    revive = ReviveDeadUnits(every_n_steps=every, dormant=0)
    trainer = Trainer(callbacks=[*callbacks, revive], **{**QUIET, "max_steps": steps})
    trainer.fit(module, DataLoader(Rows(), batch_size=None))
    assert not revive.off
    return [one.dead for one in revive.revivals]


@pytest.mark.parametrize(("at", "expected"), [(60, [3]), (110, [0])])
def test_neurons_that_die_within_a_long_window_are_found_at_its_end(at: int, expected: list[int]) -> None:
    """Unless they have been active in its last quarter."""
    assert dead_at_the_revivals(Regression(), 140, 141, Kill(at)) == expected


def test_of_a_short_window_all_steps_count() -> None:
    assert dead_at_the_revivals(Regression(), 40, 81, Kill(20)) == [0, 3]
