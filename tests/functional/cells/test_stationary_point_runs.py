"""The stationary points that the runs of Wu et al. pass."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from support.iterates import cosines, iterate
from torch.testing import assert_close

from relu_diag import functional as F


@pytest.mark.parametrize(
    ("step", "kind", "loss", "zeroed", "kinks"),
    [(1000, "saddle", 0.03812, 38, 0), (5500, "saddle", 0.03019, 9, 28), (26_000, "local minimum", 0.02789, 0, 28)],
)
def test_five_points_pass_two_saddles_and_end_in_a_local_minimum(
    step: int, kind: str, loss: float, zeroed: int, kinks: int
) -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, step)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.genuine
    assert near.reason == ""
    assert near.verdict.kind == kind
    assert near.loss == pytest.approx(loss, abs=5e-6)  # half a unit of the printed digits
    assert near.loss_gap == pytest.approx(float(F.squared_loss(block, X, Y, reduction)) - near.loss, abs=1e-16)
    assert (len(near.zeroed), near.kink_count) == (zeroed, kinks)
    assert near.distance < 5e-3
    assert abs(near.loss_gap) < 2e-4 * loss
    assert near.verdict.neurons.tolist() == near.zeroed.tolist()  # only the neurons at zero can escape


@pytest.mark.parametrize(("step", "kind"), [(1000, "saddle"), (5500, "saddle"), (26_000, "local minimum")])
@pytest.mark.parametrize("kink_tol", [3e-3, 3e-2])
def test_verdicts_on_five_points_hold_for_tolerances_of_a_factor_of_ten(step: int, kind: str, kink_tol: float) -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, step)
    assert F.nearby_stationary_point(block, X, Y, reduction, kink_tol=kink_tol).verdict.kind == kind


def test_group_1_rests_on_the_kink_of_the_fifth_sample_or_in_the_flat_cell_beside_it() -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, 26_000)
    group = F.neuron_states(block, X, Y).group == 0
    on, beside = (F.nearby_stationary_point(block, X, Y, reduction, kink_tol=tol) for tol in (1e-2, 0.0))
    assert float(cosines(on.block, X)[4, group].abs().max()) < 1e-15
    assert float(cosines(beside.block, X)[4, group].min()) > 0  # the cell in which every sample is active
    assert [near.verdict.kind for near in (on, beside)] == ["local minimum", "local minimum"]
    assert_close(on.loss, beside.loss)
    assert max(abs(on.loss_gap), abs(beside.loss_gap)) < 1e-12 * on.loss
    assert beside.distance < 1e-13
    assert on.distance == pytest.approx(1.8e-4, rel=0.05)  # the amplitude 0.36 times 5e-4 rad, measured


def test_members_on_both_sides_of_their_kink_have_no_stationary_point_off_it() -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, 5500)
    near = F.nearby_stationary_point(block, X, Y, reduction, kink_tol=0.0)
    assert not near.genuine
    assert near.verdict.kind == "undecided"
    assert near.verdict.direction is None
    assert "\n" not in str(near)
    assert "no stationary point with these signs nearby: 28 neurons would turn across the kink" in str(near)
    assert set(near.verdict.neurons.tolist()) == set(
        (F.neuron_states(block, X, Y).group == 0).nonzero().squeeze(1).tolist()
    )


def test_default_tolerance_reaches_group_1_at_a_hundred_times_the_rate_of_the_paper() -> None:
    block, X, Y, reduction = iterate("five_points", 1e-1, 5000)
    assert float(cosines(block, X)[4, F.neuron_states(block, X, Y).group == 0].abs().max()) > 3e-3
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.kink_count == 28
    assert near.verdict.kind == "local minimum"


@pytest.mark.parametrize("step", [1000, 3000, 4000])
def test_three_inputs_pass_three_saddles(step: int) -> None:
    block, X, Y, reduction = iterate("three_inputs", 1e-2, step)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.genuine
    assert near.verdict.kind == "saddle"
    assert near.distance < 0.1
    assert abs(near.loss_gap) < 1e-3 * near.loss
    direction = near.verdict.direction
    moved = direction.applied_to(near.block)
    assert F.squared_loss(moved, X, Y, reduction) < F.squared_loss(near.block, X, Y, reduction)


def test_fourth_plateau_of_three_inputs_drifts_because_no_stationary_point_has_its_signs() -> None:
    block, X, Y, reduction = iterate("three_inputs", 1e-2, 6500)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert not near.genuine
    assert near.verdict.kind == "undecided"
    # One neuron of each group stands for all of it. Among all least squares, the signs hold nowhere: a linear program.
    group, cosine = F.neuron_states(block, X, Y).group, cosines(block, X)
    first = [int((group == g).nonzero()[0]) for g in range(3)]
    bases = [scipy.linalg.null_space(X[[kink]].numpy()) for kink in (3, 5, 4)]
    sides = [np.sign(np.where(abs(cosine[:, i]) < 5e-3, 0.0, cosine[:, i])) for i in first]
    assert [int((side == 0).sum()) for side in sides] == [1, 1, 1]
    A = np.hstack([(side > 0)[:, None] * (X.numpy() @ basis) for side, basis in zip(sides, bases, strict=True)])
    inside = [
        float(block.H[0, i].sign()) * side[side != 0, None] * (X.numpy() @ basis)[side != 0]
        for i, side, basis in zip(first, sides, bases, strict=True)
    ]
    margin = scipy.optimize.linprog(
        np.eye(7)[6],  # the smallest shortfall of any sign, negative where all hold
        A_ub=-np.column_stack([scipy.linalg.block_diag(*inside), np.ones(18)]),
        b_ub=np.zeros(18),
        A_eq=np.column_stack([A.T @ A, np.zeros(6)]),
        b_eq=A.T @ Y[:, 0].numpy(),
        bounds=[(None, None)] * 6 + [(-1, None)],
    )
    assert margin.status == 0
    assert margin.fun > 1


def test_three_inputs_end_at_zero_loss() -> None:
    block, X, Y, reduction = iterate("three_inputs", 1e-2, 40_000)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.genuine
    assert near.verdict.kind == "global minimum"
    assert near.loss < 1e-28
    assert near.distance < 1e-3
    assert len(near.zeroed) == 0  # nothing pulls the small group any more


@pytest.mark.parametrize(("step", "zeroed"), [(1000, 50), (2000, 21), (5000, 0)])
def test_two_outputs_pass_three_saddles(step: int, zeroed: int) -> None:
    block, X, Y, reduction = iterate("two_outputs", 1e-2, step)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.genuine
    assert near.verdict.kind == "saddle"
    assert len(near.zeroed) == zeroed
    assert near.distance < 0.05
    assert abs(near.loss_gap) < 4e-4 * near.loss


def test_third_saddle_of_two_outputs_has_escape_neurons_with_output_weights() -> None:
    block, X, Y, reduction = iterate("two_outputs", 1e-2, 5000)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    escape = F.escape_neurons(near.block, F.squared_error_signal(near.block, X, Y, reduction))
    group = F.neuron_states(block, X, Y).group == 0
    assert torch.equal(escape.mask, group)
    assert torch.equal(near.verdict.neurons, group.nonzero().squeeze(1))
    h = near.block.H[:, group].norm(dim=0)
    assert float(h.min()) > 1e-5
    assert float(h.max()) > 0.5
    printed = torch.tensor([0.18, 0.12]).double().expand(int(group.sum()), 2)
    assert_close(escape.D[group].abs(), printed, rtol=0, atol=5e-3)  # half a unit of the printed digits


@pytest.mark.parametrize("lr", [1e-2, 5e-2])
def test_two_outputs_end_in_a_minimum_that_misses_only_the_fourth_sample(lr: float) -> None:
    block, X, Y, reduction = iterate("two_outputs", lr, round(160 / lr))
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.genuine
    assert near.verdict.kind == "local minimum"
    assert abs(near.loss_gap) < 1e-12 * near.loss
    assert_close(near.block(X) - Y, torch.tensor([[0.0, 0.0]] * 3 + [[-0.8, -0.2]]).double())
