"""What is judged in training, and where: at the point nearby, or at the weights of a network that is too large."""

import pytest
import torch
from support.tensors import normal

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import NearbyStationaryPoint, Verdict
from relu_diag.functional.assumptions import Assumptions
from relu_diag.training import Training, TrainingData, judge, verdict_in_training


@pytest.mark.parametrize(("neurons", "searched"), [(4, True), (200, False)])
def test_a_network_that_is_too_large_is_judged_at_its_weights(neurons: int, searched: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    X = normal(draw, 100, 10)
    block = ShallowBlock(normal(draw, neurons, 10), normal(draw, 10, neurons))
    loss = F.CrossEntropy(torch.arange(100) % 10)
    nearby = judge(block, TrainingData(X, loss, complete=True))
    assert nearby is not None
    assert nearby.verdict.assumptions["full data set"] == "holds"
    assert ("too large" in nearby.reason) != searched
    if not searched:
        assert nearby.verdict.kind == "undecided"
        assert F.classify(block, X, loss).reason in nearby.reason
        assert nearby.distance == 0


def point(kind: str, loss: float, gap: float) -> NearbyStationaryPoint:
    nobody = torch.empty(0, dtype=torch.long)
    verdict = Verdict(kind, nobody, None, Assumptions({}), theorem="a theorem", reason="a reason")  # type: ignore[arg-type]
    block = ShallowBlock(torch.ones(1, 1), torch.ones(1, 1))
    return NearbyStationaryPoint(block, loss, 0.1, gap, True, verdict, "", nobody, 0, 0.0)


@pytest.mark.parametrize(
    ("nearby", "training", "kind", "reason"),
    [
        (point("saddle", 0.99, 0.005), Training(), "saddle", "a reason"),
        (point("saddle", 0.90, 0.100), Training(), "not stationary", "on the way to a saddle (loss 0.9, 10.0% below)"),
        (point("saddle", 0.90, 0.100), Training(drop=0.2), "saddle", "a reason"),
        (point("global minimum", 0.0, 1e-14), Training(), "not stationary", "on the way to a global minimum"),
        (point("global minimum", 0.0, 1e-14), Training(unit=1.0), "global minimum", "a reason"),
        (point("local minimum", 1.0, 0.0), Training(alone=False), "undecided", "a local minimum in this block, but"),
        (point("saddle", 1.0, 0.0), Training(alone=False), "saddle", "a reason"),
        (
            point("saddle", 1.0, 0.0),
            Training(decay="AdamW"),
            "undecided",
            "of the loss alone a saddle, but AdamW decays",
        ),
        (point("not stationary", 1.0, 0.5), Training(decay="SGD"), "not stationary", "a reason"),
    ],
)
def test_a_verdict_speaks_of_where_the_run_is_and_of_what_is_trained(
    nearby: NearbyStationaryPoint, training: Training, kind: str, reason: str
) -> None:
    verdict = verdict_in_training(nearby, "", training)
    assert verdict.kind == kind
    assert verdict.reason.startswith(reason)
    assert bool(verdict.theorem) == (reason == "a reason")


def test_without_a_point_the_reason_is_told() -> None:
    verdict = verdict_in_training(None, "the loss is not known")
    assert (verdict.kind, verdict.reason) == ("undecided", "the loss is not known")
