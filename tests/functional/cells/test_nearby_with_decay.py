"""The stationary point nearby under weight decay: where a descent arrives, kinks and zero neurons included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tensors import tensor
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

STATIONARY = {"saddle", "type-2 candidate", "local minimum", "global minimum"}


def problem(seed: int) -> tuple[ShallowBlock, Tensor, Loss, F.WeightDecay]:
    """A random network, its inputs, one of four losses, and a decay."""
    draw = np.random.default_rng(seed)
    d, J, neurons, samples = 3, int(draw.integers(1, 4)), int(draw.integers(2, 5)), int(draw.integers(8, 20))
    X = torch.tensor(draw.standard_normal((samples, d)))
    Y = torch.tensor(draw.standard_normal((samples, J)))
    losses = [F.SquaredError(Y), F.BinaryCrossEntropy((Y > 0).double()), F.Huber(Y, 0.7)]
    loss = losses[seed % 4] if seed % 4 < 3 else F.CrossEntropy(torch.tensor(draw.integers(0, max(J, 2), samples)))
    J = J if seed % 4 < 3 else max(J, 2)
    W, H = (torch.tensor(0.5 * draw.standard_normal(shape)) for shape in ((neurons, d), (J, neurons)))
    bias = torch.zeros(J).double() if seed % 3 == 0 else None
    mu = float(10 ** draw.uniform(-2, -1))
    return ShallowBlock(W, H, (0.0, 1.0), bias), X, loss, F.WeightDecay(mu, mu, output_bias=mu * (seed % 2))


def descended(
    block: ShallowBlock, X: Tensor, loss: Loss, decay: F.WeightDecay, lr: float = 0.2, steps: int = 1500
) -> ShallowBlock:
    W, H, b = block.W, block.H, block.output_bias
    for _ in range(steps):
        Z = X @ W.T
        A = Z.clamp(min=0)
        G = loss.gradient(A @ H.T if b is None else A @ H.T + b)
        by_W = ((G @ H) * (Z > 0)).T @ X + decay.by_column(block) * W
        by_H = G.T @ A + decay.H * H
        W, H = W - lr * by_W, H - lr * by_H
        b = None if b is None else b - lr * (G.sum(0) + decay.output_bias * b)
    return ShallowBlock(W, H, block.slopes, b)


def distance(one: ShallowBlock, other: ShallowBlock) -> float:
    return float(torch.cat([(one.W - other.W).flatten(), (one.H - other.H).flatten()]).norm())


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 6])
def test_a_descent_to_its_end_arrives_at_the_point_found_on_the_way(seed: int) -> None:
    block, X, loss, decay = problem(seed)
    way = descended(block, X, loss, decay, steps=1500)
    end = descended(way, X, loss, decay, steps=6000)
    # On kinks a descent leaps to and fro, the less the smaller its steps.
    for lr in (0.05, 0.01, 2e-3):
        end = descended(end, X, loss, decay, lr)
    near = F.nearby_stationary_point(way, X, loss, weight_decay=decay)
    assert near.genuine
    assert near.verdict.kind in STATIONARY
    # Neurons that do the same may share it in any way.
    assert_close(near.block(X), end(X), rtol=0.0, atol=5e-3)
    assert near.loss <= float(loss(end(X)) + decay.cost(end)) + 1e-9
    here = float(loss(way(X)) + decay.cost(way))
    assert near.loss_gap == pytest.approx(here - near.loss, abs=1e-9)
    assert near.distance == pytest.approx(distance(way, near.block), rel=0.2, abs=1e-3)
    assert F.classify(near.block, X, loss, weight_decay=decay).kind == near.verdict.kind


def test_dead_neurons_and_small_ones_are_zero_at_the_point() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), tensor([1.0], [-1.0])
    iterate = ShallowBlock(tensor([0.9, -0.9], [-0.3, -0.4]), tensor([1.0, 0.5]))
    near = F.nearby_stationary_point(iterate, X, Y, weight_decay=0.1)
    assert near.zeroed.tolist() == [1]
    assert not near.block.W[1].any()
    assert not near.block.H[:, 1].any()
    assert near.distance > 0.5
    assert near.genuine
    assert F.nearby_stationary_point(iterate, X, Y).zeroed.tolist() == []


def test_a_neuron_pulled_by_less_than_its_decay_ends_at_zero() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), tensor([1.0], [-0.1])
    # The residuals pull by 1 and 0.1; the decay is 0.3.
    iterate = ShallowBlock(tensor([0.8, -0.1], [-0.1, 0.2]), tensor([0.8, -0.2]))
    near = F.nearby_stationary_point(iterate, X, Y, weight_decay=0.3)
    assert near.verdict.kind == "global minimum"
    assert not near.block.W[1].any()
    assert_close(near.block.W[0], tensor(0.7**0.5, 0.0))


def test_the_point_does_not_depend_on_which_weights_the_decay_is_written_for() -> None:
    block, X, loss, decay = problem(5)
    way = descended(block, X, loss, decay)
    scaled = ShallowBlock(3 * way.W, way.H / 3, way.slopes, way.output_bias)
    other = F.WeightDecay(decay.W / 9, 9 * decay.H, output_bias=decay.output_bias)
    one = F.nearby_stationary_point(way, X, loss, weight_decay=decay)
    two = F.nearby_stationary_point(scaled, X, loss, weight_decay=other)
    assert one.verdict.kind == two.verdict.kind
    assert_close(one.block.W, two.block.W / 3, rtol=1e-6, atol=1e-6)
    assert one.loss == pytest.approx(two.loss)


def test_a_run_in_float32_gets_the_verdict_of_its_own_in_float64() -> None:
    block, X, loss, decay = problem(2)
    way = descended(block, X, loss, decay)
    single = F.nearby_stationary_point(way.cast(torch.float32), X.float(), loss, weight_decay=decay)
    double = F.nearby_stationary_point(way, X, loss, weight_decay=decay)
    assert single.verdict.kind == double.verdict.kind
    assert_close(single.block.W, double.block.W.float(), rtol=1e-4, atol=1e-4)


def test_no_decay_is_the_search_without() -> None:
    block, X, loss, decay = problem(0)
    way = descended(block, X, loss, F.WeightDecay())
    one, other = (F.nearby_stationary_point(way, X, loss, weight_decay=mu) for mu in (0.0, F.WeightDecay()))
    assert_close(one.block.W, other.block.W)
    assert one.loss == other.loss
    assert decay.any


def test_decay_needs_a_convex_loss() -> None:
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0]))
    with pytest.raises(ValueError, match="convex"):
        F.nearby_stationary_point(block, torch.eye(2).double(), F.OutputLoss(torch.sum), weight_decay=0.1)
