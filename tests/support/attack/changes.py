"""Changes of a problem that keep its landscape: none of them may change a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

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


CHANGES: dict[str, Change] = {
    "permuted": permuted,
    "rescaled": rescaled,
    "rescaled far": rescaled_far,
    "repeated": repeated,
    "rotated": rotated,
    "scaled inputs": scaled_inputs,
    "scaled targets": scaled_targets,
    "idle outputs": with_scaled_idle_output,
}
