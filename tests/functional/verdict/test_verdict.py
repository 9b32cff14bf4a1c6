"""What a point is: constructed points of every kind, each witness evaluated outside the package."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from support.reference_stationarity import answer, loss, random_problem, stationary_problem
from support.tensors import tensor, zeros
from support.verdicts import fall_seen
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock, Verdict
from relu_diag import functional as F
from relu_diag.functional.assumptions import Assumptions

FIVE = [[-1.0, 1.0], [-0.6, 1.0], [-0.1, 1.0], [0.3, 1.0], [0.7, 1.0]]
FIVE_TARGETS = [[0.28], [-0.1], [0.03], [0.23], [-0.22]]


@pytest.mark.slow
def test_verdicts_follow_from_the_linear_programs_and_witnesses_fall() -> None:
    rng, kinds, unresolved = np.random.default_rng(3), Counter(), 0
    for number in range(70):
        problem = random_problem(rng) if number % 10 == 0 else stationary_problem(rng)
        W, H, X, Y = (torch.as_tensor(part) for part in (problem.W, problem.H, problem.X, problem.targets))
        verdict = F.classify(ShallowBlock(W, H, problem.slopes), X, Y, "half_sum")
        truth = [answer(problem, i) for i in range(len(W))]
        if any(one.in_band for one in truth):
            continue
        stationary, escapes = all(one.stationary for one in truth), any(one.pull > 0 for one in truth)
        allowed = {"not stationary"}
        if stationary:
            several = {"saddle", "type-2 candidate"} if len(H) > 1 else {"saddle"}
            allowed = several if escapes else {"local minimum", "global minimum"}
        unresolved += verdict.kind == "undecided"
        assert verdict.kind in allowed | {"undecided"}
        kinds[verdict.kind] += 1
        if verdict.direction is not None:
            along = verdict.direction
            moved = problem.W + along.step * along.dW.numpy(), problem.H + along.step * along.dH.numpy()
            here = loss(problem.W, problem.H, problem.X, problem.targets, problem.slopes)
            assert loss(*moved, problem.X, problem.targets, problem.slopes) < here
    assert unresolved <= 1
    assert min(kinds[kind] for kind in ("not stationary", "saddle", "local minimum", "type-2 candidate")) > 2


@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_origin_of_the_five_point_problem_is_a_saddle_that_all_neurons_escape(reduction: F.Reduction) -> None:
    block, X, Y = ShallowBlock(zeros(50, 2), zeros(1, 50)), tensor(*FIVE), tensor(*FIVE_TARGETS)
    verdict = F.classify(block, X, Y, reduction)
    assert verdict.kind == "saddle"
    assert verdict.neurons.tolist() == list(range(50))
    assert fall_seen(verdict, block, X, Y, reduction) < -0.1 * verdict.loss
    line = F.taylor_expansion(block, X, Y, verdict.direction.dW, verdict.direction.dH, reduction)
    assert line.coefficients[1].abs() < 1e-15  # nothing to first order, down to second
    assert line.coefficients[2] < 0


def plateau(kinked: bool) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A neuron fitted to the samples it sees, its last one on the kink if asked, and a neuron that is zero."""
    X = tensor(*FIVE)
    w = tensor([-1.0, 0.7])[0] if kinked else tensor([-1.0, 0.5])[0]
    seen = w @ X.T > 1e-12
    targets = tensor(*FIVE_TARGETS)
    fit = torch.linalg.lstsq(X[seen], targets[seen]).solution
    # Its own direction, so that the neuron is stationary: move the targets it sees onto a multiple of w . x.
    Y = targets.clone()
    Y[seen] += X[seen] @ (w[:, None] - fit)
    return ShallowBlock(torch.stack([w, 0 * w]), tensor([1.0, 0.0])), X, Y


@pytest.mark.parametrize("kinked", [False, True])
def test_saddle_that_only_a_zero_neuron_escapes_is_invisible_to_the_hessian(kinked: bool) -> None:
    block, X, Y = plateau(kinked)
    verdict = F.classify(block, X, Y)
    assert verdict.kind == "saddle"
    assert 1 in verdict.neurons.tolist()
    assert fall_seen(verdict, block, X, Y) < 0

    def of(flat: Tensor) -> Tensor:
        return F.squared_loss(ShallowBlock(flat[:4].view(2, 2), flat[4:].view(1, 2)), X, Y)

    hessian = torch.autograd.functional.hessian(of, torch.cat([block.W.flatten(), block.H.flatten()]))
    assert torch.linalg.eigvalsh(hessian)[0] > -1e-12


def test_the_same_point_without_the_zero_neuron_is_a_local_minimum() -> None:
    block, X, Y = plateau(kinked=False)
    alone = ShallowBlock(block.W[:1], block.H[:, :1])
    verdict = F.classify(alone, X, Y)
    assert verdict.kind == "local minimum"
    assert verdict.direction is None
    assert not len(verdict.neurons)
    assert F.perturbation_test(alone, X, Y, draws=500).changes.min() >= 0


def test_an_escape_neuron_on_a_kink_without_output_weight_makes_a_saddle() -> None:
    """Its activation is orthogonal to the residual; only the sample on its kink pulls."""
    X, Y = tensor([1.0, 0.0], [0.0, 1.0]), tensor([0.0], [2.0])
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([0.0]))
    verdict = F.classify(block, X, Y, "sum")
    assert verdict.kind == "saddle"
    assert fall_seen(verdict, block, X, Y, "sum") < -1.0


def test_zero_loss_is_the_global_minimum_for_any_tolerable_residual() -> None:
    torch.manual_seed(0)
    block, X = ShallowBlock(torch.randn(4, 3).double(), torch.randn(2, 4).double()), torch.randn(20, 3).double()
    assert F.classify(block, X, block(X)).kind == "global minimum"
    assert F.classify(block, X, block(X) + 1e-13).kind == "global minimum"
    assert F.classify(block, X, block(X) + 1e-5).kind != "global minimum"
    assert F.classify(block, X, block(X) + 1e-5, tol=1e-3).kind == "global minimum"
    nothing = ShallowBlock(zeros(1, 3), zeros(2, 1))
    assert F.classify(nothing, X, zeros(20, 2)).kind == "global minimum"


def test_contradicting_targets_of_one_input_are_fitted_best_by_their_mean() -> None:
    X = tensor([1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0])
    Y = tensor([1.0], [3.0], [-1.0], [5.0])
    block = ShallowBlock(tensor([1.0, -1.0], [-1.0, 1.0]), tensor([2.0, -1.0]))
    verdict = F.classify(block, X, Y)
    assert verdict.kind == "global minimum"
    assert verdict.loss == pytest.approx((1 + 1 + 25) / 4)
    assert verdict.theorem == "convexity in the outputs"
    # The constant is within reach of an output bias, and the sample at zero with it.
    assert F.classify(ShallowBlock(block.W, block.H, output_bias=zeros(1)), X, Y).kind == "not stationary"


def test_a_dead_network_is_at_a_local_minimum() -> None:
    block = ShallowBlock(tensor([-1.0, -1.0]), tensor([1.0]))
    verdict = F.classify(block, tensor([1.0, 0.0], [0.5, 1.0]), tensor([1.0], [1.0]))
    assert verdict.kind == "local minimum"


def test_not_stationary_for_each_single_reason() -> None:
    X = tensor([1.0, 1.0], [1.0, -1.0], [-1.0, 3.0])
    W, H = tensor([1.0, 0.0]), tensor([1.0])
    cases = {
        "output weight and radial": (ShallowBlock(W, H), tensor([2.0], [2.0], [1.0])),
        "tangential": (ShallowBlock(W, H), tensor([0.0], [2.0], [1.0])),
        "output weight alone": (ShallowBlock(W, 0 * H), tensor([1.0], [1.0], [1.0])),
        "output bias alone": (ShallowBlock(W, H, output_bias=zeros(1)), tensor([1.0], [1.0], [1.0])),
    }
    for reason, (block, Y) in cases.items():
        verdict = F.classify(block, X, Y)
        assert verdict.kind == "not stationary", reason
        assert fall_seen(verdict, block, X, Y) < 0
        assert (verdict.direction.db is not None) == (reason == "output bias alone")
        assert verdict.neurons.tolist() == ([] if reason == "output bias alone" else [0])


def test_not_stationary_across_a_concave_kink() -> None:
    block, X, Y = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0])), tensor([0.0, 1.0]), tensor([1.0])
    verdict = F.classify(block, X, Y)
    assert verdict.kind == "not stationary"
    assert fall_seen(verdict, block, X, Y) == pytest.approx(-1.0)  # all of it


@pytest.mark.parametrize("power", [-150, -100, -80, -50, -20, 20, 50, 80, 100, 150])
def test_scales_beyond_float64_are_undecided_never_a_minimum(power: int) -> None:
    block, X, Y = plateau(kinked=True)
    f = 10.0**power
    verdict = F.classify(block, X * f, Y * f)
    assert verdict.kind == ("saddle" if abs(power) < 70 else "undecided")
    assert "rescale" in verdict.reason or verdict.kind == "saddle"


def test_undecided_says_why() -> None:
    rng = np.random.default_rng(0)
    X = torch.as_tensor(np.vstack([rng.standard_normal((25, 9)), 3 * np.eye(9)]))
    residual = torch.cat([torch.full((25, 1), -0.01), torch.ones(9, 1)]).double()
    block = ShallowBlock(zeros(1, 9), tensor([1.0]), (-1.0, 1.0))
    verdict = F.classify(block, X, block(X) - residual)
    assert verdict.kind == "undecided"
    assert verdict.neurons.tolist() == [0]
    assert "too many" in verdict.reason


def test_beside_a_minimum_a_slope_counts_where_the_loss_is_seen_to_fall() -> None:
    block, X, Y = plateau(kinked=False)
    for nudge, kind in ((3e-9, "local minimum"), (3e-6, "not stationary")):
        nudged = ShallowBlock(block.W[:1], block.H[:, :1] * (1 + nudge))
        verdict = F.classify(nudged, X, Y)
        assert verdict.kind == kind
        assert verdict.margins["largest violation"] > verdict.margins["tolerance"]
    assert F.classify(nudged, X, Y, tol=1e-4).kind == "local minimum"


def test_beside_a_saddle_too_close_for_a_slope_the_second_order_fall_is_the_witness() -> None:
    block, X, Y = plateau(kinked=False)
    nudged = ShallowBlock(block.W, block.H * (1 + 3e-9))
    verdict = F.classify(nudged, X, Y)
    assert verdict.kind == "not stationary"
    assert fall_seen(verdict, nudged, X, Y) < 0


def test_a_saddle_whose_fall_is_not_seen_is_undecided_not_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relu_diag.functional.verdict._orders.silent_escape_fall", lambda *_: None)
    verdict = F.classify(ShallowBlock(zeros(1, 2), zeros(1, 1)), tensor([1.0, 0.0]), tensor([1.0]))
    assert verdict.kind == "undecided"
    assert verdict.neurons.tolist() == [0]
    assert "rounding" in verdict.reason


def test_one_input_has_its_assumption_reported() -> None:
    X, Y = tensor([1.0], [-2.0]), tensor([1.0], [3.0])
    assert F.classify(ShallowBlock(tensor([0.0]), tensor([0.0])), X, Y).kind == "saddle"
    verdict = F.classify(ShallowBlock(tensor([1.0]), tensor([1.0])), X, Y)
    assert verdict.kind == "local minimum"
    assert verdict.assumptions.broken == ("d > 1",)
    assert "d > 1: broken" in str(verdict)
    assert verdict.assumptions.assumed == ("full data set", "no regulariser")
    assert verdict.assumptions["slopes differ"] == "holds"


def test_float32_blocks_are_judged_in_float64_with_their_own_tolerances() -> None:
    block, X, Y = plateau(kinked=True)
    single = ShallowBlock(block.W.float(), block.H.float())
    verdict = F.classify(single, X.float(), Y.float())
    assert verdict.kind == "saddle"
    assert verdict.direction.dW.dtype == torch.float64


def test_kink_tolerance_alone_leaves_the_other_as_it_is() -> None:
    block, X, Y = plateau(kinked=True)
    assert F.classify(block, X, Y, kink_tol=1e-3).kind == "saddle"
    with pytest.raises(ValueError, match="contradicts"):
        F.classify(block, X, Y, kink_tol=1e-3, tol=1e-9)


def test_data_of_the_wrong_shape_or_not_finite_are_refused() -> None:
    block, X, Y = plateau(kinked=False)
    with pytest.raises(ValueError, match="`Y`"):
        F.classify(block, X, Y.repeat(1, 2))
    with pytest.raises(ValueError, match="`X`"):
        F.classify(block, X[:, :1], Y)
    with pytest.raises(ValueError, match="NaN"):
        F.classify(block, X, Y / 0)
    with pytest.raises(ValueError, match="reduction"):
        F.classify(block, X, Y, "average")


def test_verdict_says_itself_in_one_line_and_in_a_table() -> None:
    block, X, Y = ShallowBlock(zeros(12, 2), zeros(1, 12)), tensor(*FIVE), tensor(*FIVE_TARGETS)
    verdict = F.classify(block, X, Y)
    assert str(verdict).startswith("saddle; neurons 0, 1, 2, 3, 4, 5, 6, 7 and 4 more; loss change -")
    assert "\n" not in str(verdict)
    table = verdict.summary()
    for line in ("verdict", "assumes squared loss", "rests on", "largest pull", "tolerance"):
        assert any(row.startswith(line) for row in table.splitlines()), line
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 4 more" in table
    bare = Verdict("local minimum", torch.empty(0, dtype=torch.long), None, Assumptions({}))
    assert str(bare) == "local minimum"
    assert "none" in bare.summary()


def test_verdict_does_not_touch_the_block() -> None:
    block, X, Y = plateau(kinked=True)
    W, H = block.W.clone(), block.H.clone()
    F.classify(ShallowBlock(block.W.requires_grad_(), block.H.requires_grad_()), X, Y)
    assert_close(block.W, W, atol=0, rtol=0)
    assert_close(block.H, H, atol=0, rtol=0)
    assert block.W.grad is None


def test_where_every_input_is_zero_the_output_bias_alone_decides() -> None:
    one, X = torch.ones(1, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    Y = torch.zeros(2, 1, dtype=torch.float64)
    assert F.classify(ShallowBlock(one, one, output_bias=one[0]), X, Y).kind == "not stationary"
    assert F.classify(ShallowBlock(one, one, output_bias=0 * one[0]), X, Y).kind == "global minimum"
