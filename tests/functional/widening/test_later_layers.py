"""The loss of an inner block through the layers behind it: value and derivatives are those of the whole network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.block import rho
from relu_diag.functional.widening import LaterLayer, LossThroughLayers, best_widening

SLOPES = ((0.0, 1.0), (0.2, 1.0))


def case(seed: int) -> tuple[LossThroughLayers, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    H, K, bias, Z = (torch.randn(shape, generator=draw).double() for shape in ((4, 3), (2, 4), (2,), (7, 3)))
    end = F.CrossEntropy(torch.randint(2, (7,), generator=draw))
    return LossThroughLayers(end, (LaterLayer(H, SLOPES[0], None), LaterLayer(K, SLOPES[1], bias))), Z


def network(loss: LossThroughLayers, Z: Tensor) -> Tensor:
    """The same by torch alone."""
    for layer in loss.layers:
        Z = torch.where(Z > 0, layer.slopes[1] * Z, layer.slopes[0] * Z) @ layer.H.T
        Z = Z if layer.bias is None else Z + layer.bias
    return Z


@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_are_those_of_autograd(seed: int) -> None:
    loss, Z = case(seed)
    Z.requires_grad_()
    assert isinstance(loss.end, F.CrossEntropy)
    value = torch.nn.functional.cross_entropy(network(loss, Z), loss.end.labels)
    (gradient,) = torch.autograd.grad(value, Z)
    assert_close(loss(Z), value)
    assert_close(loss.gradient(Z.detach()), gradient)


@pytest.mark.parametrize("seed", range(5))
def test_between_kinks_curvature_is_the_derivative_of_the_gradient(seed: int) -> None:
    loss, Z = case(seed)
    direction = torch.randn(Z.shape, generator=torch.Generator().manual_seed(9)).double()
    step = 1e-6
    expected = (loss.gradient(Z + step * direction) - loss.gradient(Z - step * direction)) / (2 * step)
    # Central differences lose half of the digits.
    assert_close(loss.curvature(Z, direction), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e-12])
def test_a_change_keeps_its_digits(size: float) -> None:
    loss, Z = case(3)
    direction = torch.randn(Z.shape, generator=torch.Generator().manual_seed(9)).double()
    expected = (loss(Z + direction) - loss(Z)) if size == 1 else size * (loss.gradient(Z) * direction).sum()
    assert_close(loss.change(Z, size * direction), expected)


def test_on_a_kink_a_change_takes_the_side_that_is_entered() -> None:
    layer = LaterLayer(torch.eye(1).double(), (0.5, 2.0), None)
    loss = LossThroughLayers(F.SquaredError(torch.zeros(1, 1).double(), "sum"), (layer,))
    for step in (1e-3, -1e-3):
        moved = torch.full((1, 1), step).double()
        assert_close(loss.change(torch.zeros(1, 1).double(), moved), loss(moved))


def test_rows_and_multiples_add_up() -> None:
    loss, Z = case(1)
    parts = [loss.rows(slice(0, 3))(Z[:3]), loss.rows(slice(3, None)).scaled(2.0)(Z[3:])]
    assert_close(parts[0] + parts[1] / 2, loss(Z))


def test_a_hidden_block_of_a_deep_network_is_widened_by_the_loss_at_its_end() -> None:
    draw = torch.Generator().manual_seed(0)
    X, W, H, K = (torch.randn(shape, generator=draw).double() for shape in ((300, 4), (2, 4), (3, 2), (1, 3)))
    Y = X[:, :1].abs() + X[:, 1:2].relu()
    last = ShallowBlock(H, K)
    loss = LossThroughLayers(F.SquaredError(Y), (LaterLayer.of(last),))
    found = best_widening(ShallowBlock(W, H), X, loss, units=4, held_out=0.0)
    outputs = rho(rho(X @ found.new_block.W.T, SLOPES[0]) @ found.new_block.H.T, SLOPES[0]) @ K.T
    assert_close(torch.tensor(found.after).double(), (outputs - Y).square().mean())
    assert found.after < 0.5 * found.before
