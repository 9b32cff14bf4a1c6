"""Neuron states against their definitions, effective neurons against union-find."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.reference import (
    SLOPES,
    Problem,
    activation,
    groups_by_union_find,
    kinked_problem,
    problems,
    same_partition,
    states_by_definition,
)
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag.functional import neuron_states
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import neuron_sums, states_from_sums, target_scale
from relu_diag.functional.local import neurons as neurons_module


def named(states: object, count: int) -> list[str]:
    return [next((name for name in ("dead", "brink", "linear") if getattr(states, name)[i]), "") for i in range(count)]


def one_neuron(w: list[float], slopes: tuple[float, float] = (0.0, 1.0), h: float = 1.0) -> ShallowBlock:
    return ShallowBlock(torch.tensor([w]).double(), torch.tensor([[h]]).double(), slopes)


POSITIVE = torch.tensor([[1.0, 2.0], [2.0, 0.5], [0.1, 3.0]]).double()
TOUCHING = torch.tensor([[1.0, 2.0], [0.0, 0.5], [0.1, 3.0]]).double()


@pytest.mark.parametrize(
    ("X", "w", "slopes", "state"),
    [
        (POSITIVE, [-1.0, 0.0], (0.0, 1.0), "dead"),
        (POSITIVE, [1.0, 0.0], (0.0, 1.0), "linear"),
        (POSITIVE, [1.0, -1.0], (0.0, 1.0), ""),
        (TOUCHING, [-1.0, 0.0], (0.0, 1.0), "brink"),
        (TOUCHING, [1.0, 0.0], (0.0, 1.0), ""),
        (POSITIVE, [0.0, 0.0], (0.0, 1.0), "brink"),
        (POSITIVE, [1.0, 0.0], (1.0, 0.0), "dead"),
        (POSITIVE, [-1.0, 0.0], (1.0, 0.0), "linear"),
        (TOUCHING, [1.0, 0.0], (1.0, 0.0), "brink"),
        (POSITIVE, [-1.0, 0.0], (0.1, 1.0), "linear"),
        (POSITIVE, [1.0, 0.0], (-1.0, 1.0), "linear"),
        (TOUCHING, [1.0, 0.0], (-1.0, 1.0), ""),
        (POSITIVE, [0.0, 0.0], (0.1, 1.0), "brink"),
        (POSITIVE[:, :1] * torch.tensor([[0.0, 1.0]]), [1.0, 0.0], (0.1, 1.0), "brink"),
    ],
)
def test_states_are_as_the_table_says(X: Tensor, w: list[float], slopes: tuple[float, float], state: str) -> None:
    block = one_neuron(w, slopes)
    states = neuron_states(block, X.double(), torch.ones(3, 1))
    assert named(states, 1) == [state] == states_by_definition(block, X.double())
    assert int(states.dead) + int(states.brink) + int(states.linear) == bool(state)


@given(problems(), st.booleans())
def test_states_are_the_definitions_sample_by_sample(problem: Problem, positive: bool) -> None:
    """Of random neurons few are dead or linear; on data in a half-space many are."""
    X = problem.X.abs() if positive else problem.X
    block = replace(
        problem.block, W=problem.block.W.abs() * torch.tensor([1.0, -1, 1, -1])[: len(problem.block.W), None]
    )
    block = block if positive else problem.block
    found = neuron_states(block, X, problem.Y)
    assert named(found, len(block.W)) == states_by_definition(block, X)


@pytest.mark.parametrize("slopes", SLOPES)
def test_samples_at_zero_are_no_reason_to_be_on_the_brink(slopes: tuple[float, float]) -> None:
    """No weight moves them off the kink: what counts is the samples that move."""
    block = one_neuron([-1.0, 0.0], slopes)
    padded = torch.cat([POSITIVE, torch.zeros(2, 2)]).double()
    one, two = (neuron_states(block, X, torch.ones(len(X), 1)) for X in (POSITIVE, padded))
    assert named(one, 1) == named(two, 1)


@pytest.mark.parametrize("slopes", SLOPES)
def test_only_samples_at_zero_leave_finite_states(slopes: tuple[float, float]) -> None:
    for h in (0.0, 1.0):
        states = neuron_states(one_neuron([1.0, 0.0], slopes, h), torch.zeros(3, 2).double(), torch.ones(3, 1))
        assert int(states.dead) + int(states.brink) == 1
        assert not states.linear
        assert states.small_living == ~states.dead
        assert states.dormancy.tolist() == [0.0]
        assert states.group_amplitude.isfinite().all()


def test_dead_neurons_keep_the_loss_under_any_small_move() -> None:
    problem = kinked_problem(0, d=3, neurons=6, kinks=0)
    problem = replace(problem, X=problem.X.abs(), block=replace(problem.block, W=-problem.block.W.abs()))
    assert neuron_states(problem.block, problem.X, problem.Y).dead.all()
    W = problem.block.W + 1e-3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(problem.loss(W, problem.block.H), problem.loss(problem.block.W, problem.block.H))


@given(problems())
def test_scores_are_their_definitions(problem: Problem) -> None:
    block = problem.block
    states = neuron_states(block, problem.X, problem.Y)
    w_norm, h_norm = block.W.norm(dim=1), block.H.norm(dim=0)
    assert_close(states.amplitude, w_norm * h_norm)
    assert_close(states.balancedness, w_norm**2 - h_norm**2)
    mean = activation(problem.X @ block.W.T, block.slopes).abs().mean(dim=0)
    assume(mean.mean() > 1e-6)
    assert_close(states.dormancy, mean / mean.mean())
    tau = float(states.dormancy.median())
    assert states.dormant(tau).tolist() == (mean <= tau * mean.mean() * (1 + 1e-12)).tolist()


@given(problems(), st.floats(1e-3, 1.0), st.floats(0.01, 1.5))
def test_small_living_neurons_are_those_of_groups_that_contribute_little(
    problem: Problem, small: float, angle: float
) -> None:
    block = problem.block
    states = neuron_states(block, problem.X, problem.Y, group_angle=angle, small=small)
    living = [i for i in range(len(block.W)) if not states.dead[i]]
    A = activation(problem.X @ block.W.T, block.slopes).abs()
    labels = dict(zip(living, groups_by_union_find(block.W[living], angle), strict=True))
    for i in range(len(block.W)):
        members = [k for k in living if labels[k] == labels[i]] if i in living else []
        contribution = sum(float(block.H[:, k].norm() * A[:, k].max()) for k in members)
        threshold = small * float(problem.Y.square().mean().sqrt())
        assume(abs(contribution - threshold) > 1e-9)
        assert bool(states.small_living[i]) == (i in living and contribution <= threshold)


def test_members_of_a_grown_group_are_not_small_however_small_they_are() -> None:
    W = torch.tensor([[1.0, 0.0], [1e-6, 1e-9], [0.0, 1e-6], [0.0, 0.0]]).double()
    states = neuron_states(ShallowBlock(W, torch.ones(1, 4).double()), torch.eye(2).double(), torch.ones(2, 1))
    assert states.small_living.tolist() == [False, False, True, True]
    assert states.group.tolist() == [0, 0, 1, -1]
    assert_close(states.group_amplitude, torch.tensor([1 + 1e-6, 1e-6]).double())


@pytest.mark.parametrize(("w", "angle"), [([1.0, 0.0], 0.0), ([0.0, 2.0], math.pi / 2), ([-1.0, 0.0], math.pi)])
def test_angles_run_counterclockwise_from_the_first_axis(w: list[float], angle: float) -> None:
    assert_close(float(neuron_states(one_neuron(w), POSITIVE, torch.ones(3, 1)).angle), angle)


def test_angles_stay_below_a_full_turn() -> None:
    states = neuron_states(one_neuron([1.0, -1e-17]), POSITIVE, torch.ones(3, 1))
    assert 0 <= float(states.angle) < 2 * math.pi
    one_input = ShallowBlock(torch.tensor([[-2.0], [3.0]]), torch.ones(1, 2))
    assert neuron_states(one_input, torch.ones(1, 1), torch.ones(1, 1)).angle.tolist() == pytest.approx([math.pi, 0])


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 4), st.sampled_from([0.0, 1e-7, 0.02, 0.3, 3.0]))
def test_effective_neurons_are_the_connected_components(seed: int, count: int, d: int, angle: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, d, generator=generator, dtype=torch.float64)
    W = centres[torch.randint(5, (count,), generator=generator)]
    W = W + 0.7 * angle * torch.randn(count, d, generator=generator).double() / math.sqrt(d)
    W = W * torch.rand(count, 1, generator=generator).double().add(0.1)
    states = neuron_states(
        ShallowBlock(W, torch.ones(1, count).double(), (0.1, 1.0)), W[:1], torch.ones(1, 1), group_angle=angle
    )
    if angle:  # where the angle is zero, rounding of the unit vectors decides in union-find
        assert same_partition(states.group.tolist(), groups_by_union_find(W, angle))
    else:
        assert same_partition(states.group.tolist(), groups_by_union_find(W, 1e-12))
    sums = torch.zeros(int(states.group.max()) + 1).double().index_add_(0, states.group, states.amplitude)
    assert_close(states.group_amplitude, sums)
    assert states.group_amplitude.tolist() == sorted(states.group_amplitude.tolist(), reverse=True)


def test_groups_are_the_same_however_few_rows_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block, X = ShallowBlock(W, torch.ones(1, 60).double(), (0.1, 1.0)), W[:3]
    whole = neuron_states(block, X, torch.ones(3, 1))
    monkeypatch.setattr(neurons_module, "BUDGETS", replace(BUDGETS, pairs=1))
    by_row = neuron_states(block, X, torch.ones(3, 1))
    assert 1 < len(whole.group_amplitude) < 60
    assert torch.equal(whole.group, by_row.group)


def test_a_chain_of_close_directions_is_one_group() -> None:
    angle = torch.arange(0, 1.0, 0.04).double()
    W = torch.stack([angle.cos(), angle.sin()], dim=1)
    block = ShallowBlock(W, torch.ones(1, len(W)).double())
    assert neuron_states(block, POSITIVE, torch.ones(3, 1), group_angle=0.05).group.tolist() == [0] * len(W)
    assert len(neuron_states(block, POSITIVE, torch.ones(3, 1), group_angle=0.03).group_amplitude) == len(W)


def test_angles_too_small_for_a_cosine_still_divide() -> None:
    W = torch.tensor([[1.0, 0.0], [1.0, 3e-9]]).double()
    block = ShallowBlock(W, torch.ones(1, 2).double())
    for angle, groups in ((1e-8, 1), (1e-9, 2)):
        assert len(neuron_states(block, POSITIVE, torch.ones(3, 1), group_angle=angle).group_amplitude) == groups


@pytest.mark.parametrize("aligned", [True, False])
def test_thousands_of_neurons_are_grouped(aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7 if aligned else 6000, 20, generator=generator).double()
    label = torch.arange(6000) % len(centres)
    W = centres[label] * (1 + torch.rand(6000, 1, generator=generator).double())
    block = ShallowBlock(W, torch.ones(1, 6000).double(), (0.1, 1.0))
    states = neuron_states(block, W[:1], torch.ones(1, 1))
    assert same_partition(states.group.tolist(), label.tolist())


@given(problems())
def test_states_follow_the_neurons_and_not_their_scale(problem: Problem) -> None:
    block, order = problem.block, torch.randperm(len(problem.block.W), generator=torch.Generator().manual_seed(0))
    moved = replace(block, W=7 * block.W[order], H=block.H[:, order] / 7)
    one, two = neuron_states(block, problem.X, problem.Y), neuron_states(moved, problem.X, problem.Y)
    for name in ("dead", "brink", "linear", "small_living", "angle", "amplitude"):
        assert_close(getattr(one, name)[order], getattr(two, name))
    assert same_partition(one.group[order].tolist(), two.group.tolist())


def test_states_of_batches_are_the_states_of_all() -> None:
    problem = kinked_problem(1, d=3, outputs=2)
    parts = [
        neuron_sums(problem.block, replace(problem.signal, X=problem.X[rows], G=problem.signal.G[rows]))
        for rows in (slice(5), slice(5, None))
    ]
    one = states_from_sums(problem.block, parts[0] + parts[1], target_scale(problem.Y))
    two = neuron_states(problem.block, problem.X, problem.Y)
    for name in ("dead", "brink", "linear", "small_living", "dormancy", "group"):
        assert_close(getattr(one, name), getattr(two, name))


def test_scale_of_targets_is_their_root_mean_square_and_one_for_labels() -> None:
    assert target_scale(torch.tensor([[3.0, -4.0]])) == pytest.approx(math.sqrt(12.5))
    assert target_scale(torch.tensor([3, 7])) == 1.0
    assert target_scale(torch.tensor([True])) == 1.0


@pytest.mark.parametrize("Y", [torch.full((3, 1), torch.nan), torch.full((3, 1), torch.inf)])
def test_targets_that_are_not_finite_are_refused(Y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`Y` needs at least one target and finite ones; their root mean square is"):
        neuron_states(one_neuron([1.0, 0.0]), POSITIVE, Y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Y": torch.ones(4, 1)}, ValueError, r"`Y` needs one row per sample: X is \(3, 2\), Y is \(4, 1\)"),
        ({"X": POSITIVE.long()}, TypeError, r"`X` must be floating point; got torch.int64"),
        ({"X": POSITIVE.float()}, ValueError, r"`X` is torch.float32, `W` is torch.float64: convert one"),
        ({"X": POSITIVE / 0}, ValueError, r"`X` has NaN or infinite entries"),
        ({"X": POSITIVE[:, :1]}, ValueError, r"`X` needs 2 columns .* Append a column of ones"),
        ({"X": POSITIVE[:0], "Y": torch.ones(0, 1)}, ValueError, r"`X` must be a matrix with at least one row"),
        ({"X": POSITIVE.to("meta")}, ValueError, r"`X` is on meta, `W` on cpu"),
        ({"X": [[1.0, 2.0]]}, TypeError, r"`X` must be a torch.Tensor; got list"),
        ({"group_angle": -0.1}, ValueError, r"`group_angle` is an angle in \[0, pi\] rad; got -0.1"),
        ({"group_angle": float("nan")}, ValueError, r"`group_angle` is an angle in \[0, pi\] rad; got nan"),
        ({"small": -1.0}, ValueError, r"`small` and `scale` must be finite and not negative; got -1.0 and 1.0"),
        ({"small": float("nan")}, ValueError, r"`small` and `scale` must be finite"),
    ],
)
def test_states_of_bad_input_are_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        neuron_states(**{"block": one_neuron([1.0, 0.0]), "X": POSITIVE, "Y": torch.ones(3, 1), **change})  # type: ignore[arg-type]


def test_answer_in_one_line() -> None:
    problem = kinked_problem(2)
    states = neuron_states(problem.block, problem.X, problem.Y)
    assert str(states) == "4 neurons: 0 dead, 0 on the brink, 0 linear, 0 small living; 4 effective neurons"
