"""Stationary points inside a stratum, where the outputs are smooth: near given weights, whatever their index."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import lstsq
from scipy.sparse.linalg import LinearOperator, lsmr

from relu_diag.functional._arrays import Array
from relu_diag.functional.cells._stratum import Stratum, Weights

# Entries of a matrix that is decomposed; products with the Hessian, and multiplications in them, before a search ends.
MAX_FIT_ENTRIES = 2**21
MAX_PRODUCTS = 4000
MAX_MULTIPLICATIONS = 2**33
_STEP_ACCURACY = 1e-6
_DAMPING = 1e-2
_LEAST_DAMPING, _MOST_DAMPING = 1e-8, 1e8
_ROUNDING = 1e-15
_RANK = 1e-13
_FITTED = 1e-9


def settle(stratum: Stratum, start: Weights) -> Weights:
    """The stationary point of the stratum's own outputs near given weights.

    With one output the least squares in ``R_i = h_i w_i``, with several a solution of "gradient = 0". Neither descends
    along the loss: beside a saddle they find the saddle.

    Args:
        stratum: The stratum.
        start: Weights in it or beside it.

    Returns:
        Weights on the kinks of the stratum; whether they have its other signs is not looked at.
    """
    start = replace(start, W=stratum.project(start.W))
    variables = sum(pattern.free.shape[1] for pattern in stratum.patterns) + stratum.biased
    if not variables:
        return start
    if len(start.b) == 1 and variables * len(stratum.X) <= MAX_FIT_ENTRIES:
        return _least_squares(stratum, start)
    return _levenberg_marquardt(stratum, start)


def relative_gradient(stratum: Stratum, at: Weights, start: Weights) -> float:
    """The gradient inside the stratum, against its natural scale; 0 where all targets are met.

    Args:
        stratum: The stratum.
        at: Weights in it.
        start: Weights whose outputs, like the targets, say how large a residual counts.

    Returns:
        Norm relative to ``s ||weights|| sum_k ||e_k|| ||x_k||``, plus ``sum_k ||e_k||`` with an output bias.
    """
    line = _linearise(stratum, at)
    large = max(float(np.linalg.norm(value)) for value in (stratum.Y, stratum.residual(start)))
    if np.linalg.norm(line.residual) <= _FITTED * large:
        return 0.0
    error = np.linalg.norm(line.residual, axis=1)
    steepest = float(np.abs(stratum.slope).max(initial=0.0))
    scale = steepest * float(np.linalg.norm(at.flat) * (error @ np.linalg.norm(stratum.X, axis=1)))
    scale += stratum.biased * float(error.sum())
    return float(np.linalg.norm(line.gradient)) / scale if scale > 0 else 0.0


def _least_squares(stratum: Stratum, start: Weights) -> Weights:
    """The least-squares ``R`` nearest to the present one, and the neurons that compute it.

    Moving ``R_i`` by ``delta`` moves the weights of a balanced neuron by about ``||delta|| / sqrt(||R_i||)``: in that
    metric neurons of one pattern share a change in proportion to ``||R_i||``, and tiny ones keep their direction.
    """
    R = start.H[0, :, None] * start.W
    size = np.linalg.norm(R, axis=1)
    weight = [math.sqrt(size[pattern.members].sum()) for pattern in stratum.patterns]
    columns = [
        scale * stratum.slope[:, pattern.members[:1]] * (stratum.X @ pattern.free)
        for scale, pattern in zip(weight, stratum.patterns, strict=True)
    ]
    A = np.hstack([*columns, np.ones((len(stratum.X), int(stratum.biased)))])
    missing = -stratum.residual(start)[:, 0]
    change = np.asarray(lstsq(A, missing, cond=_RANK, lapack_driver="gelsy")[0])
    edges = np.cumsum([column.shape[1] for column in columns])
    parts = np.split(change, edges)
    for scale, pattern, part in zip(weight, stratum.patterns, parts[:-1], strict=True):
        if scale > 0:
            R[pattern.members] += size[pattern.members, None] / scale * (pattern.free @ part)
    return _split(stratum.project(R), start, start.b + parts[-1] if stratum.biased else start.b)


def _split(R: Array, start: Weights, b: Array) -> Weights:
    """Neurons with ``h_i w_i = R_i``, the sign of ``h_i`` and the balance ``||w_i||^2 - h_i^2`` of the start.

    Gradient flow conserves the balance; after a vanishing initialisation it is zero.
    """
    h, w_norm, size = start.H[0], np.linalg.norm(start.W, axis=1), np.linalg.norm(R, axis=1)
    balance = w_norm**2 - h**2
    larger = np.sqrt((np.hypot(balance, 2 * size) + np.abs(balance)) / 2)
    smaller = np.divide(size, larger, out=np.zeros_like(size), where=larger > 0)
    h_new = np.copysign(np.where(balance > 0, smaller, larger), h)
    moved = size > 0
    W = np.divide(R, h_new[:, None], out=start.W.copy(), where=moved[:, None])
    gone = ~moved & (h * w_norm != 0)
    W[gone], h_new[~moved] = 0.0, np.where(gone[~moved], 0.0, h[~moved])
    return Weights(W, h_new[None], b)


def _levenberg_marquardt(stratum: Stratum, start: Weights) -> Weights:
    """Damped Newton steps on "gradient = 0", each the least change of the weights; only Hessian products are needed."""
    at, damping = start, _DAMPING
    here = _linearise(stratum, at)
    each = 4 * stratum.slope.size * (stratum.X.shape[1] + len(at.b)) or 1
    left = min(MAX_PRODUCTS, MAX_MULTIPLICATIONS // each)
    scale = float(np.linalg.norm(stratum.X) * np.linalg.norm(at.flat)) + stratum.biased * math.sqrt(len(stratum.X))
    scale *= float(np.linalg.norm(stratum.Y) + np.linalg.norm(here.residual))
    while here.size > _ROUNDING * scale and left > 0 and damping < _MOST_DAMPING:
        step, products = here.damped_step(damping * here.size / scale, left)
        left -= products
        there = _linearise(stratum, at.like(at.flat + step))
        promised = here.size**2 - float(np.linalg.norm(here.gradient + here.product(step))) ** 2
        gained = here.size**2 - there.size**2
        if not gained > 1e-4 * promised:
            damping *= 4
            continue
        if gained > 0.75 * promised:
            damping = max(damping / 8, _LEAST_DAMPING)
        at, here = there.at, there
    return replace(at, W=stratum.project(at.W))


@dataclass(frozen=True, slots=True, eq=False)
class _Linearisation:
    """Half the squared residual to second order at some weights.

    Attributes:
        stratum: The stratum.
        at: The weights.
        A: Activations, shape ``(N, M)``.
        residual: Outputs minus targets, shape ``(N, J)``.
        gradient: Gradient inside the stratum, flat.
    """

    stratum: Stratum
    at: Weights
    A: Array
    residual: Array
    gradient: Array

    @property
    def size(self) -> float:
        return float(np.linalg.norm(self.gradient))

    def product(self, flat: Array) -> Array:
        """The Hessian inside the stratum times a direction."""
        stratum, at = self.stratum, self.at
        along = at.like(flat)
        dA = stratum.activations(stratum.project(along.W))
        dE = self.A @ along.H.T + dA @ at.H.T + along.b * stratum.biased
        dC = dE @ at.H + self.residual @ along.H
        dW = stratum.project((stratum.slope * dC).T @ stratum.X)
        return Weights(dW, dE.T @ self.A + self.residual.T @ dA, dE.sum(0) * stratum.biased).flat

    def damped_step(self, damping: float, most: int) -> tuple[Array, int]:
        """The minimum of ``||gradient + Hessian step||^2 + damping^2 curvature^2 ||step||^2``, and products spent."""
        size = len(self.gradient)
        operator = LinearOperator((size, size), matvec=self.product, rmatvec=self.product, dtype=np.float64)
        curvature = float(np.linalg.norm(self.product(self.gradient))) / self.size
        damp, accuracy = math.sqrt(damping) * curvature, _STEP_ACCURACY
        step, _, iterations, *_ = lsmr(operator, -self.gradient, damp, accuracy, accuracy, maxiter=max(1, most // 2))
        return step, 2 * iterations


def _linearise(stratum: Stratum, at: Weights) -> _Linearisation:
    A, residual = stratum.activations(at.W), stratum.residual(at)
    dW = stratum.project((stratum.slope * (residual @ at.H)).T @ stratum.X)
    gradient = Weights(dW, residual.T @ A, residual.sum(0) * stratum.biased).flat
    return _Linearisation(stratum, at, A, residual, gradient)
