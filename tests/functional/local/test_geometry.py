"""One-sided derivatives of the loss, against evaluated losses, autograd and enumeration (Wu et al., Lemma 3.2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from support.reference import (
    SLOPES,
    Problem,
    entered_derivative,
    kink_samples,
    kinked_problem,
    limit_derivative,
    on_hyperplane,
    problems,
    steepest_by_sign_patterns,
    steepest_by_sweep,
    tangent_basis,
)
from torch import Tensor
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag.functional import neuron_geometry, tangential_derivatives

# Losses of order 10 over steps of 1e-4 leave rounding of 1e-11; the margin covers larger losses.
LIMIT = {"rtol": 1e-7, "atol": 1e-7}


def loss_limit(problem: Problem, i: int, D: Tensor) -> float:
    """Derivative of the evaluated loss when ``w_i`` alone moves along ``D``."""
    directions = torch.zeros_like(problem.block.W)
    directions[i] = D
    return limit_derivative(lambda W: problem.loss(W, problem.block.H), problem.block.W, directions)


def tangential(W: Tensor, V: Tensor) -> Tensor:
    return torch.stack([on_hyperplane(w, v[None])[0] if w.any() else v for w, v in zip(W, V, strict=True)])


def steepest_by_enumeration(problem: Problem, i: int) -> float:
    """Steepest tangential slope from `entered_derivative` alone, in coordinates of the tangent space."""
    basis = torch.as_tensor(tangent_basis(problem.block.W[i]))
    signal, block = problem.signal, problem.block
    C = signal.G @ block.H if signal.C is None else signal.C
    s_minus, s_plus = block.slopes
    kinks = kink_samples(block, problem.X, i)
    Z = problem.X @ block.W[i]
    Z[kinks] = 0.0
    slope = torch.where(Z > 0, s_plus, s_minus * torch.ones_like(Z))
    slope[kinks] = (s_plus + s_minus) / 2
    g, X, q = (slope * C[:, i]) @ problem.X, problem.X[kinks], (s_plus - s_minus) / 2 * C[kinks, i]
    return steepest_by_sign_patterns((basis @ g).numpy(), q.numpy(), (X @ basis.T).numpy())


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize(("d", "outputs", "penalty"), [(2, 1, 0.0), (3, 2, 0.0), (4, 3, 0.7)])
def test_lemma_3_2_tangential_derivative_is_the_one_sided_limit(
    slopes: tuple[float, float], d: int, outputs: int, penalty: float
) -> None:
    problem = kinked_problem(0, slopes, d, outputs, kinks=min(d - 1, 2), penalty=penalty)
    V = tangential(problem.block.W, torch.randn(4, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    for sign in (1, -1):
        found = tangential_derivatives(problem.block, problem.signal, sign * V)
        by_hand = [entered_derivative(problem.block, problem.signal, i, sign * V[i]) for i in range(4)]
        assert_close(found.tolist(), by_hand)
        assert_close(found.tolist(), [loss_limit(problem, i, sign * V[i]) for i in range(4)], **LIMIT)


@given(problems())
def test_radial_derivative_is_the_limit_along_the_weights(problem: Problem) -> None:
    radial = neuron_geometry(problem.block, problem.signal).radial
    for i, w in enumerate(problem.block.W):
        assert_close(float(radial[i]), loss_limit(problem, i, w / w.norm()), **LIMIT)
        assert_close(float(radial[i]), -loss_limit(problem, i, -w / w.norm()), **LIMIT)


@given(problems())
def test_steepest_slope_is_the_minimum_over_all_cones(problem: Problem) -> None:
    geometry = neuron_geometry(problem.block, problem.signal)
    assert geometry.exact.all()
    assert_close(geometry.steepest.tolist(), [steepest_by_enumeration(problem, i) for i in range(len(geometry.radial))])


@given(problems())
def test_steepest_direction_is_unit_tangential_and_attains_the_slope(problem: Problem) -> None:
    block, geometry = problem.block, neuron_geometry(problem.block, problem.signal)
    moving = geometry.steepest < 0
    assert_close(geometry.direction.norm(dim=1), moving.double())
    assert_close((geometry.direction * block.W).sum(1), torch.zeros(len(block.W), dtype=torch.float64))
    assert_close(tangential_derivatives(block, problem.signal, geometry.direction), geometry.steepest)


@pytest.mark.parametrize(("d", "zero"), [(2, True), (3, False)])
@pytest.mark.parametrize("slopes", SLOPES)
def test_two_tangential_dimensions_agree_with_a_dense_sweep(slopes: tuple[float, float], d: int, zero: bool) -> None:
    problem = kinked_problem(3, slopes, d, neurons=1, kinks=2)
    if zero:
        problem = replace(problem, block=replace(problem.block, W=torch.zeros(1, 2, dtype=torch.float64)))
    basis = torch.as_tensor(tangent_basis(problem.block.W[0]))
    z, c = problem.X @ problem.block.W[0], (problem.signal.G @ problem.block.H)[:, 0]

    def slope(V: np.ndarray) -> np.ndarray:
        moved = problem.X @ (torch.as_tensor(V) @ basis).T
        side = torch.where(z.abs() > 1e-9, z, 0.0)[:, None].expand_as(moved)
        side = torch.where(side == 0, moved, side)
        return (c @ torch.where(side > 0, slopes[1] * moved, slopes[0] * moved)).numpy()

    found = float(neuron_geometry(problem.block, problem.signal).steepest[0])
    swept = steepest_by_sweep(slope, turns=100_000)
    assert found <= swept + 1e-12
    assert_close(found, swept, rtol=0, atol=1e-3)  # on a kink the sweep is off by slope scale x step, 10 x 6e-5


@given(problems())
def test_derivatives_off_the_kink_are_autograds(problem: Problem) -> None:
    W, H = (tensor.clone().requires_grad_() for tensor in (problem.block.W, problem.block.H))
    problem.loss(W, H).backward()
    assert W.grad is not None
    assert H.grad is not None
    geometry = neuron_geometry(problem.block, problem.signal)
    assert_close(geometry.output_gradient, H.grad)
    free = geometry.kink_count == 0
    assert_close(geometry.smooth[free], W.grad[free])
    u = problem.block.W / problem.block.W.norm(dim=1, keepdim=True)
    assert_close(geometry.radial, (W.grad * u).sum(1))
    residue = W.grad - (W.grad * u).sum(1, keepdim=True) * u
    assert_close(geometry.steepest[free], -residue.norm(dim=1)[free])


@given(problems())
def test_weights_and_output_weights_grow_together(problem: Problem) -> None:
    """``w_i . dL/dw_i = h_i . dL/dh_i`` where the loss is one of the outputs (Wu et al., Fact 4.6)."""
    problem = replace(problem, penalty=0.0)
    geometry = neuron_geometry(problem.block, problem.signal)
    assert_close(geometry.radial * problem.block.W.norm(dim=1), (problem.block.H * geometry.output_gradient).sum(0))


def test_l1_penalty_on_the_activations_reaches_the_geometry_through_c() -> None:
    problem = kinked_problem(5, d=3, outputs=2, kinks=0)
    W, H = (tensor.clone().requires_grad_() for tensor in (problem.block.W, problem.block.H))
    A = torch.relu(problem.X @ W.T)
    A.retain_grad()
    (0.5 * (A @ H.T - problem.Y).square().sum() + 0.3 * A.abs().sum()).backward()
    signal = BlockSignal(problem.X, problem.block(problem.X) - problem.Y, C=A.grad)
    geometry = neuron_geometry(problem.block, signal)
    assert_close(geometry.smooth, W.grad)
    assert_close(geometry.output_gradient, H.grad)
    assert not torch.allclose(geometry.smooth, neuron_geometry(problem.block, replace(signal, C=None)).smooth)


@pytest.mark.parametrize("slopes", SLOPES)
def test_one_input_has_no_tangential_direction(slopes: tuple[float, float]) -> None:
    problem = kinked_problem(2, slopes, d=1, outputs=2)
    geometry = neuron_geometry(problem.block, problem.signal)
    assert (geometry.steepest == 0).all()
    assert (geometry.direction == 0).all()
    assert geometry.exact.all()
    assert geometry.radial.all()
    assert (tangential_derivatives(problem.block, problem.signal, torch.ones(4, 1)) == 0).all()


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_at_zero_weights_every_direction_is_tangential_and_every_sample_on_the_kink(
    slopes: tuple[float, float], d: int
) -> None:
    problem = kinked_problem(4, slopes, d, outputs=2, neurons=2, kinks=0)
    problem = replace(
        problem, X=problem.X[:7], Y=problem.Y[:7], block=replace(problem.block, W=torch.zeros_like(problem.block.W))
    )
    geometry = neuron_geometry(problem.block, problem.signal)
    assert (geometry.radial == 0).all()
    assert geometry.kink_count.tolist() == [7, 7]
    assert_close(geometry.steepest.tolist(), [steepest_by_enumeration(problem, i) for i in range(2)])
    for D in torch.eye(d, dtype=torch.float64):
        found = tangential_derivatives(problem.block, problem.signal, D.expand(2, -1))
        assert_close(found.tolist(), [loss_limit(problem, i, D) for i in range(2)], **LIMIT)


def test_zero_output_weights_feel_nothing_of_their_input_weights() -> None:
    problem = kinked_problem(6, outputs=2)
    problem = replace(problem, block=replace(problem.block, H=torch.zeros_like(problem.block.H)))
    geometry = neuron_geometry(problem.block, problem.signal)
    assert not geometry.radial.any()
    assert not geometry.steepest.any()
    assert not geometry.direction.any()
    assert geometry.exact.all()
    assert geometry.kink_count.tolist() == [2, 2, 2, 2]
    assert geometry.output_gradient.all()


@pytest.mark.parametrize("slopes", SLOPES)
def test_dependent_and_collinear_kink_samples_of_either_sign(slopes: tuple[float, float]) -> None:
    problem = kinked_problem(7, slopes, d=4, neurons=1, kinks=3)
    x, y, z = problem.X[-3:]
    X = torch.cat([problem.X, torch.stack([x, -2 * x, 0.5 * y, x + y, y - z, 3 * z])])
    Y = torch.cat([problem.Y, torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]])
    problem = replace(problem, X=X, Y=Y)
    geometry = neuron_geometry(problem.block, problem.signal)
    assert geometry.kink_count.tolist() == [9]
    assert_close(float(geometry.steepest[0]), steepest_by_enumeration(problem, 0))


def test_only_zero_samples_leave_every_derivative_zero() -> None:
    block = kinked_problem(8, d=2).block
    geometry = neuron_geometry(block, BlockSignal(torch.zeros(3, 2).double(), torch.ones(3, 1).double()))
    assert not geometry.radial.any()
    assert not geometry.steepest.any()
    assert not geometry.kink_count.any()


def test_nearly_radial_gradients_leave_a_tangential_direction() -> None:
    """What rounding leaves of a radial gradient must still be a direction that w can turn in."""
    W = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for w in W:
        block = ShallowBlock(w[None], torch.ones(1, 1).double())
        geometry = neuron_geometry(block, BlockSignal(w[None] / 3, torch.ones(1, 1).double()))
        assert_close(float(geometry.direction[0] @ w), 0.0)
        assert abs(float(geometry.steepest[0])) < 1e-14


def test_kink_tolerance_decides_which_samples_are_on_the_kink() -> None:
    block = ShallowBlock(torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 1).double())
    signal = BlockSignal(torch.tensor([[1e-3, 1.0]]).double(), -torch.ones(1, 1).double())
    assert neuron_geometry(block, signal).kink_count.tolist() == [0]
    near = neuron_geometry(block, signal, kink_tol=1e-2)
    assert near.kink_count.tolist() == [1]
    assert_close(near.steepest.tolist(), [-1.0])  # either way round enters the active side or stays
    up, down = ([tangential_derivatives(block, signal, v, kink_tol=1e-2) for v in (V, -V)] for V in (W_UP, -W_UP))
    assert_close(torch.cat(up).tolist(), [-1.0, 0.0])
    assert_close(torch.cat(down).tolist(), [0.0, -1.0])


W_UP = torch.tensor([[0.0, 1.0]])


@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_kink_tolerance_is_an_angle_whatever_the_lengths(size: float) -> None:
    w, x = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1e-3, 1.0], [3e-3, 1.0]]).double()
    for block, X in ((ShallowBlock(size * w, w[:, :1]), x), (ShallowBlock(w, w[:, :1]), size * x)):
        signal = BlockSignal(X, torch.ones(2, 1).double())
        assert neuron_geometry(block, signal, kink_tol=2e-3).kink_count.tolist() == [1]


@pytest.mark.parametrize("d", [1, 3])
def test_weights_whose_squares_underflow_are_still_not_zero(d: int) -> None:
    problem = kinked_problem(3, d=d, kinks=0)
    tiny = replace(problem.block, W=1e-200 * problem.block.W)
    one, two = neuron_geometry(problem.block, problem.signal), neuron_geometry(tiny, problem.signal)
    for name in ("radial", "steepest", "direction", "kink_count"):
        assert_close(getattr(one, name), getattr(two, name))


def test_radial_part_of_a_direction_is_removed() -> None:
    problem = kinked_problem(9)
    V = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    found = tangential_derivatives(problem.block, problem.signal, V)
    assert_close(found, tangential_derivatives(problem.block, problem.signal, V + 5 * problem.block.W))
    assert_close(
        found.tolist(), [loss_limit(problem, i, v) for i, v in enumerate(tangential(problem.block.W, V))], **LIMIT
    )


@pytest.mark.parametrize(
    "V", [torch.ones(3, 3), torch.ones(4), torch.full((4, 3), torch.nan), torch.full((4, 3), torch.inf)]
)
def test_directions_of_a_wrong_shape_or_size_are_refused(V: Tensor) -> None:
    problem = kinked_problem(9)
    with pytest.raises(ValueError, match=r"`V` needs one finite direction per neuron, shape \(4, 3\)"):
        tangential_derivatives(problem.block, problem.signal, V)


def test_weights_that_are_parameters_of_a_model_are_only_read() -> None:
    layer = torch.nn.Linear(3, 4, bias=False)
    output = torch.nn.Linear(4, 1, bias=False)
    X = torch.randn(5, 3, requires_grad=True)
    block = ShallowBlock(layer.weight, output.weight)
    geometry = neuron_geometry(block, BlockSignal(X, block(X)))
    assert not geometry.radial.requires_grad
    assert layer.weight.grad is None


def test_answer_in_one_line() -> None:
    problem = kinked_problem(11)
    assert str(neuron_geometry(problem.block, problem.signal)).startswith("4 neurons, 4 on a kink; steepest tangential")
