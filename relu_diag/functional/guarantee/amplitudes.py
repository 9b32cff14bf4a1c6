"""The best network of given kinks: amplitudes and output weights, which are a convex problem in their products.

``l(A H^T + b) + mu sum_i ||h_i||`` with the activations ``A`` of unit input weights. Written as
``l((A * a) G^T + b) + mu / 2 (||a||^2 + ||G||^2)``, ``h_i = a_i g_i``, it is smooth, and has no minimum but the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Amplitudes:
    """Products of a network of unit input weights, and its output bias.

    Attributes:
        H: Output weights of the unit neurons, shape ``(J, n)``.
        bias: Output bias, shape ``(J,)``.

    Example:
        >>> Amplitudes(H=torch.ones(1, 3), bias=torch.zeros(1)).H.shape
        torch.Size([1, 3])
    """

    H: Tensor
    bias: Tensor


def refit_amplitudes(loss: Loss, A: Tensor, start: Amplitudes, mu: float, bias_decay: float | None) -> Amplitudes:
    """The amplitudes with the lowest loss, decay included, as far as a search of bounded length comes.

    Quasi-Newton steps in both factors of every amplitude find the neurons that are there; Newton steps on these follow.

    Args:
        loss: A convex loss, float64.
        A: Activations, shape ``(N, n)``.
        start: Where the search starts.
        mu: What a neuron costs per unit of its amplitude.
        bias_decay: Decay of the output bias; None: it stays as it is.

    Returns:
        The amplitudes.

    Example:
        >>> from relu_diag.functional.output_loss import SquaredError
        >>> A, Y = torch.eye(2).double(), torch.tensor([[3.0], [0.5]]).double()
        >>> start = Amplitudes(torch.ones(1, 2).double(), torch.zeros(1).double())
        >>> refit_amplitudes(SquaredError(Y, "half_sum"), A, start, mu=1.0, bias_decay=None).H
        tensor([[2., 0.]], dtype=torch.float64)
    """
    neurons, outputs = A.shape[1], len(start.bias)
    parts = [neurons, outputs * neurons, outputs]
    root = start.H.norm(dim=0).sqrt()
    G = start.H / torch.where(root > 0, root, 1.0)
    x = torch.cat([root, G.flatten(), start.bias])

    def objective(packed: Array) -> tuple[float, Array]:
        a, flat, bias = torch.split(torch.as_tensor(packed).to(A), parts)
        G = flat.reshape(outputs, neurons)
        at = (A * a) @ G.T + bias
        cost = mu / 2 * (a.square().sum() + flat.square().sum()) + (bias_decay or 0.0) / 2 * bias.square().sum()
        E = loss.gradient(at)
        felt = E.T @ A
        slope_a = (felt * G).sum(dim=0) + mu * a
        slope_G = felt * a + mu * G
        slope_bias = torch.zeros_like(bias) if bias_decay is None else E.sum(dim=0) + bias_decay * bias
        slope = torch.cat([slope_a, slope_G.flatten(), slope_bias])
        return float(loss(at) + cost), slope.cpu().numpy()

    # At the best amplitudes every neuron is pulled by `mu` exactly: as far as this is met the bound is tight.
    options = {"maxiter": BUDGETS.refit_steps, "ftol": FLOAT64.eps, "gtol": FLOAT64.pulled * mu}
    found = minimize(objective, x.cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    a, flat, bias = torch.split(torch.as_tensor(np.asarray(found.x)).to(A), parts)
    return _polished(_Fit(loss, A, mu, bias_decay), Amplitudes(a * flat.reshape(outputs, neurons), bias))


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """What is minimised: a loss of the activations ``(N, n)``, the price of amplitudes, and decay of the bias."""

    loss: Loss
    A: Tensor
    mu: float
    bias_decay: float | None

    def value(self, at: Amplitudes) -> float:
        """The objective."""
        price = self.mu * at.H.norm(dim=0).sum() + (self.bias_decay or 0.0) / 2 * at.bias.square().sum()
        return float(self.loss(self.A @ at.H.T + at.bias) + price)

    def only(self, kept: Tensor) -> _Fit:
        """The same of some of the neurons."""
        return _Fit(self.loss, self.A[:, kept], self.mu, self.bias_decay)

    def newton(self, at: Amplitudes) -> tuple[Amplitudes, float]:
        """The Newton step where no amplitude is zero, and the largest slope."""
        outputs, neurons = at.H.shape
        computed = self.A @ at.H.T + at.bias
        E = self.loss.gradient(computed)
        length = at.H.norm(dim=0)
        unit = at.H / length
        by_bias = torch.zeros_like(at.bias)
        if self.bias_decay is not None:
            by_bias = E.sum(dim=0) + self.bias_decay * at.bias
        slope = torch.cat([(E.T @ self.A + self.mu * unit).flatten(), by_bias])
        # One column for every amplitude of an output, and one for its bias.
        felt = torch.cat([self.A, torch.ones_like(self.A[:, :1]) * (self.bias_decay is not None)], dim=1)
        hessian = self._curvature(computed, felt)
        turning = torch.einsum("in,jn->nij", unit, unit)
        turning = self.mu / length[:, None, None] * (torch.eye(outputs).to(unit) - turning)
        for n in range(neurons):
            places = torch.arange(outputs) * neurons + n
            hessian[places[:, None], places] += turning[n]
        last = torch.arange(outputs * neurons, len(slope))
        hessian[last, last] += self.bias_decay or 0.0
        damping = FLOAT64.rank * hessian.diagonal().sum() + FLOAT64.eps
        step = -torch.linalg.solve(hessian + damping * torch.eye(len(slope)).to(hessian), slope)
        by_H, by_bias = torch.split(step, [outputs * neurons, outputs])
        return Amplitudes(by_H.view(outputs, neurons), by_bias), float(slope.abs().max())

    def _curvature(self, at: Tensor, felt: Tensor) -> Tensor:
        """The Hessian of the loss: amplitudes output by output, then the biases."""
        outputs, neurons = at.shape[1], felt.shape[1] - 1
        order = [(j, n) for j in range(outputs) for n in range(neurons)] + [(j, neurons) for j in range(outputs)]
        jacobian = torch.zeros(len(order), *at.shape).to(at)
        for row, (j, n) in enumerate(order):
            jacobian[row, :, j] = felt[:, n]
        bent = torch.stack([self.loss.curvature(at, change) for change in jacobian])
        return jacobian.flatten(1) @ bent.flatten(1).T


def _polished(fit: _Fit, at: Amplitudes) -> Amplitudes:
    """Newton steps on the neurons there are: those that vanish leave, those pulled by more than their price join."""
    value = fit.value(at)
    for _ in range(BUDGETS.polishings):
        kept = (at.H.norm(dim=0) > FLOAT64.settled * at.H.norm()).nonzero().squeeze(1)
        if not len(kept) or (len(kept) + 1) * len(at.bias) > BUDGETS.dense_form:
            return at
        H = at.H[:, kept]
        step, slope = fit.only(kept).newton(Amplitudes(H, at.bias))
        if slope <= FLOAT64.settled * fit.mu:
            wider = _with_another(fit, at)
            if wider is None:
                return at
            at, value = wider, fit.value(wider)
            continue
        towards = (H * step.H).sum(dim=0)
        until = torch.where(towards < 0, -H.square().sum(dim=0) / towards, torch.inf)
        length = min(1.0, float(until.min()))
        gone = until <= length
        for _ in range(BUDGETS.halvings):
            there = Amplitudes(torch.zeros_like(at.H), at.bias + length * step.bias)
            there.H[:, kept] = torch.where(gone, 0.0, H + length * step.H)
            ahead = fit.value(there)
            if ahead <= value + FLOAT64.roundings * FLOAT64.eps * abs(value):
                break
            length /= 2
            gone = torch.zeros_like(gone)
        else:
            return at
        at, value = there, ahead
    return at


def _with_another(fit: _Fit, at: Amplitudes) -> Amplitudes | None:
    """With the neuron that is pulled most, if by more than its price, and if the loss falls with it."""
    outputs = fit.A @ at.H.T + at.bias
    D = fit.loss.gradient(outputs).T @ fit.A
    gain = D.norm(dim=0)
    most = int(gain.argmax())
    if float(gain[most]) <= (1 + FLOAT64.pulled) * fit.mu or bool(at.H[:, most].any()):
        return None
    along = -D[:, most] / gain[most]
    change = torch.outer(fit.A[:, most], along)
    bend = float((change * fit.loss.curvature(outputs, change)).sum())
    if bend <= 0:
        return None
    H = at.H.clone()
    H[:, most] = (float(gain[most]) - fit.mu) / bend * along
    there = Amplitudes(H, at.bias)
    return there if fit.value(there) < fit.value(at) else None
