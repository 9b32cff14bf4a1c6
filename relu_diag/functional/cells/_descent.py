"""Downhill from given weights to a stationary point: onto kinks that hold them, and off kinks that let go.

Newton steps inside a stratum, their curvatures made positive, are followed from kink to kink as long as the loss falls;
where a kink ends the fall the sample stays on it. Where nothing falls in the stratum any more, the neuron that falls
most steeply off its kinks leaves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.linalg import LinAlgError
from scipy.linalg import cho_factor, cho_solve

from relu_diag.functional._arrays import Array, Index, Mask
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._decay import Decay
from relu_diag.functional.cells._solver import Linearisation, linearise, relative_gradient
from relu_diag.functional.cells._stratum import Sign, Stratum, Weights, stratum_of
from relu_diag.functional.cells._term import Term
from relu_diag.functional.local import steepest_descent
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Weights in a stratum, on the way.

    Attributes:
        stratum: The stratum.
        at: The weights.
        neurons: Which of the neurons at the start they are of: the others have decayed to zero.
    """

    stratum: Stratum
    at: Weights
    neurons: Index


def descended(stratum: Stratum, term: Term, decay: Decay, start: Weights) -> Place | None:
    """Where a descent from weights in a stratum ends; None where that is too costly, or no stationary point."""
    place = Place(stratum, start, np.arange(len(start.W)))
    if len(start.flat) > BUDGETS.dense_form:
        return None
    for _ in range(min(BUDGETS.descents, BUDGETS.descent_multiplications // len(start.flat) ** 3)):
        line = linearise(place.stratum, term, decay, place.at)
        if line.form is None:
            return None
        sign = place.stratum.sign
        if relative_gradient(place.stratum, term, decay, place.at, place.at) > FLOAT64.landed:
            direction = place.at.like(_newton_step(line))
        elif (off := _off_kinks(line)) is not None:
            sign, direction = off
        else:
            return place
        walked = _walked(place, line, sign, direction)
        if walked is None:
            return None
        left = np.flatnonzero(walked.at.amplitude > FLOAT64.settled * start.amplitude[walked.neurons])
        place = Place(walked.stratum.only(left), walked.at.only(left), walked.neurons[left])
    return None


def _newton_step(line: Linearisation) -> Array:
    """The Newton step, where a curvature is not positive with the sizes of all: a descent wherever there is one."""
    assert line.form is not None
    free, hessian = line.form
    least = FLOAT64.least_damping * float(np.trace(hessian))
    try:
        factor = cho_factor(hessian - least * np.eye(len(hessian)))
    except LinAlgError:
        assert line.spectrum is not None
        values, vectors = line.spectrum
        sizes = np.maximum(np.abs(values), FLOAT64.least_damping * np.abs(values).max())
        return np.asarray(-vectors @ ((vectors.T @ line.gradient) / sizes))
    return np.asarray(-free @ cho_solve(factor, free.T @ line.gradient))


def _off_kinks(line: Linearisation) -> tuple[Sign, Weights] | None:
    """The steepest descent of one neuron off its kinks, and the signs it enters; None where every kink holds."""
    stratum, at = line.stratum, line.at
    s_minus, s_plus = stratum.slopes
    on_kink = stratum.on_kink
    length = np.linalg.norm(stratum.X, axis=1)
    C = line.residual @ at.H
    best, found = FLOAT64.landed, None
    for i in np.flatnonzero(on_kink.any(axis=0)):
        on = on_kink[:, i]
        c, X = C[on, i], stratum.X[on]
        pull = line.decay.W * at.W[i]
        smooth = (stratum.slope[:, i] * C[:, i]) @ stratum.X + (s_plus + s_minus) / 2 * (c @ X) + pull
        down = steepest_descent(smooth, (s_plus - s_minus) / 2 * c, X)
        terms = max(abs(s_plus), abs(s_minus)) * float(np.abs(C[:, i]) @ length) + float(np.linalg.norm(pull))
        if -down.slope <= best * terms:
            continue
        best = -down.slope / terms
        along = X @ down.direction
        sign = stratum.sign.copy()
        sign[on, i] = np.where(np.abs(along) > FLOAT64.same_side * length[on], np.sign(along), 0)
        W = np.zeros_like(at.W)
        W[i] = (float(np.linalg.norm(at.W[i])) or 1.0) * down.direction
        found = sign, Weights(W, np.zeros_like(at.H), np.zeros_like(at.b))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """Weights along a direction, samples changing sides on the way.

    Attributes:
        line: The loss at the start.
        direction: The direction.
        sign: Signs that are entered at the start, shape ``(N, M)``.
        Z: Pre-activations, exactly zero on kinks, shape ``(N, M)``.
        dZ: Their change along the direction, shape ``(N, M)``.
        crossing: Step at which each of them changes its sign, infinite where none does, shape ``(N, M)``.
    """

    line: Linearisation
    direction: Weights
    sign: Sign
    Z: Array
    dZ: Array
    crossing: Array

    def signs(self, step: float, stopped: Mask) -> Sign:
        """Signs behind all kinks crossed before a step, some being stopped at."""
        crossed = np.where(self.crossing < step, -self.sign, self.sign)
        return np.where(stopped, 0, crossed).astype(np.int8)

    def at(self, step: float) -> Weights:
        """The weights after a step."""
        start = self.line.at
        return start.like(start.flat + step * self.direction.flat)

    def value(self, step: float, sign: Sign) -> float:
        """The loss after a step."""
        at = self.at(step)
        outputs = self._activations(step, sign) @ at.H.T + at.b
        return self.line.term.excess(outputs) / 2 + self.line.decay.price(at)

    def slope(self, step: float, sign: Sign) -> float:
        """Its derivative by the step."""
        return self.slopes(step, sign, np.zeros_like(self.crossing, dtype=bool))[0]

    def slopes(self, step: float, sign: Sign, crossed: Mask) -> tuple[float, float]:
        """The derivative on both sides of a step at which pairs (sample, neuron) cross their kinks."""
        at, along = self.at(step), self.direction
        A = self._activations(step, sign)
        change = (self._slopes(sign) * self.dZ) @ at.H.T + A @ along.H.T + along.b
        gradient = self.line.term.gradient(A @ at.H.T + at.b)
        before = float((gradient * change).sum()) + float(self.line.decay.gradient(at).flat @ along.flat)
        k, i = np.nonzero(crossed)
        s_minus, s_plus = self.line.stratum.slopes
        turn = -(s_plus - s_minus) * sign[k, i] * self.dZ[k, i]
        return before, before + float(turn @ (gradient[k] * at.H.T[i]).sum(axis=1))

    def _slopes(self, sign: Sign) -> Array:
        s_minus, s_plus = self.line.stratum.slopes
        return np.where(sign > 0, s_plus, np.where(sign < 0, s_minus, 0.0))

    def _activations(self, step: float, sign: Sign) -> Array:
        return np.asarray(self._slopes(sign) * (self.Z + step * self.dZ))


def _walked(place: Place, line: Linearisation, sign: Sign, direction: Weights) -> Place | None:
    """The place where the loss stops falling along a direction, of at most its length; None where it does not fall."""
    stratum = place.stratum
    Z = np.where(stratum.sign == 0, 0.0, stratum.X @ place.at.W.T)
    dZ = np.where(sign == 0, 0.0, stratum.X @ direction.W.T)
    towards = (sign * dZ < 0) & (stratum.sign != 0)
    crossing = np.where(towards, np.abs(Z / np.where(towards, dZ, 1.0)), math.inf)
    walk = _Walk(line, direction, sign, Z, dZ, crossing)
    step, stopped = _end(walk)
    here = walk.value(0.0, sign)
    for _ in range(BUDGETS.halvings):
        there = walk.signs(step, stopped)
        if walk.value(step, there) < here:
            entered = stratum_of(stratum.X, there, stratum.slopes, stratum.biased)
            at = walk.at(step)
            return Place(entered, replace(at, W=entered.project(at.W)), place.neurons)
        step /= 2
        stopped = np.zeros_like(stopped)
    return None


def _end(walk: _Walk) -> tuple[float, Mask]:
    """The step at which the loss stops falling, 1 at most, and the pairs whose kink ends it, shape ``(N, M)``."""
    nowhere = np.zeros(walk.sign.shape, dtype=bool)
    last, falling = 0.0, walk.slope(0.0, walk.sign)
    kinks = np.unique(walk.crossing[walk.crossing < 1])[: BUDGETS.events]
    for step in [*kinks.tolist(), 1.0]:
        here = walk.crossing == step
        before, beyond = walk.slopes(step, walk.signs(step, nowhere), here)
        if before >= 0:
            return last + (step - last) * falling / (falling - before), nowhere
        if step == 1.0:
            break
        falling = beyond
        if falling >= 0:
            return step, here
        last = step
    return step, nowhere
