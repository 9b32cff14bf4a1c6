"""The flow of a whole small network in leaps from kink to kink, exact wherever the flow is linear.

On given sides of its kinks the flow ``y' = f(y)`` is smooth. A leap solves its linearisation exactly, however stiff it
is and however much grows meanwhile, and corrects for the rest (an exponential Rosenbrock method of third order). So a
plateau takes a few leaps, and what ends it a few more. A kink that is met ends a leap: the neuron crosses it, or slides
along it as long as both sides push towards it (Filippov's velocity).

Gradient descent multiplies an eigenvector of the linearisation by ``1 + lr value`` in a step, where flow multiplies by
``exp(lr value)``: with the rate ``ln(1 + lr value) / lr`` in place of the eigenvalue the leap is one of descent.

Source: Hochbruck, Ostermann and Schweitzer 2009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from relu_diag.functional._arrays import Array, Index
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._kinked_motion import Kinks
from relu_diag.functional.dynamics._system import Moment, System
from relu_diag.functional.tolerances import FLOAT64

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class _Leap:
    """The linearised flow from a point, and the correction for the rest, over a time ``length``.

    ``value`` and ``vectors`` are those of the linearisation, ``rate`` what grows and decays by, ``velocity`` is in
    their basis.
    """

    start: Array
    value: Array
    rate: Array
    vectors: Array
    velocity: Array
    length: float
    correction: Array

    def linear(self, times: Array) -> Array:
        """The motion without the correction, shape ``(k, n)``."""
        times = times[:, None]
        still = self.value == 0
        grown = np.where(still, times, np.expm1(self.rate * times) / np.where(still, 1.0, self.value))
        return np.asarray((grown * self.velocity) @ self.vectors.T)

    def at(self, times: Array) -> Array:
        """The points after some times, shape ``(k, n)``."""
        return self.start + self.linear(times) + (times[:, None] / self.length) ** 3 * self.correction

    def rests(self) -> bool:
        """Whether nothing grows before the time beyond which nothing comes, and what moves is rounding."""
        stiffest = np.abs(self.value).max(initial=0.0)
        speed, size = np.linalg.norm(self.velocity), np.linalg.norm(self.start)
        grows = self.rate.max(initial=0.0) * FLOAT64.forever > stiffest
        return bool(not grows and speed <= 4 * FLOAT64.eps * stiffest * size)

    def weights(self) -> Array:
        """What a change of velocity, in the basis, adds to the motion over the length."""
        z = self.rate * self.length
        short = np.abs(z) < FLOAT64.series
        safe = np.where(short, 1.0, z)
        series = 1 / 6 + z / 24 + z * z / 120 + z**3 / 720
        return 2 * self.length * np.where(short, series, (np.expm1(safe) - safe - safe * safe / 2) / safe**3)


class Leaps:
    """The flow of one network, or its descent at a learning rate."""

    def __init__(self, system: System, at: Moment, lr: float) -> None:
        """Neurons that are dead, or zero in all weights, stay out of it."""
        self.system = system
        self.lr = lr
        self.kinks = Kinks(system.X, system.slopes)
        slope = np.where(system.X @ at.W.T > 0, system.slopes[1], system.slopes[0])
        self.moving = (slope != 0).any(axis=0) | (system.slowing > 0)
        self.moving &= at.W.any(axis=1) | at.H.any(axis=0)
        self.movers = self.kinks.start(at.W[self.moving], at.H.T[self.moving])
        self.bias = at.bias
        row = np.concatenate([system.input_decay, np.full(len(at.H), system.decay.H)])
        bias = np.full(len(at.H) * system.bias_moves, system.decay.output_bias)
        self.decay = np.concatenate([np.tile(row, len(self.movers.W)), bias])
        self.collapsed = np.zeros(len(self.movers.W), dtype=bool)
        self.sizes = np.hypot(np.linalg.norm(self.movers.W, axis=1), np.linalg.norm(self.movers.H, axis=1))
        self.history = [at]
        self._look()

    def follow(self, target: float, end: float) -> Moment:
        """The motion until the loss has dropped by a target, up to a time, or as long as the budget lasts."""
        at = self.history[-1]
        height = self._loss(self._vector()) + at.drop
        length = 0.0
        while at.budget > 0 and at.drop < target and at.time < end * (1 - FLOAT64.eps):
            self._leave()
            leap, error = self._leap(length, end - at.time)
            if leap.rests() or -self.lr * leap.value.min(initial=0.0) > FLOAT64.edge:
                break
            hits, spent = self._first_kinks(leap)
            there = leap.at(np.array([spent]))[0]
            drop = height - self._loss(there)
            if drop >= target:
                spent, there = self._met(leap, spent, height - target)
            self._move(there)
            self._meet(hits)
            shaken = len(hits) > 0 and self._unrest() > target
            length = max(leap.length - spent, spent) if len(hits) else leap.length * min(4.0, _change(error))
            at = self._moment(at, spent, min(drop, target), drop >= target)
            self.history.append(at)
            if shaken:
                break
        return at

    def stiffness(self) -> float:
        """The largest curvature of the loss: 0 where nothing moves, inf where it is no number."""
        matrix = self._linearisation(self._vector())
        if not matrix.size:
            return 0.0
        if not np.isfinite(matrix).all():
            return math.inf
        return -float(torch.linalg.eigvalsh(torch.from_numpy(matrix))[0])

    def is_rough(self, target: float) -> bool:
        """Whether descent leaps to and fro ever further across a valley, or across kinks by a drop of the loss."""
        return self.lr * self.stiffness() > FLOAT64.edge or self._unrest() > target

    def settle(self, reach: float) -> float:
        """Put neurons on the kinks across which they leap to and fro; what the loss was higher for it."""
        before = self._loss(self._vector())
        self.kinks.motion(self._gradient()).hold(self.movers, reach)
        self._look()
        excess = before - self._loss(self._vector())
        # What the loss is higher for it comes back, and is no drop to come either.
        at = self.history[-1]
        self.history[-1] = replace(at, drop=at.drop + min(0.0, excess))
        return max(0.0, excess)

    def calm(self, longest: float) -> float:
        """Let the fastest motion die out; what the loss was higher for it, which is no drop to come."""
        begin = self.history[-1]
        calm = self.follow(math.inf, begin.time + longest)
        y = self._vector()
        velocity = self._velocity(y)
        # What moves the weights is the slope of the loss, and the decay.
        slide = float(velocity @ (velocity + self.decay * y))
        excess = max(0.0, calm.drop - begin.drop - slide * (calm.time - begin.time))
        self.history[-1] = replace(calm, drop=calm.drop - excess)
        return excess

    def _unrest(self) -> float:
        """How much higher the loss is where neurons are as far off the kinks that hold them as a step of descent takes.

        Descent leaps across such a kink to and fro for as long as it holds the neuron.
        """
        held = (self.movers.sides == 0) & ~self.collapsed[:, None]
        if not held.any():
            return 0.0
        steps = self.lr * np.abs(self.movers.H @ self.kinks.motion(self._gradient()).q.T) * held
        W = self.movers.W + steps @ self.kinks.normals
        A = self.kinks.slopes(np.where(held, 1.0, self.movers.sides)) * (self.system.X @ W.T)
        return self.system.objective.value(A @ self.movers.H + self.bias) - self._loss(self._vector())

    def _look(self) -> None:
        """Take up the slopes ``(N, n)`` of the present sides, and the projections along kinks ``(n, d, d)``."""
        self.slopes = self.kinks.slopes(self.movers.sides)
        self.along = self.kinks.along(self.movers.sides)
        sliding = np.flatnonzero((self.movers.sides == 0).any(axis=1))
        if len(sliding):
            W = (self.along[sliding] @ self.movers.W[sliding][:, :, None])[:, :, 0]
            self.movers.W[sliding] = W
            # Along so many kinks there is no way but to stay at zero.
            outputs = np.linalg.norm(self.movers.H[sliding], axis=1)
            self.collapsed[sliding[np.linalg.norm(W, axis=1) <= FLOAT64.collapsed * outputs]] = True
            self.movers.sides[self.collapsed] = 0.0

    def _vector(self) -> Array:
        """All that moves: neuron by neuron, and the bias."""
        weights = np.concatenate([self.movers.W, self.movers.H], axis=1).ravel()
        return np.concatenate([weights, self.bias]) if self.system.bias_moves else weights

    def _parts(self, y: Array) -> tuple[Array, Array, Array]:
        """Input weights ``(n, d)``, output weights ``(n, J)`` and bias ``(J,)`` of a vector."""
        split = self.movers.W.shape[1]
        width = split + len(self.bias)
        count = len(self.movers.W) * width
        rows = y[:count].reshape(len(self.movers.W), width)
        return rows[:, :split], rows[:, split:], y[count:] if self.system.bias_moves else self.bias

    def _sizes(self, y: Array) -> Array:
        """Lengths of the neurons, and of the bias together with the largest."""
        W, H, bias = self._parts(y)
        sizes = np.sqrt((W * W).sum(1) + (H * H).sum(1)) + _TINY
        if not self.system.bias_moves:
            return np.asarray(sizes)
        return np.append(sizes, np.hypot(np.linalg.norm(bias), sizes.max(initial=_TINY)))

    def _loss(self, y: Array) -> float:
        """The loss on the present sides."""
        W, H, bias = self._parts(y)
        return self.system.objective.value((self.slopes * (self.system.X @ W.T)) @ H + bias)

    def _velocity(self, y: Array) -> Array:
        """Minus the gradient on the present sides, along the kinks."""
        W, H, bias = self._parts(y)
        A = self.slopes * (self.system.X @ W.T)
        G = self.system.objective.gradient(A @ H + bias)
        dW = -(self.slopes * (G @ H.T)).T @ self.system.X - self.system.input_decay * W
        dH = -A.T @ G - self.system.decay.H * H
        rows = np.concatenate([(self.along @ dW[:, :, None])[:, :, 0], dH], axis=1).ravel()
        dbias = -G.sum(0) - self.system.decay.output_bias * bias
        return np.concatenate([rows, dbias]) if self.system.bias_moves else rows

    def _linearisation(self, y: Array) -> Array:
        """Minus the Hessian on the present sides, along the kinks."""
        W, H, bias = self._parts(y)
        X, (count, d), J = self.system.X, W.shape, H.shape[1]
        A = self.slopes * (X @ W.T)
        outputs = A @ H + bias
        G = self.system.objective.gradient(outputs)
        jacobian = np.zeros((len(X), J, count, d + J))
        # The output c moves with w_i by h_ic s_ki x_k along the kinks, and with h_ic by a_ki.
        seen = self.slopes[:, :, None] * (self.along @ X.T).transpose(2, 0, 1)
        jacobian[..., :d] = H.T[None, :, :, None] * seen[:, None]
        for c in range(J):
            jacobian[:, c, :, d + c] = A
        flat = jacobian.reshape(len(X), J, count * (d + J))
        if self.system.bias_moves:
            flat = np.concatenate([flat, np.broadcast_to(np.eye(J), (len(X), J, J))], axis=2)
        curved = self.system.objective.curvature(outputs) @ flat
        size = flat.shape[2]
        hessian = flat.reshape(len(X) * J, size).T @ curved.reshape(len(X) * J, size)
        mixed = np.einsum("kc,kid->icd", G, seen)
        neurons = np.arange(count)
        blocks = hessian[: count * (d + J), : count * (d + J)].reshape(count, d + J, count, d + J)
        blocks[neurons, d:, neurons, :d] += mixed
        blocks[neurons, :d, neurons, d:] += mixed.transpose(0, 2, 1)
        return np.asarray(-hessian - np.diag(self.decay))

    def _leap(self, length: float, longest: float) -> tuple[_Leap, float]:
        """A leap that is accurate, and its error over the one allowed."""
        y = self._vector()
        velocity, linearisation = self._velocity(y), self._linearisation(y)
        # Small problems are slower on many threads: torch's solver leaves the number to the user.
        value, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(linearisation)))
        rate = self._rates(value)
        # Without any curvature, the time in which all moves by its own size.
        fastest = np.abs(value).max(initial=0.0) or np.linalg.norm(velocity) / (np.linalg.norm(y) or 1.0) or 1.0
        length = length or FLOAT64.first_leap / max(float(fastest), _TINY)
        length = min(length, longest, FLOAT64.leap_growth / max(rate.max(initial=0.0), _TINY))
        while True:
            leap = _Leap(y, value, rate, vectors, vectors.T @ velocity, length, np.zeros_like(y))
            straight = leap.linear(np.array([length]))[0]
            rest = self._velocity(y + straight) - velocity - linearisation @ straight
            correction = vectors @ (leap.weights() * (vectors.T @ rest))
            sizes = np.maximum(self._sizes(y), self._sizes(y + straight + correction))
            error = float((self._sizes(correction) / sizes).max(initial=0.0)) / FLOAT64.leap
            if error <= 1 or np.array_equal(y + straight + correction, y):  # a shorter one moves nothing either
                return replace(leap, correction=correction), error
            length *= max(0.2, _change(error))

    def _rates(self, value: Array) -> Array:
        """What eigenvectors of the linearisation grow by in a unit of time."""
        if self.lr == 0:
            return value
        factor = 1 + self.lr * value
        # Descent that leaps to and fro does so around what it decays to.
        decay = np.log(np.abs(factor) + FLOAT64.eps)
        return np.asarray(np.where(factor > FLOAT64.eps, np.log1p(np.maximum(self.lr * value, -0.5)), decay)) / self.lr

    def _first_kinks(self, leap: _Leap) -> tuple[Index, float]:
        """Neurons and kinks ``(n, 2)`` that are met first, if any, and how long the leap lasts."""
        begin, end = 0.0, leap.length
        every = np.argwhere(self.movers.sides != 0)
        hits = every[:0]
        for _ in range(BUDGETS.bracketings):
            times = begin + (end - begin) * np.arange(1, BUDGETS.looks + 1) / BUDGETS.looks
            over = self._across(leap, times, hits if len(hits) else every) < 0
            met = over.any(axis=0)
            if not met.any():
                break
            first = np.where(met, over.argmax(axis=0), BUDGETS.looks)
            hits = (hits if len(hits) else every)[first == first.min()]
            step = (end - begin) / BUDGETS.looks
            begin, end = begin + step * first.min(), begin + step * (first.min() + 1)
        return hits, end

    def _across(self, leap: _Leap, times: Array, pairs: Index) -> Array:
        """How far neurons are from kinks after some times, on the side they are on, shape ``(k, n)``."""
        neurons, kinks = pairs.T
        count, split = self.movers.W.shape
        width = split + len(self.bias)
        rows = leap.at(times)[:, : count * width].reshape(len(times), count, width)
        W = rows[:, :, :split]
        return np.asarray((W @ self.kinks.normals.T)[:, neurons, kinks] * self.movers.sides[neurons, kinks])

    def _met(self, leap: _Leap, longest: float, level: float) -> tuple[float, Array]:
        """When the loss meets a level within a time, and where."""
        begin, end = 0.0, longest
        for _ in range(BUDGETS.leap_halvings):
            middle = (begin + end) / 2
            if self._loss(leap.at(np.array([middle]))[0]) <= level:
                end = middle
            else:
                begin = middle
        return end, leap.at(np.array([end]))[0]

    def _move(self, y: Array) -> None:
        """Go to a point; a neuron whose input weights vanish on the way, or all of it, stays there."""
        W, H, self.bias = self._parts(y)
        before = np.linalg.norm(self.movers.W, axis=1)
        inputs, outputs = np.linalg.norm(W, axis=1), np.linalg.norm(H, axis=1)
        vanished = (inputs < before) & (inputs <= FLOAT64.collapsed * outputs)
        vanished |= np.hypot(inputs, outputs) <= FLOAT64.shrunk * self.sizes
        self.movers.W, self.movers.H = W.copy(), H.copy()
        if (vanished & ~self.collapsed).any():
            self.collapsed |= vanished
            self.movers.sides[self.collapsed] = 0.0
            self._look()

    def _gradient(self) -> Array:
        """The loss gradient at the outputs, shape ``(N, J)``."""
        A = self.slopes * (self.system.X @ self.movers.W.T)
        return self.system.objective.gradient(A @ self.movers.H + self.bias)

    def _meet(self, hits: Index) -> None:
        """Across kinks that neurons have met, or along them."""
        if not len(hits):
            return
        motion = self.kinks.motion(self._gradient())
        for neuron, kink in hits:
            if not self.collapsed[neuron]:
                normal = self.kinks.normals[kink]
                self.movers.W[neuron] -= normal * (normal @ self.movers.W[neuron])
                motion.cross_or_slide(self.movers, np.array([neuron]), np.array([kink]))
        self._look()

    def _leave(self) -> None:
        """Off the kinks that no longer hold a neuron."""
        if ((self.movers.sides == 0).any(axis=1) & ~self.collapsed).any():
            self.kinks.motion(self._gradient()).leave(self.movers)
            self.movers.sides[self.collapsed] = 0.0
            self._look()

    def _moment(self, at: Moment, spent: float, drop: float, ended: bool) -> Moment:
        """The moment some time after another."""
        W, H = at.W.copy(), at.H.copy()
        W[self.moving] = self.movers.W
        H[:, self.moving] = self.movers.H.T
        return Moment(W, H, self.bias, at.time + spent, drop, ended, at.budget - 1)


def _change(error: float) -> float:
    """How much longer a step of third order may be than one of some error over the allowed one."""
    return float(0.8 * max(error, _TINY) ** (-1 / 3))
