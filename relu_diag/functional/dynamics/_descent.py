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
    slope_below, slope_above = system.slopes
    X = system.X
    W, H, bias = at.W, at.H, at.bias
    keep_W, keep_H = 1 - lr * system.input_decay, 1 - lr * system.decay.H
    loss = system.loss(W, H, bias)
    height = loss + at.drop
    level = height - target
    history: list[Moment] = []
    first: Moment | None = None
    above = 0
    leaps = False
    lowest = math.inf
    for step in range(BUDGETS.long_descent + 1):
        Z = X @ W.T
        S = np.where(Z > 0, slope_above, slope_below)
        A = S * Z
        outputs = A @ H.T + bias
        if step % 2 == 0:
            before, loss = loss, system.objective.value(outputs)
            lowest = min(lowest, loss)
            if loss - lowest > FLOAT64.rough * target:
                leaps = True
                most = BUDGETS.long_descent
            if loss > level:
                above = step
            elif first is None and step:
                share = (level - loss) / (before - loss)
                first = Moment(W, H, bias, at.time + lr * (step - 2 * share), target, True, at.budget)
            # The longer a loss leaps the longer it takes to see that it stays below.
            watched = max(BUDGETS.below, FLOAT64.unsteady * step if leaps else 0)
            if first is not None and (step - above >= watched or step >= most):
                return [*history, _met(first, at.time + lr * above)]
        if step % BUDGETS.seen == 0 or step == most:
            history.append(Moment(W, H, bias, at.time + lr * step, height - loss, False, at.budget))
        if step >= most:
            break
        G = lr * system.objective.gradient(outputs)
        if system.bias_moves:
            bias = (1 - lr * system.decay.output_bias) * bias - G.sum(0)
        W, H = keep_W * W - (S * (G @ H)).T @ X, keep_H * H - G.T @ A
    return history


def _met(first: Moment, last: float) -> Moment:
    """Where a loss that may leap to and fro meets a level: half way from the first time to the last, if both agree."""
    if last <= first.time:
        return first
    if last - first.time > FLOAT64.unsteady * last:
        return replace(first, ended=False, budget=0)
    return replace(first, time=(first.time + last) / 2)
