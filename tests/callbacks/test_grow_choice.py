"""Which neurons GrowOnPlateau adds: several at once, by what they bring; silent ones where nothing can be evaluated."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau
from relu_diag.capture import BlockLocation, read_block
from relu_diag.growth import averaged_copies

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
FIRST = BlockLocation("net.0", "net.2", (0.0, 1.0))


def rings() -> tuple[Tensor, Tensor]:
    """Two classes that four hidden neurons cannot tell apart."""
    X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return X, (torch.sin(3 * X[:, 0]) * X[:, 1] > 0).long()


class Net(LightningModule):
    def __init__(self, *widths: int, double: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [3, *(widths or (4,)), 2]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())][:-1]
        self.net = nn.Sequential(*layers)
        if double:
            self.double()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0].to(self.net[0].weight)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AroundGrowth(GrowOnPlateau):
    """Notes the outputs just before and just after a growth."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        X, y = rings()
        with torch.no_grad():
            before = pl_module.net(X.to(pl_module.net[0].weight))
            grown = len(self.growths)
            super().on_train_batch_end(trainer, pl_module, *args)
            after = pl_module.net(X.to(pl_module.net[0].weight))
        if len(self.growths) > grown:
            self.change = float((after - before).abs().max())
            self.losses = [float(functional.cross_entropy(at, y)) for at in (before, after)]


def fit(module: Net, *callbacks: Callback, batch_size: int = 200, order: Tensor | None = None, **options: Any) -> Net:
    X, y = rings()
    order = torch.arange(200) if order is None else order
    loader = DataLoader(TensorDataset(X[order], y[order]), batch_size=batch_size)
    options = {"max_epochs": 4, "enable_checkpointing": False, **QUIET, **options}
    Trainer(callbacks=list(callbacks), **options).fit(module, loader)
    return module


def test_eight_neurons_at_once_lower_the_cross_entropy_as_said() -> None:
    growth = AroundGrowth(at_steps=(3,), units=8)
    fit(Net(), growth)
    (one,) = growth.growths
    assert (one.before, one.after, len(one.embedding)) == (4, 12, 8)
    before, after = growth.losses
    assert before - after == pytest.approx(one.measured_drop, abs=1e-5)
    assert after < 0.7 * before
    assert one.function_change == pytest.approx(growth.change, rel=1e-4)


def test_one_neuron_at_a_time_brings_less() -> None:
    drops = []
    for embedding in ("best", "inactive propagation"):
        growth = GrowOnPlateau(at_steps=(3,), units=4, embedding=embedding)
        fit(Net(), growth)
        drops.append(growth.growths[0].measured_drop)
    assert drops[0] > 1.2 * drops[1]


def test_auto_adds_as_many_as_are_worth_it_and_no_more_than_there_is_room_for() -> None:
    growth = GrowOnPlateau(at_steps=(3,), units="auto")
    module = fit(Net(), growth)
    assert 8 < module.net[0].out_features <= 36
    growth = GrowOnPlateau(at_steps=(3,), units="auto", max_width=10)
    module = fit(Net(), growth)
    assert module.net[0].out_features == growth.growths[0].after == 10


@pytest.mark.parametrize("units", [3, "auto"])
def test_deep_inside_the_loss_falls_and_new_neurons_differ(units: Any) -> None:
    growth = GrowOnPlateau(at_steps=(3,), units=units, block="net.0")
    module = fit(Net(4, 5), growth)
    (one,) = growth.growths
    assert one.after - one.before >= (3 if units == 3 else 1)
    assert one.measured_drop > 0
    new = functional.normalize(read_block(module, FIRST).W[4:])
    alike = new @ new.T - torch.eye(len(new))
    assert float(alike.max()) < 0.999
    assert module.net[2].weight[:, 4:].any(), "the output weights of new neurons are trained"


def test_averaged_copies_get_the_same_neurons() -> None:
    growth, averaging = GrowOnPlateau(at_steps=(3,), units=5), EMAWeightAveraging(decay=0.9)
    module = fit(Net(), growth, averaging, max_epochs=3)
    (copy,) = averaged_copies(module.trainer)
    assert copy.net[0].out_features == module.net[0].out_features == 9


def test_several_neurons_do_not_depend_on_the_order_of_the_samples() -> None:
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    nets = [fit(Net(double=True), GrowOnPlateau(at_steps=(3,), units=6), order=order) for order in (None, mixed)]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_grow_as_one() -> None:
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    nets = [
        fit(Net(double=True), GrowOnPlateau(at_steps=(3,), units=6), **options)
        for options in ({}, {"strategy": strategy, "devices": 2, "batch_size": 100})
    ]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)
