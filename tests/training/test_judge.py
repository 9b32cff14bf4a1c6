"""What is judged in training, and where: at the point nearby, or at the weights of a network that is too large."""

import pytest
import torch
from support.tensors import normal

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.training import TrainingData, judge


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
