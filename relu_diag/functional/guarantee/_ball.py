"""What is certain in a ball around the weights, from bounds of the outputs' Jacobian there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Bounds of the singular values of the outputs' Jacobian.

    Attributes:
        smallest: At most the smallest one; 0 where rounding hides it.
        largest: At least the largest one; infinite where it leaves float64.
    """

    smallest: float
    largest: float


@dataclass(frozen=True, slots=True)
class Ball:
    """What bounds the loss ``kappa ||residual||^2`` around the weights.

    Attributes:
        spectrum: Of the Jacobian at the centre.
        lipschitz: The Jacobian moves at most so far, per distance from the centre.
        bend: Between two points at distance ``r`` of the centre it moves at most ``lipschitz + bend r`` per distance.
        kink: Distance from the centre within which all this holds.
        residual: Norm of the residual at the centre.
        kappa: Factor of the loss.
    """

    spectrum: Spectrum
    lipschitz: float
    bend: float
    kink: float
    residual: float
    kappa: float

    @property
    def loss(self) -> float:
        """The loss at the centre."""
        return self.kappa * self.residual * self.residual

    @property
    def radius(self) -> float:
        """The radius at which ``r smallest(r)`` is largest: the criterion asks that it exceeds the residual."""
        if self.lipschitz == 0:
            return 0.0
        return min(self.spectrum.smallest / (2 * self.lipschitz), self._edge)

    @property
    def smallest_radius(self) -> float:
        """The smallest radius that the criterion allows, where it allows one."""
        if self.residual == 0:
            return 0.0
        sigma = self.spectrum.smallest
        root = math.sqrt(max(sigma * sigma - 4 * self.lipschitz * self.residual, 0.0))
        return 2 * self.residual / (sigma + root)

    def smallest(self, r: float) -> float:
        """A lower bound of the Jacobian's smallest singular value within distance ``r``."""
        return max(self.spectrum.smallest - self.lipschitz * r, 0.0)

    def ratio(self, r: float) -> float:
        """A lower bound of ``|grad f|^2 / f`` within distance ``r``."""
        smallest = self.smallest(r)
        return 4 * self.kappa * smallest * smallest

    def margin(self, r: float) -> float:
        """``r^2 alpha / (4 f)``: more than 1 keeps gradient flow within distance ``r`` and takes it to zero loss."""
        share = _over(r * self.smallest(r), self.residual)
        return share * share

    def descent(self) -> tuple[float, float]:
        """The largest learning rate that keeps the criterion, and the bound of the Hessian's norm behind it.

        With ``eps = lr curvature / 2`` a step lowers the loss by ``(1 - eps) lr |grad f|^2``, so that all steps
        together are shorter than ``2 sqrt(f / alpha) / (1 - eps)``; no single one may leave where the curvature is
        bounded. Near a kink the ball is chosen between the smallest that the criterion allows and the cell, to leave
        room for a step.
        """
        inner = min(self.radius, (self.smallest_radius + self.kink) / 2)
        outer = min(2 * inner, self._edge)
        curvature = self._curvature(outer)
        spare = 1.0
        longest = 0.0
        if self.residual > 0:
            spare -= _over(self.residual, inner * self.smallest(inner))
            longest = 2 * self.kappa * self._largest(inner) * self._error(inner)
        return max(0.0, min(_over(2 * spare, curvature), _over(outer - inner, longest))), curvature

    @property
    def _edge(self) -> float:
        """A distance that stays inside the cell."""
        return (1 - FLOAT64.inside) * self.kink

    def _largest(self, r: float) -> float:
        """An upper bound of the Jacobian's norm within distance ``r``."""
        return self.spectrum.largest + self.lipschitz * r

    def _error(self, r: float) -> float:
        """An upper bound of the residual's norm within distance ``r``."""
        return self.residual + self._largest(r) * r

    def _curvature(self, r: float) -> float:
        """An upper bound of the Hessian's norm: ``J^T J``, and the residual times the outputs' own curvature."""
        largest = self._largest(r)
        return 2 * self.kappa * (largest * largest + self._error(r) * (self.lipschitz + self.bend * r))


def jacobian_spectrum(X: Tensor, H: Tensor, A: Tensor, S: Tensor, bias: bool) -> Spectrum:
    """Bounds of the singular values of the outputs' Jacobian, from its Gram matrix ``(N J, N J)``.

    Args:
        X: Inputs, shape ``(N, d)``.
        H: Output weights, shape ``(J, I)``.
        A: Activations, shape ``(N, I)``.
        S: Slopes of the activation, shape ``(N, I)``.
        bias: Whether there is an output bias.

    Returns:
        The bounds.

    Raises:
        ValueError: If the matrix would be too large.
    """
    outputs, samples = len(H), len(X)
    if outputs * samples > BUDGETS.gram_rows:
        raise ValueError(
            f"`Y` has {outputs * samples} numbers; the certificate needs their Gram matrix, at most "
            f"{BUDGETS.gram_rows} rows. It can hold only where there are fewer numbers than parameters: certify a part "
            "of the data."
        )
    inputs = X @ X.T
    activations = A @ A.T + float(bias)
    blocks = [[inputs * ((S * H[j] * H[m]) @ S.T) for m in range(outputs)] for j in range(outputs)]
    for j in range(outputs):
        blocks[j][j] = blocks[j][j] + activations
    gram = torch.cat([torch.cat(row, dim=1) for row in blocks])
    if not bool(torch.isfinite(gram).all()):
        return Spectrum(0.0, math.inf)
    values = torch.linalg.eigvalsh(gram)
    smallest, largest = float(values[0]), float(values[-1])
    # An entry is a sum of so many products; the eigenvalues add errors of their own.
    terms = sum(X.shape) + sum(H.shape)
    rounding = FLOAT64.eps * (len(values) * largest + terms * float(gram.trace()))
    return Spectrum(math.sqrt(max(smallest - rounding, 0.0)), math.sqrt(max(largest + rounding, 0.0)))


def _over(part: float, whole: float) -> float:
    """A ratio of numbers that are not negative; infinite over nothing."""
    return math.inf if whole == 0 else part / whole
