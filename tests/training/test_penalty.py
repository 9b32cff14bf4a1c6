"""Weight decay that an optimizer adds to the gradient is part of the loss that verdicts and moves are about."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from support.five_points import Five, fit, points
from torch import nn

from relu_diag import ShallowBlock
from relu_diag.callbacks import EscapeOnPlateau, LandscapeMonitor, PlateauMonitor
from relu_diag.capture import BlockLocation, LiveBlock
from relu_diag.functional import WeightDecay
from relu_diag.training import penalty_on

MU = 1e-3


def test_only_decay_that_is_a_gradient_is_a_penalty() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    block = LiveBlock.at(net, BlockLocation("0", "2", (0.0, 1.0)))
    trainer = Trainer(barebones=True, accelerator="cpu")
    for optimizer, expected in (
        (torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=MU), WeightDecay(MU, MU, MU, MU)),
        (torch.optim.Adam(net.parameters(), weight_decay=MU), WeightDecay(MU, MU, MU, MU)),
        (torch.optim.AdamW(net.parameters(), weight_decay=MU), None),
        (torch.optim.SGD(net[2].parameters(), lr=0.1, weight_decay=MU), None),
    ):
        trainer.strategy.optimizers = [optimizer]
        assert penalty_on(trainer, block) == expected


def test_a_move_off_a_saddle_lowers_the_loss_with_its_decay() -> None:
    module, escape = Five("SGD", lr=1e-6, weight_decay=MU), EscapeOnPlateau()
    fit(module, PlateauMonitor(), escape, max_steps=200)
    (move,) = escape.escapes
    assert move.after < move.before
    # The steps after the move are tiny.
    X, Y = points().dataset.tensors
    loss = (module.net(X) - Y).square().mean()
    cost = sum(MU / 2 * parameter.square().sum() for parameter in module.parameters())
    assert move.after == pytest.approx((loss + cost).item(), rel=1e-4)
    assert abs(move.after - loss.item()) > 1e-3 * loss.item()


def test_the_point_nearby_is_one_of_the_loss_with_its_decay() -> None:
    module, monitor = Five("SGD", lr=1e-6, weight_decay=MU), LandscapeMonitor(every_n_steps=20, verdict="nearby")
    with torch.no_grad():
        module.net.hidden.weight.normal_()
        module.net.output.weight.zero_()
    fit(module, monitor, max_steps=20)
    assert monitor.nearby is not None
    X, Y = points().dataset.tensors
    block = monitor.nearby.block
    cost = MU / 2 * float(block.W.square().sum() + block.H.square().sum())
    if block.output_bias is not None:
        cost += MU / 2 * float(block.output_bias.square().sum())
    assert monitor.nearby.loss == pytest.approx(float((block(_inputs(block, X)) - Y).square().mean()) + cost)


def _inputs(block: ShallowBlock, X: torch.Tensor) -> torch.Tensor:
    """Inputs with a constant where the block has a hidden bias."""
    return X if block.W.shape[1] == X.shape[1] else torch.cat([X, torch.ones(len(X), 1).to(X)], dim=1)
