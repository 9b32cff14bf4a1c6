"""Neurons placed anew: gains and drops by their definitions, the function kept, the lengths of a dictionary."""

from __future__ import annotations

import pytest
import torch
from support.tensors import normal
from torch import Tensor
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import CrossEntropy, SquaredError
from relu_diag.functional.widening import merge_units, place_units, replicate_unit

DEAD = torch.tensor([1, 3, 4])


def problem(seed: int = 0, samples: int = 40) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A block with three dead neurons, inputs with a column of ones, targets."""
    draw = torch.Generator().manual_seed(seed)
    X = torch.cat([normal(draw, samples, 4) + 1, torch.ones(samples, 1).double()], dim=1)
    W = normal(draw, 6, 5)
    W[DEAD, -1] = -100.0
    return ShallowBlock(W, normal(draw, 2, 6)), X, normal(draw, samples, 2)


@pytest.mark.parametrize("price", [0.0, 0.05])
def test_the_drop_is_the_one_of_the_loss_and_every_gain_is_that_of_its_direction(price: float) -> None:
    block, X, Y = problem()
    loss = SquaredError(Y)
    G = loss.gradient(block(X))
    found = place_units(block, DEAD, BlockSignal(X, G), loss, price, everything=True)
    new = found.applied_to(block)

    def cost(of: ShallowBlock) -> float:
        return float(loss(of(X))) + price * float(F.rho(X @ of.W.T, of.slopes).mean(dim=0).sum())

    assert found.drop > 0
    assert cost(block) - cost(new) == pytest.approx(found.drop, rel=1e-9)
    assert float((new(X) - block(X)).abs().max()) == pytest.approx(found.function_change)
    assert set(found.units.tolist()) <= set(DEAD.tolist())
    kept = [i for i in range(6) if i not in found.units.tolist()]
    assert torch.equal(new.W[kept], block.W[kept])
    first = F.rho(X @ found.W[0], block.slopes)
    o = found.H[:, 0] / found.H[:, 0].norm()
    rate = -float((first @ G) @ o) - price * float(first.mean() / found.H[:, 0].norm())
    centred = X[:, :-1] - X[:, :-1].mean(dim=0)
    spread = centred.square().sum(dim=1).mean().sqrt()
    length = torch.stack([*found.W[0, :-1], (found.W[0, -1] + found.W[0, :-1] @ X[:, :-1].mean(0)) / spread]).norm()
    assert rate / float(length) == pytest.approx(float(found.gain[0]), rel=1e-6)


def test_no_random_neuron_lowers_the_loss_much_more_than_the_first_one() -> None:
    """By the square of its gain over that of its activations, at the best amplitude."""
    block, X, Y = problem(3)
    G = SquaredError(Y).gradient(block(X))
    found = place_units(block, DEAD, BlockSignal(X, G), everything=True)
    draw = torch.Generator().manual_seed(0)
    centred = X[:, :-1] - X[:, :-1].mean(dim=0)
    rows = torch.cat([centred, centred.square().sum(dim=1).mean().sqrt() * X[:, -1:]], dim=1)
    V = torch.nn.functional.normalize(normal(draw, 20_000, 5), dim=1)
    A = (rows @ V.T).relu()
    promise = (A.T @ G).norm(dim=1) / A.norm(dim=0).clamp(min=1e-9)
    first = (X @ found.W[0]).relu()
    assert float((first @ G).norm() / first.norm()) >= 0.8 * float(promise.max())


def test_without_a_loss_the_function_stays_and_the_neurons_are_as_long_as_others() -> None:
    block, X, Y = problem()
    found = place_units(block, DEAD, BlockSignal(X, SquaredError(Y).gradient(block(X))), everything=True)
    assert len(found.units) >= 2
    assert found.drop == found.function_change == 0
    assert not found.H.any()
    assert_close(found.applied_to(block)(X), block(X))


def test_an_output_bias_that_is_far_off_does_not_hide_what_neurons_gain() -> None:
    block, X, Y = problem()
    block = ShallowBlock(block.W, block.H, block.slopes, torch.tensor([5.0, -5.0]).double())
    loss = SquaredError(Y)
    found = place_units(block, DEAD, BlockSignal(X, loss.gradient(block(X))), loss, everything=True)
    assert found.drop > 0
    assert float(loss(block(X)) - loss(found.applied_to(block)(X))) == pytest.approx(found.drop)


def test_under_cross_entropy_the_loss_falls_by_what_is_said() -> None:
    block, X, _ = problem()
    labels = torch.arange(len(X)) % 2
    loss = CrossEntropy(labels)
    found = place_units(block, DEAD, BlockSignal(X, loss.gradient(block(X))), loss, everything=True)
    assert float(loss(block(X)) - loss(found.applied_to(block)(X))) == pytest.approx(found.drop)
    assert found.drop > 0


@pytest.mark.parametrize("known", [False, True])
def test_output_weights_of_one_length_keep_it(known: bool) -> None:
    block, X, Y = problem()
    block = ShallowBlock(block.W, 2 * block.H / block.H.norm(dim=0), block.slopes, block.output_bias)
    loss = SquaredError(Y)
    found = place_units(block, DEAD, BlockSignal(X, loss.gradient(block(X))), loss if known else None, everything=True)
    assert_close(found.H.norm(dim=0), torch.full_like(found.gain, 2.0))
    change = float((found.applied_to(block)(X) - block(X)).abs().max())
    assert (found.drop > 0) == known
    assert known or change < 1e-2 * float(block(X).norm(dim=1).mean())


def test_nothing_is_placed_where_nothing_gains_or_nothing_is_worth_the_price() -> None:
    block, X, Y = problem()
    G = SquaredError(Y).gradient(block(X))
    assert len(place_units(block, DEAD, BlockSignal(X, 0 * G)).units) == 0
    assert len(place_units(block, DEAD, BlockSignal(X, G), price=1e3).units) == 0
    assert len(place_units(block, DEAD[:0], BlockSignal(X, G)).units) == 0


def test_noise_that_gains_only_where_it_was_chosen_is_not_placed_by_much() -> None:
    """With pure noise as gradient, what one half of the samples suggests fails on the other."""
    found = 0
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        X = torch.cat([normal(draw, 600, 20), torch.ones(600, 1).double()], dim=1).float()
        block = ShallowBlock(normal(draw, 64, 21).float(), torch.zeros(8, 64))
        signal = BlockSignal(X, normal(draw, 600, 8).float())
        found += len(place_units(block, torch.arange(64), signal).units)
        assert len(place_units(block, torch.arange(64), signal, everything=True).units) == 64
    # In one of them the halves have the same mean by accident, and all neurons feel that.
    assert found <= 0.2 * 6 * 64


def test_merging_is_the_reverse_of_replication() -> None:
    block, X, _ = problem()
    wider = replicate_unit(block, 0, (1.0, 2.0), (0.5, 0.25))
    merged = merge_units(wider, torch.tensor([6]), torch.tensor([0]))
    assert_close(merged(X), block(X))
    assert not merged.H[:, 6].any()


def test_a_feature_of_few_samples_gets_its_neuron() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = 1024
    # A direction in one row of 200, beside noise that nobody can fit.
    rare = (torch.rand(rows, 1, generator=draw) < 0.005).double()
    X = torch.cat([3 * rare + 0.05 * torch.randn(rows, 1, generator=draw), torch.randn(rows, 3, generator=draw)], dim=1)
    Y = 3 * rare + 0.05 * torch.randn(rows, 1, generator=draw).double()
    block = ShallowBlock(-torch.eye(4)[:2].double(), torch.zeros(1, 2).double())
    loss = F.SquaredError(Y)
    signal = BlockSignal(X.double(), loss.gradient(block(X.double())))
    found = place_units(block, torch.tensor([0, 1]), signal, loss)
    assert len(found.units) > 0
    assert found.drop > 0.2 * float(loss(block(X.double())))


@pytest.mark.parametrize("known", [True, False])
def test_a_last_input_that_is_always_zero_is_no_bias(known: bool) -> None:
    """That of a black pixel, or of a dead neuron below."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(64, 5, generator=draw, dtype=torch.float64)
    X[:, -1] = 0.0
    block = ShallowBlock(torch.zeros(3, 5).double(), torch.zeros(2, 3).double())
    loss = SquaredError((X @ torch.randn(5, 2, generator=draw, dtype=torch.float64)).relu())
    found = place_units(block, torch.arange(3), BlockSignal(X, loss.gradient(block(X))), loss if known else None)
    assert len(found.units) == 3
    assert not bool(found.W[:, -1].any())
