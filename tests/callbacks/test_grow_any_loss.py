"""GrowOnPlateau with what people train: cross-entropy, minibatches, batch normalisation, several blocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from support.classifier import Classifier, TwoBlocks, fit, loader, loss_over_all
from torch import Tensor, nn

from relu_diag.callbacks import GrowOnPlateau, PlateauMonitor


def own_loss(module: LightningModule, batch: Any) -> Tensor:
    loss: Tensor = module.training_step(batch)
    return loss


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
    growth = AroundGrowth(at_steps=(10,), units=2, embedding=embedding, loss=own_loss)
    fit(Classifier(), growth, steps=12)
    (one,) = growth.growths
    assert (one.before, one.after, one.verdict_before, one.verdict_after) == (3, 5, "undecided", "undecided")
    assert growth.drop == pytest.approx(one.measured_drop, abs=1e-6)
    assert one.measured_drop > 1e-5
    for name, value in growth.before.items():
        if "hidden" not in name and "output" not in name:
            assert torch.equal(growth.after[name], value), name


def test_without_a_nudge_the_classifier_stays_the_same() -> None:
    growth = AroundGrowth(at_steps=(10,), units=2, nudge=False, loss=own_loss)
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
