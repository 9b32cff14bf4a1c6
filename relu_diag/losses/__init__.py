"""Losses that are integrals over the inputs: exact on an interval, by quadrature, or from fresh random nodes.

Each is called with the model, ``loss(model)``, and needs no data: the integral over the domain, not divided by its
size, of the squared error against a target function.
"""

from relu_diag.functional.integral import Box, Gaussian
from relu_diag.losses.integral import IntegralLoss
from relu_diag.losses.interval import IntervalL2Loss
from relu_diag.losses.monte_carlo import MonteCarloLoss
from relu_diag.losses.quadrature import QuadratureLoss

__all__ = ["Box", "Gaussian", "IntegralLoss", "IntervalL2Loss", "MonteCarloLoss", "QuadratureLoss"]
