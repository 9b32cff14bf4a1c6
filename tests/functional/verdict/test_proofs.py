"""The steps of the proofs in docs/theory.md, each by its definition: inequalities, radius, balance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.attack.any_loss import KINK, MAKERS, Case, case_of, decayed_case
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import rho
from relu_diag.functional.local import fan_rays

POINTS = 12
MOVES = 40


def stationary_points(name: str) -> Iterator[tuple[Case, str]]:
    """Cases and their verdicts, without those that are not stationary."""
    for number in range(POINTS):
        case = case_of(name, 11, number)
        verdict = F.classify(case.block, case.X, case.loss)
        if verdict.kind in {"local minimum", "saddle", "type-2 candidate"}:
            yield case, verdict.kind


def on_kink(case: Case) -> Tensor:
    """Which samples lie on the kink of which neuron, shape ``(N, I)``."""
    scale = case.X.norm(dim=1)[:, None] * case.block.W.norm(dim=1)
    return (case.X @ case.block.W.T).abs() <= KINK * scale


def pulls(case: Case, dW: Tensor) -> Tensor:
    """``D_i(dw_i)`` by its definition, shape ``(I, J)``."""
    turn = case.X @ dW.T
    slopes = torch.where(case.X @ case.block.W.T >= 0, case.block.slopes[1], case.block.slopes[0])
    felt = torch.where(on_kink(case), rho(turn, case.block.slopes), slopes * turn)
    return felt.T @ case.loss.gradient(case.block(case.X))


def in_the_cell(case: Case, dW: Tensor) -> Tensor:
    """The moves of all input weights, cut to half the way to the next kink."""
    Z, turn = case.X @ case.block.W.T, case.X @ dW.T
    ahead = torch.where(on_kink(case) | (Z * turn >= 0), torch.inf, -Z / turn)
    reach = ahead.min(dim=0).values.clamp(max=1.0)
    return 0.5 * reach[:, None] * dW


def largest_ratio(case: Case, neuron: int) -> float:
    """``c_i``: the largest pull over the slope on the rays of the fan; 0 where the neuron feels nothing."""
    kinks = case.X[on_kink(case)[:, neuron]].numpy()
    rays = fan_rays(kinks) if len(kinks) else np.zeros((0, case.X.shape[1]))
    assert rays is not None
    ratios = [0.0]
    for ray in np.concatenate([rays, -rays]):
        dW = torch.zeros_like(case.block.W)
        dW[neuron] = torch.tensor(ray)
        D = pulls(case, dW)[neuron]
        slope = float(case.block.H[:, neuron] @ D)
        ratios.append(float(D.norm()) / slope if slope > 1e-6 * float(D.norm()) else 0.0)
    return max(ratios)


def moved(block: ShallowBlock, dW: Tensor, dH: Tensor) -> ShallowBlock:
    return ShallowBlock(block.W + dW, block.H + dH, block.slopes, block.output_bias)


@pytest.mark.parametrize("name", MAKERS)
def test_a_move_in_the_cell_costs_at_least_what_slopes_and_pulls_add_up_to(name: str) -> None:
    torch.manual_seed(0)
    asked = 0
    for case, _ in stationary_points(name):
        before = float(case.value(case.block))
        for _ in range(MOVES):
            dW = in_the_cell(case, torch.randn_like(case.block.W))
            dH = torch.randn_like(case.block.H)
            D = pulls(case, dW)
            least = float(((case.block.H + dH).T * D).sum())
            after = float(case.value(moved(case.block, dW, dH)))
            assert after - before >= least - 1e-9 * (1 + abs(before) + abs(least))
            asked += 1
    assert asked >= 3 * MOVES


@pytest.mark.parametrize("name", MAKERS)
def test_no_move_within_the_radius_lowers_a_convex_loss(name: str) -> None:
    torch.manual_seed(0)
    asked = 0
    for case, kind in stationary_points(name):
        if kind != "local minimum":
            continue
        before = float(case.value(case.block))
        radius = torch.tensor([1 / max(largest_ratio(case, i), 1e-3) for i in range(len(case.block.W))])
        for _ in range(MOVES):
            dW = in_the_cell(case, torch.randn_like(case.block.W))
            dH = radius * torch.nn.functional.normalize(torch.randn_like(case.block.H), dim=0)
            after = float(case.value(moved(case.block, dW, dH)))
            assert after - before >= -1e-9 * (1 + abs(before))
            asked += 1
    assert asked >= MOVES


def shares(case: Case, block: ShallowBlock) -> Tensor:
    """What each neuron of a network adds, loss gradients held at those of the case: ``Psi``, shape ``(I,)``."""
    D = rho(case.X @ block.W.T, block.slopes).T @ case.loss.gradient(case.block(case.X))
    return (block.H.T * D).sum(dim=1) + case.mu / 2 * (block.W.square().sum(dim=1) + block.H.square().sum(dim=0))


@pytest.mark.parametrize("name", MAKERS)
def test_with_decay_no_network_of_any_width_is_below_what_its_neurons_add_up_to(name: str) -> None:
    torch.manual_seed(0)
    for number in range(POINTS):
        case = decayed_case(name, 11, number)
        own = shares(case, case.block)
        assert float(own.abs().max()) <= 1e-9 * (1 + case.mu), "at a stationary point every share is zero"
        before = float(case.value(case.block))
        for width in range(1, 9):
            W, H = (torch.randn(width, n, dtype=torch.float64) for n in (case.X.shape[1], len(case.block.H)))
            other = ShallowBlock(W, H.T, case.block.slopes)
            after, least = float(case.value(other)), float(shares(case, other).sum() - own.sum())
            assert after - before >= least - 1e-9 * (1 + abs(before) + abs(least))
