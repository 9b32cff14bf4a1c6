import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from support.tensors import column, neuron, normal
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional import ShallowBlock, cells, squared_loss
from relu_diag.functional.cells import _program as cell_program

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -0.5)]
AXES = torch.eye(2, dtype=torch.float64)
FIVE = torch.tensor([[-1.0, 1.0], [-0.6, 1.0], [-0.1, 1.0], [0.3, 1.0], [0.7, 1.0]], dtype=torch.float64)
FIVE_TARGETS = torch.tensor([[0.28], [-0.1], [0.03], [0.23], [-0.22]], dtype=torch.float64)


def problem(seed: int) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A small random problem, degenerate in one way or another more often than not."""
    draw = torch.Generator().manual_seed(seed)

    def one_in(n: int) -> bool:
        return int(torch.randint(n, (1,), generator=draw)) == 0

    d, width, samples = (int(torch.randint(1, high, (1,), generator=draw)) for high in (4, 4, 9))
    X, W = normal(draw, samples, d), normal(draw, width, d)
    if one_in(4):
        X[:, -1] = 1.0
    if one_in(5):
        X[0] = 0.0
    if one_in(5):
        X[-1] = -2.0 * X[0]
    if one_in(3):
        W[-1] = 2.0 * W[0]
    if one_in(6):
        W[-1] = 0.0
    bias = torch.zeros(1, dtype=torch.float64) if one_in(4) else None
    block = ShallowBlock(W, normal(draw, 1, width), SLOPES[seed % len(SLOPES)], bias)
    Y = (
        block(X)
        if one_in(7)
        else torch.zeros(samples, 1, dtype=torch.float64)
        if one_in(9)
        else normal(draw, samples, 1)
    )
    return block, X, Y


def system(block: ShallowBlock, X: Tensor) -> np.ndarray:
    """The matrix of Liu, equation 11, and a column of ones for the output bias."""
    s_minus, s_plus = X.new_tensor(block.slopes)
    sigma = torch.where(X @ block.W.T > 0, s_plus, s_minus)
    A = (sigma[:, :, None] * X[:, None, :]).flatten(1)
    return (A if block.output_bias is None else torch.cat([A, torch.ones(len(X), 1).double()], dim=1)).numpy()


def reference_margin(block: ShallowBlock, X: Tensor, Y: Tensor) -> float:
    """The definition: every sign pattern, zeros included, each a linear program in all of ``R`` with ``A R`` given."""
    A, sides = system(block, X), torch.where(X @ block.W.T > 0, 1.0, -1.0).numpy()
    solution = np.linalg.pinv(A) @ Y[:, 0].numpy()
    (samples, d), size = X.shape, A.shape[1]
    rows = (X / X.norm(dim=1, keepdim=True).clamp(min=1e-300)).numpy()
    best = -1.0
    for signs in itertools.product((1, -1, 0), repeat=len(block.W)):
        above = np.zeros((0, size + 1))
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * size + [(0.0, 1.0)]
        for i, sign in enumerate(signs):
            cell = np.zeros((samples, size + 1))
            cell[:, i * d : (i + 1) * d] = -sign * sides[:, [i]] * rows
            cell[:, -1] = sides[:, i] > 0
            if sign == 0:
                bounds[i * d : (i + 1) * d] = [(0.0, 0.0)] * d
            else:
                above = np.concatenate([above, cell[rows.any(axis=1)]])
        target = A @ solution / (np.linalg.norm(solution) or 1.0)
        outcome = linprog(
            -np.eye(size + 1)[-1], above, np.zeros(len(above)), np.insert(A, size, 0.0, axis=1), target, bounds
        )
        best = max(best, outcome.x[-1] if outcome.status == 0 else -1.0)
    return best


def check_against_reference(seeds: range) -> set[tuple[bool, bool]]:
    seen = set()
    for seed in seeds:
        block, X, Y = problem(seed)
        A = system(block, X)
        found = F.cell_minimum(block, X, Y)
        residual = A @ (np.linalg.pinv(A) @ Y[:, 0].numpy()) - Y[:, 0].numpy()
        assert found.loss == pytest.approx((residual**2).mean(), rel=1e-9, abs=1e-20)
        assert found.unique == (np.linalg.matrix_rank(A) == A.shape[1])
        # 1e-8 tells HiGHS's zero from a margin; the random margins are far from it on either side.
        assert found.genuine == (reference_margin(block, X, Y) > 1e-8), seed
        seen.add((found.genuine, found.unique))
    return seen


def test_the_fast_search_agrees_with_all_sign_patterns() -> None:
    assert len(check_against_reference(range(150))) == 4


@pytest.mark.slow
def test_the_fast_search_agrees_with_all_sign_patterns_on_many_problems() -> None:
    assert len(check_against_reference(range(120, 280))) == 4


def test_the_witness_has_the_pattern_and_the_loss() -> None:
    for seed in range(200):
        block, X, Y = problem(seed)
        found = F.cell_minimum(block, X, Y)
        assert (found.block is not None) == bool(found.genuine)
        if found.block is not None:
            assert found.block.W.shape == block.W.shape
            # Signs that force a neuron near a boundary make large opposite weights, which cancel.
            assert_close(squared_loss(found.block, X, Y).item(), found.loss, rtol=1e-7, atol=1e-12)
            Z, reach = X @ found.block.W.T, X.norm(dim=1)[:, None] * found.block.W.norm(dim=1)
            assert bool(torch.where(found.pattern, Z > 0, (Z - 1e-9 * reach) <= 0).all())


@pytest.mark.parametrize(
    ("w", "loss", "unique"), [((1, 1), 0.0, True), ((1, -1), 0.5, False), ((-1, 1), 0.5, False), ((-1, -1), 1.0, False)]
)
def test_liu_figure_2_each_cell_has_its_minimum(w: tuple[int, int], loss: float, unique: bool) -> None:
    found = F.cell_minimum(neuron(w, 1.0), AXES, column(1.0, 1.0))
    assert_close(found.loss, loss)
    assert (found.unique, found.genuine) == (unique, True)


def test_liu_figure_2_with_a_negative_target_the_positive_cell_has_none() -> None:
    found = F.cell_minimum(neuron((1, 1), 1.0), AXES, column(1.0, -1.0))
    assert_close(found.R, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    assert (found.unique, found.genuine, found.block) == (True, False, None)


def test_a_solution_on_an_active_boundary_is_not_in_the_cell_but_zero_is() -> None:
    # R = (1, 0) has x_2 on the kink; R = 0 belongs to h = 0 with any w.
    assert F.cell_minimum(neuron((1, 1), 1.0), AXES, column(1.0, 0.0)).genuine is False
    found = F.cell_minimum(neuron((1, 1), 1.0), AXES, column(0.0, 0.0))
    assert found.genuine is True
    assert_close(found.block.W, neuron((1, 1), 1.0).W)
    assert_close(found.block.H, column(0.0))


def test_neurons_of_one_pattern_with_opposite_signs_reach_every_solution() -> None:
    # One neuron cannot fit (1, -1) in this cell, two can.
    block = ShallowBlock(torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64), torch.ones(1, 2).double())
    found = F.cell_minimum(block, AXES, column(1.0, -1.0))
    assert found.genuine is True
    assert bool((AXES @ found.block.W.T > 0).all())
    assert_close(found.block(AXES), column(1.0, -1.0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_no_network_in_the_cell_has_less_loss(reduction: F.block.Reduction) -> None:
    for seed in range(60):
        block, X, Y = problem(seed)
        least = F.cell_minimum(block, X, Y, reduction).loss
        draw = torch.Generator().manual_seed(seed)
        for _ in range(20):
            # Moving the output weights never changes the cell.
            bias = None if block.output_bias is None else normal(draw, 1)
            other = ShallowBlock(block.W, normal(draw, 1, len(block.W)), block.slopes, bias)
            assert squared_loss(other, X, Y, reduction) >= least - 1e-12


def test_R_is_the_least_norm_solution() -> None:
    for seed in range(60):
        block, X, Y = problem(seed)
        expected = np.linalg.pinv(system(block, X)) @ Y[:, 0].numpy()
        R = F.cell_minimum(block, X, Y).R
        # pinv of a nearly singular random system loses a few digits.
        assert_close(R.flatten(), torch.as_tensor(expected[: R.numel()]), rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permutations_scales_and_signs_change_nothing(seed: int) -> None:
    block, X, Y = problem(seed)
    draw = torch.Generator().manual_seed(seed)
    neurons, samples = torch.randperm(len(block.W), generator=draw), torch.randperm(len(X), generator=draw)
    scale = torch.rand(len(block.W), 1, generator=draw, dtype=torch.float64) + 0.5
    other = ShallowBlock((scale * block.W)[neurons], -block.H[:, neurons], block.slopes, block.output_bias)
    one, two = F.cell_minimum(block, X, Y), F.cell_minimum(other, X[samples], Y[samples])
    assert_close(one.loss, two.loss, rtol=1e-9, atol=1e-20)
    assert (one.unique, one.genuine) == (two.unique, two.genuine)
    assert torch.equal(one.pattern[samples][:, neurons], two.pattern)
    # Least-norm solutions of nearly singular random systems agree to fewer digits.
    assert_close(one.R[neurons], two.R, rtol=1e-6, atol=1e-9)


def test_a_search_without_budget_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_program, "BUDGETS", replace(cell_program.BUDGETS, program_entries=0))
    found = F.cell_minimum(neuron((1, -1), 1.0), AXES, column(1.0, 1.0))
    assert (found.genuine, found.block) == (None, None)
    assert_close(found.loss, 0.5)
    assert str(found) == "cell minimum: loss 0.5, not unique, undecided whether genuine"
    # The closed form needs no budget.
    assert F.cell_minimum(neuron((1, 1), 1.0), AXES, column(1.0, 1.0)).genuine is True


def test_float32_stays_float32() -> None:
    block = ShallowBlock(torch.ones(1, 2), torch.ones(1, 1))
    found = F.cell_minimum(block, torch.eye(2), torch.ones(2, 1))
    assert found.R.dtype == found.block.W.dtype == torch.float32


def test_several_outputs_are_refused() -> None:
    block = ShallowBlock(torch.ones(1, 2), torch.ones(2, 1))
    for function in (F.cell_minimum, cells.cell_saddles):
        with pytest.raises(ValueError, match="one output"):
            function(block, torch.eye(2), torch.ones(2, 2))


def test_targets_that_do_not_fit_are_named() -> None:
    block = ShallowBlock(torch.ones(1, 2), torch.ones(1, 1))
    for targets in (torch.ones(2), torch.ones(3, 1), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="`Y`"):
            F.cell_minimum(block, torch.eye(2), targets)


def test_the_five_point_run_ends_at_the_minimum_of_its_cell() -> None:
    # Both effective neurons see every sample: the loss left, 0.02789, is that of the straight line through the points.
    block = ShallowBlock(torch.tensor([[-0.8, 0.58], [0.6, 0.8]]).double(), torch.tensor([[0.4, -0.3]]).double())
    found = F.cell_minimum(block, FIVE, FIVE_TARGETS)
    assert_close(found.loss, 0.02789, rtol=0, atol=5e-6)
    assert (found.unique, found.genuine) == (False, True)


# Faces: non-differentiable minima.
