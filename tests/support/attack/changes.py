"""Changes of a problem that keep its landscape: none of them may change a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .families import dead_giant
from .problem import Problem

Rng = np.random.Generator
Change = Callable[[Rng, Problem], Problem]


def permuted(rng: Rng, problem: Problem) -> Problem:
    neurons, samples = rng.permutation(len(problem.W)), rng.permutation(len(problem.X))
    return replace(problem, W=problem.W[neurons], H=problem.H[:, neurons], X=problem.X[samples], Y=problem.Y[samples])


def rescaled(rng: Rng, problem: Problem, widest: int = 13) -> Problem:
    """``(c w, h / c)`` with powers of two: the same function to the last bit."""
    c = 2.0 ** rng.integers(-widest, widest + 1, len(problem.W))
    return replace(problem, W=problem.W * c[:, None], H=problem.H / c)


def rescaled_far(rng: Rng, problem: Problem) -> Problem:
    """The same with factors from 1e-12 to 1e12."""
    return rescaled(rng, problem, widest=40)


def repeated(rng: Rng, problem: Problem) -> Problem:
    """Every sample twice, or thrice, in the sum."""
    times = int(rng.integers(2, 4))
    return replace(problem, X=np.tile(problem.X, (times, 1)), Y=np.tile(problem.Y, (times, 1)))


def rotated(rng: Rng, problem: Problem) -> Problem:
    """Inputs and input weights in another basis."""
    Q = np.linalg.qr(rng.standard_normal((problem.W.shape[1],) * 2))[0]
    return replace(problem, W=problem.W @ Q, X=problem.X @ Q)


def scaled_inputs(rng: Rng, problem: Problem) -> Problem:
    """``(X a, W / a)``, a power of two from 1e-8 to 1e8."""
    a = 2.0 ** int(rng.integers(-27, 28))
    return replace(problem, X=problem.X * a, W=problem.W / a)


def scaled_targets(rng: Rng, problem: Problem) -> Problem:
    """Outputs and targets in another unit, a power of two from 1e-8 to 1e8."""
    a = 2.0 ** int(rng.integers(-27, 28))
    return replace(problem, H=problem.H * a, Y=problem.Y * a, b=None if problem.b is None else problem.b * a)


def with_scaled_idle_output(rng: Rng, problem: Problem) -> Problem:
    """Output weights of neurons with ``w = 0`` have no say."""
    idle = ~problem.W.any(axis=1)
    c = 2.0 ** rng.integers(-27, 28, len(problem.W))
    return replace(problem, H=problem.H * np.where(idle, c, 1.0))


def quartered(rng: Rng, problem: Problem) -> Problem:
    """A sample as four halves of itself: the same sum to the last bit, without an output bias."""
    if problem.b is not None or problem.reduction == "mean":
        return problem
    k = rng.integers(len(problem.X))
    X, Y = (np.concatenate([value, *[value[k, None] / 2] * 3]) for value in (problem.X, problem.Y))
    X[k], Y[k] = X[k] / 2, Y[k] / 2
    return replace(problem, X=X, Y=Y)


def halved_neuron(rng: Rng, problem: Problem) -> Problem:
    """A neuron as two with half its output weights: stationarity, minima and saddles stay what they are."""
    i = int(rng.integers(len(problem.W)))
    H = np.concatenate([problem.H, problem.H[:, i, None] / 2], axis=1)
    H[:, i] /= 2
    return replace(problem, W=np.concatenate([problem.W, problem.W[i, None]]), H=H)


def with_zero_sample(rng: Rng, problem: Problem) -> Problem:
    """A sample that no weight reaches, with a target of the size of the others."""
    if problem.b is not None or problem.reduction == "mean":
        return problem
    Y = np.concatenate([problem.Y, problem.Y[rng.integers(len(problem.Y)), None]])
    return replace(problem, X=np.concatenate([problem.X, 0 * problem.X[:1]]), Y=Y)


def with_dead_neuron(rng: Rng, problem: Problem) -> Problem:
    """One more neuron that every sample turns off, and that is as loud as you like."""
    return dead_giant(rng, problem)


CHANGES: dict[str, Change] = {
    "permuted": permuted,
    "rescaled": rescaled,
    "rescaled far": rescaled_far,
    "repeated": repeated,
    "rotated": rotated,
    "scaled inputs": scaled_inputs,
    "scaled targets": scaled_targets,
    "idle outputs": with_scaled_idle_output,
    "a sample is quartered": quartered,
    "a neuron is halved": halved_neuron,
    "a zero sample joins": with_zero_sample,
    "a dead neuron joins": with_dead_neuron,
}
