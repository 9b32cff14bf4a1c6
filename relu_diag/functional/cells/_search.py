"""The stationary points of the strata within reach of given weights, and how near each is."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from relu_diag.functional._arrays import Array, Mask
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._decay import Decay
from relu_diag.functional.cells._descent import descended
from relu_diag.functional.cells._reach import Choice, Reach
from relu_diag.functional.cells._solver import Effort, relative_gradient, settle
from relu_diag.functional.cells._stratum import Sign, Stratum, Weights, signs, stratum_of
from relu_diag.functional.cells._term import Term
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict import NO_MINIMUM

NOWHERE = "no stationary point with these signs"


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Where the search in one stratum ended.

    Attributes:
        choice: The stratum; neurons that are not kept are zero.
        at: All weights there.
        on_kink: Pairs (sample, neuron) on the kink, shape ``(N, M)``.
        distance: Distance to the start over the length of its weights, or over 1 where that is larger.
        gap: Change of the loss over that of an output of zero, or of the start where that is larger.
        reason: Why this is no stationary point of the stratum, or empty.
        broken: The neurons to blame, shape ``(M,)``.
        next: Strata to look at instead.
    """

    choice: Choice
    at: Weights
    on_kink: Mask
    distance: float
    gap: float
    reason: str
    broken: Mask
    next: tuple[Choice, ...]

    @property
    def score(self) -> float:
        """How near it is, in distance and loss: both are of second order in a small displacement."""
        return self.distance**2 + self.gap

    @property
    def rank(self) -> float:
        """The score by which points are compared: small neurons stay only where that brings the point much nearer."""
        return self.score if self.choice.idle else FLOAT64.as_near * self.score


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Where a search starts, in units of its own.

    Attributes:
        X: Inputs, shape ``(N, d)``.
        term: The loss of the outputs.
        decay: The price of the weights.
        at: Weights of all neurons that may move.
        slopes: ``(s-, s+)``.
        biased: Whether there is an output bias.
    """

    X: Array
    term: Term
    decay: Decay
    at: Weights
    slopes: tuple[float, float]
    biased: bool

    def signs(self, tol: float) -> Sign:
        """The side from which each neuron sees each sample, 0 within a distance, shape ``(N, M)``."""
        return signs(self.X, self.at.W, tol)

    def kink_count(self, sign: Sign) -> int:
        """Number of pairs (sample, neuron) on the kink."""
        return int((sign[self.X.any(axis=1)] == 0).sum())

    def everywhere(self, reach: Reach, follow: bool) -> list[Found]:
        """The stationary points of all strata within reach, and of those that their searches lead to, if followed."""
        size = self.X.size * len(self.at.W) * len(self.at.b) ** 2 or 1
        limit = min(max(BUDGETS.stratum_numbers // size, BUDGETS.few_strata), BUDGETS.strata)
        seen: set[bytes] = set()
        found = self._downhill(reach) if self.decay.any else []
        if any(not one.reason for one in found):
            # A descent has met its kinks: what is left to look at are points that it leaves.
            limit = len(found) + BUDGETS.few_strata
        # What nearer points lead to comes first; the second number keeps the order of the others.
        order = itertools.count()
        queue = [(one.score, next(order), choice) for one in found for choice in one.next]
        queue += [(0.0, next(order), choice) for choice in _different(reach.choices(limit), limit)]
        while queue and len(found) < limit:
            _, _, choice = heapq.heappop(queue)
            if choice.key in seen:
                continue
            seen.add(choice.key)
            # The first two are the present stratum and the usual one.
            products = BUDGETS.products if len(seen) <= 2 else BUDGETS.few_products
            found.append(self.solve(choice, Effort(products, math.sqrt(FLOAT64.near) * self._size)))
            for other in found[-1].next if follow else ():
                heapq.heappush(queue, (found[-1].score, next(order), other))
        return found

    def solve(self, choice: Choice, effort: Effort) -> Found:
        """The stationary point of one stratum."""
        found = self._solve(choice, effort)
        # Small neurons that nothing pulls stay, unless they decay.
        if self.decay.any or not choice.idle or found.reason or choice.kept.all():
            return found
        kept = choice.kept | self._at_rest(choice, found)
        with_idle = self._solve(replace(choice, kept=kept), effort)
        return found if with_idle.reason else with_idle

    def _downhill(self, reach: Reach) -> list[Found]:
        """What a descent leads to from all weights, and from those without the small neurons."""
        found = []
        for kept in (reach.present.kept, reach.usual.kept):
            neurons = np.flatnonzero(kept)
            stratum = stratum_of(self.X, reach.own[:, neurons], self.slopes, self.biased)
            start = self.at.only(neurons)
            end = descended(stratum, self.term, self.decay, replace(start, W=stratum.project(start.W)))
            if end is None:
                continue
            sign = reach.own.copy()
            sign[:, neurons[end.neurons]] = end.stratum.sign
            left = np.zeros_like(kept)
            left[neurons[end.neurons]] = True
            found.append(self._solve(Choice(sign, left), Effort(BUDGETS.products), end.at))
        return found

    def _solve(self, choice: Choice, effort: Effort, near: Weights | None = None) -> Found:
        """The stationary point of one stratum, from the weights there are or from others near it."""
        kept = np.flatnonzero(choice.kept)
        stratum = stratum_of(self.X, choice.sign[:, kept], self.slopes, self.biased)
        start = self.at.only(kept)
        there = settle(stratum, self.term, self.decay, start if near is None else near, effort)
        reason, broken = _missing(stratum, self.term, self.decay, start, there)
        nothing = Weights(np.zeros_like(self.at.W), np.zeros_like(self.at.H), there.b)
        at = nothing.replaced(kept, there)
        everyone = np.zeros_like(choice.kept)
        everyone[kept] = broken
        on_kink = np.zeros(choice.sign.shape, dtype=bool)
        on_kink[:, kept] = stratum.on_kink
        return Found(choice, at, on_kink, *self._nearness(at), reason, everyone, self._next(choice, at))

    @property
    def _size(self) -> float:
        """Length of the weights, 1 where that is larger."""
        # In these units weights that fit the targets are about 1: a network that has not grown yet is near zero.
        return max(float(np.linalg.norm(self.at.flat)), 1.0)

    def _nearness(self, at: Weights) -> tuple[float, float]:
        """Distance and change of the loss, relative."""
        before, after = (self.term.excess(self._outputs(w)) + 2 * self.decay.price(w) for w in (self.at, at))
        scale = max(self.term.excess_of_zero, before) or 1.0
        return float(np.linalg.norm(at.flat - self.at.flat)) / self._size, abs(before - after) / scale

    def _outputs(self, at: Weights) -> Array:
        Z = self.X @ at.W.T
        return np.asarray(np.where(Z > 0, self.slopes[1], self.slopes[0]) * Z @ at.H.T + at.b)

    def _next(self, choice: Choice, at: Weights) -> tuple[Choice, ...]:
        """Where samples cross a kink on the way: their other side, and the kink; without the neurons that vanish."""
        gone = choice.kept & _vanishing(self.at, at)
        if gone.any():
            return (replace(choice, kept=choice.kept & ~gone),)
        sign = np.where(choice.kept, signs(self.X, at.W, FLOAT64.kink), choice.sign)
        crossed = (sign != choice.sign) & (choice.sign != 0)
        if not crossed.any():
            return ()
        return replace(choice, sign=np.where(crossed, 0, choice.sign)), replace(choice, sign=sign)

    def _at_rest(self, choice: Choice, found: Found) -> Mask:
        """Which neurons put to zero feel nothing off their kinks, and no descent on either side, shape ``(M,)``."""
        candidates = np.flatnonzero(~choice.kept & self.at.W.any(axis=1))
        stratum = stratum_of(self.X, choice.sign[:, candidates], self.slopes, self.biased)
        residual = self.term.gradient(self._outputs(found.at))
        H = self.at.H[:, candidates]
        s_minus, s_plus = self.slopes
        target = self.term.sizes
        error, length = (np.linalg.norm(value, axis=1) for value in (residual, self.X))
        silence = max(abs(s_minus), abs(s_plus)) * float((FLOAT64.settled * error + FLOAT64.residual * target) @ length)
        c = residual @ H
        rise = np.minimum(s_plus * c, -s_minus * c) * length[:, None]
        kinks_hold = (rise >= -silence * np.linalg.norm(H, axis=0)) | (stratum.sign != 0)
        pull = np.max([np.linalg.norm(stratum.gradient(column[:, None]), axis=1) for column in residual.T], axis=0)
        rest = np.zeros_like(choice.kept)
        rest[candidates] = (pull <= silence) & kinks_hold.all(axis=0)
        return rest


def _different(choices: Iterator[Choice], most: int) -> Iterator[Choice]:
    """Choices that differ, no more than are looked at: where kinks are many each takes its time to be made."""
    seen: set[bytes] = set()
    for choice in choices:
        if len(seen) == most:
            return
        if choice.key not in seen:
            seen.add(choice.key)
            yield choice


def _vanishing(start: Weights, at: Weights) -> Mask:
    """Neurons of which nothing is left, shape ``(M,)``."""
    return np.asarray((start.amplitude > 0) & (at.amplitude <= FLOAT64.settled * start.amplitude))


def _missing(stratum: Stratum, term: Term, decay: Decay, start: Weights, at: Weights) -> tuple[str, Mask]:
    """What keeps weights from being a stationary point of their stratum, and which neurons are to blame."""
    vanishing = _vanishing(start, at)
    if vanishing.any():
        return f"{NOWHERE} nearby: {counted(int(vanishing.sum()), 'neuron')} would vanish", vanishing
    outputs = stratum.outputs(at)
    endless = term.falls_for_ever(outputs - at.b) or term.falls_for_ever(outputs - stratum.outputs(start))
    if endless and not decay.any:
        return NO_MINIMUM, np.ones_like(vanishing)
    slope = relative_gradient(stratum, term, decay, at, start)
    if slope > FLOAT64.settled:
        return f"{NOWHERE} found: relative gradient {slope:.2g} where the search ended", np.ones_like(vanishing)
    crossing = np.asarray(~stratum.holds(at.W).all(axis=0))
    if crossing.any():
        turning = f"{counted(int(crossing.sum()), 'neuron')} would turn across the kink of a sample"
        return f"{NOWHERE} nearby: {turning}", crossing
    return "", crossing
