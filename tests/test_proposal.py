"""Which growth is proposed at a local minimum: its gain by hand, its drop as predicted, and where it leads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.experiments import ReferenceRegression, gradient_descent_


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def held_by_a_kink(beside: float = 0.0) -> tuple[ShallowBlock, Tensor, Tensor]:
    """One neuron that fits its first sample and is held by the kink of the second one, at a small angle from it."""
    block = ShallowBlock(tensor([math.cos(beside), -math.sin(beside)]), tensor([1.0]))
    return block, tensor([1.0, 0.0], [0.0, 1.0]), tensor([math.cos(beside)], [-1.0])


@pytest.mark.parametrize("beside", [0.0, 1e-9, 1e-3, 0.04])
def test_gain_of_a_replica_is_its_largest_slope_whichever_side_of_the_kink_the_neuron_rests_on(beside: float) -> None:
    """Across the kink the second output rises, and L' = 2 / N (0 + 1) = 1; the copy with -1/2 gains half of that."""
    proposals = F.growth_proposals(*held_by_a_kink(beside))
    replica = next(one for one in proposals if one.kind == "replication")
    assert replica.gain == pytest.approx(0.5, rel=1e-2 + 2 * beside)
    assert (replica.unit, replica.gamma) == (0, (1.5, -0.5))
    assert replica.displacement[1] > beside
    assert replica.measured_drop > 0


def test_a_kink_out_of_reach_gains_nothing() -> None:
    proposals = F.growth_proposals(*held_by_a_kink(0.04), reach=0.03)
    assert [one.kind for one in proposals] == ["inactive propagation"]


def test_gain_of_a_new_neuron_is_that_of_the_best_extremal_direction() -> None:
    block, X, Y = held_by_a_kink()
    new = next(one for one in F.growth_proposals(block, X, Y) if one.kind == "inactive propagation")
    best = F.extremal_directions(X, F.squared_error_signal(block, X, Y).G, block.slopes)
    assert new.gain == pytest.approx(float(best.gain[0]))
    assert_close(new.new_block.W[-1] / new.new_block.W[-1].norm(), best.v[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_drops_are_those_of_the_loss(reduction: F.block.Reduction) -> None:
    block, X, Y = stuck_five_points()
    before = F.squared_loss(block, X, Y, reduction)
    proposals = F.growth_proposals(block, X, Y, reduction)
    assert {one.kind for one in proposals} == {"replication", "inactive propagation"}
    assert [one.gain for one in proposals] == sorted((one.gain for one in proposals), reverse=True)
    for one in proposals:
        # A drop a thousand times smaller than the loss, off by the rounding of the loss.
        assert before - F.squared_loss(one.new_block, X, Y, reduction) == pytest.approx(one.measured_drop, rel=1e-9)
        assert 0 < one.measured_drop <= one.predicted_drop
        assert (one.new_block(X) - block(X)).abs().max() == pytest.approx(one.function_change)
        assert_close(one.embed(block)(X), one.new_block(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_a_nudge_the_function_stays(dtype: torch.dtype) -> None:
    block, X, Y = stuck_five_points()
    block, X, Y = ShallowBlock(block.W.to(dtype), block.H.to(dtype)), X.to(dtype), Y.to(dtype)
    for one in F.growth_proposals(block, X, Y, nudge=False):
        assert one.function_change <= (1e-15 if dtype == torch.float64 else 1e-6)
        assert one.predicted_drop == 0
        assert one.new_block.W.dtype == dtype
        assert len(one.new_block.W) == 51


def test_many_samples_within_reach_are_no_obstacle() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.cat([torch.randn(5000, 3, generator=generator), torch.ones(5000, 1)], dim=1).double()
    block = ShallowBlock(*(torch.randn(*size, generator=generator).double() for size in ((6, 4), (2, 6))))
    proposals = F.growth_proposals(block, X, torch.randn(5000, 2, generator=generator).double())
    assert sum(one.kind == "replication" for one in proposals) == 6


def test_at_zero_loss_there_is_nothing_to_gain() -> None:
    block, X, _ = held_by_a_kink()
    assert F.growth_proposals(block, X, block(X)) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [({"reach": 0.0}, "`reach` is an angle"), ({"reach": 1.0}, "`reach`"), ({"gamma": (1.0, 0.5)}, "add up to 1")],
)
def test_bad_settings_are_named(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        F.growth_proposals(*held_by_a_kink(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replication", "inactive propagation"])
def test_five_points_grow_to_zero_loss_where_a_plain_copy_never_moves(kind: str) -> None:
    block, X, Y = stuck_five_points()
    plain = F.replicate_unit(block, 12, (1.0, 1.0), (1.5, -0.5))
    descend(plain, X, Y, 50_000)
    assert float(F.squared_loss(plain, X, Y)) == pytest.approx(0.02789, rel=1e-3)
    first = next(one for one in F.growth_proposals(block, X, Y) if one.kind == kind)
    assert first.unit == (12 if kind == "replication" else None)
    descend(first.new_block, X, Y, 70_000)
    assert float(F.squared_loss(first.new_block, X, Y)) == pytest.approx(0.01876, rel=1e-4)
    second = next(one for one in F.growth_proposals(first.new_block, X, Y) if one.kind == kind)
    descend(second.new_block, X, Y, 70_000)
    assert float(F.squared_loss(second.new_block, X, Y)) < 1e-20


def stuck_five_points() -> tuple[ShallowBlock, Tensor, Tensor]:
    module = ReferenceRegression("five_points")
    X, Y = module.problem.tensors()
    block = ShallowBlock(module.block.W.clone(), module.block.H.clone())
    descend(block, X, Y, 25_000)
    return block, X, Y


def descend(block: ShallowBlock, X: Tensor, Y: Tensor, steps: int) -> None:
    """At twenty times the learning rate of the reference run."""
    gradient_descent_(block, X, Y, 0.02 * 2 / len(X), steps)
