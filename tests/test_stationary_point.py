"""From training iterates to the stationary points nearby."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.experiments import ReferenceRegression, gradient_descent_
from relu_diag.functional import stationary_point, stratum_fit
from relu_diag.functional.block import residual_factor, rho
from relu_diag.functional.stratum import training_kink_tolerance

Problem = tuple[ShallowBlock, Tensor, Tensor, str]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the problems are tiny


@cache
def iterate(name: str, lr: float, step: int) -> Problem:
    """Where gradient descent on a reference problem is after so many steps."""
    module = ReferenceRegression(name, lr=lr)
    X, Y = module.problem.tensors()
    block, reduction = module.block, module.problem.reduction
    gradient_descent_(block, X, Y, lr * residual_factor(Y, reduction), step)
    return block, X, Y, reduction


def cosines(block: ShallowBlock, X: Tensor) -> Tensor:
    return (X / X.norm(dim=1, keepdim=True)) @ F.radial_directions(block.W).T


def random_problem(seed: int, outputs: int = 1, bias: bool = False, samples: int = 12) -> Problem:
    """Targets of a network with some samples on kinks, plus noise; the network a little beside it."""
    draw = torch.Generator().manual_seed(seed)
    X, W = (torch.randn(n, 3, generator=draw).double() for n in (samples, 4))
    H = torch.randn(outputs, 4, generator=draw).double()
    for i, k in ((0, 0), (1, 3)):
        W[i] -= (W[i] @ X[k]) / X[k].square().sum() * X[k]
    b = torch.randn(outputs, generator=draw).double() if bias else None
    teacher = ShallowBlock(W, H, output_bias=b)
    Y = teacher(X) + 1e-4 * torch.randn(samples, outputs, generator=draw).double()
    student = ShallowBlock(W + 1e-4 * torch.randn(4, 3, generator=draw), H, output_bias=b)
    return student, X, Y, "half_sum"


# The runs of Wu et al.


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
    moved = ShallowBlock(near.block.W + direction.step * direction.dW, near.block.H + direction.step * direction.dH)
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


# What the point is


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 3, 4, 5])
def test_one_output_solves_the_least_squares_on_the_kinks(seed: int, bias: bool) -> None:
    block, X, Y, reduction = random_problem(seed, bias=bias, samples=40)
    near = F.nearby_stationary_point(block, X, Y, reduction, kink_tol=2e-3, small=0.0)
    cosine = cosines(block, X)
    kinks = (cosine.abs() <= 2e-3).numpy()
    assert near.kink_count == kinks.sum() >= 2
    # The textbook form of "minimise ||A R - y||^2 where x_k . R_i = 0": stationarity and constraints in one system.
    A = np.hstack([np.where((cosine[:, i : i + 1] > 0).numpy() & ~kinks[:, i : i + 1], X, 0.0) for i in range(4)])
    A = np.hstack([A, np.ones((len(X), int(bias)))])
    rows = [np.eye(A.shape[1])[3 * i : 3 * i + 3].T @ X[k].numpy() for k, i in zip(*np.nonzero(kinks), strict=True)]
    C = np.array(rows)
    system = np.block([[A.T @ A, C.T], [C, np.zeros((len(C), len(C)))]])
    solution = np.linalg.lstsq(system, np.concatenate([A.T @ Y[:, 0].numpy(), np.zeros(len(C))]))[0][: A.shape[1]]
    R = torch.as_tensor(solution[:12].reshape(4, 3))
    assert near.genuine
    assert_close(near.block.H[0, :, None] * near.block.W, R)
    assert_close(near.loss, float(np.square(A @ solution - Y[:, 0].numpy()).sum()) / 2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_several_outputs_end_at_a_zero_of_the_gradient_on_the_kinks(seed: int, bias: bool) -> None:
    block, X, Y, reduction = random_problem(seed, outputs=2, bias=bias)
    near = F.nearby_stationary_point(block, X, Y, reduction, kink_tol=2e-3, small=0.0)
    assert near.genuine
    assert near.kink_count >= 2
    parameters = [near.block.W.clone(), near.block.H.clone(), near.block.output_bias]
    for parameter in parameters[: 2 + bias]:
        parameter.requires_grad_()
    out = rho(X @ parameters[0].T, block.slopes) @ parameters[1].T + (parameters[2] if bias else 0.0)
    gradients = list(torch.autograd.grad((out - Y).square().sum() / 2, parameters[: 2 + bias]))
    kinks = cosines(block, X).abs() <= 2e-3
    for i in range(4):  # on the kink autograd takes a slope of zero, so what is left points along the kink's samples
        span = X[kinks[:, i]]
        gradients[0][i] -= span.T @ torch.linalg.lstsq(span.T, gradients[0][i, :, None]).solution[:, 0]
    scale = float(Y.norm() * X.norm())  # what the residual's rounding is relative to
    assert max(float(gradient.norm()) for gradient in gradients) < 1e-14 * scale


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_stationary_point_is_found_again_from_beside_it(seed: int, outputs: int, bias: bool) -> None:
    block, X, Y, reduction = random_problem(seed, outputs, bias)
    exact = F.nearby_stationary_point(block, X, Y, reduction, kink_tol=2e-3, small=0.0)
    draw = torch.Generator().manual_seed(seed)
    W, H = (value + 1e-7 * torch.randn(value.shape, generator=draw) for value in (exact.block.W, exact.block.H))
    beside = ShallowBlock(W, H, output_bias=exact.block.output_bias)
    near = F.nearby_stationary_point(beside, X, Y, reduction, kink_tol=1e-5, small=0.0)
    assert near.genuine
    assert near.verdict.kind == exact.verdict.kind
    assert near.distance < 2e-6  # about the noise: sqrt(20) 1e-7, times how badly the least squares is conditioned
    assert_close(near.loss, exact.loss)


def test_a_change_is_shared_by_the_members_of_a_group_in_proportion_to_their_size() -> None:
    X = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.3, 0.4, 1.0]]).double()
    Y = torch.tensor([[1.0], [1.2], [0.9]]).double()
    scale = torch.tensor([1.0, 1e-2, 1e-9]).double()
    w = torch.tensor([[0.5, 0.5, 0.3], [0.6, 0.5, 0.2], [0.5, 0.7, 0.3]]).double()
    block = ShallowBlock(w * scale.sqrt()[:, None], (w.norm(dim=1) * scale.sqrt())[None])
    near = F.nearby_stationary_point(block, X, Y)
    before, after = (b.H[0, :, None] * b.W for b in (block, near.block))
    share = (after - before) / before.norm(dim=1, keepdim=True)
    assert near.genuine
    assert near.verdict.kind == "global minimum"
    assert_close(share, share[:1].expand(3, 3), rtol=1e-6, atol=1e-6)  # rounding of the smallest is 1e-16 / 1e-9
    assert float(share.norm()) > 0.1


def test_dead_neurons_stay_and_the_balance_of_the_others_is_kept() -> None:
    block, X, Y, reduction = random_problem(1)
    dead = torch.tensor([[0.0, 0.0, -3.0]]).double()
    X = torch.column_stack([X[:, :2], torch.ones(len(X)).double()])
    block = ShallowBlock(torch.cat([block.W, dead]), torch.cat([block.H, torch.ones(1, 1).double()], dim=1))
    near = F.nearby_stationary_point(block, X, block(X) + 0.01 * Y, reduction)
    assert torch.equal(near.block.W[4], block.W[4])
    assert near.block.H[0, 4] == 1
    assert near.distance > 1e-3
    balance = [b.W.square().sum(1) - b.H[0].square() for b in (block, near.block)]
    assert_close(balance[1], balance[0], rtol=0, atol=1e-4)  # the start is moved onto its kinks first


def test_small_neurons_are_zero_where_something_pulls_and_stay_where_nothing_does() -> None:
    X = torch.eye(2).double()
    Y = torch.tensor([[1.0], [-1.0]]).double()
    W = torch.tensor([[0.9, -0.9], [1e-3, 2e-3], [3e-3, -1e-3]]).double()
    near = F.nearby_stationary_point(ShallowBlock(W, torch.tensor([[1.0, -1e-3, 1e-3]]).double()), X, Y)
    assert near.zeroed.tolist() == [1]  # it sees the second sample, which nobody fits
    assert near.verdict.kind == "saddle"
    assert float(near.block.W[2].norm()) == pytest.approx(1e-5**0.5, rel=0.2)
    kept = [0, 2]
    near = F.nearby_stationary_point(ShallowBlock(W[kept], torch.tensor([[1.0, 1e-3]]).double()), X, Y)
    assert len(near.zeroed) == 0
    assert near.verdict.kind == "local minimum"


def test_fraction_of_the_targets_decides_what_is_small() -> None:
    X = torch.eye(2).double()
    Y = torch.tensor([[1.0], [1.0]]).double()
    block = ShallowBlock(torch.tensor([[1.0, -1.0], [-0.05, 0.05]]).double(), torch.tensor([[1.0, 0.05]]).double())
    assert F.nearby_stationary_point(block, X, Y, small=0.01).verdict.kind == "saddle"
    assert F.nearby_stationary_point(block, X, Y, small=1e-3).verdict.kind == "global minimum"


@pytest.mark.parametrize("outputs", [1, 2])
def test_output_bias_alone_fits_the_mean(outputs: int) -> None:
    _, X, Y, reduction = random_problem(0, outputs)
    block = ShallowBlock(torch.zeros(2, 3).double(), torch.ones(outputs, 2).double(), output_bias=Y[0].clone())
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert near.zeroed.tolist() == [0, 1]
    assert near.verdict.kind == "saddle"
    assert_close(near.block.output_bias, Y.mean(dim=0))


# Where there is none


def test_neuron_that_would_have_to_turn_round_or_vanish() -> None:
    X = torch.eye(2).double()
    block = ShallowBlock(torch.tensor([[1.0, -1.0]]).double(), torch.ones(1, 1).double())
    round_ = F.nearby_stationary_point(block, X, torch.tensor([[-1.0], [0.0]]).double())
    assert (round_.genuine, round_.verdict.kind) == (False, "undecided")
    assert "1 neurons would turn across the kink of a sample" in round_.reason
    both = ShallowBlock(torch.ones(1, 2).double(), torch.ones(1, 1).double())
    gone = F.nearby_stationary_point(both, X, torch.zeros(2, 1).double())
    assert (gone.genuine, gone.verdict.kind) == (False, "undecided")
    assert "1 neurons would vanish" in gone.reason


@pytest.mark.parametrize("outputs", [1, 2])
def test_more_kinks_than_directions_leave_nothing(outputs: int) -> None:
    X = torch.tensor([[1.0, 0.01], [1.0, -0.01], [0.0, 1.0]]).double()
    block = ShallowBlock(torch.tensor([[0.0, 1.0]]).double(), torch.ones(outputs, 1).double())
    near = F.nearby_stationary_point(block, X, torch.ones(3, outputs).double(), kink_tol=0.05)
    assert near.kink_count == 2
    assert not near.genuine
    assert "vanish" in near.reason
    assert F.nearby_stationary_point(block, X, torch.ones(3, outputs).double(), kink_tol=1e-3).kink_count == 0


def test_kink_that_lets_go_is_said_with_a_descent() -> None:
    X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
    block = ShallowBlock(torch.tensor([[1.0, 1e-3]]).double(), torch.ones(1, 1).double())
    near = F.nearby_stationary_point(block, X, Y)
    assert near.genuine  # the signs hold
    assert near.verdict.kind == "not stationary"
    assert near.verdict.direction.loss_change < 0
    assert near.reason == "no stationary point with these signs: the loss falls where samples leave their kinks"
    assert F.nearby_stationary_point(block, X, Y, kink_tol=1e-4).verdict.kind == "global minimum"


def test_search_says_when_its_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    block, X, Y, reduction = iterate("two_outputs", 1e-2, 2000)
    monkeypatch.setattr(stratum_fit, "MAX_PRODUCTS", 2)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert (near.genuine, near.verdict.kind) == (False, "undecided")
    assert "no stationary point with these signs found: relative gradient" in near.reason
    monkeypatch.setattr(stationary_point, "MAX_SIGNS", 10)
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert (near.genuine, near.verdict.kind) == (False, "undecided")
    assert near.reason == "the signs of 29 neurons on 4 samples are too many to keep"


@pytest.mark.parametrize("step", [1000, 5500, 26_000])
def test_one_output_without_a_matrix_finds_the_same_point(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, step)
    direct = F.nearby_stationary_point(block, X, Y, reduction)
    monkeypatch.setattr(stratum_fit, "MAX_FIT_ENTRIES", 0)
    stepwise = F.nearby_stationary_point(block, X, Y, reduction)
    assert (stepwise.genuine, stepwise.verdict.kind) == (True, direct.verdict.kind)
    assert_close(stepwise.loss, direct.loss)


# What it does not depend on


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 2), st.sampled_from([0.1, 1.0, 30.0]))
def test_order_and_scale_change_nothing(seed: int, outputs: int, scale: float) -> None:
    block, X, Y, reduction = random_problem(seed % 20, outputs)
    draw = torch.Generator().manual_seed(seed)
    order, rows = torch.randperm(4, generator=draw), torch.randperm(len(X), generator=draw)
    other = ShallowBlock(scale * block.W[order], scale * block.H[:, order])
    near = F.nearby_stationary_point(block, X, Y, reduction, kink_tol=2e-3)
    moved = F.nearby_stationary_point(other, X[rows], scale**2 * Y[rows], reduction, kink_tol=2e-3)
    assert (moved.genuine, moved.verdict.kind) == (near.genuine, near.verdict.kind)
    if near.genuine:
        close = {"rtol": 1e-5, "atol": scale * 1e-5}  # steps are solved to 1e-6, and the points need not be isolated
        assert_close(moved.loss, scale**4 * near.loss)
        assert_close(moved.block.W, scale * near.block.W[order], **close)
        assert_close(moved.block.H, scale * near.block.H[:, order], **close)


def test_float32_gives_a_float32_network_with_the_same_verdict() -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, 26_000)
    single = ShallowBlock(block.W.float(), block.H.float())
    near = F.nearby_stationary_point(single, X.float(), Y.float(), reduction)
    assert near.block.W.dtype == torch.float32
    assert near.verdict.kind == "local minimum"
    assert F.classify(near.block, X.float(), Y.float(), reduction).kind == "local minimum"


def test_network_is_left_as_it_is() -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, 5500)
    W, H = block.W.clone(), block.H.clone()
    F.nearby_stationary_point(replace(block, W=block.W.requires_grad_()), X, Y, reduction)
    block.W.requires_grad_(False)
    assert torch.equal(block.W, W)
    assert torch.equal(block.H, H)


@pytest.mark.parametrize(("samples", "inputs"), [(5, 2), (30, 2), (30, 10), (200, 100)])
def test_default_tolerance_puts_one_random_neuron_in_twenty_on_a_kink(samples: int, inputs: int) -> None:
    draw = torch.Generator().manual_seed(0)
    X, W = (torch.randn(n, inputs, generator=draw).double() for n in (samples, 20_000))
    block = ShallowBlock(W, torch.ones(1, len(W)).double())
    share = (cosines(block, X).abs() <= training_kink_tolerance(samples, inputs)).any(dim=0).double().mean()
    assert 0.02 < share < 0.06
    assert training_kink_tolerance(1, 2) == 0.01


def test_bad_input_gets_an_error() -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, 1000)
    with pytest.raises(ValueError, match="kink_tol"):
        F.nearby_stationary_point(block, X, Y, reduction, kink_tol=1.0)
    with pytest.raises(ValueError, match="small"):
        F.nearby_stationary_point(block, X, Y, reduction, small=-1.0)
    with pytest.raises(ValueError, match="one row per sample and one column per output"):
        F.nearby_stationary_point(block, X, Y[:, 0, None].expand(5, 2), reduction)
    with pytest.raises(ValueError, match="reduction"):
        F.nearby_stationary_point(block, X, Y, "average")
