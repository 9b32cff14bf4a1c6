"""Proposition 4.9, Proposition M.1 and appendix N: what is predicted is what `classify` then says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from support.iterates import iterate
from support.reference_stationarity import Array, Problem, answer, stationary_problem
from torch import Tensor

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import widening

MINIMA = {"local minimum", "global minimum"}


def tensors(problem: Problem) -> tuple[ShallowBlock, Tensor, Tensor]:
    block = ShallowBlock(torch.as_tensor(problem.W), torch.as_tensor(problem.H), problem.slopes)
    return block, torch.as_tensor(problem.X), torch.as_tensor(problem.targets)


def stationary_points(count: int, seed: int) -> list[Problem]:
    """Built exactly; those that are 1e-4 off what their kinks can hold are left out, and those without a residual."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        problem = stationary_problem(rng)
        block, X, Y = tensors(problem)
        signal = F.squared_error_signal(block, X, Y, "half_sum")
        if problem.E.any() and F.stationarity(block, signal).stationary.all():
            found.append(problem)
    return found


def random_factors(rng: np.random.Generator, lowest: float) -> tuple[Array, Array]:
    """beta and gamma of two or three copies; the sign of the smallest gamma is given."""
    count = int(rng.integers(2, 4))
    beta, gamma = rng.uniform(0.3, 2.0, count), rng.uniform(0.3, 1.5, count)
    if lowest <= 0:
        gamma[1] = lowest * rng.uniform(0.05, 2.0)
        gamma[0] = (1 - beta[1:] @ gamma[1:]) / beta[0]
        return (beta, gamma) if gamma[0] > 0 else random_factors(rng, lowest)
    return beta, gamma / (beta @ gamma)


def random_unit(rng: np.random.Generator, problem: Problem) -> int:
    """Mostly one with output weights: without them nothing is felt."""
    candidates = np.flatnonzero(problem.H.any(axis=0)) if rng.random() < 0.9 else np.empty(0)
    return int(rng.choice(candidates if len(candidates) else len(problem.W)))


def is_flat(problem: Problem, i: int) -> bool:
    """Whether all tangential derivatives vanish: by linear programs neither the loss nor its negative falls."""
    upside_down = Problem(problem.W, problem.H, problem.X, -problem.E, problem.slopes)
    return answer(upside_down, i).slope > -1e-9


@pytest.mark.slow
def test_proposition_4_9_holds_at_200_stationary_points() -> None:
    """Predicted before, and by exact stationarity and `classify` after the replication: the same every time."""
    rng, counts = np.random.default_rng(1), Counter[str]()
    for problem in stationary_points(200, seed=0):
        block, X, Y = tensors(problem)
        signal = F.squared_error_signal(block, X, Y, "half_sum")
        unit, minimum = random_unit(rng, problem), F.classify(block, X, Y, "half_sum").kind in MINIMA
        for lowest in (1.0, 0.0, -1.0):
            beta, gamma = random_factors(rng, lowest)
            said = F.replication_preserves(block, signal, unit, gamma)
            assert said.stationary
            assert said.decided
            wider = F.replicate_unit(block, unit, beta, gamma)
            after = F.stationarity(wider, F.squared_error_signal(wider, X, Y, "half_sum"))
            assert after.decided.all()
            assert said.stationarity == bool(after.stationary.all())
            case = f"{'steep' if said.slope > 1e-9 * said.scale else 'flat'} {lowest}"
            counts[case] += 1
            if minimum:
                kind = F.classify(wider, X, Y, "half_sum").kind
                assert said.local_minimality == (kind in MINIMA), (kind, str(said))
                counts[f"{case}: {kind}"] += 1
    assert min(counts[f"{case} {lowest}"] for case in ("flat", "steep") for lowest in (1.0, 0.0, -1.0)) >= 40
    # What becomes of a minimum.
    assert min(counts[f"flat {lowest}: local minimum"] for lowest in (1.0, 0.0, -1.0)) >= 40
    steep = [counts["steep 1.0: local minimum"], counts["steep 0.0: saddle"], counts["steep -1.0: not stationary"]]
    assert steep[0] == steep[1] == steep[2] >= 20


@pytest.mark.slow
def test_proposition_4_9_agrees_with_linear_programs() -> None:
    """Nothing of the package on the other side: slopes by linear programs over all sign patterns, before and after."""
    rng, counts = np.random.default_rng(2), Counter[str]()
    for problem in stationary_points(60, seed=3):
        block, X, Y = tensors(problem)
        unit, (beta, gamma) = random_unit(rng, problem), random_factors(rng, rng.choice([1.0, 0.0, -1.0, -1.0]))
        said = F.replication_preserves(block, F.squared_error_signal(block, X, Y, "half_sum"), unit, gamma)
        wider = F.replicate_unit(block, unit, beta, gamma)
        there = Problem(wider.W.numpy(), wider.H.numpy(), problem.X, problem.E, problem.slopes)
        truth = [answer(there, i) for i in range(len(wider.W))]
        if any(one.in_band for one in truth):
            counts["in the tolerance band"] += 1
            continue
        assert said.stationarity == all(one.stationary for one in truth)
        assert (said.slope <= 1e-9 * said.scale) == is_flat(problem, unit)
        counts[f"stationarity {said.stationarity}"] += 1
    assert counts["stationarity True"] >= 40
    assert counts["stationarity False"] >= 5
    assert counts["in the tolerance band"] <= 5


def test_slope_is_the_steepest_of_all_tangential_derivatives() -> None:
    """|v1| + 2 |v2| in the plane of two kinks: sqrt(5) along (1, 2), by hand."""
    X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    block = ShallowBlock(torch.tensor([[0.0, 0.0, 2.0]]).double(), torch.ones(1, 1).double(), (-1.0, 1.0))
    said = F.replication_preserves(block, BlockSignal(X, torch.tensor([[1.0], [2.0]]).double()), 0, (1.0, 1.0))
    assert said.slope == pytest.approx(5**0.5)
    assert said.scale == 3.0


def test_readers_behind_the_activation_count() -> None:
    X = torch.tensor([[0.0, 1.0]]).double()
    block = ShallowBlock(torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 1).double())
    alone, read = (BlockSignal(X, torch.ones(1, 1).double(), C) for C in (None, torch.ones(1, 1).double()))
    assert F.replication_preserves(block, alone, 0, (1.5, -0.5)).stationarity
    assert not F.replication_preserves(block, read, 0, (1.5, -0.5)).stationarity


def test_nothing_is_claimed_of_kinks_too_many_to_enumerate_but_what_follows_without_them() -> None:
    """40 kinks of both signs in nine dimensions: not provably up everywhere, and steep somewhere."""
    rng = np.random.default_rng(0)
    X = torch.as_tensor(np.vstack([rng.standard_normal((25, 9)), 3 * np.eye(9)]))
    signal = BlockSignal(X, torch.cat([torch.full((25, 1), -0.01), torch.ones(9, 1)]).double())
    block = ShallowBlock(torch.zeros(1, 9).double(), torch.ones(1, 1).double(), (-1.0, 1.0))
    for gamma in ((1.5, -0.5), (0.5, 0.5)):
        said = F.replication_preserves(block, signal, 0, gamma)
        assert not said.stationary
        assert not said.decided
        assert str(said) == "nothing to keep: the unit is not stationary, or not provably"


@pytest.mark.parametrize("step", [1000, 5500, 26_000])
def test_negative_units_keep_saddles_and_minima(step: int) -> None:
    """The stationary points of the five-point run, whose inputs have a constant 1."""
    block, X, Y, reduction = iterate("five_points", 2e-2, step)
    block = F.nearby_stationary_point(block, X, Y, reduction).block
    wider = F.add_inactive_units(block, X, 3, "negative", H_new=torch.tensor([[1.0, -2.0, 0.0]]).double())
    said = widening.addition_preserves(wider, F.squared_error_signal(block, X, Y, reduction), 3)
    assert said.stationarity
    assert said.local_minimality
    assert said.decided
    verdict = F.classify(wider, X, Y, reduction)
    assert verdict.kind == ("saddle" if step < 26_000 else "local minimum")
    assert verdict.kind == F.classify(block, X, Y, reduction).kind


@pytest.mark.slow
def test_what_orthogonal_units_and_inactive_propagation_keep_is_predicted() -> None:
    rng, counts = np.random.default_rng(6), Counter[str]()
    for problem in stationary_points(60, seed=7):
        block, X, Y = tensors(problem)
        signal = F.squared_error_signal(block, X, Y, "half_sum")
        minimum = F.classify(block, X, Y, "half_sum").kind in MINIMA
        for name, wider in additions(rng, block).items():
            said = widening.addition_preserves(wider, signal, 1)
            after = F.stationarity(wider, F.squared_error_signal(wider, X, Y, "half_sum"))
            assert said.decided
            assert said.stationarity == bool(after.stationary.all())
            assert said.stationarity or name in {"propagation", "orthogonal"}
            counts[f"{name}: stationarity {said.stationarity}"] += 1
            if minimum:
                assert said.local_minimality == (F.classify(wider, X, Y, "half_sum").kind in MINIMA)
                counts[f"{name}: minimality {said.local_minimality}"] += 1
    for name in ("propagation", "orthogonal"):
        assert min(counts[f"{name}: {what}"] for what in ("stationarity True", "stationarity False")) >= 5
    for name in ("propagation", "orthogonal", "zero", "copy"):
        assert min(counts[f"{name}: {what}"] for what in ("minimality True", "minimality False")) >= 2


def additions(rng: np.random.Generator, block: ShallowBlock) -> dict[str, ShallowBlock]:
    """One more unit: with h = 0 at random, at zero, or beside another; and orthogonal to whatever inputs there are."""
    W_new = {
        "propagation": torch.as_tensor(rng.standard_normal((1, block.W.shape[1]))),
        "zero": 0 * block.W[:1],
        "copy": 1.5 * block.W[:1],
    }
    H_new = torch.as_tensor(rng.standard_normal((len(block.H), 1)))
    orthogonal = ShallowBlock(torch.cat([block.W, W_new["zero"]]), torch.cat([block.H, H_new], dim=1), block.slopes)
    return {name: F.add_inactive_propagation(block, w) for name, w in W_new.items()} | {"orthogonal": orthogonal}


def test_numbers_of_new_units_that_make_no_sense_are_refused() -> None:
    block, signal = ShallowBlock(torch.eye(2), torch.ones(1, 2)), BlockSignal(torch.eye(2), torch.ones(2, 1))
    for added in (0, 3):
        with pytest.raises(ValueError, match=f"`added` must be a number of units of the network, 1 to 2; got {added}"):
            widening.addition_preserves(block, signal, added)
    with pytest.raises(ValueError, match="`unit` must be a hidden neuron of the block, 0 to 1; got 2"):
        F.replication_preserves(block, signal, 2, (1.0,))
    with pytest.raises(ValueError, match="`gamma`"):
        F.replication_preserves(block, signal, 0, ())
