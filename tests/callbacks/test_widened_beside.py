"""A layer that one callback widens changes the inputs and outputs of blocks that others watch: they go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, LandscapeMonitor, PlateauMonitor, ReviveDeadUnits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Deep(LightningModule):
    """Two blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def batches() -> DataLoader[Any]:
    X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(X, X[:, :2].sin()), batch_size=8)


@pytest.mark.parametrize("grown", ["net.0", "net.2"])
@pytest.mark.parametrize("first", [True, False])
def test_no_callback_switches_itself_off(grown: str, first: bool) -> None:
    grow = GrowOnPlateau(at_steps=[4, 7], block=grown)
    watching = [LandscapeMonitor(every_n_steps=1), PlateauMonitor(min_steps=2), ReviveDeadUnits(every_n_steps=8)]
    callbacks: list[Callback] = [grow, *watching] if first else [*watching, grow]
    Trainer(**QUIET, callbacks=callbacks, max_epochs=8, log_every_n_steps=1).fit(Deep(), batches())
    assert [growth.after for growth in grow.growths] == [7, 8]
    assert [one.off for one in watching] == ["", "", ""]
    plateau = watching[1]
    assert isinstance(plateau, PlateauMonitor)
    assert plateau.final is not None
    assert plateau.final.data is not None  # kept anew since
