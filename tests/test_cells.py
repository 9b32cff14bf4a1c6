import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional import ShallowBlock, cell_program, squared_loss

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -0.5)]
AXES = torch.eye(2, dtype=torch.float64)
FIVE = torch.tensor([[-1.0, 1.0], [-0.6, 1.0], [-0.1, 1.0], [0.3, 1.0], [0.7, 1.0]], dtype=torch.float64)
FIVE_TARGETS = torch.tensor([[0.28], [-0.1], [0.03], [0.23], [-0.22]], dtype=torch.float64)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def unit(*w: float) -> ShallowBlock:
    return ShallowBlock(torch.tensor([w], dtype=torch.float64), column(1.0))


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


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
    assert len(check_against_reference(range(120, 400))) == 4


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
    found = F.cell_minimum(unit(*w), AXES, column(1.0, 1.0))
    assert_close(found.loss, loss)
    assert (found.unique, found.genuine) == (unique, True)


def test_liu_figure_2_with_a_negative_target_the_positive_cell_has_none() -> None:
    found = F.cell_minimum(unit(1, 1), AXES, column(1.0, -1.0))
    assert_close(found.R, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    assert (found.unique, found.genuine, found.block) == (True, False, None)


def test_a_solution_on_an_active_boundary_is_not_in_the_cell_but_zero_is() -> None:
    # R = (1, 0) has x_2 on the kink; R = 0 belongs to h = 0 with any w.
    assert F.cell_minimum(unit(1, 1), AXES, column(1.0, 0.0)).genuine is False
    found = F.cell_minimum(unit(1, 1), AXES, column(0.0, 0.0))
    assert found.genuine is True
    assert_close(found.block.W, unit(1, 1).W)
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
    monkeypatch.setattr(cell_program, "MAX_ENTRIES", 0)
    found = F.cell_minimum(unit(1, -1), AXES, column(1.0, 1.0))
    assert (found.genuine, found.block) == (None, None)
    assert_close(found.loss, 0.5)
    assert str(found) == "cell minimum: loss 0.5, not unique, undecided whether genuine"
    # The closed form needs no budget.
    assert F.cell_minimum(unit(1, 1), AXES, column(1.0, 1.0)).genuine is True


def test_float32_stays_float32() -> None:
    block = ShallowBlock(torch.ones(1, 2), torch.ones(1, 1))
    found = F.cell_minimum(block, torch.eye(2), torch.ones(2, 1))
    assert found.R.dtype == found.block.W.dtype == torch.float32


def test_several_outputs_are_refused() -> None:
    block = ShallowBlock(torch.ones(1, 2), torch.ones(2, 1))
    for function in (F.cell_minimum, F.cell_saddles):
        with pytest.raises(ValueError, match="one output"):
            function(block, torch.eye(2), torch.ones(2, 2))


def test_the_five_point_run_ends_at_the_minimum_of_its_cell() -> None:
    # Both effective neurons see every sample: the loss left, 0.02789, is that of the straight line through the points.
    block = ShallowBlock(torch.tensor([[-0.8, 0.58], [0.6, 0.8]]).double(), torch.tensor([[0.4, -0.3]]).double())
    found = F.cell_minimum(block, FIVE, FIVE_TARGETS)
    assert_close(found.loss, 0.02789, rtol=0, atol=5e-6)
    assert (found.unique, found.genuine) == (False, True)


# Faces: non-differentiable minima.


def test_a_minimum_on_a_kink_that_neither_cell_has() -> None:
    X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double(), column(1.0, -2.0, 3.0)
    found = F.boundary_minimum(unit(1, 1), X, Y, boundary=(0, 1))
    assert_close(found.R, torch.tensor([[2.0, 0.0]], dtype=torch.float64))
    assert_close(found.loss, 2.0)
    assert (found.unique, found.genuine) == (True, True)
    assert F.classify(found.block, X, Y).kind == "local minimum"


def interior(block: ShallowBlock, X: Tensor, Z_zero: int) -> bool:
    Z = (X @ block.W.T).abs() / (X.norm(dim=1)[:, None] * block.W.norm(dim=1)).clamp(min=1e-300)
    return int((Z < 1e-6).sum()) == Z_zero


def test_genuine_minima_and_boundary_minima_are_local_minima() -> None:
    draw = torch.Generator().manual_seed(3)
    minima = boundary = 0
    for trial in range(150):
        slopes = SLOPES[trial % len(SLOPES)]
        d, width, samples = 2 + trial % 2, 1 + trial % 3, 3 + trial % 5
        X, Y, W = normal(draw, samples, d), normal(draw, samples, 1), normal(draw, width, d)
        block = ShallowBlock(W, normal(draw, 1, width), slopes)
        points = [(0, F.cell_minimum(block, X, Y))]
        points += [(1, F.boundary_minimum(block, X, Y, (0, sample))) for sample in range(samples)]
        for zeros, point in points:
            if point.block is None or not interior(point.block, X, zeros):
                continue
            minima, boundary = minima + (zeros == 0), boundary + zeros
            assert_close(squared_loss(point.block, X, Y).item(), point.loss, rtol=1e-7, atol=1e-12)
            assert F.classify(point.block, X, Y, kink_tol=1e-8, tol=1e-6).kind in {"local minimum", "global minimum"}
            base, step = squared_loss(point.block, X, Y), 1e-4
            for _ in range(20):
                dW, dH = step * normal(draw, *W.shape), step * normal(draw, 1, width)
                moved = ShallowBlock(point.block.W + dW, point.block.H + dH, slopes)
                assert squared_loss(moved, X, Y) >= base - 1e-13
    assert minima > 30
    assert boundary > 10


def test_where_the_loss_falls_to_a_side_the_face_has_no_minimum() -> None:
    draw = torch.Generator().manual_seed(4)
    rejected = 0
    for _ in range(60):
        X, Y = normal(draw, 4, 2), normal(draw, 4, 1)
        block = ShallowBlock(normal(draw, 1, 2), normal(draw, 1, 1))
        for sample in range(4):
            found = F.boundary_minimum(block, X, Y, (0, sample))
            if not found.R.any():  # no other sample is active: nothing pins the direction
                continue
            sides = X @ found.R[0] / (X.norm(dim=1) * found.R.norm())
            others = torch.arange(4) != sample
            assert_close(sides[sample].item(), 0.0, rtol=0, atol=1e-12)
            for sign in (1.0, -1.0):
                held = torch.equal(sign * sides[others] > 0, found.pattern[others, 0])
                if not held or bool((sides[others].abs() < 1e-3).any()):
                    continue
                w, h = sign * found.R / found.R.norm().sqrt(), sign * found.R.norm().sqrt()
                base = squared_loss(ShallowBlock(w, h.reshape(1, 1)), X, Y)
                change = [
                    squared_loss(ShallowBlock(w + side * 1e-5 * X[sample], h.reshape(1, 1)), X, Y) - base
                    for side in (1.0, -1.0)
                ]
                # First-order changes are of size 1e-5; a slope of zero leaves the second order, 1e-10.
                assert found.genuine == (min(change) > 1e-8)
                rejected += not found.genuine
    assert rejected > 20


def test_collinear_samples_share_a_boundary() -> None:
    # The second sample split in two halves on one hyperplane, seen from opposite sides: the same problem.
    X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 2.0]]).double(), column(1.0, -2.0, 3.0, -1.0)
    found = F.boundary_minimum(unit(1, 1), X, Y, boundary=(0, 1))
    assert found.genuine is True
    # At w_2 = +-eps the two add h eps e_2 and 2 h eps e_4, e = (2, 1): both pull back to the kink.
    flipped = F.boundary_minimum(unit(1, 1), X, column(1.0, -2.0, 3.0, 3.0), boundary=(0, 3))
    # e = (2, -3): 2 - 6 - 1 < 0, the loss falls on the upper side.
    assert flipped.genuine is False


def test_one_input_has_its_only_boundary_at_zero() -> None:
    block = ShallowBlock(column(1.0), column(1.0), slopes=(-1.0, 1.0))
    found = F.boundary_minimum(block, column(1.0, -2.0), column(-1.0, -1.0), boundary=(0, 0))
    # |w| h cannot fit targets below zero with h > 0; w = 0 is where the loss stops falling.
    assert found.genuine is True
    assert_close(found.block.W, column(0.0))
    assert F.cell_minimum(block, column(1.0, -2.0), column(-1.0, -1.0)).genuine is True  # with h < 0


@pytest.mark.parametrize("boundary", [(1, 0), (0, 3), (-1, 0), (0, 2)])
def test_a_boundary_that_does_not_exist_is_refused(boundary: tuple[int, int]) -> None:
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()
    with pytest.raises(ValueError, match="`boundary` must be"):
        F.boundary_minimum(unit(1, 1), X, column(1.0, 1.0, 1.0), boundary)


# Saddles.


def test_the_origin_is_a_saddle_of_the_cells_its_gradient_hyperplane_crosses() -> None:
    (saddle,) = F.cell_saddles(unit(1, 1), AXES, column(1.0, -1.0))
    assert (saddle.genuine, saddle.neurons.tolist(), saddle.loss) == (True, [], 1.0)
    assert_close(saddle.block.W[0, 0], saddle.block.W[0, 1])
    (outside,) = F.cell_saddles(unit(1, 1), AXES, column(1.0, 1.0))
    assert (outside.genuine, outside.block) == (False, None)


def test_theorem_2_saddles_are_stationary_and_have_a_way_down() -> None:
    draw = torch.Generator().manual_seed(5)
    genuine = 0
    for trial in range(60):
        slopes = SLOPES[trial % len(SLOPES)]
        d, width, samples = 2 + trial % 2, 1 + trial % 3, 4 + trial % 4
        X, Y = normal(draw, samples, d), normal(draw, samples, 1)
        block = ShallowBlock(normal(draw, width, d), normal(draw, 1, width), slopes)
        cell = F.cell_minimum(block, X, Y)
        for saddle in F.cell_saddles(block, X, Y):
            assert saddle.loss > cell.loss
            if saddle.block is None or not interior(saddle.block, X, 0):
                continue
            genuine += 1
            assert torch.equal(F.cell_pattern(saddle.block, X), cell.pattern)

            def loss(P: Tensor, X: Tensor = X, Y: Tensor = Y, slopes: tuple[float, float] = slopes) -> Tensor:
                W, H = P[:, :-1], P[:, -1:].T
                return squared_loss(ShallowBlock(W, H, slopes), X, Y)

            at = torch.cat([saddle.block.W, saddle.block.H.T], dim=1)
            assert_close(loss(at).item(), saddle.loss, rtol=1e-7, atol=1e-12)
            # Opposite weights of one pattern may be large; their gradients cancel to fewer digits.
            gradient = torch.func.grad(loss)(at)
            assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7 * float(1 + at.norm()) ** 2)
            hessian = torch.autograd.functional.hessian(loss, at).reshape(at.numel(), -1)
            assert torch.linalg.eigvalsh(hessian)[0] < -1e-6
    assert genuine > 15


def test_a_set_that_leaves_another_neuron_at_rest_is_covered_by_the_larger_one() -> None:
    # A dead neuron has dL/dR = 0 always.
    block = ShallowBlock(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double(), torch.ones(1, 2).double())
    saddles = F.cell_saddles(block, AXES, column(1.0, -1.0))
    assert [saddle.neurons.tolist() for saddle in saddles] == [[1]]


def test_too_many_neurons_for_all_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="13 neurons"):
        F.cell_saddles(ShallowBlock(torch.ones(13, 2), torch.ones(1, 13)), torch.eye(2), torch.ones(2, 1))


# All cells.


@pytest.mark.parametrize(("samples", "d"), [(1, 1), (4, 1), (1, 2), (5, 2), (9, 2), (2, 3), (6, 3), (8, 3), (5, 4)])
def test_the_number_of_cells_is_covers(samples: int, d: int) -> None:
    W = F.cell_directions(normal(torch.Generator().manual_seed(samples), samples, d))
    assert len(W) == 2 * sum(math.comb(samples - 1, j) for j in range(d) if d > 1 or j == 0)
    assert_close(W.norm(dim=1), torch.ones(len(W), dtype=torch.float64))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_direction_falls_in_a_listed_cell_and_no_cell_is_listed_twice(d: int) -> None:
    draw = torch.Generator().manual_seed(d)
    X = normal(draw, 7, d)
    X[1] = 0.0
    X[2] = -3.0 * X[0]
    if d == 3:
        X[3] = X[0] + X[4]  # three hyperplanes through one line
    listed = {tuple(row) for row in (X @ F.cell_directions(X).T > 0).T.tolist()}
    assert len(listed) == len(F.cell_directions(X))
    # The narrowest cell of these draws is far wider than the spacing of so many directions.
    drawn = {tuple(row) for row in (X @ normal(draw, 50_000, d).T > 0).T.tolist()}
    assert drawn == listed


def test_samples_in_a_plane_leave_its_orthogonal_direction_alone() -> None:
    X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).double()
    W = F.cell_directions(X)
    assert len(W) == 6
    assert_close(W[:, 2], torch.zeros(6).double())
    assert len(F.cell_directions(torch.zeros(2, 3))) == 1


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="cells"):
        F.cell_directions(torch.randn(200, 3))
    with pytest.raises(ValueError, match="combinations"):
        F.all_cell_minima(FIVE, FIVE_TARGETS, width=7)


def test_the_best_cell_of_one_neuron_is_the_best_of_a_dense_sweep() -> None:
    # Least squares over the length of R along each direction, both signs.
    angle = torch.linspace(0, 2 * torch.pi, 20001, dtype=torch.float64)
    A = torch.stack([angle.cos(), angle.sin()], dim=1) @ FIVE.T
    A = A.clamp(min=0)
    fit = (A @ FIVE_TARGETS).squeeze(1) ** 2 / A.square().sum(1).clamp(min=1e-300)
    swept = (FIVE_TARGETS.square().sum() - fit.max()) / 5
    genuine = [cell for cell in F.all_cell_minima(FIVE, FIVE_TARGETS) if cell.genuine]
    # The sweep is off by the square of its spacing.
    assert_close(min(cell.loss for cell in genuine), swept.item(), rtol=0, atol=1e-6)


def test_two_neurons_have_one_entry_per_pair_of_cells() -> None:
    minima = F.all_cell_minima(AXES, column(1.0, -1.0), width=2)
    assert len(minima) == 10
    assert len({tuple(sorted(map(tuple, cell.pattern.T.tolist()))) for cell in minima}) == 10
    assert [cell.loss for cell in minima] == sorted(cell.loss for cell in minima)
