"""Weight decay that is part of a loss is judged with it; AdamW's is none, and a verdict on the loss alone says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import PlateauMonitor, SaddleAwareEarlyStopping
from relu_diag.capture import read_block

DECAY = 0.03


class Classifier(LightningModule):
    """Six neurons that tell 40 points of the plane apart, float64."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, **settings: Any) -> None:
        super().__init__()
        X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.data = TensorDataset(X, (X[:, :1] + X[:, 1:] ** 2 > 0.5).double())
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).double()
        self.optimizer = optimizer
        self.settings = {"lr": 0.5, "weight_decay": DECAY} | settings

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), **self.settings)  # type: ignore[call-arg]


def fit(module: Classifier, steps: int, *callbacks: Any) -> PlateauMonitor:
    monitor = PlateauMonitor()
    trainer = Trainer(max_steps=steps, callbacks=[monitor, *callbacks], **QUIET, max_epochs=-1)
    trainer.fit(module, DataLoader(module.data, batch_size=40))
    return monitor


def test_a_run_under_the_decay_of_sgd_ends_at_a_minimum_of_both_and_early_stopping_knows() -> None:
    module = Classifier(momentum=0.9)
    stopping = SaddleAwareEarlyStopping("loss", patience=100, min_delta=1e-6, check_on_train_epoch_end=True)
    final = fit(module, 600, stopping).final
    assert final is not None
    assert final.verdict.kind in {"local minimum", "global minimum"}
    assert final.verdict.assumptions["no other regulariser"] == "holds"
    assert final.verdict.assumptions.broken == ()
    assert stopping.decision.endswith(f"stops: near a {final.verdict.kind}")
    # The loss is the one that is trained and logged, its decay apart.
    assert final.loss == pytest.approx(float(module.trainer.callback_metrics["loss"]), rel=1e-3)
    block = read_block(module.net)
    X, Y = module.data.tensors
    inputs = torch.cat([X, torch.ones(40, 1).double()], dim=1)
    penalty = F.WeightDecay(DECAY, DECAY, output_bias=DECAY)
    near = F.nearby_stationary_point(block, inputs, F.BinaryCrossEntropy(Y), weight_decay=penalty)
    assert near.verdict.kind == final.verdict.kind


def test_decay_that_is_no_part_of_a_loss_is_named() -> None:
    module = Classifier(torch.optim.AdamW, lr=1e-9)
    for parameter in module.parameters():
        parameter.data.zero_()
    module.net[2].bias.data.fill_(float(module.data.tensors[1].mean().logit()))
    final = fit(module, 3).final
    assert final is not None
    assert final.verdict.assumptions["no regulariser"] == "broken"
    assert final.verdict.reason == "of the loss alone a saddle, but AdamW decays the weights"
