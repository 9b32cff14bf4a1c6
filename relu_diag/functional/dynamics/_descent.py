"""Gradient descent step by step: what a forecast follows first, and all the way where that is not long."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._system import Moment, System
from relu_diag.functional.tolerances import FLOAT64


def descended(system: System, at: Moment, target: float, lr: float, most: int) -> list[Moment]:
    """Descent until the loss has dropped by a target, or for a number of steps, for many where the loss leaps.

    Where it leaps to and fro across a kink or a valley, the loss is compared on the same side: every second step.

    Args:
        system: The network.
        at: Where it starts.
        target: The drop of the loss.
        lr: Learning rate.
        most: Number of steps if the loss falls all the way, even.

    Returns:
        Moments on the way, the last one after the steps; without a budget where no moment is that of the drop.
    """
    below, above = system.slopes
    X = system.X
    W, H, bias = at.W, at.H, at.bias
    keep_W, keep_H = 1 - lr * system.input_decay, 1 - lr * system.decay.H
    height = system.loss(W, H, bias) + at.drop
    watch = _Watch(height - target, FLOAT64.rough * target)
    history: list[Moment] = []
    for step in range(BUDGETS.long_descent + 1):
        Z = X @ W.T
        S = np.where(Z > 0, above, below)
        A = S * Z
        outputs = A @ H.T + bias
        if step % 2 == 0:
            watch.see(step, system.objective.value(outputs))
        last = BUDGETS.long_descent if watch.leaps else most
        moment = Moment(W, H, bias, at.time + lr * step, height - watch.loss, False, at.budget)
        if watch.met is not None and (watch.is_below(step) or step >= last):
            end = replace(moment, drop=target)
            return [*history, _met(end, at.time + lr * watch.met, at.time + lr * watch.above)]
        if step >= last:
            return [*history, replace(moment, budget=0) if watch.leaps_still(step) else moment]
        if step % BUDGETS.seen == 0:
            history.append(moment)
        G = lr * system.objective.gradient(outputs)
        if system.bias_moves:
            bias = (1 - lr * system.decay.output_bias) * bias - G.sum(0)
        W, H = keep_W * W - (S * (G @ H)).T @ X, keep_H * H - G.T @ A
    return history


class _Watch:
    """The loss of every second step on its way to a level, and how it leaps on the way."""

    def __init__(self, level: float, leap: float) -> None:
        """Whoever rises above the lowest loss so far by more than ``leap`` leaps."""
        self.level, self.leap = level, leap
        self.loss, self.lowest = math.inf, math.inf
        self.met: float | None = None
        self.above = 0
        self.leapt = 0

    def see(self, step: int, loss: float) -> None:
        """The loss after some steps."""
        before, self.loss = self.loss, loss
        self.lowest = min(self.lowest, loss)
        if loss - self.lowest > self.leap:
            self.leapt = step
        if loss > self.level:
            self.above = step
        elif self.met is None and step:
            self.met = step - 2 * (self.level - loss) / (before - loss)

    @property
    def leaps(self) -> bool:
        """Whether the loss has leapt."""
        return self.leapt > 0

    def _long(self, step: int) -> float:
        """For how long the loss has to do one thing: the longer it leaps, the longer."""
        return max(BUDGETS.below, FLOAT64.unsteady * step if self.leaps else 0)

    def leaps_still(self, step: int) -> bool:
        """Whether the loss has leapt not long ago."""
        return self.leaps and step - self.leapt < self._long(step)

    def is_below(self, step: int) -> bool:
        """Whether the loss has stayed below the level."""
        return step - self.above >= self._long(step)


def _met(end: Moment, first: float, last: float) -> Moment:
    """Half way from the first time a level is met to the last one above it, if both agree; else without a budget."""
    if last - first > FLOAT64.unsteady * last:
        return replace(end, budget=0)
    return replace(end, time=(first + max(first, last)) / 2, ended=True)
