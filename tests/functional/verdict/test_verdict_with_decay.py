"""Weight decay under convex losses: each neuron by itself decides, and the largest pull against the decay."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from support.attack.any_loss import MAKERS, decayed_case
from support.attack.loss_oracle import complaints
from support.tensors import tensor, zeros

from relu_diag import ShallowBlock
from relu_diag import functional as F

PROBLEMS = 5


@pytest.mark.parametrize("name", MAKERS)
def test_no_verdict_with_decay_is_false(name: str) -> None:
    kinds = Counter[str]()
    for number in range(PROBLEMS):
        case = decayed_case(name, 1, number)
        verdict = F.classify(case.block, case.X, case.loss, weight_decay=case.mu)
        kinds[verdict.kind] += 1
        assert complaints(case, verdict, np.random.default_rng(number)) == [], number
        assert verdict.loss == pytest.approx(float(case.value(case.block)))
    assert kinds["not stationary"] == 0
    assert kinds["local minimum"] + kinds["global minimum"] + kinds["saddle"] > PROBLEMS / 2


def test_several_outputs_leave_nothing_undecided_in_a_few_dimensions() -> None:
    kinds = Counter[str]()
    for name, number in itertools.product(("squared", "absolute", "binary", "poisson"), range(6)):
        case = decayed_case(name, 5, number)
        verdict = F.classify(case.block, case.X, case.loss, weight_decay=case.mu)
        kinds[verdict.kind] += 1
        if "bends" in verdict.reason:
            kinds[verdict.reason.split("bends ")[1][:4]] += 1
            assert complaints(case, verdict, np.random.default_rng(number)) == [], number
    assert kinds["undecided"] + kinds["type-2 candidate"] == 0
    assert kinds["up i"] > 1
    assert kinds["down"] > 1


def test_inputs_in_a_plane_decide_in_more_dimensions() -> None:
    draw = torch.Generator().manual_seed(0)
    plane = torch.randn(5, 2, generator=draw, dtype=torch.float64)
    X = plane @ torch.randn(2, 9, generator=draw, dtype=torch.float64)
    Y = torch.randn(5, 1, generator=draw, dtype=torch.float64)
    origin = ShallowBlock(zeros(1, 9), zeros(1, 1))
    strongest = float(F.extremal_directions(X, F.SquaredError(Y).gradient(0 * Y)).gain.max())
    for factor, kind in ((1.01, "global minimum"), (0.99, "saddle")):
        assert F.classify(origin, X, Y, weight_decay=factor * strongest).kind == kind


def test_a_global_minimum_with_decay_leaves_no_gap() -> None:
    asked = 0
    for number in range(40):
        case = decayed_case("huber", 2, number)
        verdict = F.classify(case.block, case.X, case.loss, weight_decay=case.mu)
        if verdict.kind != "global minimum":
            continue
        asked += 1
        gap = F.optimality_gap(case.block, case.X, case.loss, weight_decay=case.mu)
        assert gap.gap <= 1e-6 * gap.primal
    assert asked > 2


def test_a_neuron_without_weights_grows_where_its_pull_exceeds_the_decay() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), tensor([1.0], [-1.0])
    origin = ShallowBlock(zeros(1, 2), zeros(1, 1))
    # The largest pull of the residuals, times 2, on a unit neuron is 2.
    saddle = F.classify(origin, X, Y, "sum", weight_decay=1.9)
    assert saddle.kind == "saddle"
    assert saddle.neurons.tolist() == [0]
    assert saddle.direction is not None
    best = F.classify(origin, X, Y, "sum", weight_decay=2.1)
    assert best.kind == "global minimum"
    assert "every width" in best.reason
    uneven = F.classify(origin, X, Y, "sum", weight_decay=F.WeightDecay(W=4.0, H=1.05))
    assert uneven.kind == "global minimum"
    cheap_bias = F.WeightDecay(W=2.1, H=2.1, hidden_bias=1.0)
    assert F.classify(origin, X, Y, "sum", weight_decay=cheap_bias).kind == "saddle"


def test_dead_neurons_decay_and_are_not_stationary() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), tensor([1.0], [-1.0])
    dead = ShallowBlock(tensor([-1.0, -1.0]), tensor([1.0]))
    verdict = F.classify(dead, X, Y, weight_decay=0.1)
    assert verdict.kind == "not stationary"
    assert verdict.direction is not None
    assert F.classify(dead, X, Y).kind == "local minimum"


def test_no_decay_is_the_verdict_without() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), tensor([1.0], [-1.0])
    dead = ShallowBlock(tensor([-1.0, -1.0]), tensor([1.0]))
    for nothing in (0.0, F.WeightDecay(), F.WeightDecay(hidden_bias=0.0)):
        assert F.classify(dead, X, Y, weight_decay=nothing).assumptions["squared loss"] == "holds"


def test_descent_with_decay_under_labels_that_are_separable_ends_at_a_minimum() -> None:
    X = tensor([1.0, 1.0], [2.0, 1.0], [-1.0, 1.0], [-2.0, 1.0])
    loss, mu = F.BinaryCrossEntropy(tensor([1.0], [1.0], [0.0], [0.0])), 0.05
    W = tensor([0.5, 0.1], [-0.4, 0.1]).requires_grad_()
    H = tensor([0.5, -0.4]).requires_grad_()
    for _ in range(6000):
        value = loss(torch.relu(X @ W.T) @ H.T) + mu / 2 * (W.square().sum() + H.square().sum())
        by_W, by_H = torch.autograd.grad(value, (W, H))
        with torch.no_grad():
            W -= 0.3 * by_W
            H -= 0.3 * by_H
    block = ShallowBlock(W.detach(), H.detach())
    verdict = F.classify(block, X, loss, weight_decay=mu, tol=1e-7)
    assert verdict.kind in {"local minimum", "global minimum"}
    assert F.classify(block, X, loss).kind == "not stationary"
    assert verdict.assumptions["weight decay is a gradient"] == "assumed"


def test_decay_needs_a_convex_loss() -> None:
    with pytest.raises(ValueError, match="convex"):
        F.classify(ShallowBlock(zeros(1, 2), zeros(1, 1)), zeros(2, 2), F.OutputLoss(torch.sum), weight_decay=0.1)


@pytest.mark.parametrize("inputs", [2, 3])
@pytest.mark.parametrize(("mu", "kind"), [(0.05, "saddle"), (0.2, "global minimum")])
def test_a_pull_that_is_small_beside_its_terms_is_compared_with_the_decay(inputs: int, mu: float, kind: str) -> None:
    angle = 1e-4
    X = torch.zeros(2, inputs, dtype=torch.float64)
    X[0, 0], X[1, 0], X[1, 1] = 1.0, np.cos(angle), np.sin(angle)
    Y = tensor([1000.0], [-1000.0])  # no neuron is pulled by more than 1000 |x - x'|, which is 0.1
    block = ShallowBlock(zeros(1, inputs), zeros(1, 1))
    verdict = F.classify(block, X, Y, reduction="half_sum", weight_decay=mu)
    assert verdict.kind == kind
    assert (verdict.direction is not None) == (kind == "saddle")
