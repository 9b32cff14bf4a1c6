"""Inputs that are equal from step to step are those of the whole data set only where the batch comes again too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from support.quiet import QUIET
from support.sines import Net, batches, samples
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Refilled:
    """Batches in one piece of memory, written over from step to step."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[Tensor]]:
        X, Y = samples(40).tensors
        kept = [X[:8].clone(), Y[:8].clone()]
        for start in range(0, 40, 8):
            for held, data in zip(kept, (X, Y), strict=True):
                held.numpy()[:] = data[start : start + 8].numpy()
            yield kept


class OfTable(Net):
    """A network of a constant table makes the weights of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(batch[0] @ self.net(self.table), batch[1])


class OfParameter(OfTable):
    """The table is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(self._buffers.pop("table"))


def whole() -> DataLoader[Any]:
    return batches(40, 40)


def parts() -> DataLoader[Any]:
    return batches(40)


@pytest.mark.parametrize(
    ("module", "data", "exact"),
    [
        (Net, whole, True),
        (Net, parts, False),
        (Net, Refilled, False),
        (OfTable, whole, True),
        (OfTable, parts, False),
        (OfParameter, parts, False),
    ],
)
def test_only_the_whole_data_set_is_exact(module: type[Net], data: Any, exact: bool) -> None:
    landscape = LandscapeMonitor(every_n_steps=1)
    Trainer(**QUIET, callbacks=[landscape], max_epochs=3, log_every_n_steps=1).fit(module(), data())
    assert landscape.off == ""
    assert landscape.reports["net.0"].exact is exact


@pytest.mark.parametrize(
    ("settings", "complete"), [({}, True), ({"limit_train_batches": 1}, False), ({"fast_dev_run": True}, False)]
)
def test_a_batch_alone_in_its_epoch_is_all_data_only_where_none_is_left_out(
    settings: dict[str, Any], complete: bool
) -> None:
    plateau = PlateauMonitor()
    data = DataLoader(samples(40), batch_size=40 if complete else 8, shuffle=True)
    Trainer(**{**QUIET, "max_epochs": 30, **settings}, callbacks=[plateau]).fit(Net(), data)
    assert plateau.final is not None
    assert plateau.final.data is not None
    assert plateau.final.data.complete is complete
    assert ("all data" in str(plateau.final.descent)) is complete
