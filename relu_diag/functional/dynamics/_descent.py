"""Gradient descent step by step: what a forecast follows first, and all the way where that is not long."""

from __future__ import annotations

import numpy as np

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._system import Moment, System


def descended(system: System, at: Moment, target: float, lr: float, most: int) -> list[Moment]:
    """Descent until the loss has dropped by a target, or for a number of steps.

    Where it leaps to and fro across a kink or a valley, the loss is compared on the same side: every second step.

    Args:
        system: The network.
        at: Where it starts.
        target: The drop of the loss.
        lr: Learning rate.
        most: Largest number of steps, even.

    Returns:
        Moments on the way, the last one after the steps.
    """
    below, above = system.slopes
    X = system.X
    W, H, bias = at.W, at.H, at.bias
    keep_W, keep_H = 1 - lr * system.input_decay, 1 - lr * system.decay.H
    loss = system.loss(W, H, bias)
    height = loss + at.drop
    history: list[Moment] = []
    for step in range(most + 1):
        Z = X @ W.T
        S = np.where(Z > 0, above, below)
        A = S * Z
        outputs = A @ H.T + bias
        if step % 2 == 0:
            before, loss = loss, system.objective.value(outputs)
            if height - loss >= target and step:
                share = (height - target - loss) / (before - loss)
                return [*history, Moment(W, H, bias, at.time + lr * (step - 2 * share), target, True, at.budget)]
        if step % BUDGETS.seen == 0 or step == most:
            history.append(Moment(W, H, bias, at.time + lr * step, height - loss, False, at.budget))
        G = lr * system.objective.gradient(outputs)
        if system.bias_moves:
            bias = (1 - lr * system.decay.output_bias) * bias - G.sum(0)
        W, H = keep_W * W - (S * (G @ H)).T @ X, keep_H * H - G.T @ A
    return history
