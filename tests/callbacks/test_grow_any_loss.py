"""GrowOnPlateau with what people train: cross-entropy, minibatches, batch normalisation, several blocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor


class Classifier(LightningModule):
    """A block in the middle of a model: normalised before, with dropout and another layer behind."""

    def __init__(self, penalty: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.penalty = penalty
        self.norm, self.hidden, self.output = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(3, 5)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(5, 3)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        A = functional.relu(self.hidden(self.norm(batch[0])))
        logits = self.last(self.drop(functional.softplus(self.output(A))))
        return functional.cross_entropy(logits, batch[1]) + self.penalty * A.abs().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(50, 4, generator=generator)
    return DataLoader(TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 1).long()), batch_size=16)


def loss_over_all(module: Classifier) -> float:
    module.eval()
    with torch.no_grad():
        total = sum(len(batch[0]) * float(module.training_step(batch)) for batch in loader())
    module.train()
    return total / 50


def fit(module: LightningModule, *callbacks: Callback, steps: int, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), enable_checkpointing=False, **quiet)
    trainer.fit(module, loader(), weights_only=True, **options)
    return trainer


def everything(module: Classifier) -> dict[str, Tensor]:
    values = {name: value.clone() for name, value in module.state_dict().items()}
    return values | {"random state": torch.get_rng_state()}


class AroundGrowth(GrowOnPlateau):
    """Sees the module just before and just after its growths."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        loss, count, before = loss_over_all(pl_module), len(self.growths), everything(pl_module)
        super().on_train_batch_end(trainer, pl_module, *args)
        if len(self.growths) > count:
            self.before, self.after = before, everything(pl_module)
            self.drop = loss - loss_over_all(pl_module)


@pytest.mark.parametrize("embedding", ["replication", "inactive propagation", "best"])
def test_a_block_inside_a_classifier_grows_and_the_loss_falls_as_said(embedding: Any) -> None:
    growth = AroundGrowth(at_steps=(10,), units=2, embedding=embedding)
    fit(Classifier(), growth, steps=12)
    (one,) = growth.growths
    assert (one.before, one.after, one.verdict_before, one.verdict_after) == (3, 5, "undecided", "undecided")
    assert growth.drop == pytest.approx(one.measured_drop, abs=1e-6)
    assert one.measured_drop > 1e-5
    for name, value in growth.before.items():
        if "hidden" not in name and "output" not in name:
            assert torch.equal(growth.after[name], value), name


def test_without_a_nudge_the_classifier_stays_the_same() -> None:
    growth = AroundGrowth(at_steps=(10,), units=2, nudge=False)
    fit(Classifier(), growth, steps=12)
    assert abs(growth.drop) < 1e-6
    assert growth.growths[0].function_change < 1e-6


def test_a_penalty_on_the_activations_is_named() -> None:
    with pytest.warns(UserWarning, match="no growth of .*: the loss reads the hidden activations besides"):
        fit(Classifier(penalty=0.1), GrowOnPlateau(at_steps=(2,)), steps=3)


def test_plateaus_without_a_verdict_are_grown_on_only_where_asked() -> None:
    for verdicts, grown in (({}, 0), ({"verdicts": ("local minimum", "undecided")}, 1)):
        module, growth = Classifier(), GrowOnPlateau(max_growths=1, **verdicts)
        for parameter in module.parameters():
            nn.init.zeros_(parameter)  # a plateau from the first step
        nn.init.normal_(module.hidden.weight)
        nn.init.constant_(module.hidden.bias, 0.1)
        monitor = PlateauMonitor(drop=0.3)
        fit(module, monitor, growth, steps=400)
        assert monitor.plateaus[0].verdict.kind == "undecided"
        assert len(growth.growths) == grown
    with pytest.raises(MisconfigurationException, match=r"`verdicts` must be among .*; got \['minimum'\]"):
        GrowOnPlateau(verdicts=("minimum",))


class TwoBlocks(LightningModule):
    """Two regressions side by side, of widths 2 and 3, each held at a minimum of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
        self.second = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        target = batch[1][:, None].to(batch[0])
        return functional.mse_loss(self.first(batch[0]), target) + functional.mse_loss(self.second(batch[0]), -target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def test_blocks_of_one_module_have_their_own_widths_and_resume(tmp_path: Path) -> None:
    def growths() -> list[GrowOnPlateau]:
        return [
            GrowOnPlateau(at_steps=(5,), units=3, block="first.0"),
            GrowOnPlateau(at_steps=(5, 9), block="second.0"),
        ]

    module = TwoBlocks()
    trainer = fit(module, *growths(), steps=12)
    assert (module.first[0].out_features, module.second[0].out_features) == (5, 5)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    again, callbacks = TwoBlocks(), growths()
    fit(again, *callbacks, steps=13, ckpt_path=tmp_path / "grown.ckpt")
    assert [(one.block, one.after) for callback in callbacks for one in callback.growths] == [
        ("first.0", 5),
        ("second.0", 4),
        ("second.0", 5),
    ]
    assert math.isfinite(float(again.training_step(next(iter(loader()))).detach()))
