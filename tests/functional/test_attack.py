"""Structured problems against an oracle that owes nothing to the kernel; `benchmarks/attack.py` runs many more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.attack.checks import Record, attack, check_verdict, truth_of
from support.attack.descent import largest_fall
from support.attack.families import FAMILIES, problem_of
from support.attack.first_order import first_order, lowest_by_programs, point_of
from support.attack.line import change, profile
from support.attack.problem import Problem, loss
from support.attack.starts import backward

from relu_diag import functional as F

PROBLEMS = 8
# Kinds of complaint that are known and not mended yet. An entry that no problem needs any more is taken out.
OPEN: frozenset[str] = frozenset()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_verdict_of_a_family_is_false(family: str) -> None:
    for number in range(PROBLEMS):
        record = attack(problem_of(family, seed=0, number=number), np.random.default_rng(number))
        assert not record.exceptions, f"{number}: {record.exceptions}"
        complaints = [(kind, text) for kind, text in record.complaints if kind not in OPEN]
        assert not complaints, f"{number}: {complaints}"


def problems(count: int) -> list[Problem]:
    return [backward(np.random.default_rng(seed)) for seed in range(count)]


def test_rays_and_linear_programs_agree_on_whether_a_neuron_can_descend() -> None:
    seen = 0
    for problem in problems(40):
        point = point_of(problem)
        if np.abs(point.E).max() < 1e-9:  # nothing but rounding
            continue
        for i in range(len(problem.W)):
            lowest, neuron = lowest_by_programs(point, i), first_order(point, i)
            if lowest is None or not neuron.certain:
                continue
            seen += 1
            assert lowest > -1e-8 or neuron.most > 1e-9
            assert lowest < 0 or neuron.least < 1e-6 or not problem.H[:, i].any()
    assert seen > 40


def test_profile_is_the_loss_evaluated_along_the_line() -> None:
    rng = np.random.default_rng(0)
    for problem in problems(10):
        db = rng.standard_normal(len(problem.H)) * (problem.b is not None)
        dW, dH = rng.standard_normal(problem.W.shape), rng.standard_normal(problem.H.shape)
        changes = [0.0]
        for t in np.linspace(0, 2, 4001)[1:]:
            b = None if problem.b is None else problem.b + t * db
            there = replace(problem, W=problem.W + t * dW, H=problem.H + t * dH, b=b)
            changes.append(float(loss(there) - loss(problem)))
        seen = profile(problem, dW, dH, db, 2.0, point_of(problem).kink)
        size = np.abs(changes).max()
        assert seen.fall == pytest.approx(changes[-1], abs=1e-10 * size)
        rise = max(np.array(changes) - np.minimum.accumulate(changes))
        assert seen.rise == pytest.approx(rise, abs=1e-4 * size)


def test_change_is_that_of_the_loss_itself_also_where_the_profile_starts_on_a_kink() -> None:
    rng = np.random.default_rng(1)
    X = np.array([[1.0, 1e-11], [1.0, 1.0], [0.5, -1.0]])  # the first is within the tolerance of its kink
    problem = Problem(np.array([[0.0, 1.0]]), np.array([[2.0]]), X, rng.standard_normal((3, 1)))
    dW, dH, db, step = np.array([[-1.0, 0.0]]), np.array([[0.5]]), np.zeros(1), 2e-11
    there = replace(problem, W=problem.W + step * dW, H=problem.H + step * dH)
    seen = change(problem, dW, dH, db, step)
    assert seen == pytest.approx(float(loss(there) - loss(problem)), rel=1e-6)
    kinked = profile(problem, dW, dH, db, step, point_of(problem).kink)
    assert abs(kinked.fall - seen) > 0.1 * abs(seen)
    for p in problems(10):
        dW, dH = rng.standard_normal(p.W.shape), rng.standard_normal(p.H.shape)
        there = replace(p, W=p.W + dW, H=p.H + dH)
        db = np.zeros(len(p.H))
        assert change(p, dW, dH, db, 1.0) == pytest.approx(float(loss(there) - loss(p)), rel=1e-12)


def test_search_leaves_saddles_and_stays_at_minima() -> None:
    X, Y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0], [-1.0]])
    minimum = Problem(np.array([[1.0, -1.0]]), np.array([[1.0]]), X, Y)
    saddle = Problem(np.array([[1.0, -1.0], [0.0, 0.0]]), np.array([[1.0, 0.0]]), X, np.array([[1.0], [0.5]]))
    assert largest_fall(point_of(minimum), np.random.default_rng(0)).excess < 1
    assert largest_fall(point_of(saddle), np.random.default_rng(0)).excess > 1


@pytest.mark.parametrize("lie", ["local minimum", "saddle", "not stationary"])
def test_a_lie_is_noticed(lie: str) -> None:
    noticed = asked = 0
    for number, problem in enumerate(problems(40)):
        verdict, truth = F.classify(problem.block(), *problem.data(), problem.reduction), truth_of(problem)
        if verdict.kind not in {"local minimum", "saddle", "not stationary"} - {lie} or not truth.exact:
            continue
        asked += 1
        record = Record()
        check_verdict(record, truth, replace(verdict, kind=lie), np.random.default_rng(number), deep=False)
        noticed += bool(record.complaints)
    assert noticed >= 0.9 * asked > 4


@pytest.mark.parametrize("kinked", [False, True])
@pytest.mark.parametrize("ulps", [0, 1, 4])
def test_escape_neurons_are_seen_beside_slopes_that_are_rounding(ulps: int, kinked: bool) -> None:
    # The first output is met but for the rounding of a long sample's; the second pulls.
    long = 1e6
    X = torch.tensor([[long, long], [1.0, -1.0]], dtype=torch.float64)
    Y = torch.tensor([[long - ulps * np.spacing(long), 1 / long], [1.0, -1.0]], dtype=torch.float64)
    if kinked:  # uphill on one side, and flat on the other
        X = torch.cat([X, X.new_tensor([[0.0, 1.0]])])
        Y = torch.cat([Y, Y.new_tensor([[-1.0, 0.0]])])
    block = F.ShallowBlock(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.eye(2, 1, dtype=torch.float64))
    signal = F.squared_error_signal(block, X, Y, "half_sum")
    assert F.stationarity(block, signal).stationary.all()
    assert F.escape_neurons(block, signal).mask.all()
    assert F.classify(block, X, Y, "half_sum").kind != "local minimum"


@pytest.mark.parametrize("turn", [0.0, 1e-6, 1e-9, 1e-12])
def test_cell_minima_have_the_loss_that_they_say_however_near_their_kinks(turn: float) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(20):
        half = rng.standard_normal((4, 3))
        X = torch.from_numpy(np.concatenate([half, half + turn * rng.standard_normal(half.shape)]))
        Y = torch.from_numpy(rng.standard_normal((8, 1)))
        block = F.ShallowBlock(torch.from_numpy(rng.standard_normal((3, 3))), torch.ones(1, 3, dtype=torch.float64))
        minimum = F.cell_minimum(block, X, Y)
        if minimum.block is None:
            assert not minimum.genuine
            continue
        found += 1
        assert float(F.squared_loss(minimum.block, X, Y)) == pytest.approx(minimum.loss, rel=1e-6, abs=1e-8)
    assert found > 0


@pytest.mark.parametrize("off", [0.0, 1e-9, 1e-8, 1e-7])
def test_escape_neurons_are_seen_beside_slopes_whose_fall_nobody_can_see(off: float) -> None:
    """Two loud neurons that the residuals pull at, stationary up to slopes just above the tolerance."""
    draw = torch.Generator().manual_seed(0)
    W, H, X = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, 3), (4, 2), (12, 3)))
    block = F.ShallowBlock(W, H, (-1.0, 1.0))
    signs = (X @ W.T).sign()
    activations = signs * (X @ W.T)
    rows = [torch.kron(activations[:, i], torch.eye(4).double()[j]) for i in range(2) for j in range(4)]
    rows += [torch.kron(signs[:, i] * X[:, k], H[:, i]) for i in range(2) for k in range(3)]
    conditions = torch.stack(rows)
    residual = torch.randn(48, generator=draw, dtype=torch.float64)
    residual -= torch.linalg.pinv(conditions) @ (conditions @ residual)
    residual += off * torch.randn(48, generator=draw, dtype=torch.float64)
    Y = block(X) - residual.view(12, 4)
    assert F.classify(block, X, Y, "half_sum").kind != "local minimum"
