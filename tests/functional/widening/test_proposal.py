"""Which growth is proposed at a local minimum: its gain by hand, its drop as predicted, and where it leads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.tensors import tensor
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.experiments import ReferenceRegression, gradient_descent_


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


def test_a_new_neuron_is_as_large_as_lowers_the_loss_most() -> None:
    """At amplitude a the loss is L - gain a + ||change per amplitude||^2 a^2 / (N J): half the first order is left."""
    block, X, Y = stuck_five_points()
    new = next(one for one in F.growth_proposals(block, X, Y) if one.kind == "inactive propagation")
    amplitude = new.new_block.W[-1].norm() * new.new_block.H[:, -1].norm()
    per_amplitude = (new.new_block(X) - block(X)) / amplitude
    assert_close(amplitude, new.gain * Y.numel() / (2 * per_amplitude.square().sum()))
    assert new.measured_drop == pytest.approx(new.predicted_drop / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_drops_are_those_of_the_loss(reduction: F.block.Reduction) -> None:
    block, X, Y = stuck_five_points()
    before = F.squared_loss(block, X, Y, reduction)
    proposals = F.growth_proposals(block, X, Y, reduction)
    assert {one.kind for one in proposals} == {"replication", "inactive propagation"}
    assert [one.measured_drop for one in proposals] == sorted((one.measured_drop for one in proposals), reverse=True)
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
    proposals = F.growth_proposals(block, X, Y, nudge=False)
    assert [one.gain for one in proposals] == sorted((one.gain for one in proposals), reverse=True)
    for one in proposals:
        assert one.function_change <= (1e-15 if dtype == torch.float64 else 1e-6)
        assert one.predicted_drop == 0
        assert one.new_block.W.dtype == dtype
        assert len(one.new_block.W) == 51


def classifier() -> tuple[ShallowBlock, Tensor, Callable[[Tensor], Tensor]]:
    """Three classes, two neurons of which the first has a sample on its kink, under the cross-entropy."""
    generator = torch.Generator().manual_seed(3)
    X = torch.cat([torch.randn(12, 3, generator=generator), torch.ones(12, 1)], dim=1).double()
    block = ShallowBlock(*(torch.randn(*size, generator=generator).double() for size in ((2, 4), (3, 2))))
    block.W[0] -= (block.W[0] @ X[5]) / X[5].square().sum() * X[5]
    classes = torch.randint(3, (12,), generator=generator)
    return block, X, lambda outputs: functional.cross_entropy(outputs, classes)


def test_gains_under_any_loss_are_its_one_sided_derivatives() -> None:
    block, X, loss = classifier()
    t = 1e-7
    for one in F.growth_proposals(block, X, loss, reach=1e-6):
        if one.unit is None:
            v, o = one.new_block.W[-1], one.new_block.H[:, -1]
            change = t * torch.outer(torch.relu(X @ (v / v.norm())), o / o.norm())
        else:
            w, moved = block.W[one.unit], one.new_block.W[-1]
            along = moved - (moved @ w) / w.square().sum() * w
            copy = torch.relu(X @ (w + t * along / along.norm())) - torch.relu(X @ w)
            change = torch.outer(copy, one.new_block.H[:, -1])
        slope = (loss(block(X) + change) - loss(block(X))) / t
        assert -float(slope) == pytest.approx(one.gain, rel=1e-5)
        assert float(loss(block(X)) - loss(one.new_block(X))) == pytest.approx(one.measured_drop, rel=1e-9)


def test_squared_error_is_one_loss_among_others() -> None:
    block, X, Y = stuck_five_points()
    known = F.growth_proposals(block, X, Y)
    found = F.growth_proposals(block, X, lambda outputs: functional.mse_loss(outputs, Y))
    assert len(found) == len(known)
    for one, other in zip(found, known, strict=True):
        assert one.unit == other.unit
        assert one.gain == pytest.approx(other.gain)
        # The best of a flat top, and a drop that is a difference of losses.
        assert one.measured_drop == pytest.approx(other.measured_drop, rel=1e-6, abs=1e-12)


def test_only_the_candidates_are_evaluated() -> None:
    block, X, loss = classifier()
    calls = []
    proposals = F.growth_proposals(block, X, lambda outputs: (calls.append(0), loss(outputs))[1], candidates=1)
    assert len([one for one in proposals if one.kind == "replication"]) == 1
    assert len(calls) < 50


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda outputs: outputs.sum() * math.nan, "must be a finite number"),
        (lambda outputs: outputs, "must be a finite number"),
        (lambda outputs: outputs.detach().sum(), "computed from the outputs"),
    ],
)
def test_a_loss_without_a_slope_is_refused(loss: Callable[[Tensor], Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        F.growth_proposals(*classifier()[:2], loss)


def test_many_samples_within_reach_are_no_obstacle() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.cat([torch.randn(5000, 3, generator=generator), torch.ones(5000, 1)], dim=1).double()
    block = ShallowBlock(*(torch.randn(*size, generator=generator).double() for size in ((6, 4), (2, 6))))
    proposals = F.growth_proposals(block, X, torch.randn(5000, 2, generator=generator).double())
    assert {one.unit for one in proposals} == {None, *range(6)}


def test_at_zero_loss_there_is_nothing_to_gain() -> None:
    block, X, _ = held_by_a_kink()
    assert F.growth_proposals(block, X, block(X)) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reach": 0.0}, "`reach` is an angle"),
        ({"reach": 1.0}, "`reach`"),
        ({"gamma": (1.0, 0.5)}, "add up to 1"),
        ({"candidates": 0}, "`candidates` must be a positive number"),
    ],
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
