"""From parameters to the stationary point nearby: what it is, and where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.iterates import cosines, iterate, random_problem
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells import _solver
from relu_diag.functional.cells import nearby as stationary_point
from relu_diag.functional.tolerances import training_kink_tolerance

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
    assert "1 neuron would turn across the kink of a sample" in round_.reason
    both = ShallowBlock(torch.ones(1, 2).double(), torch.ones(1, 1).double())
    gone = F.nearby_stationary_point(both, X, torch.zeros(2, 1).double())
    assert (gone.genuine, gone.verdict.kind) == (False, "undecided")
    assert "1 neuron would vanish" in gone.reason


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
    monkeypatch.setattr(_solver, "BUDGETS", replace(BUDGETS, products=2))
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert (near.genuine, near.verdict.kind) == (False, "undecided")
    assert "no stationary point with these signs found: relative gradient" in near.reason
    monkeypatch.setattr(stationary_point, "BUDGETS", replace(BUDGETS, signs=10))
    near = F.nearby_stationary_point(block, X, Y, reduction)
    assert (near.genuine, near.verdict.kind) == (False, "undecided")
    assert near.reason == "the signs of 29 neurons on 4 samples are too many to keep"


@pytest.mark.parametrize("step", [1000, 5500, 26_000])
def test_one_output_without_a_matrix_finds_the_same_point(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block, X, Y, reduction = iterate("five_points", 2e-2, step)
    direct = F.nearby_stationary_point(block, X, Y, reduction)
    monkeypatch.setattr(_solver, "BUDGETS", replace(BUDGETS, fit_entries=0))
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
