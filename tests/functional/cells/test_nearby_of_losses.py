"""The stationary point nearby under any convex loss: found again from beside it, and where there is none."""

from __future__ import annotations

import pytest
import torch
from support.attack.any_loss import case_of
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

STATIONARY = {"saddle", "type-2 candidate", "local minimum", "global minimum"}


def moved(block: ShallowBlock, size: float, seed: int) -> ShallowBlock:
    draw = torch.Generator().manual_seed(seed)

    def noise(value: torch.Tensor) -> torch.Tensor:
        return value + size * value.abs().max() * torch.randn(value.shape, generator=draw, dtype=value.dtype)

    bias = None if block.output_bias is None else noise(block.output_bias)
    return ShallowBlock(noise(block.W), noise(block.H), block.slopes, bias)


@pytest.mark.parametrize("name", ["huber", "binary", "poisson", "classes", "squared", "log cosh"])
def test_a_stationary_point_is_found_again_from_beside_it(name: str) -> None:
    asked = found = 0
    for number in range(40):
        case = case_of(name, 3, number)
        geometry = F.neuron_geometry(
            case.block, F.BlockSignal(case.X, case.loss.gradient(case.block(case.X))), kink_tol=1e-3
        )
        if geometry.kink_count.any() or not case.block.H.any(dim=0).all() or len(case.block.W) > 3:
            continue
        here = F.classify(case.block, case.X, case.loss)
        if here.kind not in {"saddle", "local minimum"}:
            continue
        asked += 1
        near = F.nearby_stationary_point(moved(case.block, 1e-5, number), case.X, case.loss)
        found += near.genuine and near.verdict.kind in STATIONARY and near.distance < 1e-2
        if near.verdict.kind in STATIONARY:
            there = F.stationarity(near.block, F.BlockSignal(case.X, case.loss.gradient(near.block(case.X))))
            assert there.stationary.all()
            assert_close(torch.tensor(near.loss), torch.tensor(here.loss), rtol=1e-3, atol=1e-6)
        if asked == 3:
            break
    assert found == asked


def trained(loss: Loss, X: torch.Tensor, steps: int, seed: int) -> ShallowBlock:
    draw = torch.Generator().manual_seed(seed)
    W = (0.3 * torch.randn(4, X.shape[1], generator=draw, dtype=torch.float64)).requires_grad_()
    H = (0.3 * torch.randn(1, 4, generator=draw, dtype=torch.float64)).requires_grad_()
    for _ in range(steps):
        out = torch.relu(X @ W.T) @ H.T
        by_W, by_H = torch.autograd.grad((loss.gradient(out.detach()) * out).sum(), (W, H))
        with torch.no_grad():
            W -= 0.3 * by_W
            H -= 0.3 * by_H
    return ShallowBlock(W.detach(), H.detach())


def test_training_under_the_logistic_loss_ends_at_the_minimum_that_is_found() -> None:
    draw = torch.Generator().manual_seed(3)
    X = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    labels = torch.rand(12, generator=draw, dtype=torch.float64)
    loss = F.BinaryCrossEntropy(0.2 + 0.6 * labels)
    block = trained(loss, X, 3000, seed=2)
    near = F.nearby_stationary_point(block, X, loss)
    assert near.verdict.kind == "local minimum"
    assert near.genuine
    assert 0 <= near.loss_gap < 1e-3
    assert near.loss == pytest.approx(float(loss(block(X))) - near.loss_gap)


def test_a_cell_without_minimum_says_so() -> None:
    X = torch.tensor([[1.0, 0.2], [0.9, -0.1], [-1.0, 0.3], [-0.8, 0.1]], dtype=torch.float64)
    block = ShallowBlock(torch.tensor([[1.0, 0.1], [-1.0, 0.1]]).double(), torch.tensor([[1.0, -1.0]]).double())
    near = F.nearby_stationary_point(block, X, F.BinaryCrossEntropy(torch.tensor([1.0, 1.0, 0.0, 0.0])))
    assert "the loss has no minimum in this cell" in near.reason
    assert near.verdict.kind == "not stationary"
    two = ShallowBlock(block.W, torch.cat([-block.H, block.H]))
    near = F.nearby_stationary_point(two, X, F.CrossEntropy(torch.tensor([1, 1, 0, 0])))
    assert "the loss has no minimum in this cell" in near.reason
    assert near.verdict.kind == "not stationary"


def test_a_squared_error_as_a_loss_finds_what_its_targets_find() -> None:
    draw = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(8, columns, generator=draw, dtype=torch.float64) for columns in (2, 1))
    block = trained(F.SquaredError(Y), X, 400, seed=1)
    one, other = F.nearby_stationary_point(block, X, Y), F.nearby_stationary_point(block, X, F.SquaredError(Y))
    assert one.verdict.kind == other.verdict.kind
    assert_close(one.block.W, other.block.W)
    assert one.loss == pytest.approx(other.loss)
    scaled = F.nearby_stationary_point(block, X, F.SquaredError(Y, "sum").scaled(0.3))
    assert scaled.verdict.kind == one.verdict.kind
    assert_close(scaled.block.W, one.block.W, rtol=1e-6, atol=1e-6)
