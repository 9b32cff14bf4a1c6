"""Exact stationarity and escape neurons: against linear programs, by hand, under invariances, and on bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.agreement import Tally, compare, parts
from support.reference_stationarity import stationary_problem
from support.tensors import tensor
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F


@pytest.mark.slow
def test_stationarity_and_escape_neurons_agree_with_linear_programs_over_all_sign_patterns() -> None:
    """20,000 of these problems: benchmarks/stationarity_agreement.py."""
    rng, tally = np.random.default_rng(0), Tally()
    for number in range(120):
        compare(rng, tally, random=number % 4 == 0)
    wrong = {name: count for name, count in tally.counts.items() if "True, programs False" in name}
    missed = {name: count for name, count in tally.counts.items() if "False, programs True" in name}
    assert not wrong
    assert not missed
    assert not tally.counts["stationarity: undecided"]
    assert tally.counts["stationarity: package True, programs True"] > 50
    assert tally.counts["escape neuron: package True, programs True"] > 15
    assert tally.counts["escape neuron: package False, programs False"] > 15


@pytest.mark.parametrize(("error", "stationary"), [(1.0, True), (-1.0, False)])
def test_a_kink_holds_when_the_loss_rises_on_both_sides(error: float, stationary: bool) -> None:
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0]))
    found = F.stationarity(block, BlockSignal(tensor([0.0, 2.0]), tensor([error])))
    assert found.stationary.tolist() == [stationary]
    # rho(2 v) pulls with 2 error on one side and not at all on the other: the margin is the smaller of the two.
    assert_close(found.margin, tensor([min(0.0, 2 * error)])[0])
    assert_close(found.slope, tensor([min(0.0, 2 * error)])[0])


def test_collinear_kinks_are_one() -> None:
    X, block = tensor([0.0, 1.0], [0.0, -2.0]), ShallowBlock(tensor([1.0, 0.0]), tensor([1.0]), (-1.0, 1.0))
    # |v| - 2 |v| falls, 3 |v| - 2 |v| does not.
    assert not F.stationarity(block, BlockSignal(X, tensor([1.0], [-1.0]))).stationary.item()
    assert F.stationarity(block, BlockSignal(X, tensor([3.0], [-1.0]))).stationary.item()


@pytest.mark.parametrize("share", [0.5, 1.0, 1.001])
def test_margin_is_what_the_kink_has_left_along_its_ray(share: float) -> None:
    """Two kinks: L' = |v1| + |v1 + v2| - share v2 is 1 - share on both rays with v2 = 1, (0, 1) and (-1, 1)."""
    W, X = tensor([0.0, 0.0, 1.0]), tensor([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, -share, 1.0], [0.0, 0.0, -1.0])
    block = ShallowBlock(W, tensor([1.0]), (-1.0, 1.0))
    found = F.stationarity(block, BlockSignal(X, tensor([1.0], [1.0], [1.0], [-1.0])))
    assert_close(found.margin, tensor([min(1 - share, (1 - share) / 2**0.5)])[0])
    assert_close(found.residual, tensor([0.0])[0])
    assert found.stationary.item() == (share <= 1)


def test_zero_neuron_is_stationary_unless_its_output_weights_pull() -> None:
    X, W = tensor([1.0, 0.0], [0.0, 1.0]), torch.zeros(3, 2, dtype=torch.float64)
    block = ShallowBlock(W, tensor([0.0, 1.0, -1.0]))
    found = F.stationarity(block, BlockSignal(X, tensor([1.0], [2.0])))
    assert found.stationary.tolist() == [True, True, False]
    assert found.decided.all()


def test_output_bias_is_part_of_every_neurons_condition() -> None:
    W, H, X = tensor([1.0, 0.0]), tensor([0.0]), tensor([-1.0, 0.0], [-1.0, 1.0])
    signal = BlockSignal(X, tensor([1.0], [1.0]))
    assert F.stationarity(ShallowBlock(W, H), signal).stationary.item()
    biased = F.stationarity(ShallowBlock(W, H, output_bias=tensor([0.0])[0]), signal)
    assert not biased.stationary.item()
    assert biased.bias_violation == 1.0


def test_gradient_behind_the_activation_is_the_one_that_counts() -> None:
    block, X = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0])), tensor([0.0, 1.0])
    assert not F.stationarity(block, BlockSignal(X, tensor([-1.0]))).stationary.item()
    assert F.stationarity(block, BlockSignal(X, tensor([-1.0]), C=tensor([0.5]))).stationary.item()


def test_a_neuron_that_sees_only_fitted_samples_is_stationary_whatever_their_rounding() -> None:
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0]))
    signal = BlockSignal(tensor([1.0, 0.3], [2.0, -1.0], [-1.0, 1.0]), tensor([1e-16], [-3e-17], [0.7]))
    assert F.stationarity(block, signal).stationary.item()
    assert not F.escape_neurons(block, signal).mask.item()


def test_small_output_weights_are_judged_by_what_they_do() -> None:
    """They pull a neuron at a slope as small as they are, and a rescaling makes it as large as any."""
    X = tensor([1.0, 1.0], [1.0, -1.0])
    signal = BlockSignal(X, tensor([1.0], [-1.0]))
    for h in (1e-17, 1.0):
        block = ShallowBlock(tensor([-1.0, 0.0], [1e-17 / h, 0.0]), tensor([1.0, h]))
        assert F.stationarity(block, signal).stationary.tolist() == [True, False]


def test_undecided_where_the_kinks_are_too_many_to_enumerate() -> None:
    """25 concave kinks in nine dimensions among strong convex ones: up everywhere, but not provably so."""
    rng = np.random.default_rng(0)
    X = torch.as_tensor(np.vstack([rng.standard_normal((25, 9)), 3 * np.eye(9)]))
    G = torch.cat([torch.full((25, 1), -0.01), torch.ones(9, 1)]).double()
    block = ShallowBlock(torch.zeros(1, 9).double(), tensor([1.0]), (-1.0, 1.0))
    found = F.stationarity(block, BlockSignal(X, G))
    assert not found.decided.item()
    assert not found.stationary.item()
    assert found.slope.item() == 0.0
    assert found.margin.isnan().item()
    # A strong concave kink is a descent at once.
    G[0] = -10.0
    assert F.stationarity(block, BlockSignal(X, G)).decided.item()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tol": -1e-9}, "`tol`"),
        ({"tol": 1.0}, "`tol`"),
        ({"tol": float("nan")}, "`tol`"),
        ({"kink_tol": 1.5}, "`kink_tol`"),
        ({"tol": 1e-12, "kink_tol": 1e-3}, "contradicts"),
    ],
)
def test_tolerances_that_mean_nothing_are_refused(arguments: dict[str, float], message: str) -> None:
    block, signal = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0])), BlockSignal(tensor([0.0, 1.0]), tensor([1.0]))
    for function in (F.stationarity, F.escape_neurons, F.classify_signal):
        with pytest.raises(ValueError, match=message):
            function(block, signal, **arguments)
    with pytest.raises(ValueError, match=message):
        F.classify(block, signal.X, signal.G, **arguments)


def test_float32_and_no_tangential_direction() -> None:
    block = ShallowBlock(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    found = F.stationarity(block, BlockSignal(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.3], [-0.1]])))
    assert found.stationary.item()
    assert found.tol == 1e-5
    assert found.slope.item() == 0.0


def same(one: F.Stationarity, other: F.Stationarity) -> bool:
    return torch.equal(one.stationary, other.stationary) and torch.equal(one.decided, other.decided)


@pytest.mark.parametrize("seed", range(20))
def test_answers_do_not_depend_on_coordinates_order_scale_or_duplication(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block, signal = parts(stationary_problem(rng))
    found, escape = F.stationarity(block, signal), F.escape_neurons(block, signal)
    turn = torch.linalg.qr(torch.as_tensor(rng.standard_normal((block.W.shape[1], block.W.shape[1]))))[0]
    order = torch.as_tensor(rng.permutation(len(signal.X)))
    half = BlockSignal(signal.X.repeat(2, 1), signal.G.repeat(2, 1) / 2)
    changed = [
        (ShallowBlock(block.W @ turn, block.H, block.slopes), BlockSignal(signal.X @ turn, signal.G)),
        (ShallowBlock(8 * block.W, block.H / 8, block.slopes), signal),
        (block, BlockSignal(signal.X[order], signal.G[order])),
        (block, BlockSignal(signal.X, 1e-12 * signal.G)),
        (ShallowBlock(block.W / 1024, block.H, block.slopes), BlockSignal(1024 * signal.X, signal.G)),
        (block, half),
    ]
    for case in changed:
        assert same(F.stationarity(*case), found)
        assert torch.equal(F.escape_neurons(*case).mask, escape.mask)
