"""Certificates with several outputs: every promise is attacked where it is weakest, at margins just above 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import hadamard
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.guarantee import ConvergenceCertificate, smooth_leaky_relu

SLOPE = 0.1


@dataclass(frozen=True)
class Attack:
    """A smooth block with its targets, and its half-sum loss as a function of one vector."""

    block: ShallowBlock
    X: Tensor
    Y: Tensor

    @property
    def theta(self) -> Tensor:
        return torch.cat([self.block.W.flatten(), self.block.H.flatten()])

    @property
    def certificate(self) -> ConvergenceCertificate:
        return F.smooth_convergence_certificate(self.block, self.X, self.Y, "half_sum", centred=True)

    def loss(self, theta: Tensor) -> Tensor:
        W, H = (part.reshape(like.shape) for part, like in zip(theta.split(self.sizes), self.parts, strict=True))
        return (smooth_leaky_relu(self.X @ W.T, SLOPE, centred=True) @ H.T - self.Y).square().sum() / 2

    def gradient(self, theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.loss(theta), theta)[0]

    def ratio(self, theta: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(self.loss(theta), theta, create_graph=True)
        return gradient.square().sum() / self.loss(theta)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        return self.block.W, self.block.H

    @property
    def sizes(self) -> list[int]:
        return [part.numel() for part in self.parts]


def attack(outputs: int, columns: str, share: float) -> Attack:
    """Columns of ``H`` that are long where their entries are small, residuals along the first, at a given margin."""
    torch.manual_seed(outputs)
    samples, scale = 3, 100.0
    signs = torch.from_numpy(hadamard(16)).double()[:outputs]
    H = scale * (signs if columns == "hadamard" else signs * torch.rand(16, dtype=torch.float64))
    W = torch.zeros(16, samples, dtype=torch.float64)
    first = H[:, 0] / H[:, 0].norm()
    X = torch.eye(samples, dtype=torch.float64)
    Y = torch.zeros(samples, outputs, dtype=torch.float64)
    Y[0] = -first
    found = Attack(ShallowBlock(W, H, (SLOPE, 1.0)), X, Y)
    return replace(found, Y=Y * math.sqrt(found.certificate.margin * share))


@pytest.mark.parametrize("columns", ["hadamard", "scaled"])
@pytest.mark.parametrize("outputs", [1, 2, 3, 8, 16])
def test_alpha_and_curvature_hold_where_descent_in_the_ball_looks_for_a_breach(outputs: int, columns: str) -> None:
    problem = attack(outputs, columns, share=0.95)
    found = problem.certificate
    assert found.holds
    assert 1 < found.margin < 1.1
    for start in range(4):
        torch.manual_seed(start)
        away = torch.randn_like(problem.theta)
        for _ in range(25):
            away = away / max(1.0, float(away.norm()) / found.radius)
            theta = (problem.theta + away).requires_grad_()
            ratio = problem.ratio(theta)
            assert float(ratio.detach()) >= found.alpha
            (uphill,) = torch.autograd.grad(ratio, theta)
            away = away - 0.3 * found.radius * uphill / uphill.norm()
        v = torch.randn_like(theta)
        for _ in range(20):  # the Hessian's norm, by powers
            product = torch.autograd.functional.hvp(problem.loss, theta.detach(), v / v.norm())[1]
            v = product
        assert float(v.norm()) <= found.curvature


@pytest.mark.parametrize("columns", ["hadamard", "scaled"])
@pytest.mark.parametrize("outputs", [1, 4, 16])
def test_gradient_flow_keeps_the_rate_and_the_ball(outputs: int, columns: str) -> None:
    problem = attack(outputs, columns, share=0.95)
    found = problem.certificate
    assert found.holds
    times = np.linspace(0, 8 / found.rate, 41)
    flow = solve_ivp(
        lambda _, theta: -problem.gradient(torch.from_numpy(theta)).numpy(),
        (0, times[-1]),
        problem.theta.numpy(),
        method="RK45",
        rtol=1e-8,
        atol=1e-9,
        t_eval=times,
    )
    for t, theta in zip(flow.t, torch.from_numpy(flow.y.T), strict=True):
        assert float(problem.loss(theta)) <= math.exp(-found.rate * t) * found.loss * (1 + 1e-5)
        assert float((theta - problem.theta).norm()) <= found.radius


@pytest.mark.parametrize("outputs", [1, 4, 16])
def test_gradient_descent_keeps_the_rate_and_the_ball(outputs: int) -> None:
    problem = attack(outputs, "hadamard", share=0.8)
    found = problem.certificate
    lr = 0.99 * found.largest_lr
    factor = found.step_factor(lr)
    assert 0 < factor < 1
    theta = problem.theta
    for step in range(1, 300):
        theta = theta - lr * problem.gradient(theta)
        assert float(problem.loss(theta)) <= factor**step * found.loss * (1 + 1e-9)
        assert float((theta - problem.theta).norm()) <= found.radius


def test_the_longest_column_counts_not_the_largest_entry() -> None:
    """Sixteen outputs of one neuron each: flow leaves the ball that the largest entry of H would promise."""
    problem = attack(16, "hadamard", share=0.95)
    wider = replace(problem, Y=2 * problem.Y)  # certified with entries in place of columns
    assert not wider.certificate.holds
    assert "the criterion is missed by a factor" in str(wider.certificate)


def test_the_certificate_does_not_change_when_the_outputs_are_rotated() -> None:
    problem = attack(8, "scaled", share=0.5)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    turned = Attack(replace(problem.block, H=turn @ problem.block.H), problem.X, problem.Y @ turn.T)
    for name in ("radius", "alpha", "rate", "margin", "largest_lr"):
        expected = getattr(problem.certificate, name)
        assert math.isclose(getattr(turned.certificate, name), expected, rel_tol=1e-6)
