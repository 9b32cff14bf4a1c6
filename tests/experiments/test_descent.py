"""The analytic gradient steps are plain gradient descent, the same in numpy and in torch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from relu_diag.experiments import gradient_descent_, reference_problem
from relu_diag.experiments.descent import _descend
from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import residual_factor
from relu_diag.nn import ShallowNet, small_init_

SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (0.5, -2.0), (1.0, 0.0)]


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("problem", ["five_points", "two_outputs", "three_inputs"])
def test_fast_path_is_the_trajectory_of_torch_sgd(problem: Any, slopes: tuple[float, float]) -> None:
    X, Y = reference_problem(problem).tensors()
    net = ShallowNet(X.shape[1], 20, Y.shape[1], slopes).double()
    small_init_(net, 0.3, torch.Generator().manual_seed(3))
    block = ShallowBlock(net.hidden.weight.detach().clone(), net.output.weight.detach().clone(), slopes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for _ in range(3000):
        optimizer.zero_grad()
        before = functional.mse_loss(net(X), Y)
        before.backward()
        optimizer.step()
    residual = gradient_descent_(block, X, Y, 0.02 * residual_factor(Y, "mean"), steps=3000)
    # Rounding differs from autograd's by 1e-16 in a step, and a neuron that slides along a kink amplifies it.
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert_close(block.W, net.hidden.weight.detach(), **close)
    assert_close(block.H, net.output.weight.detach(), **close)
    assert_close(residual.square().mean(), before.detach(), **close)


@pytest.mark.parametrize("slopes", SLOPES)
def test_slope_on_the_kink_is_the_one_of_autograd(slopes: tuple[float, float]) -> None:
    X, Y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64), torch.ones(3, 1).double()
    net = ShallowNet(2, 3, 1, slopes).double()
    with torch.no_grad():
        net.hidden.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, -1.0]]))
        net.output.weight.copy_(torch.tensor([[1.0, 1.0, -2.0]]))
    block = ShallowBlock(net.hidden.weight.detach().clone(), net.output.weight.detach().clone(), slopes)
    (0.5 * (net(X) - Y).square().sum()).backward()
    gradient_descent_(block, X, Y, rate=1.0, steps=1)
    assert_close(net.hidden.weight.detach() - block.W, net.hidden.weight.grad)
    assert_close(net.output.weight.detach() - block.H, net.output.weight.grad)


def test_slope_of_relu_on_the_kink_is_zero() -> None:
    block = ShallowBlock(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]]))
    gradient_descent_(block, torch.tensor([[0.0, 1.0]]), torch.ones(1, 1), rate=1.0, steps=1)
    assert block.W.tolist() == [[1.0, 0.0]]
    assert block.H.tolist() == [[1.0]]


@pytest.mark.parametrize("slopes", SLOPES)
def test_numpy_and_torch_take_the_same_steps(slopes: tuple[float, float]) -> None:
    X, Y = reference_problem("two_outputs").tensors()
    draw = torch.Generator().manual_seed(0)
    W, H = (torch.randn(shape, generator=draw).double() for shape in ((10, 2), (2, 10)))
    arrays = [X, Y, W.clone(), H.clone()]
    from_torch = _descend(torch, arrays, slopes, 0.01, 200)
    block = ShallowBlock(W, H, slopes)
    assert_close(gradient_descent_(block, X, Y, 0.01, 200), from_torch)
    assert_close(block.W, arrays[2])
    assert_close(block.H, arrays[3])


def test_dtypes_unknown_to_numpy_descend_too() -> None:
    block = ShallowBlock(torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16))
    gradient_descent_(block, torch.ones(1, 1).bfloat16(), torch.zeros(1, 1).bfloat16(), rate=0.5, steps=2)
    assert block.W.item() == 0.4375


@pytest.mark.parametrize(("steps", "bias", "message"), [(0, None, "steps"), (1, torch.zeros(1), "output bias")])
def test_steps_that_cannot_be_taken_are_refused(steps: int, bias: Tensor | None, message: str) -> None:
    block = ShallowBlock(torch.ones(1, 1), torch.ones(1, 1), output_bias=bias)
    with pytest.raises(ValueError, match=message):
        gradient_descent_(block, torch.ones(1, 1), torch.ones(1, 1), 0.1, steps)
