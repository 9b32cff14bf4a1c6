"""What is said of points of convex losses other than the squared error."""

from __future__ import annotations

import numpy as np
import torch
from support.tensors import tensor, zeros
from support.verdicts import two_outputs
from torch import Tensor

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F


def logistic(block: ShallowBlock, X: Tensor, labels: Tensor) -> BlockSignal:
    return BlockSignal(X, torch.sigmoid(block(X)) - labels)


def test_any_convex_loss_first_order_only_where_samples_are_on_kinks() -> None:
    X, labels = tensor([1.0, 0.0], [0.0, 1.0]), tensor([1.0], [0.0])
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0]))
    assert F.classify_signal(block, logistic(block, X, labels)).kind == "not stationary"
    held = BlockSignal(X, tensor([0.0], [0.5]))
    verdict = F.classify_signal(block, held)
    assert verdict.kind == "undecided"
    assert verdict.assumptions["no sample on a kink"] == "broken"


def test_any_convex_loss_inside_a_cell() -> None:
    X = tensor([1.0, 1.0], [1.0, -1.0], [-1.0, 0.5])
    signal = BlockSignal(X, tensor([0.5], [-0.5], [0.2]))
    anywhere = ShallowBlock(tensor([-1.0, -2.0], [-1.0, 2.0]), tensor([1.0, 1.0]))
    assert F.classify_signal(anywhere, BlockSignal(X, zeros(3, 1))).kind == "global minimum"
    silent = ShallowBlock(tensor([1.0, 0.0]), tensor([0.0]))
    verdict = F.classify_signal(silent, signal)
    assert verdict.kind == "saddle"
    assert verdict.neurons.tolist() == [0]
    assert verdict.direction is None
    # The dead neuron sees the third sample only where its gradient is zero.
    minimum = ShallowBlock(tensor([-1.0, 0.0]), tensor([1.0]))
    assert F.classify_signal(minimum, BlockSignal(X, tensor([0.5], [-0.5], [0.0]))).kind == "local minimum"
    penalised = BlockSignal(X, tensor([0.5], [-0.5], [0.0]), C=tensor([0.5], [-0.5], [0.0]))
    assert F.classify_signal(minimum, penalised).kind == "undecided"


def test_any_convex_loss_with_several_outputs_stops_at_output_weights_that_hold() -> None:
    block, X, Y = two_outputs(2.0)
    verdict = F.classify_signal(block, F.squared_error_signal(block, X, Y))
    assert verdict.kind == "undecided"
    assert "several outputs" in verdict.reason


def test_any_convex_loss_undecided_kinks_are_undecided() -> None:
    rng = np.random.default_rng(0)
    X = torch.as_tensor(np.vstack([rng.standard_normal((25, 9)), 3 * np.eye(9)]))
    G = torch.cat([torch.full((25, 1), -0.01), torch.ones(9, 1)]).double()
    verdict = F.classify_signal(ShallowBlock(zeros(1, 9), tensor([1.0]), (-1.0, 1.0)), BlockSignal(X, G))
    assert verdict.kind == "undecided"
    assert "too many" in verdict.reason
