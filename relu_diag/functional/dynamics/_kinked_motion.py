"""How small neurons move between kinks, across them and along them, while the residuals stand still.

With ``rho(t) = a t + b |t|`` it is ``D(w) = L w + sum_c q_c |n_c . w|``, one ``c`` for every hyperplane. A neuron on
given sides ``s_c`` follows ``w' = -M^T h, h' = -M w`` with ``M = L + sum_c s_c q_c n_c^T``. Where a kink is met whose
other side pushes back, it slides along it: ``s_c`` is then what keeps ``n_c . w`` at 0 (Filippov's velocity), which is
the same motion with ``M`` on the vectors that ``n_c`` vanishes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relu_diag.functional._arrays import Array, Mask
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import hyperplanes, merge_collinear
from relu_diag.functional.tolerances import FLOAT64


@dataclass(slots=True, eq=False)
class Movers:
    """Neurons on their way, and the side of each hyperplane they are on: -1, 1, or 0 where they slide along it.

    Attributes:
        W: Input weights, shape ``(n, d)``.
        H: Output weights, shape ``(n, J)``.
        sides: Shape ``(n, m)``.
    """

    W: Array
    H: Array
    sides: Array

    def some(self, which: Mask) -> Movers:
        """Copies of those that a mask names, shape ``(n,)``."""
        return Movers(self.W[which], self.H[which], self.sides[which])

    def put(self, which: Mask, part: Movers) -> None:
        """Overwrite those that a mask names, shape ``(n,)``."""
        self.W[which] = part.W
        self.H[which] = part.H
        self.sides[which] = part.sides


@dataclass(frozen=True, slots=True, eq=False)
class _Arcs:
    """The motion on one set of sides, ``exp(t K)`` with a symmetric ``K`` whose eigenvalues come in pairs.

    For one output they are ``+-r`` and 0, and ``dW sinh(r t) / r + dW2 (cosh(r t) - 1) / r^2`` is exact, and so for
    ``H``. For several that says when a kink is met, and ``more`` has the next derivatives.
    """

    dW: Array
    dH: Array
    dW2: Array
    dH2: Array
    rate: Array
    more: list[tuple[Array, Array]]

    def at(self, movers: Movers, time: Array) -> tuple[Array, Array]:
        """Input and output weights after times, shape ``(n,)``."""
        if not self.more:
            first = (np.sinh(self.rate * time) / self.rate)[:, None]
            second = ((np.cosh(self.rate * time) - 1) / self.rate**2)[:, None]
            return movers.W + first * self.dW + second * self.dW2, movers.H + first * self.dH + second * self.dH2
        W, H, power = movers.W.copy(), movers.H.copy(), np.ones((len(time), 1))
        for order, (dW, dH) in enumerate([(self.dW, self.dH), (self.dW2, self.dH2), *self.more], start=1):
            power = power * time[:, None] / order
            W += power * dW
            H += power * dH
        return W, H

    def meetings(self, movers: Movers, normals: Array) -> Array:
        """When each kink is met from the side a neuron is on, inf for never, shape ``(n, m)``.

        ``n_c . w`` is ``z + A sinh(r t) + B (cosh(r t) - 1)``: a quadratic in ``exp(r t)``.
        """
        z = movers.sides * (movers.W @ normals.T)
        A = movers.sides * (self.dW @ normals.T) / self.rate[:, None]
        B = movers.sides * (self.dW2 @ normals.T) / self.rate[:, None] ** 2
        p, k, q = (A + B) / 2, z - B, (B - A) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(k * k - 4 * p * q)
            # Of the two ways to write a root, the one that does not cancel; on the way out it falls.
            large = -(k + np.copysign(root, k)) / 2
            y = np.stack([large / p, q / large])
            y = np.where((y > 1) & (p - q / (y * y) < 0), y, np.inf).min(axis=0)
            times = np.log(y) / self.rate[:, None]
        size = np.linalg.norm(movers.W, axis=1, keepdims=True)
        times[(z <= FLOAT64.cosine * size) & (A < 0)] = 0.0
        times[movers.sides == 0] = np.inf
        return np.asarray(times)


class Kinks:
    """The hyperplanes of some inputs, whatever the loss gradients there are."""

    def __init__(self, X: Array, slopes: tuple[float, float]) -> None:
        self.X = X
        self.mean, self.half = (slopes[1] + slopes[0]) / 2, (slopes[1] - slopes[0]) / 2
        self.planes = hyperplanes(X)
        self.normals = self.planes.X
        self.sign = np.zeros(len(X))
        some = self.planes.plane >= 0
        self.sign[some] = np.sign((X[some] * self.normals[self.planes.plane[some]]).sum(1))

    def start(self, W: Array, H: Array) -> Movers:
        """Neurons with input weights ``(n, d)`` and output weights ``(n, J)``."""
        return Movers(W, H, np.where(W @ self.normals.T > 0, 1.0, -1.0))

    def slopes(self, sides: Array) -> Array:
        """The slopes that samples have on given sides ``(n, m)``, shape ``(N, n)``; on a kink the mean of both."""
        return np.asarray(self.mean + self.half * self.sign[:, None] * sides.T[self.planes.plane])

    def along(self, sides: Array) -> Array:
        """The projections on the kinks that neurons slide along, shape ``(n, d, d)``."""
        along = np.tile(np.eye(self.X.shape[1]), (len(sides), 1, 1))
        sliding = np.flatnonzero((sides == 0).any(axis=1))
        if len(sliding):
            spans = (sides[sliding] == 0)[:, :, None] * self.normals
            along[sliding] -= np.linalg.pinv(spans, rcond=FLOAT64.rank) @ spans
        return along

    def motion(self, G: Array) -> KinkedMotion:
        """The motion under loss gradients ``(N, J)``."""
        return KinkedMotion(self.mean * G.T @ self.X, self.planes.merged(self.half * G), self.normals)


class KinkedMotion:
    """The motion under fixed loss gradients, for few samples: kinks are met one by one."""

    def __init__(self, linear: Array, q: Array, normals: Array) -> None:
        """The linear part ``(J, d)``, and the coefficients ``(m, J)`` of hyperplanes with unit normals ``(m, d)``."""
        self.linear, self.q, self.normals = linear, q, normals

    @classmethod
    def of(cls, X: Array, G: Array, slopes: tuple[float, float]) -> KinkedMotion:
        """The motion under loss gradients ``(N, J)``, without the kinks that cancel."""
        q, normals = merge_collinear((slopes[1] - slopes[0]) / 2 * G, X)
        return cls((slopes[1] + slopes[0]) / 2 * G.T @ X, q, normals)

    def start(self, W: Array, H: Array) -> Movers:
        """Neurons with input weights ``(n, d)`` and output weights ``(n, J)``."""
        return Movers(W, H, np.where(W @ self.normals.T > 0, 1.0, -1.0))

    def velocity(self, movers: Movers, W: Array, H: Array) -> tuple[Array, Array]:
        """``-P M^T h`` and ``-M w`` of weights ``(n, d)`` and ``(n, J)`` on the sides of the movers."""
        uphill = H @ self.linear + (movers.sides * (H @ self.q.T)) @ self.normals
        felt = W @ self.linear.T + (movers.sides * (W @ self.normals.T)) @ self.q
        return self._along(movers, -uphill), -felt

    def stride(self, movers: Movers, fastest: float) -> float:
        """A time in which no neuron grows by much: until the first kink at present rates, then at the fastest."""
        self.leave(movers)
        arcs = self._arcs(movers)
        first = float(arcs.meetings(movers, self.normals).min(initial=np.inf))
        slowest = max(float(arcs.rate.max()), FLOAT64.slowest * fastest)
        longest = min(FLOAT64.stride / slowest, first + FLOAT64.stride / fastest)
        return min(longest, 4 * FLOAT64.stride / fastest) if arcs.more else longest

    def advance(self, movers: Movers, time: float) -> Movers:
        """The neurons a time later."""
        movers = movers.some(np.ones(len(movers.W), dtype=bool))
        left = np.full(len(movers.W), time)
        for _ in range(BUDGETS.events):
            on = left > 0
            if not on.any():
                break
            part = movers.some(on)
            self.leave(part)
            left[on] -= self._flow(part, left[on])
            movers.put(on, part)
        return movers

    def _flow(self, movers: Movers, longest: Array) -> Array:
        """Move on to the next kink, or for the longest time, shape ``(n,)``; the times spent."""
        arcs = self._arcs(movers)
        met, first = np.full(len(longest), np.inf), np.zeros(len(longest), dtype=int)
        if len(self.normals):
            times = arcs.meetings(movers, self.normals)
            first = times.argmin(axis=1)
            met = times[np.arange(len(first)), first]
        spent = np.minimum(met, longest)
        movers.W, movers.H = arcs.at(movers, spent)
        hit = np.flatnonzero(met <= longest)
        self.cross_or_slide(movers, hit, first[hit])
        return np.asarray(spent)

    def _arcs(self, movers: Movers) -> _Arcs:
        """How each neuron moves on its present sides."""
        dW, dH = self.velocity(movers, movers.W, movers.H)
        dW2, dH2 = self.velocity(movers, dW, dH)
        speed = np.hypot(np.linalg.norm(dW, axis=1), np.linalg.norm(dH, axis=1))
        change = np.hypot(np.linalg.norm(dW2, axis=1), np.linalg.norm(dH2, axis=1))
        rate = np.maximum(change / np.where(speed > 0, speed, 1.0), FLOAT64.standstill)
        more: list[tuple[Array, Array]] = []
        if movers.H.shape[1] > 1:
            last = dW2, dH2
            for _ in range(BUDGETS.derivatives):
                last = self.velocity(movers, *last)
                more.append(last)
        return _Arcs(dW, dH, dW2, dH2, rate, more)

    def cross_or_slide(self, movers: Movers, which: NDArray[np.intp], kink: NDArray[np.intp]) -> None:
        """Across the kink that some neurons have met, or along it where its other side pushes back."""
        part = Movers(movers.W[which], movers.H[which], movers.sides[which])
        side = part.sides[np.arange(len(which)), kink]
        part.sides[np.arange(len(which)), kink] = -side
        pushed = (self.velocity(part, part.W, part.H)[0] * self.normals[kink]).sum(1)
        movers.sides[which, kink] = np.where(-side * pushed > 0, -side, 0.0)

    def hold(self, movers: Movers, reach: float) -> None:
        """Let neurons slide along the kinks that they meet within a time and whose other side pushes them back."""
        looked_at = np.zeros(movers.sides.shape, dtype=bool)
        for _ in range(len(self.normals)):
            speed = -movers.sides * (self.velocity(movers, movers.W, movers.H)[0] @ self.normals.T)
            ahead = movers.sides * (movers.W @ self.normals.T)
            meets = ~looked_at & (speed > 0) & (ahead <= reach * speed)
            some: Mask = np.asarray(meets.any(axis=1))
            if not some.any():
                break
            kink = np.where(meets, ahead, np.inf)[some].argmin(axis=1)
            there = movers.some(some)
            rows = np.arange(len(kink))
            self.cross_or_slide(there, rows, kink)
            held = there.sides[rows, kink] == 0
            which = np.flatnonzero(some)
            looked_at[which, kink] = True
            movers.sides[which[held], kink[held]] = 0.0

    def _along(self, movers: Movers, V: Array) -> Array:
        """Vectors ``(n, d)`` without what leads off the kinks that the movers slide along."""
        sliding = np.flatnonzero((movers.sides == 0).any(axis=1))
        if len(sliding):
            spans = (movers.sides[sliding] == 0)[:, :, None] * self.normals
            shadow = np.linalg.pinv(spans, rcond=FLOAT64.rank) @ (spans @ V[sliding][:, :, None])
            V[sliding] -= shadow[:, :, 0]
        return V

    def leave(self, movers: Movers) -> None:
        """Off the kinks whose side would have to be more than a side to stay."""
        sliding = np.flatnonzero((movers.sides == 0).any(axis=1))
        if not len(sliding):
            return
        H, zero = movers.H[sliding], movers.sides[sliding] == 0
        pull = H @ self.q.T
        uphill = H @ self.linear + (movers.sides[sliding] * pull) @ self.normals
        inverses = np.linalg.pinv(zero[:, :, None] * self.normals, rcond=FLOAT64.rank)
        needed = -(uphill[:, None] @ inverses)[:, 0]
        # With a negative pull both sides lead away, and no slide lasts.
        beyond = zero & (np.abs(needed) > (1 + FLOAT64.lets_go) * pull)
        side = np.where(needed * pull >= 0, 1.0, -1.0)
        movers.sides[sliding] = np.where(beyond, side, movers.sides[sliding])
