"""The exact quartic along a line of parameters, and random perturbations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import verdict
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.problem import squared_problem
from relu_diag.functional.verdict import perturbation
from relu_diag.functional.verdict.line import Move, expand

SLOPES = [(0.0, 1.0), (-1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (2.0, -0.5)]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def problem(seed: int, bias: bool = False) -> tuple[ShallowBlock, Tensor, Tensor]:
    """Three neurons, one zero and one with a sample on its kink, and a sample at zero."""
    torch.manual_seed(seed)
    W, X = draw(3, 3), draw(12, 3)
    W[0], X[0] = 0.0, 0.0
    X[1] -= (X[1] @ W[1]) / (W[1] @ W[1]) * W[1]
    output_bias = draw(2) if bias else None
    return ShallowBlock(W, draw(2, 3), SLOPES[seed % len(SLOPES)], output_bias), X, draw(12, 2)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_quartic_is_the_loss_up_to_the_first_crossing(seed: int, reduction: F.Reduction) -> None:
    block, X, Y = problem(seed)
    dW, dH = draw(3, 3), draw(2, 3)
    line = F.taylor_expansion(block, X, Y, dW, dH, reduction)
    for share in (0.0, 1e-3, 0.5, 1.0):
        moved = ShallowBlock(block.W + share * line.eps_max * dW, block.H + share * line.eps_max * dH, block.slopes)
        assert_close(line(share * line.eps_max), F.squared_loss(moved, X, Y, reduction))
    beyond = ShallowBlock(block.W + 1.5 * line.eps_max * dW, block.H + 1.5 * line.eps_max * dH, block.slopes)
    assert (line(1.5 * line.eps_max) - F.squared_loss(beyond, X, Y, reduction)).abs() > 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_eps_max_is_the_first_positive_root(seed: int) -> None:
    block, X, Y = problem(seed)
    dW = draw(3, 3)
    roots = [
        float(-(w @ x) / (v @ x))
        for (w, v), x in itertools.product(zip(block.W, dW, strict=True), X)
        if abs(w @ x) > 1e-12 and v @ x != 0
    ]
    line = F.taylor_expansion(block, X, Y, dW, draw(2, 3))
    assert line.eps_max == pytest.approx(min(root for root in roots if root > 0), rel=1e-12)


def test_nothing_crosses_along_output_weights_or_outwards() -> None:
    block, X, Y = problem(0)
    assert F.taylor_expansion(block, X, Y, torch.zeros_like(block.W), draw(2, 3)).eps_max == float("inf")
    assert F.taylor_expansion(block, X, Y, block.W, draw(2, 3)).eps_max == float("inf")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_first_coefficient_is_the_one_sided_derivative(sign: float) -> None:
    """On the kink, and at w = 0, the side that dW enters counts."""
    block, X, Y = problem(3)
    V = sign * torch.eye(3, dtype=torch.float64)
    signal = F.squared_error_signal(block, X, Y)
    for i, v in itertools.product(range(3), V):
        dW = torch.zeros_like(block.W)
        dW[i] = v - (v @ block.W[i]) / max(float(block.W[i] @ block.W[i]), 1e-300) * block.W[i]
        line = F.taylor_expansion(block, X, Y, dW, torch.zeros_like(block.H))
        assert_close(line.coefficients[1], F.tangential_derivatives(block, signal, dW)[i])


@pytest.mark.parametrize("seed", range(5))
def test_a_move_of_the_output_bias_is_part_of_the_quartic(seed: int) -> None:
    block, X, Y = problem(seed, bias=True)
    move = Move(draw(3, 3), draw(2, 3), draw(2))
    line = expand(squared_problem(block, X, Y, "sum"), move)
    step = line.eps_max / 3
    moved = ShallowBlock(
        block.W + step * move.dW, block.H + step * move.dH, block.slopes, block.output_bias + step * move.db
    )
    assert_close(line(step), F.squared_loss(moved, X, Y, "sum"))


@pytest.mark.parametrize(
    ("coefficients", "minima"),
    [
        ([1.0, -2.0, 1.0, 0.0, 0.0], [1.0]),
        ([1.0, 0.0, -2.0, 0.0, 1.0], [1.0]),
        ([1.0, 0.0, 2.0, 0.0, 1.0], []),
        ([1.0, 2.0, 1.0, 0.0, 0.0], []),
        ([0.0, -2e-9, 1.0, 1e-23, 1e-38], [1e-9]),  # the last two are rounding
        ([0.0, 1e-18, -1.0, 1e-17, 0.5e-6], [1e3]),
    ],
)
def test_minima_are_found_at_every_scale(coefficients: list[float], minima: list[float]) -> None:
    line = verdict.TaylorExpansion(torch.tensor(coefficients, dtype=torch.float64), float("inf"))
    assert line.minima == pytest.approx(minima, rel=1e-9)


def test_expansion_refuses_directions_of_the_wrong_shape_or_not_finite() -> None:
    block, X, Y = problem(0)
    with pytest.raises(ValueError, match="`dW`"):
        F.taylor_expansion(block, X, Y, draw(2, 3), draw(2, 3))
    with pytest.raises(ValueError, match="`dH`"):
        F.taylor_expansion(block, X, Y, draw(3, 3), torch.full((2, 3), float("nan"), dtype=torch.float64))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zeta", [1e-3, 1.0])
def test_changes_are_those_of_the_loss_at_the_perturbed_parameters(bias: bool, zeta: float) -> None:
    """Also where the noise takes samples across kinks."""
    block, X, Y = problem(4, bias)
    draws = torch.Generator().manual_seed(5)
    found = F.perturbation_test(block, X, Y, "sum", draws=3, generator=draws, zeta=zeta)
    assert found.zeta == zeta
    assert not found.relative
    assert (found.crossing > 0) == (zeta == 1.0)
    generator = torch.Generator().manual_seed(5)
    dW, dH, db = (
        zeta * (2 * torch.rand(3, *shape, generator=generator, dtype=torch.float64) - 1)
        for shape in ((3, 3), (2, 3), (2,))
    )
    for k in range(3):
        moved_bias = None if block.output_bias is None else block.output_bias + db[k]
        moved = ShallowBlock(block.W + dW[k], block.H + dH[k], block.slopes, moved_bias)
        change = F.squared_loss(moved, X, Y, "sum") - F.squared_loss(block, X, Y, "sum")
        # The difference of two losses carries their rounding, 1e-16 of losses near 100.
        assert_close(found.changes[k], change, atol=1e-13, rtol=1e-7)


@pytest.mark.parametrize(
    "loss",
    [F.CrossEntropy(torch.tensor([0, 1, 1, 0, 1, 0])), F.AbsoluteError(torch.ones(6, 2)), F.Huber(torch.zeros(6, 2))],
    ids=lambda loss: loss.name,
)
def test_changes_of_any_loss_are_those_at_the_perturbed_parameters_decay_included(loss: Loss) -> None:
    """Small noise stays on the linear pieces, as autograd's gradient does: changes keep their digits."""
    torch.manual_seed(0)
    block, X, loss = ShallowBlock(draw(3, 3), draw(2, 3), (0.1, 1.0), draw(2)), draw(6, 3), loss.double()
    X[0] = 0  # felt through the output bias alone
    decay = F.WeightDecay(W=0.1, H=0.2, hidden_bias=0.3, output_bias=0.4)
    for zeta in (1.0, 1e-12):
        draws = torch.Generator().manual_seed(5)
        found = F.perturbation_test(block, X, loss, draws=3, generator=draws, zeta=zeta, weight_decay=decay)
        width = perturbation._same_width(block, zeta)
        noise = perturbation._noise(width, 3, torch.Generator().manual_seed(5))
        for change, dW, dH, db in zip(found.changes, noise.dW, noise.dH, noise.db, strict=True):
            assert block.output_bias is not None
            moved = ShallowBlock(block.W + dW, block.H + dH, block.slopes, block.output_bias + db)
            parts = [part.clone().requires_grad_() for part in (block.W, block.H, block.output_bias)]
            here = ShallowBlock(parts[0], parts[1], block.slopes, parts[2])
            value = loss(here(X)) + decay.cost(here)
            if zeta == 1.0:
                expected = (loss(moved(X)) + decay.cost(moved) - value).detach()
            else:
                slopes = torch.autograd.grad(value, parts)
                expected = sum(((g * d).sum() for g, d in zip(slopes, (dW, dH, db), strict=True)), value.new_zeros(()))
            assert_close(change, expected, rtol=1e-7, atol=0)


def test_noise_is_relative_to_each_neuron_and_stops_before_its_own_kink_only() -> None:
    block, X, Y = problem(0)
    near = X.clone()
    near[2] += (1e-6 - near[2] @ block.W[1]) / (block.W[1] @ block.W[1]) * block.W[1]
    shrink = torch.tensor([1.0, 1.0, 1e-9], dtype=torch.float64)
    tiny = ShallowBlock(block.W * shrink[:, None], block.H / shrink, block.slopes)
    width = perturbation._relative_width(tiny)
    assert_close(width.dW[1:], 1e-3 * tiny.W.abs().amax(1, keepdim=True).expand(3, 3)[1:])
    assert bool((width.dW[0] > 0).all())  # of a neuron at zero
    assert_close(width.dH, 1e-3 * tiny.H.abs().amax(0).expand(2, 3))
    room = perturbation._room(squared_problem(tiny, near, Y, "sum"))
    assert float(room[1]) == pytest.approx(0.99e-6 / float(near[2].abs().sum()))
    found = F.perturbation_test(tiny, near, Y, draws=1)
    assert found.relative
    assert found.narrowed == int((room < width.dW[:, 0]).sum()) > 0
    assert found.crossing == 0


def test_one_tiny_neuron_leaves_the_noise_of_the_others_as_it_is() -> None:
    """Alone, the large neuron has a saddle that the noise sees; a tiny one beside a kink hides nothing."""
    X = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.5]], dtype=torch.float64)
    Y = torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.float64)
    W = torch.tensor([[1.0, 0.0], [1e-12, -1e-12 * (1 - 1e-7)]], dtype=torch.float64)
    block, draws = ShallowBlock(W, torch.zeros(1, 2, dtype=torch.float64)), torch.Generator().manual_seed(0)
    found = F.perturbation_test(block, X, Y, generator=draws)
    assert found.narrowed == 1
    assert found.changes.min() < -1e-7


def test_no_perturbation_lowers_the_loss_at_a_minimum_and_some_do_at_a_saddle() -> None:
    X = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.2]], dtype=torch.float64)
    Y = torch.tensor([[1.0], [-1.0], [0.3]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    minimum = ShallowBlock(torch.tensor([[0.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    assert F.classify(minimum, X, torch.tensor([[1.0], [0.0], [0.2]], dtype=torch.float64)).kind == "global minimum"
    changes = F.perturbation_test(minimum, X, torch.tensor([[1.0], [0.0], [0.2]], dtype=torch.float64)).changes
    assert len(changes) == 5000
    assert changes.min() >= 0
    saddle = ShallowBlock(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert F.perturbation_test(saddle, X, Y, generator=generator).changes.min() < 0


def test_perturbation_test_refuses_no_draws_and_says_what_it_saw() -> None:
    block, X, Y = problem(1)
    with pytest.raises(ValueError, match="draws"):
        F.perturbation_test(block, X, Y, draws=0)
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="zeta"):
            F.perturbation_test(block, X, Y, zeta=width)
    found = verdict.PerturbationTest(torch.tensor([-1.0, 2.0]), 0.5)
    assert str(found) == "1 of 2 perturbations up to 0.5 lower the loss"
    assert "of each neuron's weights (2 neurons less: a kink is near)" in str(replace(found, relative=True, narrowed=2))
    assert "(samples may cross the kinks of 3 neurons)" in str(replace(found, crossing=3))
    assert str(F.taylor_expansion(block, X, Y, draw(3, 3), draw(2, 3))).startswith("slope ")


def test_many_draws_come_in_batches_that_do_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    block, X, Y = problem(2)
    one = F.perturbation_test(block, X, Y, draws=50, generator=torch.Generator().manual_seed(0)).changes
    monkeypatch.setattr(perturbation, "BUDGETS", replace(BUDGETS, draw_rows=5))
    in_parts = F.perturbation_test(block, X, Y, draws=50, generator=torch.Generator().manual_seed(0)).changes
    assert_close(in_parts, one)
    monkeypatch.setattr(perturbation, "BUDGETS", replace(BUDGETS, draw_numbers=60))
    assert len(F.perturbation_test(block, X, Y, draws=50).changes) == 50
