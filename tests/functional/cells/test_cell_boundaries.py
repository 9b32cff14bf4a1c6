"""Points on the boundaries of cells: minima that neither side has, and saddles."""

from __future__ import annotations

import pytest
import torch
from support.tensors import column, neuron, normal
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional import ShallowBlock, cells, squared_loss

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -0.5)]
AXES = torch.eye(2, dtype=torch.float64)


def test_a_minimum_on_a_kink_that_neither_cell_has() -> None:
    X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double(), column(1.0, -2.0, 3.0)
    found = F.boundary_minimum(neuron((1, 1), 1.0), X, Y, boundary=(0, 1))
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
    found = F.boundary_minimum(neuron((1, 1), 1.0), X, Y, boundary=(0, 1))
    assert found.genuine is True
    # At w_2 = +-eps the two add h eps e_2 and 2 h eps e_4, e = (2, 1): both pull back to the kink.
    flipped = F.boundary_minimum(neuron((1, 1), 1.0), X, column(1.0, -2.0, 3.0, 3.0), boundary=(0, 3))
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
        F.boundary_minimum(neuron((1, 1), 1.0), X, column(1.0, 1.0, 1.0), boundary)


# Saddles.


def test_the_origin_is_a_saddle_of_the_cells_its_gradient_hyperplane_crosses() -> None:
    (saddle,) = cells.cell_saddles(neuron((1, 1), 1.0), AXES, column(1.0, -1.0))
    assert (saddle.genuine, saddle.neurons.tolist(), saddle.loss) == (True, [], 1.0)
    assert_close(saddle.block.W[0, 0], saddle.block.W[0, 1])
    (outside,) = cells.cell_saddles(neuron((1, 1), 1.0), AXES, column(1.0, 1.0))
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
        for saddle in cells.cell_saddles(block, X, Y):
            assert saddle.loss > cell.loss
            if saddle.block is None or not interior(saddle.block, X, 0):
                continue
            genuine += 1
            assert torch.equal(cells.cell_pattern(saddle.block, X), cell.pattern)

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
    saddles = cells.cell_saddles(block, AXES, column(1.0, -1.0))
    assert [saddle.neurons.tolist() for saddle in saddles] == [[1]]


def test_too_many_neurons_for_all_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="13 neurons"):
        cells.cell_saddles(ShallowBlock(torch.ones(13, 2), torch.ones(1, 13)), torch.eye(2), torch.ones(2, 1))


# All cells.
