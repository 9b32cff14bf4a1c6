"""Where a backward pass has computed the gradients, sums over samples need no product of their own."""

from dataclasses import fields

import pytest
import torch
from support.reference import SLOPES
from support.tensors import normal
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag.functional.local import neuron_sums


@pytest.mark.parametrize("slopes", SLOPES)
def test_gradients_of_autograd_make_the_same_sums(slopes: tuple[float, float]) -> None:
    draw = torch.Generator().manual_seed(0)
    X, W, H, G = normal(draw, 9, 3), normal(draw, 5, 3), normal(draw, 2, 5), normal(draw, 9, 2)
    X[3] = 0.0
    W[0] -= W[0] @ X[0] / X[0].square().sum() * X[0]  # on a kink to rounding, on either side of it
    W[4] = 0.0  # on all of them
    block = ShallowBlock(W.requires_grad_(), H.requires_grad_(), slopes)
    block(X).backward(G)
    assert W.grad is not None
    assert H.grad is not None
    signal = BlockSignal(X, G)
    expected = neuron_sums(block, signal)
    ridden = neuron_sums(block, signal, gradients=(W.grad, H.grad))
    assert expected.kink_count.tolist() == [1, 0, 0, 0, 8]
    for field in fields(expected):
        if field.name != "kinks":
            assert_close(getattr(ridden, field.name), getattr(expected, field.name))
