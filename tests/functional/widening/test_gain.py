"""Gains of growth under the cross-entropy against the loss itself, evaluated along every direction, kinks included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.reference import SLOPES, kinked_problem, limit_derivative, tangent_basis
from torch import Tensor
from torch.nn import functional

from relu_diag import ShallowBlock
from relu_diag import functional as F


def classifier(seed: int, slopes: tuple[float, float]) -> tuple[ShallowBlock, Tensor, Callable[[Tensor], Tensor]]:
    """Three classes, each of four neurons with two samples on its kink."""
    problem = kinked_problem(seed, slopes, outputs=3)
    labels = torch.randint(3, (len(problem.X),), generator=torch.Generator().manual_seed(seed))
    return problem.block, problem.X, lambda outputs: functional.cross_entropy(outputs, labels)


def slope_along(block: ShallowBlock, X: Tensor, loss: Callable[[Tensor], Tensor], neuron: int, v: Tensor) -> float:
    D = torch.zeros_like(block.W)
    D[neuron] = v
    return limit_derivative(lambda W: loss(replace(block, W=W)(X)), block.W, D)


@pytest.mark.parametrize("slopes", SLOPES)
def test_gain_of_a_copy_is_the_steepest_one_sided_derivative_of_the_loss(slopes: tuple[float, float]) -> None:
    """Every tangential direction of either copy is tried."""
    block, X, loss = classifier(0, slopes)
    angles = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = [one for one in F.growth_proposals(block, X, loss, reach=1e-8, nudge=False) if one.unit is not None]
    assert len(found) > 1
    for one in found:
        V = circle @ torch.as_tensor(tangent_basis(block.W[one.unit]))
        steepest = min(slope_along(one.new_block, X, loss, copy, v) for copy in (one.unit, -1) for v in V)
        assert one.gain >= -steepest - 1e-6
        # Between directions 2 pi / 400 apart the slope beside a kink changes by a hundredth.
        assert one.gain == pytest.approx(-steepest, rel=1e-2)


@pytest.mark.parametrize("slopes", SLOPES)
def test_the_copy_that_moves_goes_the_way_its_gain_says(slopes: tuple[float, float]) -> None:
    block, X, loss = classifier(2, slopes)
    found = [one for one in F.growth_proposals(block, X, loss, reach=1e-8) if one.unit is not None]
    assert found
    for one in found:
        w = block.W[one.unit]
        toward = one.displacement - (one.displacement @ w) / w.square().sum() * w
        still = F.replicate_unit(block, one.unit, one.beta, one.gamma)
        slope = slope_along(still, X, loss, -1, toward / toward.norm())
        assert one.gain == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize("slopes", SLOPES)
def test_gain_of_a_new_neuron_is_the_derivative_in_its_amplitude(slopes: tuple[float, float]) -> None:
    block, X, loss = classifier(3, slopes)
    best = next(one for one in F.growth_proposals(block, X, loss) if one.unit is None)
    new, gain = best.new_block, best.gain
    still = replace(new, H=new.H.clone(), W=new.W.clone())
    still.W[-1] /= still.W[-1].norm()
    still.H[:, -1] = 0
    D = torch.zeros_like(still.H)
    D[:, -1] = new.H[:, -1] / new.H[:, -1].norm()
    slope = limit_derivative(lambda H: loss(replace(still, H=H)(X)), still.H, D)
    assert gain == pytest.approx(-slope, rel=1e-6)
