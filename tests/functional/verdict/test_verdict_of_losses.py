"""Verdicts under any loss of the outputs: the theorem of convex losses attacked, and where it does not hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.attack.any_loss import MAKERS, case_of
from support.attack.loss_oracle import complaints
from support.tensors import tensor, zeros
from torch import Tensor

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

PROBLEMS = 12


@pytest.mark.parametrize("name", MAKERS)
def test_no_verdict_under_a_loss_is_false(name: str) -> None:
    kinds = Counter[str]()
    for number in range(PROBLEMS):
        case = case_of(name, 5, number)
        verdict = F.classify(case.block, case.X, case.loss)
        kinds[verdict.kind] += 1
        assert complaints(case, verdict, np.random.default_rng(number)) == [], number
    assert kinds["undecided"] == 0


def test_a_lie_about_a_saddle_is_noticed() -> None:
    asked = noticed = 0
    for name in MAKERS:
        for number in range(6):
            case = case_of(name, 6, number)
            verdict = F.classify(case.block, case.X, case.loss)
            if verdict.kind in {"saddle", "not stationary"}:
                lie = replace(verdict, kind="local minimum")
                asked += 1
                noticed += bool(complaints(case, lie, np.random.default_rng(number)))
    assert noticed >= 0.8 * asked > 10


def test_a_fall_after_a_rise_that_no_evaluation_shows_is_a_fall() -> None:
    case = case_of("log cosh", 8101, 143)  # a sample within the kink's tolerance makes the first slope 1e-13
    verdict = F.classify(case.block, case.X, case.loss)
    assert verdict.kind == "saddle"
    assert complaints(case, verdict, np.random.default_rng(0)) == []


def test_the_loss_does_not_rise_between_kinks_on_the_way_of_a_witness() -> None:
    case = case_of("squared", 90001, 126)  # three kinks within a hundredth of the way
    verdict = F.classify(case.block, case.X, case.loss)
    assert verdict.kind == "saddle"
    assert complaints(case, verdict, np.random.default_rng(0)) == []


def test_a_squared_error_as_a_loss_says_what_its_targets_say() -> None:
    for number in range(6):
        case = case_of("huber", 7, number)
        Y = case.block(case.X) - case.loss.gradient(case.block(case.X))
        for reduction in ("mean", "sum", "half_sum"):
            one = F.classify(case.block, case.X, Y, reduction)
            other = F.classify(case.block, case.X, F.SquaredError(Y, reduction))
            assert (one.kind, one.neurons.tolist()) == (other.kind, other.neurons.tolist())
            assert one.loss == pytest.approx(other.loss)
            assert other.assumptions["squared loss"] == "holds"


def test_a_multiple_of_a_loss_has_the_same_verdict() -> None:
    for number in range(6):
        case = case_of("classes", 8, number)
        kinds = {F.classify(case.block, case.X, case.loss.scaled(c)).kind for c in (1e-9, 1.0, 1e6)}
        assert len(kinds) == 1


def test_two_outputs_of_softmax_have_the_verdict_of_the_logistic_loss_of_their_difference() -> None:
    for number in range(6):
        case = case_of("binary", 9, number)
        if len(case.block.H) > 1:
            continue
        loss = case.loss
        assert isinstance(loss, F.BinaryCrossEntropy)
        shares = torch.cat([1 - loss.Y, loss.Y], dim=1)
        weight = loss.weight
        assert weight is not None
        two = ShallowBlock(case.block.W, torch.cat([0 * case.block.H, case.block.H]), case.block.slopes)
        as_classes = F.CrossEntropy(shares, reduction="sum", sample_weight=weight[:, 0])
        if case.block.output_bias is not None:
            continue
        one, other = F.classify(case.block, case.X, loss), F.classify(two, case.X, as_classes)
        # Two outputs have more ways down: what is no minimum with one is none with two.
        if one.kind in {"saddle", "not stationary"}:
            assert other.kind == one.kind
        assert one.loss == pytest.approx(other.loss)


LABELS: dict[str, Loss] = {
    "cross-entropy": F.CrossEntropy(torch.tensor([0, 1])),
    "binary cross-entropy": F.BinaryCrossEntropy(tensor([1.0, 0.0], [0.0, 1.0])),
    "counts": F.Poisson(zeros(2, 2)),
}


@pytest.mark.parametrize("loss", LABELS.values(), ids=LABELS)
def test_separable_labels_have_no_minimum_in_the_cell(loss: Loss) -> None:
    X = torch.eye(2, dtype=torch.float64)
    sign = -1.0 if isinstance(loss, F.Poisson) else 1.0
    block = ShallowBlock(torch.eye(2).double(), sign * torch.eye(2).double())
    verdict = F.classify(block, X, loss)
    assert verdict.kind == "not stationary"
    assert "the loss has no minimum in this cell" in verdict.reason
    assert verdict.direction is not None
    far = ShallowBlock(200 * block.W, 100 * block.H)
    assert F.classify(far, X, loss).kind in {"not stationary", "global minimum"}  # the loss underflows


def test_origin_is_a_saddle_of_every_loss_that_is_smooth() -> None:
    X = torch.eye(2, dtype=torch.float64)
    origin = ShallowBlock(zeros(1, 2), zeros(2, 1))
    Y, labels = tensor([1.0, 0.0], [0.0, 1.0]), torch.tensor([0, 1])
    for loss in (F.CrossEntropy(labels), F.BinaryCrossEntropy(Y), F.Huber(Y), F.Poisson(Y), F.SquaredError(Y)):
        verdict = F.classify(origin, X, loss)
        assert verdict.kind == "saddle", loss.name
        assert verdict.direction is not None


def test_a_loss_that_is_not_convex_has_falls_and_no_minima() -> None:
    X, Y = torch.eye(2, dtype=torch.float64), tensor([1.0], [-1.0])

    def bounded(outputs: Tensor) -> Tensor:
        return ((outputs - Y).square() / (1 + (outputs - Y).square())).sum()

    loss = F.OutputLoss(bounded)
    origin = ShallowBlock(zeros(1, 2), zeros(1, 1))
    assert F.classify(origin, X, loss).kind == "saddle"
    assert F.classify(ShallowBlock(tensor([1.0, 0.0]), tensor([0.5])), X, loss).kind == "not stationary"
    fitted = ShallowBlock(tensor([1.0, -1.0]), tensor([1.0]))
    verdict = F.classify(fitted, X, loss)
    assert verdict.kind == "undecided"
    assert "not convex" in verdict.reason
    assert verdict.assumptions["convex loss"] == "broken"
    told = F.classify(fitted, X, F.OutputLoss(lambda outputs: (outputs - Y).square().sum(), convex=True))
    assert told.kind == "local minimum"
    assert told.assumptions["convex loss"] == "assumed"


def test_the_absolute_error_has_verdicts_where_no_target_is_met() -> None:
    X = tensor([1.0, 0.0], [0.0, 1.0])
    held = ShallowBlock(tensor([-1.0, -1.0]), tensor([1.0]))
    assert F.classify(held, X, F.AbsoluteError(tensor([1.0], [1.0]))).kind == "local minimum"
    assert F.classify(held, X, F.AbsoluteError(tensor([1.0], [1.0]))).assumptions["smooth loss"] == "broken"
    moving = ShallowBlock(tensor([1.0, 0.5]), tensor([1.0]))
    verdict = F.classify(moving, X, F.AbsoluteError(tensor([3.0], [2.0])))
    assert verdict.kind == "not stationary"


def test_the_theorem_of_convex_losses_decides_with_kinks_from_a_signal() -> None:
    X = tensor([1.0, 0.0], [0.0, 1.0])
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0]))
    held = BlockSignal(X, tensor([0.0], [0.5]))
    assert F.classify_signal(block, held).kind == "undecided"
    assert F.classify_signal(block, held, convex=True).kind == "local minimum"
    priced = BlockSignal(X, held.G, held.G @ block.H + 0.0)
    assert F.classify_signal(block, priced, convex=True).kind == "local minimum"
    other = BlockSignal(X, held.G, held.G @ block.H + tensor([0.0], [0.2]))
    assert F.classify_signal(block, other, convex=True).kind == "undecided"
    silent = ShallowBlock(tensor([1.0, 0.0], [-1.0, -1.0]), tensor([1.0, 0.0]))
    assert F.classify_signal(silent, held, convex=True).kind == "local minimum"  # it is dead
    awake = ShallowBlock(tensor([1.0, 0.0], [-1.0, 0.0]), tensor([1.0, 0.0]))
    assert F.classify_signal(awake, held, convex=True).kind == "saddle"


def test_the_verdict_from_a_signal_is_that_of_the_loss() -> None:
    for name in ("binary", "classes"):
        for number in range(10):
            case = case_of(name, 10, number)
            verdict = F.classify(case.block, case.X, case.loss)
            signal = BlockSignal(case.X, case.loss.gradient(case.block(case.X)))
            said = F.classify_signal(case.block, signal, convex=True)
            # Of a signal by itself it is not known what is rounding.
            if said.kind in {"saddle", "local minimum", "not stationary"} and verdict.kind != "global minimum":
                assert said.kind == verdict.kind, (name, number)


def test_a_loss_of_other_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="of 3 samples"):
        F.classify(ShallowBlock(zeros(1, 2), zeros(1, 1)), zeros(2, 2), F.Huber(zeros(3, 1)))
    with pytest.raises(TypeError, match="OutputLoss"):
        F.classify(ShallowBlock(zeros(1, 2), zeros(1, 1)), zeros(2, 2), torch.nn.functional.mse_loss)  # type: ignore[arg-type]


def test_a_flat_direction_between_kinks_that_all_but_coincide_is_felt() -> None:
    """Two samples 6e-10 apart: their rays, one line but for that, add up to the direction with factors of 1e9."""
    case = case_of("absolute", 95020, 170)
    assert F.classify(case.block, case.X, case.loss).kind == "type-2 candidate"
