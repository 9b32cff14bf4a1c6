"""Absolute errors with targets met exactly: a gradient there is chosen, and a fall found where none holds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from support.attack.any_loss import case_of, decayed_case
from support.attack.loss_oracle import complaints

from relu_diag import ShallowBlock
from relu_diag import functional as F

MINIMA = {"local minimum", "global minimum"}


def steepest(block: ShallowBlock, X: torch.Tensor, Y: torch.Tensor) -> float:
    """The lowest one-sided derivative of ``sum |yhat - y|``, one output, along weights up to 1.

    By a linear program for every choice of signs: of what each met output changes by, and of every kink.
    """
    W, h, points = block.W.numpy(), block.H.numpy()[0], X.numpy()
    Z = points @ W.T
    on = np.argwhere(np.abs(Z) < 1e-9)
    residual = (block(X) - Y).numpy()[:, 0]
    met = np.flatnonzero(np.abs(residual) < 1e-9)
    lowest = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=len(on) + len(met)):
        slope = (Z > 0).astype(float)
        slope[tuple(on.T)] = [sign > 0 for sign in signs[: len(on)]]
        change = np.concatenate([(slope * h)[:, :, None] * points[:, None], (slope * Z)[:, :, None]], axis=2)
        change = change.reshape(len(points), -1)
        weight = np.sign(residual)
        weight[met] = signs[len(on) :]
        held = [-weight[k] * change[k] for k in met]
        for (k, i), sign in zip(on, signs, strict=False):
            row = np.zeros((len(W), W.shape[1] + 1))
            row[i, :-1] = -sign * points[k]
            held.append(row.ravel())
        found = linprog(weight @ change, A_ub=np.array(held), b_ub=np.zeros(len(held)), bounds=(-1, 1))
        lowest = min(lowest, found.fun)
    return lowest


def small(seed: int) -> tuple[ShallowBlock, torch.Tensor, torch.Tensor]:
    """Two neurons, six samples, up to four targets met, one sample on a kink or none."""
    draw = np.random.default_rng(seed)
    W, h, X = draw.standard_normal((2, 2)), draw.standard_normal((1, 2)), draw.standard_normal((6, 2))
    if seed % 2:
        X[0] = np.array([-W[0, 1], W[0, 0]])
    block = ShallowBlock(*(torch.tensor(part) for part in (W, h)))
    residual = np.round(2 * draw.standard_normal((6, 1)))
    residual[draw.permutation(6)[: 1 + seed % 4]] = 0.0
    inputs = torch.tensor(X)
    return block, inputs, block(inputs) - torch.tensor(residual)


@pytest.mark.parametrize("seed", range(24))
def test_a_point_falls_to_first_order_where_every_choice_of_signs_has_been_tried(seed: int) -> None:
    block, X, Y = small(seed)
    verdict = F.classify(block, X, F.AbsoluteError(Y, "sum"))
    lowest = steepest(block, X, Y)
    assert (verdict.kind == "not stationary") == (lowest < -1e-9), (str(verdict), lowest)


@pytest.mark.parametrize("number", range(20))
def test_verdicts_where_half_of_the_targets_are_met_are_attacked(number: int) -> None:
    for case in (case_of("targets met", 5, number), decayed_case("targets met", 5, number)):
        verdict = F.classify(case.block, case.X, case.loss, weight_decay=case.mu)
        assert complaints(case, verdict, np.random.default_rng(number)) == []


def test_few_such_points_are_left_undecided() -> None:
    """By their construction all of them are stationary: a gradient that holds them exists."""
    kinds = []
    for number in range(30):
        case = case_of("targets met", 6, number)
        kinds.append(F.classify(case.block, case.X, case.loss).kind)
    assert kinds.count("undecided") <= 5
    assert sum(kind in MINIMA for kind in kinds) >= 10


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_median_is_the_minimum_and_other_targets_that_are_met_are_none(scale: float) -> None:
    X, Y = torch.ones(5, 1).double(), scale * torch.tensor([-1.0, 0.5, 1.0, 4.0, 9.0]).double()[:, None]
    for met, kind in ((1.0, "global minimum"), (0.5, "not stationary"), (4.0, "not stationary")):
        block = ShallowBlock(torch.ones(1, 1).double(), torch.full((1, 1), scale * met, dtype=torch.float64))
        verdict = F.classify(block, X, F.AbsoluteError(Y))
        assert verdict.kind in (MINIMA if kind in MINIMA else {kind}), str(verdict)
        if verdict.direction is not None:
            assert verdict.direction.loss_change < 0


def test_interpolated_targets_on_the_kinks_of_the_network_are_a_minimum_among_outliers() -> None:
    """A network that bends at a sample it meets: the gradient there depends on the side that the kink moves to."""
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0]).double()
    X = torch.stack([x, torch.ones_like(x)], dim=1)
    block = ShallowBlock(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 0.5]]).double())
    Y = block(X)
    Y[3] -= 1.0
    loss = F.AbsoluteError(Y, "sum", torch.tensor([4.0, 4.0, 4.0, 1.0]).double())
    verdict = F.classify(block, X, loss)
    assert verdict.kind in MINIMA, str(verdict)
    single = F.AbsoluteError(Y, "sum", torch.tensor([4.0, 4.0, 1.0, 4.0]).double())
    assert F.classify(block, X, single).kind == "not stationary"


def test_a_minimum_by_another_gradient_than_autograds_is_undecided_under_a_loss_of_the_users_own() -> None:
    X, Y = torch.ones(4, 1).double(), torch.tensor([[0.0], [0.0], [1.0], [5.0]]).double()
    block = ShallowBlock(torch.ones(1, 1).double(), torch.ones(1, 1).double())
    own = F.OutputLoss(lambda outputs: (outputs - Y).abs().sum(), convex=True, smooth=False)
    assert F.classify(block, X, F.AbsoluteError(Y, "sum")).kind == "global minimum"
    assert F.classify(block, X, own).kind == "undecided"


def test_a_slope_that_is_zero_but_for_rounding_holds_all_weights() -> None:
    X = torch.tensor([[1.3, 0.7], [-1.0, -0.4]], dtype=torch.float64)
    block = ShallowBlock(torch.tensor([[0.7, 0.9], [0.3, -0.2]]).double(), torch.tensor([[0.37, 0.61]]).double())
    # The first sample alone is seen, and met; nothing can help the other one.
    Y = block(X) - torch.tensor([[0.0], [1.0]])
    verdict = F.classify(block, X, F.AbsoluteError(Y))
    assert verdict.kind == "local minimum"


def test_no_kink_of_the_loss_is_blamed_where_no_target_is_met() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    block = ShallowBlock(1e-7 * torch.randn(3, 3, generator=draw).double(), 1e-7 * torch.ones(1, 3).double())
    # So far away that no fall is seen above the rounding of the loss.
    Y = 1e12 * (1 + X[:, :1].square())
    for loss in (F.AbsoluteError(Y), F.OutputLoss(lambda outputs: (outputs - Y).abs().mean(), True, smooth=False)):
        verdict = F.classify(block, X, loss)
        assert verdict.kind == "undecided"
        assert "rounding of the loss" in verdict.reason


def test_a_loss_of_the_users_is_not_decided_by_one_of_its_gradients_on_a_kink() -> None:
    X = torch.tensor([[1.0, 0.5], [-1.0, -1.0]], dtype=torch.float64)
    block = ShallowBlock(torch.tensor([[0.8, 0.1]]).double(), torch.tensor([[0.7]]).double())
    Y = block(X) - torch.tensor([[0.0], [1.0]])
    pinball = F.OutputLoss(lambda outputs: torch.maximum(0.3 * (Y - outputs), 0.7 * (outputs - Y)).mean(), True, False)
    verdict = F.classify(block, X, pinball)
    assert verdict.kind == "undecided"
    assert "others may be" in verdict.reason
