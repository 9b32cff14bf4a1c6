"""A growth in a deep network rides on few steps: inputs of the first layer and targets are read off batches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau
from relu_diag.capture import Ride
from relu_diag.training import chain


class Deep(LightningModule):
    """Three hidden layers."""

    def __init__(self, own_loss: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (6, 3, 5, 4, 3)
        layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])
        self.own_loss = own_loss

    def training_step(self, batch: list[Tensor]) -> Tensor:
        outputs = self.net(batch[0])
        loss = functional.cross_entropy(outputs, batch[1])
        return loss + outputs.sin().mean() if self.own_loss else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def data() -> tuple[Tensor, Tensor]:
    X = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    return X, (X[:, :3].abs() + X[:, 3:]).argmax(dim=1)


def run(module: Deep, monkeypatch: pytest.MonkeyPatch) -> tuple[GrowOnPlateau, int, dict[str, Any]]:
    """The callback after three epochs of thirty steps, the number of steps ridden, and the data of the chain."""
    rides = []
    found: dict[str, Any] = {}
    begin = Ride.begin
    along = chain.along

    def counted(ride: Ride, *args: Any, **options: Any) -> None:
        rides.append(1)
        begin(ride, *args, **options)

    def noted(*args: Any) -> Any:
        for name, one in along(*args):
            found[name] = one
            yield name, one

    monkeypatch.setattr(Ride, "begin", counted)
    monkeypatch.setattr(chain, "along", noted)
    growth = GrowOnPlateau(at_steps=(60,), units=4)
    trainer = Trainer(callbacks=[growth], **{**QUIET, "max_epochs": 3})
    trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=10, shuffle=True))
    return growth, len(rides), found


def test_few_steps_are_ridden_and_all_rows_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    growth, ridden, found = run(Deep(), monkeypatch)
    assert len(growth.growths) == 1
    assert ridden <= 6
    assert list(found) == ["net.0", "net.2", "net.4"]
    X, y = data()
    for one in found.values():
        assert one.complete
        assert len(one.X) == len(X)
    rows = found["net.0"].X
    assert torch.equal(rows[:, -1], torch.ones(len(rows)))
    place = torch.cdist(rows[:, :-1], X).argmin(dim=1)
    assert sorted(place.tolist()) == list(range(len(X)))
    # Each row has its own label.
    end = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    expected = functional.cross_entropy(end, y[place])
    assert float(found["net.4"].loss(end)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.filterwarnings("ignore:GrowOnPlateau")
def test_blocks_are_ridden_one_by_one_where_the_loss_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    growth, _, found = run(Deep(own_loss=True), monkeypatch)
    assert not found
    assert [one.measured_drop for one in growth.growths] == [0.0]
