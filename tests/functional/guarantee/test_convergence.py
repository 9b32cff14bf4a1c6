"""The certificate: its bounds hold all over the ball, training stays below them, known answers, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import guarantee
from relu_diag.functional.block import residual_factor
from relu_diag.nn import SmoothLeakyReLU, certified_init_


def activation(Z: Tensor, slopes: tuple[float, float], smooth: bool) -> Tensor:
    if smooth:
        return slopes[0] * Z + (1 - slopes[0]) * torch.nn.functional.softplus(Z, threshold=100)
    return torch.where(Z >= 0, slopes[1] * Z, slopes[0] * Z)


class Problem:
    """A wide block with a small residual, and its loss as a function of one vector."""

    def __init__(
        self, seed: int, smooth: bool = False, outputs: int = 1, bias: bool = False, error: float = 1e-3
    ) -> None:
        torch.manual_seed(seed)
        samples, inputs, width, self.smooth = 3, 4, 30, smooth
        self.X = torch.randn(samples, inputs, dtype=torch.float64)
        W, H = torch.randn(width, inputs).double(), torch.randn(outputs, width).double()
        slopes = (0.2, 1.0) if smooth else (0.0, 1.0)
        self.block = ShallowBlock(W, H, slopes, torch.randn(outputs).double() if bias else None)
        self.parts = [W, H] + ([self.block.output_bias] if bias else [])
        self.Y = self.outputs(self.theta) + error * torch.randn(samples, outputs).double()
        certify = F.smooth_convergence_certificate if smooth else F.convergence_certificate
        self.certificate = certify(self.block, self.X, self.Y)

    @property
    def theta(self) -> Tensor:
        return torch.cat([part.flatten() for part in self.parts])

    def outputs(self, theta: Tensor) -> Tensor:
        parts = theta.split([part.numel() for part in self.parts])
        W, H, *bias = (part.reshape(like.shape) for part, like in zip(parts, self.parts, strict=True))
        out = activation(self.X @ W.T, self.block.slopes, self.smooth) @ H.T
        return out + bias[0] if bias else out

    def loss(self, theta: Tensor) -> Tensor:
        return (self.outputs(theta) - self.Y).square().mean()

    def gradient(self, theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.loss(theta), theta)[0]


CASES = [{}, {"outputs": 2}, {"bias": True}, {"smooth": True}, {"smooth": True, "outputs": 2, "bias": True}]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_alpha_bounds_the_ratio_and_curvature_the_hessian_all_over_the_ball(seed: int, case: dict[str, Any]) -> None:
    problem = Problem(seed, **case, error=1e-4)
    found = problem.certificate
    assert found.holds
    assert_close(found.loss, float(problem.loss(problem.theta)), rtol=1e-9, atol=0)
    assert found.radius < found.kink_distance
    for _ in range(100):
        direction = torch.randn_like(problem.theta)
        theta = problem.theta + found.radius * torch.rand(()) ** 0.1 * direction / direction.norm()
        ratio = problem.gradient(theta).square().sum() / problem.loss(theta)
        assert float(ratio) >= found.alpha
    hessian = torch.autograd.functional.hessian(problem.loss, theta)
    assert float(torch.linalg.matrix_norm(hessian, 2)) <= found.curvature
    assert found.rate >= found.alpha


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_flow_stays_in_the_ball_below_the_bound(case: dict[str, Any]) -> None:
    problem = Problem(5, **case)
    found = problem.certificate
    assert found.holds
    end = 5 / found.rate
    flow = solve_ivp(
        lambda _, theta: -problem.gradient(torch.from_numpy(theta)).numpy(),
        (0, end),
        problem.theta.numpy(),
        method="LSODA",
        rtol=1e-9,
        atol=1e-12,
        t_eval=np.linspace(0, end, 21),
    )
    for t, theta in zip(flow.t, torch.from_numpy(flow.y.T), strict=True):
        assert float(problem.loss(theta)) <= math.exp(-found.rate * t) * found.loss * (1 + 1e-6)
        assert float((theta - problem.theta).norm()) <= found.radius


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_descent_stays_below_the_bound_of_its_steps(case: dict[str, Any]) -> None:
    problem = Problem(6, **case)
    found = problem.certificate
    lr = 0.9 * found.largest_lr
    factor, theta = found.step_factor(lr), problem.theta
    assert 0 < factor < 1
    steps = found.steps_to(1e-2, lr)
    assert steps is not None
    for step in range(1, min(steps, 2000) + 1):
        theta = theta - lr * problem.gradient(theta)
        assert float(problem.loss(theta)) <= factor**step * found.loss * (1 + 1e-9)
    assert_close(factor**steps, 1e-2, rtol=1 - factor, atol=0)
    assert (found.step_factor(1.01 * found.largest_lr), found.steps_to(0.5, 10.0)) == (1.0, None)


@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_loss_scaling_scales_time_only(reduction: Any) -> None:
    problem = Problem(1, outputs=2)
    found = F.convergence_certificate(problem.block, problem.X, problem.Y, reduction)
    scale = residual_factor(problem.Y, reduction) / residual_factor(problem.Y, "mean")
    expected = problem.certificate
    assert (found.radius, found.holds) == (expected.radius, expected.holds)
    for name in ("alpha", "rate", "loss"):
        assert_close(getattr(found, name), scale * getattr(expected, name))
    assert_close((found.margin, found.largest_lr * scale), (expected.margin, expected.largest_lr))


def test_toy_of_two_weights_has_the_region_of_the_paper() -> None:
    """(w h - 1)^2 with w > 0 is one neuron and one sample: certain where |w h - 1| < (w^2 + h^2) / 4."""
    one = torch.ones(1, 1, dtype=torch.float64)
    answers = set()
    for w, h in torch.cartesian_prod(torch.linspace(0.1, 3, 30), torch.linspace(-3, 3, 31)).double().tolist():
        if w < math.hypot(w, h) / 2:
            continue  # the kink at w = 0 is nearer than the radius the paper takes
        found = F.convergence_certificate(ShallowBlock(w * one, h * one), one, one)
        expected = abs(w * h - 1) < (w**2 + h**2) / 4
        assert found.holds == expected
        answers.add(found.holds)
    assert answers == {True, False}


def test_steps_of_the_size_the_paper_allows_may_be_too_long() -> None:
    """Chatterjee's Theorem 2.2 asks lr <= 6 eps / (L_2 p); Taylor's remainder allows 2 eps. f = x^2, eps = 0.1."""
    eps, alpha, curvature = 0.1, 4.0, 2.0
    for share, holds in ((1.9, True), (6, False)):
        lr = share * eps / curvature
        assert ((1 - 2 * lr) ** 2 <= 1 - min(1, (1 - eps) * alpha * lr)) == holds


def test_certified_init_makes_convergence_certain_once_the_last_layer_is_large() -> None:
    torch.manual_seed(0)
    X, Y = torch.randn(4, 6).double(), torch.randn(4, 1).double()
    net = nn.Sequential(nn.Linear(6, 5), SmoothLeakyReLU(0.3, centred=True), nn.Linear(5, 1)).double()
    held = []
    for last in (0.1, 1.0, 10.0, 1e3, 1e5):
        certified_init_(net, last)
        assert_close(net(X), torch.zeros_like(Y))
        W = torch.cat([net[0].weight, net[0].bias[:, None]], dim=1)
        block = ShallowBlock(W, net[2].weight, (0.3, 1.0), net[2].bias)
        inputs = torch.cat([X, torch.ones(4, 1)], dim=1)
        certificate = F.smooth_convergence_certificate(block, inputs, Y, centred=True)
        held.append(certificate.holds)
    assert held == sorted(held)
    assert held[0] is False
    assert held[-1] is True
    lr = 0.9 * certificate.largest_lr
    optimizer, factor = torch.optim.SGD(net.parameters(), lr=lr), certificate.step_factor(lr)
    for step in range(1, 200):
        optimizer.zero_grad()
        loss = (net(X) - Y).square().mean()
        assert float(loss.detach()) <= factor ** (step - 1) * certificate.loss * (1 + 1e-9)
        loss.backward()
        optimizer.step()


def test_certified_init_refuses_what_is_no_network() -> None:
    with pytest.raises(ValueError, match=r"`module` needs two Linear layers or more; Linear has 1"):
        certified_init_(nn.Linear(1, 1), 1.0)
    with pytest.raises(ValueError, match=r"`last` and `middle` must be positive and finite; got 0.0"):
        certified_init_(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), 0.0)


def test_nothing_is_certain_on_a_kink_or_with_too_few_parameters() -> None:
    problem = Problem(2)
    on_kink = replace(problem.block, W=problem.block.W.index_fill(0, torch.tensor(0), 0.0))
    found = F.convergence_certificate(on_kink, problem.X, problem.Y)
    assert (found.holds, found.radius, found.rate, found.largest_lr) == (False, 0.0, 0.0, 0.0)
    assert "nothing certain: the criterion is missed by a factor" in str(found)
    assert found.step_factor(1e-3) == 1.0
    small = replace(problem.block, W=problem.block.W[:1, :1], H=problem.block.H[:, :1])
    assert not F.convergence_certificate(small, problem.X[:, :1], problem.Y).holds
    assert not F.convergence_certificate(problem.block, 0 * problem.X, problem.Y).holds


def test_zero_loss_is_certain() -> None:
    problem = Problem(3, error=0.0)
    assert problem.certificate.holds
    assert "zero loss is certain within" in str(problem.certificate)


def test_ratio_is_the_rate_of_the_logarithm() -> None:
    problem = Problem(4)
    theta = problem.theta.requires_grad_()
    ratio = guarantee.lojasiewicz_ratio(problem.loss(theta), [theta])
    dt = 1e-7
    after = problem.loss(theta - dt * problem.gradient(theta))
    assert_close(-(after / problem.loss(theta)).log() / dt, ratio, rtol=1e-4, atol=0)
    assert float(ratio.detach()) >= problem.certificate.alpha
    with pytest.raises(ValueError, match=r"`loss` must be positive; got 0.0"):
        guarantee.lojasiewicz_ratio(0 * problem.loss(theta), [theta])
    frozen = torch.ones(2)
    assert_close(guarantee.lojasiewicz_ratio(problem.loss(theta), [theta, frozen]), ratio)
    for loss, parameters in ((problem.loss(theta.detach()), [theta]), (problem.loss(theta), [frozen])):
        with pytest.raises(ValueError, match="`loss` has no gradient with respect to `parameters`"):
            guarantee.lojasiewicz_ratio(loss, parameters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: F.smooth_convergence_certificate(replace(p.block, slopes=(0.0, 1.0)), p.X, p.Y), r"slopes \(a, 1\)"),
        (lambda p: F.convergence_certificate(p.block, p.X.repeat(2000, 1), p.Y.repeat(2000, 1)), "certify a part"),
        (lambda p: F.convergence_certificate(p.block, p.X, p.Y[:2]), "`Y` needs one row per sample"),
        (lambda p: p.certificate.step_factor(0.0), "`lr` must be positive; got 0.0"),
        (lambda p: p.certificate.steps_to(1.0, 0.1), r"`fraction` must lie in \(0, 1\); got 1.0"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Problem(0))
