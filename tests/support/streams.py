"""Streams of losses whose plateaus are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relu_diag.training import PlateauChange, PlateauDetector

Stream = NDArray[np.float64]


def staircase(*lengths: int, fall: float = 0.3) -> tuple[Stream, list[tuple[int, int]]]:
    """Plateaus that a logistic fall leaves, as an escape does, at twenty times the pace of each; and where they are.

    A plateau ends where the loss is lower by 1 %, and begins where it is within 1 % of what it comes to.
    """
    parts, level = [], 1.0
    for length in lengths:
        low, steps = level * (1 - fall), np.arange(round(1.5 * length))
        parts.append(low + (level - low) / (1 + np.exp(20 / length * (steps - 1.15 * length))))
        level = low
    losses = np.concatenate([*parts, np.full(3 * lengths[-1], level)])
    levels = [(1 - fall) ** k for k in range(len(lengths))]
    truth = [(int(np.argmax(losses <= 1.01 * one)), int(np.argmax(losses < 0.99 * one))) for one in levels]
    return losses, truth


def noisy(losses: Stream, noise: float, seed: int = 0, spikes: float = 0.0) -> Stream:
    """Multiplicative noise, and now and then a loss ten times too high."""
    draw = np.random.default_rng(seed)
    return losses * (1 + noise * draw.standard_normal(len(losses))) * np.where(draw.random(len(losses)) < spikes, 10, 1)


def changes(losses: Stream, every: int = 1, detector: PlateauDetector | None = None) -> list[tuple[int, PlateauChange]]:
    """What a detector says, and at which step."""
    detector = detector or PlateauDetector()
    found = []
    for step, loss in enumerate(losses.tolist()):
        change = detector.add(step * every, loss)
        if change is not None:
            found.append((step * every, change))
    return found


def kinds(found: list[tuple[int, PlateauChange]]) -> list[str]:
    return [change.how for _, change in found]
