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
    """

    H: Tensor
    bias: Tensor


def refit(loss: Loss, A: Tensor, start: Amplitudes, mu: float, bias_decay: float | None) -> Amplitudes:
    """The amplitudes with the lowest loss, decay included, as far as a search of bounded length comes.

    Args:
        loss: A convex loss, float64.
        A: Activations, shape ``(N, n)``.
        start: Where the search starts; a neuron with zero output weights stays so.
        mu: What a neuron costs per unit of its amplitude.
        bias_decay: Decay of the output bias; None: it stays as it is.

    Returns:
        The amplitudes.
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
    return Amplitudes(a * flat.reshape(outputs, neurons), bias)
