"""Which block grows, by which rows, and where a small block's new neurons lead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag.functional import Poisson, SquaredError, WeightDecay
from relu_diag.functional.widening import LaterLayer, LossThroughLayers, rehearsed_losses
from relu_diag.training import Examination, TrainingData, data_of, most_promising_first, verdict_in_training
from relu_diag.training._falls import Falls
from relu_diag.training._rehearsed import Rehearsal, best_in_rehearsal, random_neurons
from relu_diag.training._sample import in_order, some_in_order


def block(seed: int = 0) -> ShallowBlock:
    draw = torch.Generator().manual_seed(seed)
    return ShallowBlock(torch.randn(2, 3, generator=draw).double(), torch.randn(2, 2, generator=draw).double())


def examined(loss: SquaredError | LossThroughLayers) -> Examination:
    data = TrainingData(torch.eye(3).double(), loss)
    unknown = verdict_in_training(None, "")
    return Examination(0, "net", None, block(), 0.5, unknown, None, data, None, "", dead=False)


def test_of_blocks_that_gain_as_much_but_for_a_factor_the_one_with_more_layers_behind_it_grows() -> None:
    end = SquaredError(torch.zeros(3, 2).double())
    early = examined(LossThroughLayers(end, (LaterLayer(torch.eye(2).double(), (0.0, 1.0), None),)))
    late = examined(end)
    assert most_promising_first([late, early], [0.3, 0.1]) == [1, 0]
    assert most_promising_first([late, early], [0.3, 0.06]) == [0, 1]


def test_drops_that_are_rounding_below_zero_leave_a_block_to_grow() -> None:
    first, second = (examined(SquaredError(torch.zeros(3, 2).double())) for _ in range(2))
    assert most_promising_first([first, second], [-3e-18, -1e-18]) == [1, 0]


def test_an_inner_block_grows_by_inputs_at_the_weights_of_now() -> None:
    kept = examined(SquaredError(torch.zeros(3, 2).double()))
    now = TrainingData(2 * torch.eye(3).double(), SquaredError(torch.zeros(3, 2).double()))
    assert data_of(kept) is kept.data
    assert data_of(replace(kept, deep_data=now)) is now


def test_a_sample_does_not_depend_on_the_order_in_which_rows_came() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(50, 70, generator=draw)
    Y = torch.randn(50, 1, generator=draw)
    mixed = torch.randperm(50, generator=draw)
    data, other = (TrainingData(X[order], SquaredError(Y[order]), complete=True) for order in (torch.arange(50), mixed))
    for most in (50, 20):
        one, two = some_in_order(data, most), some_in_order(other, most)
        assert one.complete is (most == 50)
        assert_close(one.X, two.X, rtol=0, atol=0)
        assert_close(one.loss(torch.zeros(most, 1)), two.loss(torch.zeros(most, 1)))
    assert sorted(in_order(data).X[:, 0].tolist()) == sorted(X[:, 0].tolist())


def trained(one: ShallowBlock, X: Tensor, Y: Tensor, rate: float) -> float:
    """The loss after torch's Adam."""
    W, H = (nn.Parameter(weights.clone()) for weights in (one.W, one.H))
    optimizer = torch.optim.Adam([W, H], lr=rate, eps=torch.finfo(torch.float64).eps)
    for _ in range(200):
        optimizer.zero_grad()
        ((X @ W.T).relu() @ H.T - Y).square().mean().backward()
        optimizer.step()
    return ((X @ W.T).relu() @ H.T - Y).square().mean().item()


def test_a_rehearsal_of_several_networks_is_adam_on_each() -> None:
    draw = torch.Generator().manual_seed(1)
    X, Y = (torch.randn(6, size, generator=draw).double() for size in (3, 2))
    blocks = [block(seed) for seed in range(3)]
    blocks[1] = ShallowBlock(blocks[1].W[:1], blocks[1].H[:, :1])
    expected = [trained(one, X, Y, rate=0.02) for one in blocks]
    found = rehearsed_losses(blocks, X, SquaredError(Y), rate=0.02)
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e150])  # a loss below zero, and numbers that leave float64
def test_a_rehearsal_ends_with_one_of_the_ways_to_grow(size: float) -> None:
    X = size * torch.eye(3).double()
    falls = Falls.of(block(), TrainingData(X, Poisson(torch.full((3, 2), 10.0).double())), WeightDecay())
    found = random_neurons(falls.block, X, 1)
    best = best_in_rehearsal(Rehearsal(falls.chain, rate=0.01), 0, found)
    assert any(best is parts for parts in found)
