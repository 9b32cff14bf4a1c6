"""What a choice of neurons saves changes nothing that counts: shortcuts against the long way."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.block import BlockSignal
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.widening import LaterLayer, LossThroughLayers, _pools, _refit, _sets, later_layers
from relu_diag.functional.widening._greedy import greedy_choice
from relu_diag.functional.widening._pools import Situation, steepest_units

Net = tuple[ShallowBlock, Tensor, LossThroughLayers]


def deep(seed: int, samples: int = 300, width: int = 12, classes: int = 4) -> Net:
    """A block with two layers behind it, on samples of classes that a wider network makes."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64) / shape[-1] ** 0.5

    X = torch.randn(samples, 7, generator=draw, dtype=torch.float64)
    X[:, -1] = 1.0
    labels = (drawn(classes, 40) @ (drawn(40, 7) @ X.T).relu()).argmax(dim=0)
    block = ShallowBlock(drawn(4, 7), drawn(width, 4), output_bias=drawn(1, width)[0])
    layers = (
        LaterLayer(2 * drawn(width, width), (0.0, 1.0), drawn(1, width)[0]),
        LaterLayer(drawn(classes, width), (0.1, 1.0), None),
    )
    return block, X, LossThroughLayers(F.CrossEntropy(labels), layers)


def felt(X: Tensor, G: Tensor, V: Tensor) -> Tensor:
    """How much the gradients feel input weights ``(n, d)`` of length 1 as a linear unit, shape ``(n,)``."""
    return (torch.nn.functional.normalize(V) @ X.T @ G).norm(dim=1)


@pytest.mark.parametrize("rank", [2, 40])
def test_singular_vectors_are_those_of_a_decomposition_or_feel_as_much(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(120, 60, generator=draw, dtype=torch.float64)
    G = torch.randn(120, rank, generator=draw, dtype=torch.float64) @ torch.randn(rank, 50, generator=draw).double()
    block = ShallowBlock(torch.zeros(1, 60).double(), torch.zeros(50, 1).double())
    found = {}
    for dense in (0, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_pools, "BUDGETS", replace(BUDGETS, dense_singular=dense, singular_steps=4))
            situation = Situation(block, BlockSignal(X, G), False, torch.Generator().manual_seed(1))
            found[dense] = felt(X, G, steepest_units(situation, 16))
    assert_close(found[0].max(), found[10_000].max(), rtol=0.02, atol=0)
    assert_close(found[0].mean(), found[10_000].mean(), rtol=0.02, atol=0)


def test_derivatives_that_are_written_down_give_the_same_gradient_and_curvature() -> None:
    block, X, loss = deep(0)
    outputs = block(X)
    direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain, quick = loss.at(outputs), loss.at(outputs).prepared()
    assert not quick.stands_for_others
    assert quick._derivatives is not None
    assert_close(quick.gradient(), plain.gradient())
    assert_close(quick.curvature(direction), plain.curvature(direction))


def drop(problem: Net) -> float:
    """The share of the loss that new neurons take away."""
    block, X, loss = problem
    found = F.best_widening(block, X, loss, units=6, held_out=0.0)
    return 1 - found.after / found.before


def test_the_cheap_choice_brings_as_much_as_the_long_one() -> None:
    problems = [deep(seed) for seed in range(12)]
    cheap = [drop(one) for one in problems]

    def searched(start: _refit.Start, A: Tensor, ridge: float) -> Tensor:
        return _refit.refitted_outputs(start, A, A.new_zeros(start.outputs.shape[1], A.shape[1]), ridge)

    with pytest.MonkeyPatch.context() as patch:
        # Proposals fitted as the best ones are, singular vectors computed, and no derivatives written down.
        patch.setattr(_sets, "proposed_outputs", searched)
        patch.setattr(_pools, "BUDGETS", replace(BUDGETS, dense_singular=10_000))
        patch.setattr(later_layers, "BUDGETS", replace(BUDGETS, outputs_behind=0))
        slow = [drop(one) for one in problems]
    assert sum(cheap) > 0.95 * sum(slow)
    assert statistics.median(one / other for one, other in zip(cheap, slow, strict=True)) > 0.95


def test_outputs_that_are_known_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    block, X, loss = deep(1)
    one = F.best_widening(block, X, loss, units=3)
    known = block(X)
    monkeypatch.setattr(_sets, "chunked_outputs", None)
    two = F.best_widening(block, X, loss, units=3, outputs=known)
    assert torch.equal(one.new_block.W, two.new_block.W)
    assert torch.equal(one.new_block.H, two.new_block.H)


def test_a_greedy_choice_does_not_depend_on_how_many_outputs_the_gradient_is_spread_over() -> None:
    draw = torch.Generator().manual_seed(0)
    A, G, M = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((30, 12), (30, 2), (40, 2)))
    few = greedy_choice(A, G, 8)
    many = greedy_choice(A, G @ torch.linalg.qr(M).Q.T, 8)
    assert torch.equal(many.index, few.index)
    assert_close(many.explained, few.explained)
    assert not len(greedy_choice(A, torch.zeros(30, 40).double(), 8).index)
