"""Families of problems, each a structure that numerical code trips over; `FAMILIES` names them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import linprog

from .iterates import trained, trained_outputs
from .problem import Array, Problem, outputs, with_targets
from .starts import Rng, backward, integers, random_targets, rounding_residuals


def dead_giant(rng: Rng, problem: Problem) -> Problem:
    """One more neuron that every sample turns off, with weights up to 1e9; none where the inputs surround zero."""
    off = 1.0 if problem.slopes[1] == 0 else -1.0
    if 0 not in problem.slopes:
        return problem
    normal = _halfspace(problem.X)
    if normal is None:
        return problem
    size = 10 ** rng.uniform(0, 9)
    H = np.concatenate([problem.H, size * rng.standard_normal((len(problem.H), 1))], axis=1)
    return replace(problem, W=np.concatenate([problem.W, off * size * normal[None]]), H=H)


def _halfspace(X: Array) -> Array | None:
    """A vector on whose side all samples are, strictly."""
    X = X[X.any(axis=1)]
    if not len(X):
        return None
    U = X / np.linalg.norm(X, axis=1, keepdims=True)
    found = linprog(np.zeros(X.shape[1]), A_ub=-U, b_ub=-np.ones(len(U)), bounds=[(-100, 100)] * X.shape[1])
    return found.x if found.status == 0 else None


def unseen_giant(rng: Rng, problem: Problem) -> Problem:
    """One more sample, of length up to 1e9, that no neuron sees; none where there is no such direction."""
    if 0 not in problem.slopes:
        return problem
    normal = _halfspace(problem.W)
    if normal is None:
        return problem
    off = 1.0 if problem.slopes[1] == 0 else -1.0
    x = off * 10 ** rng.uniform(0, 9) * normal
    Y = np.concatenate([problem.Y, rng.standard_normal((1, len(problem.H)))])
    if problem.b is not None:  # its residual would move the output bias
        Y[-1] = problem.b
    return replace(problem, X=np.concatenate([problem.X, x[None]]), Y=Y)


def units(rng: Rng, problem: Problem) -> Problem:
    """Inputs, weights and outputs in units from 1e-8 to 1e8, the landscape otherwise the same."""
    a, c, y = (10 ** rng.uniform(-8, 8) * np.ones(1) for _ in range(3))
    c = c * 10 ** rng.uniform(-2, 2, len(problem.W))
    b = None if problem.b is None else problem.b * y
    return replace(problem, X=problem.X * a, W=problem.W / a * c[:, None], H=problem.H / c * y, Y=problem.Y * y, b=b)


def far_rescaling(rng: Rng, problem: Problem) -> Problem:
    """``(c w, h / c)`` with ``c`` from 1e-12 to 1e12, exact."""
    c = 2.0 ** rng.integers(-40, 41, len(problem.W))
    return replace(problem, W=problem.W * c[:, None], H=problem.H / c)


def long_samples(rng: Rng, problem: Problem) -> Problem:
    """Samples of lengths from 1e-8 to 1e8, with the residuals shortened or left as they are."""
    E = np.asarray(outputs(problem) - problem.Y, dtype=np.float64)
    t = 10 ** rng.uniform(-8, 8, (len(problem.X), 1)) * np.ones((1, 1))
    t = np.where(rng.random((len(t), 1)) < 0.5, 1.0, t)
    return with_targets(replace(problem, X=problem.X * t), E / t if rng.random() < 0.7 else E)


def beside_kinks(rng: Rng, problem: Problem) -> Problem:
    """All samples moved by 1e-8 to 1e-6 of their lengths, residuals kept."""
    E = np.asarray(outputs(problem) - problem.Y, dtype=np.float64)
    length = np.linalg.norm(problem.X, axis=1, keepdims=True)
    X = problem.X + 10 ** rng.uniform(-8, -6) * length * rng.standard_normal(problem.X.shape)
    return with_targets(replace(problem, X=X), E)


def coincident(rng: Rng, problem: Problem) -> Problem:
    """Every sample twice, the second turned by 1e-12 to 1e-8 about the first neuron's kink, the residual shared."""
    E = np.asarray(outputs(problem) - problem.Y, dtype=np.float64)
    w = problem.W[int(rng.integers(len(problem.W)))]
    turn = rng.standard_normal(problem.X.shape)
    if w.any():
        turn -= (turn @ w)[:, None] * w / (w @ w)
    length = np.linalg.norm(problem.X, axis=1, keepdims=True)
    X = np.concatenate([problem.X, problem.X + 10 ** rng.uniform(-12, -8) * length * turn])
    share = rng.uniform(-0.5, 1.5, (len(E), 1))
    twice = replace(problem, X=X, Y=np.zeros((len(X), E.shape[1])))
    return with_targets(twice, np.concatenate([E * share, E * (1 - share)]))


def low_rank(rng: Rng) -> Problem:
    """Inputs that span a subspace only, weights that do not."""
    problem = backward(rng)
    inputs = problem.X.shape[1]
    Q = np.linalg.qr(rng.standard_normal((inputs + 2, inputs + 2)))[0]
    W = np.concatenate([problem.W, rng.standard_normal((len(problem.W), 2))], axis=1)
    X = np.concatenate([problem.X, np.zeros((len(problem.X), 2))], axis=1)
    return replace(problem, W=W @ Q, X=X @ Q) if rng.random() < 0.5 else replace(problem, W=W, X=X)


def split_neurons(rng: Rng, problem: Problem) -> Problem:
    """A neuron replaced by copies of itself, some against the others."""
    i = int(rng.integers(len(problem.W)))
    share = rng.choice([0.5, 1.5, 2.0, 1.0])
    H = np.concatenate([problem.H, (1 - share) * problem.H[:, i, None]], axis=1)
    H[:, i] *= share
    return replace(problem, W=np.concatenate([problem.W, problem.W[i, None]]), H=H)


def _single_precision(rng: Rng) -> Problem:
    return backward(rng).rounded() if rng.random() < 0.7 else integers(rng).rounded()


def _mixed(rng: Rng) -> Problem:
    """Any start, two or three changes on top."""
    problem = (backward, backward, integers, trained, random_targets)[int(rng.integers(5))](rng)
    harder = [dead_giant, unseen_giant, units, far_rescaling, long_samples, coincident, split_neurons]
    for change in rng.permutation(np.array(harder, dtype=object))[: int(rng.integers(1, 4))]:
        problem = change(rng, problem)
    return problem


def _after(change: Callable[[Rng, Problem], Problem]) -> Callable[[Rng], Problem]:
    return lambda rng: change(rng, backward(rng) if rng.random() < 0.8 else trained(rng))


FAMILIES: dict[str, Callable[[Rng], Problem]] = {
    "backward": backward,
    "integers": integers,
    "trained": trained,
    "trained outputs": trained_outputs,
    "random": random_targets,
    "rounding residuals": rounding_residuals,
    "dead giant": _after(dead_giant),
    "unseen giant": _after(unseen_giant),
    "units": _after(units),
    "rescaled": _after(far_rescaling),
    "long samples": _after(long_samples),
    "beside kinks": _after(beside_kinks),
    "coincident kinks": _after(coincident),
    "low rank": low_rank,
    "split": _after(split_neurons),
    "float32": _single_precision,
    "mixed": _mixed,
}


def problem_of(family: str, seed: int, number: int) -> Problem:
    """The same problem for the same three."""
    rng = np.random.default_rng([seed, zlib.crc32(family.encode()), number])
    problem = FAMILIES[family](rng)
    # Targets of 1e-30 are no part of any claim.
    return replace(problem, family=family, Y=np.where(np.abs(problem.Y) < 1e-25, 0.0, problem.Y))
