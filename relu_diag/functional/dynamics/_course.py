"""The gradient flow of the whole network for a while: what a forecast follows where residuals do not stand still.

The Hessian is symmetric and its large eigenvalues are positive: the flow is stiff along a real axis, which is what
Runge-Kutta-Chebyshev methods are for, explicit ones whose stable step grows with the square of their stages.

Source: Sommeijer, Shampine and Verwer 1998.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.polynomial import chebyshev

from relu_diag.functional._arrays import Array
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._system import Moment, System
from relu_diag.functional.tolerances import FLOAT64

_TINY = float(np.finfo(np.float64).tiny)


class Course:
    """The gradient flow of a network."""

    def __init__(self, system: System, height: float) -> None:
        """Drops are counted from a height of the loss."""
        self.system = system
        self.loss = height
        self.width = FLOAT64.near_kink * np.linalg.norm(system.X, axis=1, keepdims=True)
        self.evaluations = 0
        self._stiffest: Array | None = None

    def drop(self, at: Moment) -> float:
        """By how much the loss is lower than at the start."""
        return self.loss - self.system.loss(at.W, at.H, at.bias)

    def linear_time(self, at: Moment, target: float) -> float:
        """How long the loss would take to a drop at its present speed."""
        return (target - at.drop) / max(self._slide(at), _TINY)

    def signal_speed(self, at: Moment, moving: Array) -> float:
        """How fast loss gradients change by the motion of some neurons, 1 or 0 each, over their length."""
        X, slopes = self.system.X, self.system.slopes
        Z = X @ at.W.T
        S = np.where(Z > 0, slopes[1], slopes[0])
        outputs = (S * Z) @ at.H.T + at.bias
        dW, dH, dbias, _ = self._velocity(at.W, at.H, at.bias)
        change = (S * Z * moving) @ dH.T + (S * (X @ dW.T) * moving) @ at.H.T + dbias
        felt = (self.system.objective.curvature(outputs) @ change[:, :, None])[:, :, 0]
        return float(np.linalg.norm(felt)) / max(float(np.linalg.norm(self.system.objective.gradient(outputs))), _TINY)

    def stiffness(self, at: Moment) -> float:
        """The largest curvature of the loss, kinks aside, with a margin."""
        y = _vector(at)
        width, self.width = self.width, 0.0 * self.width
        stiffness = self._stiffness(y, self._flow(y, at.W.shape)[0], at.W.shape)
        self.width = width
        self._stiffest = None
        return stiffness

    def calmed(self, at: Moment, longest: float) -> Moment:
        """The moment after the fastest motion has died out, which drops are counted without.

        Descent in steps leaps over kinks and across steep valleys, and goes on doing so: what the loss is higher for it
        is no drop to come.
        """
        calm = self.follow(at, math.inf, longest)
        slide = self._slide(calm) * (calm.time - at.time)
        excess = max(0.0, calm.drop - at.drop - slide)
        self.loss -= excess
        return replace(calm, drop=calm.drop - excess)

    def follow(self, at: Moment, target: float, longest: float) -> Moment:
        """The flow until the loss has dropped by a target, or for some time, or as long as evaluations last."""
        shape = at.W.shape
        y = _vector(at)
        time, drop, end = at.time, at.drop, at.time + longest
        self.evaluations = at.budget
        f, _ = self._flow(y, shape)
        step = min(longest, 0.1 / max(float((self._sizes(f, shape) / self._sizes(y, shape)).max()), _TINY))
        while self.evaluations > 0 and drop < target and time < end * (1 - FLOAT64.eps):
            stiffness = self._stiffness(y, f, shape)
            step = min(step, end - time, ((BUDGETS.stages - 1) ** 2 - 1) / (1.54 * stiffness + _TINY))
            with np.errstate(over="ignore", invalid="ignore"):
                there, f_there, loss = self._step(y, f, step, stiffness, shape)
            error = self._error(y, f, there, f_there, step, shape)
            # Gradient flow lowers the loss: a step that does not was too long for its kinks, or not stable. Weight
            # decay may raise it.
            lowered = self.loss - loss >= drop - FLOAT64.flow * target or self.system.slowing > 0
            if not (error <= 1 and lowered):
                step *= max(0.2, 0.8 / error ** (1 / 3)) if 1 < error < math.inf else 0.5
                continue
            before, drop = drop, self.loss - loss
            if drop >= target:
                time += _share(before, drop, target) * step
                return self._moment(there, shape, time, target, ended=True)
            y, f, time = there, f_there, time + step
            step *= min(4.0, 0.8 / max(error, _TINY) ** (1 / 3))
        return self._moment(y, shape, time, drop, ended=drop >= target)

    def _slide(self, at: Moment) -> float:
        """How fast the loss falls."""
        dW, dH, dbias, _ = self._velocity(at.W, at.H, at.bias)
        decay = self.system.decay
        # What moves the weights is the slope of the loss, and the decay.
        slide = (dW * (dW + self.system.input_decay * at.W)).sum() + (dH * (dH + decay.H * at.H)).sum()
        return float(slide + (dbias * (dbias + decay.output_bias * at.bias)).sum())

    def _moment(self, y: Array, shape: tuple[int, ...], time: float, drop: float, ended: bool) -> Moment:
        W, H, bias = self._parts(y, shape)
        return Moment(W, H, bias, time, drop, ended, self.evaluations)

    def _parts(self, y: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Input weights ``(I, d)``, output weights ``(J, I)`` and bias ``(J,)`` of one vector."""
        outputs = (len(y) - shape[0] * shape[1]) // (shape[0] + 1)
        W, H, bias = np.split(y, [shape[0] * shape[1], len(y) - outputs])
        return W.reshape(shape), H.reshape(shape[0], -1).T, bias

    def _sizes(self, y: Array, shape: tuple[int, ...]) -> Array:
        """Lengths of the neurons, shape ``(I,)``."""
        W, H, _ = self._parts(y, shape)
        return np.asarray(np.sqrt((W * W).sum(1) + (H * H).sum(0)) + _TINY)

    def _flow(self, y: Array, shape: tuple[int, ...]) -> tuple[Array, float]:
        """Minus the gradient, and the loss."""
        dW, dH, dbias, loss = self._velocity(*self._parts(y, shape))
        self.evaluations -= 1
        return np.concatenate([dW.ravel(), dH.T.ravel(), dbias]), loss

    def _velocity(self, W: Array, H: Array, bias: Array) -> tuple[Array, Array, Array, float]:
        """``-dL/dW``, ``-dL/dH``, that of the bias and the loss.

        Close to a kink the slope is between the two, so that neurons slide.
        """
        X, slopes, decay = self.system.X, self.system.slopes, self.system.decay
        Z = X @ W.T
        A = np.where(Z > 0, slopes[1], slopes[0]) * Z
        outputs = A @ H.T + bias
        G = self.system.objective.gradient(outputs)
        C, jump = G @ H, slopes[1] - slopes[0]
        width = self.width * np.sqrt((W * W).sum(1) + (H * H).sum(0))
        # Only a kink that draws from both sides holds a neuron; another one lets it go.
        share = np.where(C * jump > 0, 0.5 + 0.5 * Z / np.maximum(width, np.abs(Z) + _TINY), Z > 0)
        S = slopes[0] + jump * share
        dbias = -G.sum(0) - decay.output_bias * bias if self.system.bias_moves else 0.0 * bias
        dW, dH = -(S * C).T @ X - self.system.input_decay * W, -G.T @ A - decay.H * H
        return dW, dH, dbias, self.system.objective.value(outputs)

    def _step(
        self, y: Array, f: Array, step: float, stiffness: float, shape: tuple[int, ...]
    ) -> tuple[Array, Array, float]:
        """A step of the second-order method; the vector there, its flow and its loss."""
        table = _coefficients(1 + math.ceil(math.sqrt(1 + 1.54 * step * stiffness)))
        older, old = y, y + table[0][2] * step * f
        for mu, nu, mu_f, gamma in table[1:]:
            flow, _ = self._flow(old, shape)
            older, old = old, (1 - mu - nu) * y + mu * old + nu * older + step * (mu_f * flow + gamma * f)
        flow, loss = self._flow(old, shape)
        return old, flow, loss

    def _stiffness(self, y: Array, f: Array, shape: tuple[int, ...]) -> float:
        """The largest curvature, by a power iteration that goes on from step to step, and a margin."""
        rounds = 2
        if self._stiffest is None:
            self._stiffest, rounds = y.copy(), 10
        length = math.sqrt(FLOAT64.eps) * float(np.linalg.norm(y))
        curvature = 0.0
        for _ in range(rounds):
            self._stiffest *= length / max(float(np.linalg.norm(self._stiffest)), _TINY)
            change = self._flow(y + self._stiffest, shape)[0] - f
            curvature = float(np.linalg.norm(change)) / length
            self._stiffest = change
        return 1.2 * curvature

    def _error(self, y: Array, f: Array, there: Array, f_there: Array, step: float, shape: tuple[int, ...]) -> float:
        """An estimate of the local error over the size of each neuron, largest, over its tolerance."""
        error = 0.8 * (y - there) + 0.4 * step * (f + f_there)
        return float((self._sizes(error, shape) / self._sizes(there, shape)).max()) / FLOAT64.flow


@cache
def _coefficients(stages: int) -> list[tuple[float, float, float, float]]:
    """``mu, nu, mu~, gamma~`` of each stage."""
    w0 = 1 + 2 / 13 / stages**2
    values = []
    for j in range(stages + 1):
        series = np.eye(stages + 1)[j]
        first, second = chebyshev.chebder(series), chebyshev.chebder(series, 2)
        values.append([float(chebyshev.chebval(w0, one)) for one in (series, first, second)])
    w1 = values[stages][1] / values[stages][2]
    b = [value[2] / value[1] ** 2 if value[1] else 0.0 for value in values]
    b[0] = b[1] = b[2]
    a = [1 - b[j] * values[j][0] for j in range(stages + 1)]
    table = [(0.0, 0.0, b[1] * w1, 0.0)]
    for j in range(2, stages + 1):
        mu_f = 2 * b[j] * w1 / b[j - 1]
        table.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], mu_f, -a[j - 1] * mu_f))
    return table


def _vector(at: Moment) -> Array:
    """All weights of a moment."""
    return np.concatenate([at.W.ravel(), at.H.T.ravel(), at.bias])


def _share(before: float, after: float, target: float) -> float:
    """Where between two drops the target is met; drops grow exponentially, or linearly from nothing."""
    if before <= 0:
        return (target - before) / (after - before)
    return math.log(target / before) / math.log(after / before)
