"""What the new neurons that are proposed achieve, against a dense search of directions and amplitudes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from relu_diag import ShallowBlock
from relu_diag import functional as F

SLOPES = [(0.0, 1.0), (0.01, 1.0), (-1.0, 1.0), (1.0, -0.5)]


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def best_sampled_drop(block: ShallowBlock, X: Tensor, Y: Tensor, draw: torch.Generator) -> float:
    """The largest drop of the mean squared error by one neuron of 20,000 directions, its output weights fitted."""
    V = normalize(normal(draw, 20_000, X.shape[1]), dim=1)
    Z = V @ X.T
    A = torch.where(Z >= 0, block.slopes[1] * Z, block.slopes[0] * Z)
    fitted = (A @ (block(X) - Y)).square().sum(dim=1) / A.square().sum(dim=1).clamp(min=1e-300)
    return float(fitted.max()) / Y.numel()


@pytest.mark.parametrize("seed", range(40))
def test_best_new_neuron_achieves_nearly_what_any_direction_does(seed: int) -> None:
    """Samples of unlike lengths: the direction that gains most at first achieves under half of it in one of five."""
    draw = torch.Generator().manual_seed(seed)
    samples, d, outputs = 2 + seed % 8, 2 + seed % 4, 1 + seed % 2
    X = normal(draw, samples, d) * 10 ** (normal(draw, samples, 1) * (seed % 3) / 2)
    Y = normal(draw, samples, outputs)
    block = ShallowBlock(normal(draw, 2, d), 0.1 * normal(draw, outputs, 2), SLOPES[seed % 4])
    best = max(one.measured_drop for one in F.growth_proposals(block, X, Y) if one.unit is None)
    assert best > 0.9 * best_sampled_drop(block, X, Y, draw)


@pytest.mark.parametrize("seed", range(8))
def test_every_extremal_direction_is_offered_at_its_best_amplitude(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    X, Y = normal(draw, 7, 3), normal(draw, 7, 2)
    block = ShallowBlock(normal(draw, 3, 3), normal(draw, 2, 3))
    found = F.extremal_directions(X, F.squared_error_signal(block, X, Y).G, block.slopes)
    new = [one for one in F.growth_proposals(block, X, Y) if one.unit is None]
    W = normalize(torch.stack([one.new_block.W[-1] for one in new]), dim=1)
    assert torch.cdist(found.v, W).amin(dim=1).max() < 1e-6
    for one in new:
        w, h = one.new_block.W[-1], one.new_block.H[:, -1]
        for factor in (0.9, 1.1):
            H = torch.cat([block.H, factor * h[:, None]], dim=1)
            other = ShallowBlock(torch.cat([block.W, w[None]]), H, block.slopes)
            assert F.squared_loss(other, X, Y) > F.squared_loss(one.new_block, X, Y)


@pytest.mark.parametrize("offset", [-3.0, 0.0, 1e3])
def test_any_loss_may_have_any_value(offset: float) -> None:
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    block = ShallowBlock(torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 1).double())
    Y = torch.tensor([[1.0], [-1e-3]]).double()
    start = float((block(X) - Y).square().sum())
    best = F.growth_proposals(block, X, lambda outputs: (outputs - Y).square().sum() - start + offset)[0]
    assert best.measured_drop == pytest.approx(1e-6, rel=1e-6)


def test_a_network_of_zeros_is_given_a_neuron_of_length_one() -> None:
    X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
    block = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
    still = F.growth_proposals(block, X, Y, nudge=False)
    assert float(still[0].new_block.W[-1].norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_known_loss_gives_the_proposals_of_the_same_function_with_more_digits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    X, W, H = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((20, 3), (4, 3), (3, 4)))
    labels = torch.randint(3, (20,), generator=generator)
    block = ShallowBlock(W, H)
    known = F.growth_proposals(block, X, F.CrossEntropy(labels))
    found = F.growth_proposals(block, X, lambda outputs: torch.nn.functional.cross_entropy(outputs, labels))
    assert [one.unit for one in known[:3]] == [one.unit for one in found[:3]]
    assert known[0].measured_drop == pytest.approx(found[0].measured_drop, rel=1e-6)
    own = F.growth_proposals(block, X, F.OutputLoss(lambda outputs: torch.nn.functional.cross_entropy(outputs, labels)))
    assert [one.measured_drop for one in own] == [one.measured_drop for one in found]
