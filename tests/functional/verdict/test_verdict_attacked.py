"""Kinds of fault that the attack found, each as a family of problems: none of them comes back.

Folder `support/attack/found` keeps problems of long runs that had complaints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import attack as folder
from support.attack.changes import permuted, quartered, rotated, with_dead_neuron, with_zero_sample
from support.attack.checks import Record, attack, check_witness, truth_of
from support.attack.families import problem_of
from support.attack.problem import Problem

from relu_diag import functional as F
from relu_diag.functional.verdict._orthant import _cone_descents
from relu_diag.functional.verdict._path import _first_rise


def verdict_of(problem: Problem) -> F.Verdict:
    return F.classify(problem.block(), *problem.data(), problem.reduction)


def found_before(name: str) -> Problem:
    """A problem of a run, as it was: linear programs may end elsewhere on another machine."""
    return Problem.load(Path(folder.__file__).parent / "found" / f"{name}.npz")


@pytest.mark.parametrize("name", ["rounding_residuals_40605_0", "rounding_residuals_41105_14", "mixed_40701_10"])
def test_verdicts_that_a_sample_at_zero_changed_are_kept(name: str) -> None:
    problem = found_before(name)
    other = with_zero_sample(np.random.default_rng(0), problem)
    assert len(other.X) > len(problem.X)
    assert verdict_of(other).kind == verdict_of(problem).kind


@pytest.mark.parametrize("family", ["rounding residuals", "long samples", "integers", "rescaled"])
def test_a_sample_at_zero_that_no_weight_reaches_changes_nothing(family: str) -> None:
    joined = 0
    for number in range(25):
        problem = problem_of(family, seed=7, number=number)
        other = with_zero_sample(np.random.default_rng(number), problem)
        if other is problem:
            continue
        joined += 1
        before, after = verdict_of(problem), verdict_of(other)
        assert after.kind == before.kind, f"{number}: {before} -> {after}"
        assert after.margins == before.margins
        assert after.loss >= before.loss
    assert joined > 5


def test_what_no_weight_reaches_counts_in_the_loss_and_hides_no_minimum() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    block = F.ShallowBlock(torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    assert F.classify(block, X, Y, "sum").theorem == "zero loss"
    found = F.classify(block, torch.cat([X, 0 * X[:1]]), torch.cat([Y, Y.new_tensor([[3.0]])]), "sum")
    assert (found.kind, found.loss) == ("global minimum", 9.0)
    assert found.theorem == "convexity in the outputs"
    assert F.classify(block, torch.cat([X, 0 * X[:1]]), torch.cat([Y, 0 * Y[:1]]), "sum").theorem == "zero loss"


# More rays of slope zero than one form holds, none that bends down alone, or a silent neuron in units of its own.
CROWDED = ["dead_giant_40101_24", "dead_giant_40805_18", "dead_giant_41203_15", "units_40106_3", "unseen_giant_5_21"]


@pytest.mark.parametrize("name", CROWDED)
def test_a_fall_along_crowded_rays_is_found_in_any_order(name: str) -> None:
    for draw in range(4):
        assert verdict_of(permuted(np.random.default_rng(draw), found_before(name))).kind == "saddle"


def test_rays_whose_slope_is_rounding_are_flat_in_any_basis() -> None:
    problem = found_before("unseen_giant_41203_14")
    assert {verdict_of(rotated(np.random.default_rng(draw), problem)).kind for draw in range(6)} == {"saddle"}


def test_a_dead_neuron_of_any_size_stops_no_second_order_fall() -> None:
    problem = found_before("dead_giant_50101_34")
    kinds = {verdict_of(with_dead_neuron(np.random.default_rng(draw), problem)).kind for draw in range(6)}
    assert kinds == {"saddle"}


def test_kinks_that_hold_up_to_the_rounding_of_the_residuals_hold_in_any_basis() -> None:
    problem = found_before("long_samples_72024_30")
    assert {verdict_of(rotated(np.random.default_rng(draw), problem)).kind for draw in range(6)} == {"local minimum"}


def test_what_is_out_of_reach_is_so_for_slopes_of_any_size_in_any_basis() -> None:
    problem = found_before("rescaled_50100_45")  # slopes 0.001 and 1000
    kinds = {verdict_of(rotated(np.random.default_rng(draw), problem)).kind for draw in range(6)}
    assert kinds == {"global minimum"}


FLOAT32 = ["float32_40104_26", "float32_40105_3", "float32_40203_21", "float32_40305_5", "float32_40402_6"]


@pytest.mark.parametrize("name", FLOAT32)
def test_saddles_in_float32_fall_behind_the_slopes_that_rounding_left(name: str) -> None:
    problem = found_before(name)
    found = verdict_of(problem)
    assert found.kind == "saddle"
    assert not complaints_about_witness(problem, found)


@pytest.mark.parametrize("name", ["float32_50201_4", "float32_50201_54"])
def test_output_weights_that_feel_samples_beside_their_kinks_alone_leave_nothing_undecided(name: str) -> None:
    problem = found_before(name)
    record = attack(problem, np.random.default_rng(0))
    assert record.kind not in {"undecided", "not stationary"}
    assert not record.complaints


HIDDEN = ["long_samples_40102_26", "long_samples_40703_1", "coincident_kinks_50010_27"]


@pytest.mark.parametrize("name", HIDDEN)
def test_a_fall_that_rounding_or_the_tolerance_of_kinks_hides_is_not_claimed(name: str) -> None:
    problem = found_before(name)
    found = verdict_of(problem)
    assert found.direction is None or not complaints_about_witness(problem, found)


# A turning point lost beside a leading coefficient that is rounding; a way that ends at the kink of a long sample.
@pytest.mark.parametrize("name", ["split_3_69", "unseen_giant_41_103"])
def test_a_witness_ends_before_the_loss_rises_and_has_the_fall_that_it_says(name: str) -> None:
    problem = found_before(name)
    found = verdict_of(problem)
    assert found.direction is not None
    assert not complaints_about_witness(problem, found)


def test_a_fall_that_begins_at_a_kink_further_on_shows_no_descent() -> None:
    problem = found_before("beside_kinks_75007_50")  # up by 1.5e-17 over a fortieth of the move, then down by 6e-8
    assert verdict_of(problem).direction is None


def test_a_rise_that_a_slope_and_a_curvature_explain_is_soon_over() -> None:
    explained = np.array([[0.0, 1e-8, -1.0, 0.0, 0.0]])
    assert _first_rise(np.array([0.0, 1.0]), explained).step == pytest.approx(1.0)
    lasting = np.array([0.0, 7e-12, 0.0, 0.0, 0.0])
    bent_down = lasting + 1e-3 * np.array([-0.01, 0.2, -1.0, 0.0, 0.0])  # from 0.1 on
    ends = np.array([0.0, 0.1, 0.11, 1.0])
    assert _first_rise(ends, np.stack([lasting, bent_down, bent_down])).step == 0


def test_a_forecast_goes_by_flow_where_descent_runs_away() -> None:
    problem = found_before("rescaled_72006_10")  # weights of 1e-7 below weights of 1e5
    F.forecast_escape(problem.block(), *problem.data(), 1e-2, reduction=problem.reduction)


@pytest.mark.parametrize("leading", [0.0, 1e-17, -1e-17, 1e-12, -1e-9])
def test_the_first_minimum_of_a_quartic_is_found_beside_leading_coefficients_that_are_rounding(leading: float) -> None:
    lowest = 0.7
    pieces = np.array([[0.0, -2 * lowest, 1.0, leading, leading**2]])
    stretch = _first_rise(np.array([0.0, 1.0]), pieces)
    assert stretch.step == pytest.approx(lowest, abs=1e-7)
    assert stretch.change == pytest.approx(-(lowest**2), rel=1e-7)


def test_a_second_order_fall_is_looked_for_on_both_sides_of_a_form() -> None:
    problem = found_before("beside_kinks_50003_13")  # one side of its lowest vector rises behind the first kink
    for draw in range(3):
        other = permuted(np.random.default_rng(draw), problem)
        found = verdict_of(other)
        assert found.kind == "saddle"
        assert not complaints_about_witness(other, found)


# More rays than single ones and drawn cones could tell; rays of a silent neuron that no output feels in the way; a ray
# whose slope upwards is as little above the tolerance as the slope downwards that counts as none.
@pytest.mark.parametrize("name", ["units_64009_30", "low_rank_64009_41", "coincident_kinks_64009_0"])
def test_a_fall_over_several_rays_is_found_in_any_order_and_basis(name: str) -> None:
    problem = found_before(name)
    for draw in range(3):
        random = np.random.default_rng(draw)
        for change in (permuted, rotated, quartered):
            assert verdict_of(change(random, problem)).kind == "saddle"


def test_no_pair_of_rays_on_which_a_form_is_negative_is_missed() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        form = np.eye(8) + 0.1 * np.abs(random.standard_normal((8, 8)))
        form = (form + form.T) / 2
        one, other = random.choice(8, 2, replace=False)
        form[one, other] = form[other, one] = -1.3
        together = np.ones((8, 8), dtype=bool)
        (t,) = list(_cone_descents(form, together))
        assert (t >= 0).all()
        assert t @ form @ t < 0
        together[one, other] = together[other, one] = False
        assert not list(_cone_descents(form, together))


def test_no_global_minimum_is_claimed_where_one_side_of_a_hyperplane_is_felt() -> None:
    problem = found_before("long_samples_71001_34")  # the rounding of the other side hid it
    assert verdict_of(problem).kind != "global minimum"


def test_a_pull_hidden_by_the_rounding_of_one_long_sample_makes_no_minimum() -> None:
    problem = found_before("long_samples_62002_25")
    assert verdict_of(problem).kind in {"saddle", "undecided"}


def test_of_the_directions_that_pull_the_one_with_the_largest_fall_is_shown() -> None:
    problem = found_before("long_samples_64001_2")  # the loudest one falls by less than the rounding of the loss
    for draw in range(3):
        found = verdict_of(permuted(np.random.default_rng(draw), problem))
        assert found.direction is not None
        assert found.direction.loss_change < -100


def test_what_a_tiny_neuron_grows_into_shows_that_it_is_not_stationary() -> None:
    problem = found_before("trained_outputs_71002_33")  # weights of 1e-35
    found = verdict_of(problem)
    assert found.kind == "not stationary"
    assert found.direction is not None
    assert found.direction.loss_change < -0.5
    assert not complaints_about_witness(problem, found)


# A slope within the tolerance that leads all the way down; two samples that only weights of 1e10 tell apart.
@pytest.mark.parametrize("name", ["beside_kinks_64010_15", "dead_giant_62001_46"])
def test_the_oracle_admits_what_is_true_within_the_tolerance(name: str) -> None:
    assert not attack(found_before(name), np.random.default_rng(0), deep=True).complaints


def complaints_about_witness(problem: Problem, found: F.Verdict) -> list[tuple[str, str]]:
    record = Record()
    check_witness(record, truth_of(problem), found)
    return record.complaints


def test_what_of_a_pull_is_outside_the_kinks_by_rounding_alone_makes_no_escape_neuron() -> None:
    """The remainder of a projection, 1e-14 of what was projected, points anywhere: into a ray that rises a little."""
    problem = found_before("rescaled_77006_18")
    rng = np.random.default_rng(1)
    kinds = {verdict_of(rotated(rng, problem)).kind for _ in range(12)}
    assert kinds == {verdict_of(problem).kind} == {"local minimum"}


@pytest.mark.parametrize("name", ["long_samples_80117_39", "long_samples_80118_41"])
def test_slopes_that_rounding_of_the_residuals_hides_are_flat_however_they_are_rounded(name: str) -> None:
    problem = found_before(name)
    for draw in range(10):
        assert verdict_of(rotated(np.random.default_rng(draw), problem)).kind == "type-2 candidate"


def test_no_neuron_is_offered_that_only_rounding_tells_from_none() -> None:
    """Two samples that are one but for their last digits, with two targets: weights of 1e7 would tell them apart."""
    problem = found_before("low_rank_81017_54")
    X, Y = problem.data()
    assert 0 < float((X[0] - X[2]).norm()) < 1e-14
    assert not F.growth_proposals(problem.block(), X, Y, problem.reduction)


def test_few_neurons_beside_a_kink_at_an_exact_minimum_stay_there() -> None:
    problem = found_before("trained_81031_5")
    near = F.nearby_stationary_point(problem.block(), *problem.data(), problem.reduction)
    assert (near.verdict.kind, near.distance, near.kink_count) == ("local minimum", 0.0, 0)


def test_a_maximum_of_the_pull_between_kinks_that_all_but_coincide_is_offered() -> None:
    """Two samples 1e-8 apart leave an ascent a slope of rounding there: it never seems to arrive."""
    problem = found_before("rescaled_82006_3")
    X, Y = problem.data()
    G = F.squared_error_signal(problem.block(), X, Y, problem.reduction).G
    assert float(F.extremal_directions(X, G, problem.slopes).gain[0]) == pytest.approx(36.3168, rel=1e-5)
