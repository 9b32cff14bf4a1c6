"""The line of a growth says each number once."""

from __future__ import annotations

import pytest
import torch

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.training import Growth, WideningChoice


def growth(embedding: tuple[str, ...], predicted: float) -> Growth:
    return Growth(9, "net.0", 2, 3, embedding, "undecided", "undecided", 0.1, predicted, measured_drop=0.125)


def test_the_drop_is_that_of_the_whole_growth_and_stands_once() -> None:
    X = torch.eye(2, dtype=torch.float64)
    proposals = F.growth_proposals(ShallowBlock(X[:1], X[:1, :1]), X, torch.tensor([[1.0], [-1.0]]).double())
    choice = WideningChoice((proposals[0],), "undecided", 0.1, predicted_drop=0.25, measured_drop=0.125)
    line = str(growth(choice.embedding, choice.predicted_drop))
    assert line == "step 9 net.0 grows from 2 to 3 neurons: new neuron, gain 1; drop 0.12, 0.25 to first order"
    assert "drops by" in str(proposals[0])


@pytest.mark.parametrize("predicted", [0.125, 0.1249])
def test_a_prediction_of_the_same_number_is_not_said_again(predicted: float) -> None:
    assert str(growth(("new neuron",), predicted)).endswith("new neuron; drop 0.12")
