"""Proposals where weight decay is part of the loss: what is said of a drop is the drop of both together."""

import math

import pytest
import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

DECAYS = [
    0.02,
    F.WeightDecay(W=0.01, H=0.04),
    F.WeightDecay(W=0.03, H=0.01, hidden_bias=0.0, output_bias=0.2),
    F.WeightDecay(W=0.02),
]


def network(outputs: int, seed: int = 0) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A random block of three neurons with biases, inputs and targets, float64."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    X = draw(30, 3)
    X[:, -1] = 1.0
    return ShallowBlock(draw(3, 3), draw(outputs, 3), output_bias=draw(outputs)), X, draw(30, outputs)


def objective(block: ShallowBlock, X: Tensor, loss: Loss, decay: float | F.WeightDecay) -> float:
    """Loss and decay, written out."""
    W, H, b = block.W, block.H, block.output_bias
    assert b is not None
    mu = F.WeightDecay(decay, decay) if isinstance(decay, float) else decay
    last = mu.W if mu.hidden_bias is None else mu.hidden_bias
    squares = mu.W * W[:, :-1].square().sum() + last * W[:, -1].square().sum() + mu.H * H.square().sum()
    return float(loss(torch.relu(X @ W.T) @ H.T + b) + (squares + mu.output_bias * b.square().sum()) / 2)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("nudge", [True, False])
def test_drops_are_those_of_loss_and_decay_together(decay: float | F.WeightDecay, outputs: int, nudge: bool) -> None:
    block, X, Y = network(outputs)
    for loss in (F.SquaredError(Y), F.Huber(Y, 0.5), F.BinaryCrossEntropy((Y > 0).double())):
        before = objective(block, X, loss, decay)
        proposals = F.growth_proposals(block, X, loss, nudge=nudge, weight_decay=decay)
        assert proposals
        for one in proposals:
            assert one.measured_drop == pytest.approx(before - objective(one.new_block, X, loss, decay), abs=1e-10)
            assert one.measured_drop > 0 or not nudge


@pytest.mark.parametrize("decay", DECAYS[:3])
def test_a_new_neuron_gains_what_its_pull_exceeds_the_decay_by(decay: float | F.WeightDecay) -> None:
    block, X, Y = network(2)
    loss = F.SquaredError(Y)
    before = objective(block, X, loss, decay)
    new = [one for one in F.growth_proposals(block, X, loss, weight_decay=decay) if one.unit is None]
    assert new
    for one in new:
        w, h = one.new_block.W[-1], one.new_block.H[:, -1]
        rates = []
        for share in (0.5, 1.0, 2.0):  # the split of its amplitude is the best one
            short = 1e-4 / math.sqrt(float(w.norm() * h.norm()))
            W = torch.cat([block.W, short * share * w[None]])
            H = torch.cat([block.H, short / share * h[:, None]], dim=1)
            after = objective(ShallowBlock(W, H, output_bias=block.output_bias), X, loss, decay)
            rates.append((before - after) / 1e-8)
        assert one.gain == pytest.approx(rates[1], rel=1e-3)
        assert rates[1] >= max(rates) - 1e-5


def test_nothing_is_proposed_where_no_pull_exceeds_the_decay() -> None:
    _, X, Y = network(2)
    nothing = ShallowBlock(torch.zeros(1, 3).double(), torch.zeros(2, 1).double())
    loss = F.SquaredError(Y)
    largest = float(F.extremal_directions(X, loss.gradient(nothing(X))).gain[0])
    assert F.growth_proposals(nothing, X, loss, weight_decay=0.99 * largest)
    for nudge in (True, False):
        assert not F.growth_proposals(nothing, X, loss, nudge=nudge, weight_decay=1.01 * largest)
