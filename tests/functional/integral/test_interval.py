"""The exact integral loss against adaptive quadrature, its derivatives against differences, its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reference_interval import loss_by_quadrature, random_network
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional import integral
from relu_diag.functional.integral import network_pieces

TARGETS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "affine": (lambda x: 2 * x - 1, lambda x: 2 * x - 1),
    "cubic": (lambda x: x**3 - x, lambda x: x**3 - x),
    "wave": (lambda x: torch.sin(9 * x), lambda x: math.sin(9 * x)),
    "bell": (lambda x: torch.exp(-(x**2)), lambda x: math.exp(-(x**2))),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("width", [1, 3, 20, 200])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.1, 1.0), (-0.5, 2.0)])
def test_loss_is_the_integral(name: str, width: int, slopes: tuple[float, float]) -> None:
    network = random_network(width, width, slopes=slopes)
    vectorised, scalar = TARGETS[name]
    found = F.interval_l2_loss(*network.parameters, vectorised, network.interval, slopes)
    assert_close(float(found), loss_by_quadrature(network, scalar), rtol=1e-12, atol=0)


def test_loss_is_the_integral_for_large_weights_that_cancel() -> None:
    network = random_network(5, 100)
    twice = torch.cat([network.w, network.w]), torch.cat([network.b, network.b])
    h = torch.cat([1e4 * network.h, network.h - 1e4 * network.h])
    alone = F.interval_l2_loss(*network.parameters, torch.sin, network.interval)
    # Terms 1e4 times the function cost 1e4 roundings of it.
    assert_close(F.interval_l2_loss(*twice, h, network.c, torch.sin, network.interval), alone, rtol=1e-11, atol=0)


def test_targets_with_jumps_and_densities_are_integrated_exactly() -> None:
    network = random_network(1, 20)
    step = F.IntervalTarget(lambda x: (x > 0.3).to(x) + x.abs(), breakpoints=(0.0, 0.3), density=lambda x: 2 + x)
    found = F.interval_l2_loss(*network.parameters, step, network.interval)
    expected = loss_by_quadrature(network, lambda x: float(x > 0.3) + abs(x), (0.0, 0.3), lambda x: 2 + x)
    assert_close(float(found), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_order_is_exact_for_polynomials_below_it(degree: int) -> None:
    network = random_network(degree, 4)
    target = F.IntervalTarget(lambda x: x**degree, order=degree + 1, cells=1)
    found = F.interval_l2_loss(*network.parameters, target, network.interval)
    assert_close(float(found), loss_by_quadrature(network, lambda x: x**degree), rtol=1e-12, atol=0)
    coarse = F.IntervalTarget(lambda x: x**degree, order=max(1, degree - 1), cells=1)
    assert abs(float(F.interval_l2_loss(*network.parameters, coarse, network.interval) / found) - 1) > 1e-9


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize(
    "target",
    [
        torch.sin,
        F.IntervalTarget(lambda x: (x > 0.3).to(x), breakpoints=(0.3,)),
        F.IntervalTarget(torch.cos, density=lambda x: 1 + x**2),
        lambda x: torch.from_numpy(np.sin(x.numpy())),  # never differentiated
    ],
    ids=["smooth", "jump", "density", "numpy"],
)
def test_gradient_and_hessian_are_those_of_differences(target: Any, slopes: tuple[float, float]) -> None:
    network = random_network(3, 6)
    parameters = [value.requires_grad_() for value in network.parameters]

    def loss(*values: Tensor) -> Tensor:
        return F.interval_l2_loss(*values, target, network.interval, slopes)

    assert torch.autograd.gradcheck(loss, parameters)
    assert torch.autograd.gradgradcheck(loss, parameters)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode
def test_hessian_agrees_in_every_mode_of_torch() -> None:
    network = random_network(4, 5)
    theta = torch.cat([value.reshape(-1) for value in network.parameters])

    def loss(theta: Tensor) -> Tensor:
        return F.interval_l2_loss(*theta[:-1].reshape(3, -1), theta[-1], torch.sin, network.interval)

    reverse = torch.autograd.functional.hessian(loss, theta)
    assert_close(reverse, torch.func.hessian(loss)(theta))
    assert_close(reverse, reverse.T)


def test_gradient_of_affine_targets_is_the_closed_form() -> None:
    network = random_network(6, 30)
    parameters = [value.requires_grad_() for value in network.parameters]
    loss = F.interval_l2_loss(*parameters, lambda x: 1.3 * x - 0.4, network.interval)
    found = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])
    problem = integral.AffineProblem(*network.parameters, slope=1.3, intercept=-0.4, interval=network.interval)
    assert_close(found, integral.generalised_gradient(problem))


def test_neurons_without_a_kink_inside_count_too() -> None:
    w = torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0], dtype=torch.float64)  # constant, off, zero, linear, off
    b = torch.tensor([2.0, -1.0, 0.0, 5.0, -4.0], dtype=torch.float64)
    h = torch.tensor([0.5, 3.0, 7.0, 1.0, 2.0], dtype=torch.float64)
    found = F.interval_l2_loss(w, b, h, -6.0, torch.zeros_like, (-1.0, 2.0))
    assert_close(float(found), 3.0)  # N(x) = 1 + (x + 5) - 6 = x


@given(st.integers(1, 12), st.integers(0, 1000), st.floats(-3, 3))
def test_loss_knows_the_function_only(width: int, seed: int, log_scale: float) -> None:
    network = random_network(seed, width)
    w, b, h, c = network.parameters
    loss = F.interval_l2_loss(w, b, h, c, torch.cos, network.interval)
    order, scale = torch.randperm(width), math.exp(log_scale) * (0.5 + torch.rand(width, dtype=torch.float64))
    moved = ((scale * w)[order], (scale * b)[order], (h / scale)[order])
    assert_close(F.interval_l2_loss(*moved, c, torch.cos, network.interval), loss)
    shifted = F.interval_l2_loss(w, b - 5 * w, h, c, lambda x: torch.cos(x - 5), (4.0, 7.0))
    assert_close(shifted, loss, rtol=1e-11, atol=0)  # numbers five times as large


def test_pieces_are_the_network() -> None:
    network = random_network(8, 12)
    pieces = network_pieces(*network.parameters, network.interval)
    middle = (pieces.edges[1:] + pieces.edges[:-1]) / 2
    values = pieces.value + pieces.slope * (middle - pieces.origin)
    assert_close(values, torch.tensor([network(float(x)) for x in middle], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_dtypes_are_computed_in_float64(dtype: torch.dtype) -> None:
    parameters = [value.to(dtype) for value in random_network(2, 50).parameters]
    found = F.interval_l2_loss(*parameters, torch.sin, (-1.0, 2.0))
    assert found.dtype == torch.float32
    assert_close(found, F.interval_l2_loss(*(v.double() for v in parameters), torch.sin, (-1.0, 2.0)).float())


def test_the_output_bias_of_a_layer_is_added_in_float64() -> None:
    """``linear.bias`` is a vector of one float32; a network near its target loses all digits of the loss with it."""
    torch.manual_seed(0)
    w, b, h = torch.randn(3, 50)
    w, h = w.abs(), h.abs()
    c = torch.tensor([0.1])
    exact = [value.double() for value in (w, b, h, c)]
    target = lambda x: 1e-6 * x + torch.relu(x[:, None] * exact[0] + exact[1]) @ exact[2] + exact[3]  # noqa: E731
    kinks = F.IntervalTarget(target, breakpoints=(-exact[1] / exact[0]).tolist())
    found = F.interval_l2_loss(w, b, h, c, kinks, (-1.0, 2.0))
    assert_close(found, F.interval_l2_loss(*exact, kinks, (-1.0, 2.0)).float())
    assert_close(float(found), 3e-12, rtol=1e-6, atol=0)


def test_memory_grows_with_the_neurons_only() -> None:
    """A million neurons: no saved tensor is larger than the number of pieces."""
    saved: list[int] = []
    width = 100_000
    parameters = [value.requires_grad_() for value in random_network(9, width).parameters]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss = F.interval_l2_loss(*parameters, torch.sin, (-1.0, 2.0))
    loss.backward()
    assert max(saved) <= width + 40
    assert sum(saved) < 40 * width


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_empty_and_reversed_intervals_are_refused(interval: tuple[float, float]) -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"`interval` must be \(A, B\) with finite A < B; got"):
        F.interval_l2_loss(one, one, one, 0.0, torch.sin, interval)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.log, ValueError, r"`target` is not finite at x = -1;"),
        (lambda x: x.sum(), ValueError, r"`target` must return one number per node, shape \(\d+,\); got \(\)"),
        (lambda x: x[:, None], ValueError, r"`target` must return one number per node, .* has to be vectorised"),
        (lambda x: x.numpy(), TypeError, "`target` must return a torch.Tensor; got ndarray"),
        (3.0, TypeError, "`function` must be a function of a tensor of nodes; got float"),
    ],
)
def test_targets_that_are_none_are_refused(target: Any, error: type[Exception], message: str) -> None:
    one = torch.ones(1)
    with pytest.raises(error, match=message):
        F.interval_l2_loss(one, one, one, 0.0, target, (-1.0, 1.0))


def test_parameters_that_do_not_fit_are_refused() -> None:
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(ValueError, match=r"`b` must be a vector with one entry per neuron, as w \(1,\); got \(2,\)"):
        F.interval_l2_loss(one, two, one, 0.0, torch.sin, (0.0, 1.0))
    with pytest.raises(ValueError, match="`h` has NaN or infinite entries"):
        F.interval_l2_loss(one, one, one * math.nan, 0.0, torch.sin, (0.0, 1.0))
    with pytest.raises(ValueError, match=r"`c` must be one number; got shape \(2,\)"):
        F.interval_l2_loss(one, one, one, two, torch.sin, (0.0, 1.0))
    with pytest.raises(ValueError, match="`c` must be finite; got nan"):
        F.interval_l2_loss(one, one, one, math.nan, torch.sin, (0.0, 1.0))
    with pytest.raises(TypeError, match=r"`w` must be a torch.Tensor; got ndarray"):
        F.interval_l2_loss(one.numpy(), one, one, 0.0, torch.sin, (0.0, 1.0))
    with pytest.raises(ValueError, match="`slopes` must differ"):
        F.interval_l2_loss(one, one, one, 0.0, torch.sin, (0.0, 1.0), (1.0, 1.0))
    for options, message in (({"order": 0}, "`order` must be"), ({"breakpoints": (math.nan,)}, "`breakpoints` must")):
        with pytest.raises(ValueError, match=message):
            F.IntervalTarget(torch.sin, **options)
