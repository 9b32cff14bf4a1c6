"""Slow, independent definitions for stationarity and escape neurons, and problems whose answer sits on the boundary.

Nothing here uses the package: on every sign pattern of a neuron's kink samples the one-sided derivative is linear, and
linear programs over the cone of that pattern decide (Wu et al., Definitions 3.3 and 4.1 word by word).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Array = NDArray[np.float64]
Slopes = tuple[float, float]

SLOPES = [(0.0, 1.0), (0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 0.0), (2.0, -0.5)]
_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass
class Problem:
    """Weights, inputs, and the gradient ``E`` of the loss at the outputs; targets of the 1/2-sum loss are yhat - E."""

    W: Array
    H: Array
    X: Array
    E: Array
    slopes: Slopes

    @property
    def targets(self) -> Array:
        return outputs(self.W, self.H, self.X, self.slopes) - self.E


@dataclass
class Answer:
    """One neuron's derivatives, relative to their natural scales.

    ``slope``: lowest one-sided tangential derivative of the loss over the unit box; ``smooth``: largest derivative by
    an output weight (the radial one follows from it); ``pull``: largest ``|D_j|``, combined, where the loss is flat, if
    it is nowhere falling.
    """

    slope: float
    smooth: float
    pull: float

    @property
    def stationary(self) -> bool:
        return self.slope > -1e-9 and self.smooth < 1e-9

    @property
    def in_band(self) -> bool:
        """Within two decades of the tolerance 1e-9, where either answer is right."""
        return -1e-7 < self.slope < -1e-11 or 1e-11 < self.smooth < 1e-7


def outputs(W: Array, H: Array, X: Array, slopes: Slopes) -> Array:
    Z = X @ W.T
    return np.where(Z >= 0, slopes[1] * Z, slopes[0] * Z) @ H.T


def loss(W: Array, H: Array, X: Array, Y: Array, slopes: Slopes) -> float:
    return float(0.5 * np.square(outputs(W, H, X, slopes) - Y).sum())


def loss_slope(problem: Problem, i: int, D: Array) -> float:
    """One-sided derivative when ``w_i`` moves along ``D``, relative to its scale (Lemma 3.2 read literally)."""
    _, kink, side, scale = _sides(problem, i)
    sides = np.where(kink, np.where(problem.X @ D > 0, problem.slopes[1], problem.slopes[0]), side)
    h = problem.H[:, i]
    return float((sides * (problem.X @ D)) @ (problem.E @ h)) / max(scale * float(np.linalg.norm(h)), 1e-300)


def answer(problem: Problem, i: int) -> Answer:
    """Definitions 3.3 and 4.1 for neuron ``i``, by linear programs over all sign patterns of its kink samples."""
    w, kink, side, scale = _sides(problem, i)
    h, X, E, slopes = problem.H[:, i], problem.X, problem.E, problem.slopes
    by_h = ((side * (X @ w))[~kink, None] * E[~kink]).sum(0)
    smooth = float(np.abs(by_h).max() / (np.linalg.norm(w) * scale)) if w.any() else 0.0
    size = scale * float(np.linalg.norm(h))
    cones = []
    for pattern in itertools.product((1.0, -1.0), repeat=int(kink.sum())):
        sides = side.copy()
        sides[kink] = np.where(np.array(pattern) > 0, slopes[1], slopes[0])
        cones.append(((sides[:, None] * E).T @ X, -np.array(pattern)[:, None] * X[kink]))
    slope = min(_lowest(h @ parts, cone, w) / size for parts, cone in cones) if size else 0.0
    pull = 0.0
    for parts, cone in cones if slope > -1e-7 else []:
        strict = _pull(parts, cone, w, h @ parts, 1e-11 * size) / scale
        # A pull at no slope at all does not grow with the slope allowed.
        if strict > 1e-9 and _pull(parts, cone, w, h @ parts, 1e-9 * size) / scale < 10 * strict:
            pull = max(pull, strict)
    return Answer(slope, smooth, pull)


def _pull(parts: Array, cone: Array, w: Array, slope: Array, flat: float) -> float:
    """Largest combination of the ``D_j`` on the part of a cone where the slope of the loss is at most ``flat``."""
    # Where they are linear, a random combination of the D_j vanishes only if all of them do.
    combination = np.random.default_rng(1).standard_normal(len(parts))
    A, bound = np.vstack([cone, slope]), np.append(np.zeros(len(cone)), flat)
    if not slope.any():
        A, bound = cone, bound[:-1]
    return -min(_lowest(sign * combination @ parts, A, w, bound) for sign in (1.0, -1.0))


def _lowest(objective: Array, A: Array, w: Array, bound: Array | None = None) -> float:
    """Minimum of a linear function over tangential directions of a cone, in the unit box."""
    if len(w) == 1 and w.any():
        return 0.0
    limits = {"A_eq": w[None] / np.linalg.norm(w), "b_eq": [0.0]} if w.any() else {}
    if len(A):
        limits |= {"A_ub": A, "b_ub": np.zeros(len(A)) if bound is None else bound}
    # Standing still is feasible, which the solver's presolve may overlook where a bound is near its tolerance.
    for presolve in (True, False):
        options = {**_OPTIONS, "presolve": presolve}
        result = linprog(objective, **limits, bounds=[(-1, 1)] * len(w), method="highs", options=options)
        if result.status == 0:
            break
    assert result.status == 0, result.message
    return min(float(result.fun), 0.0)


def _sides(problem: Problem, i: int) -> tuple[Array, NDArray[np.bool_], Array, float]:
    w, slopes = problem.W[i], problem.slopes
    z, size = problem.X @ w, np.linalg.norm(problem.X, axis=1)
    scale = max(float(max(map(abs, slopes)) * np.linalg.norm(problem.E, axis=1) @ size), 1e-300)
    return w, np.abs(z) <= 1e-10 * np.linalg.norm(w) * size, np.where(z > 0, slopes[1], slopes[0]), scale


def random_problem(rng: np.random.Generator) -> Problem:
    """Kinks, but no stationarity: what a random gradient makes of them."""
    problem = _skeleton(rng)
    problem.E = rng.standard_normal(problem.E.shape)
    return problem


def stationary_problem(rng: np.random.Generator) -> Problem:
    """Derivatives prescribed: zero, or held by kinks well inside, exactly at, or 1e-4 off what they can hold."""
    problem = _skeleton(rng)
    conditions, values = [], []
    quiet = rng.random() < 0.5
    for i in range(len(problem.W)):
        for condition, value in _neuron_conditions(rng, problem, i, quiet):
            conditions.append(condition)
            values.append(value)
    A, target = np.vstack(conditions), np.concatenate(values)
    E = rng.standard_normal(problem.E.shape)
    for _ in range(2):  # the second time removes what rounding left
        E = E + np.linalg.lstsq(A, target - A @ E.ravel(), rcond=1e-10)[0].reshape(E.shape)
    # Where the conditions leave nothing, what is left is rounding.
    problem.E = E if np.abs(E).max() > 1e-9 else 0 * E
    return problem


def _neuron_conditions(rng: np.random.Generator, problem: Problem, i: int, quiet: bool) -> list[tuple[Array, Array]]:
    """Linear conditions on the entries of ``E`` that prescribe the derivatives of one neuron."""
    X, slopes, h, every = problem.X, problem.slopes, problem.H[:, i], np.eye(problem.H.shape[0])
    w, kink, side, _ = _sides(problem, i)
    side[kink] = sum(slopes) / 2
    tangential = np.eye(len(w)) - np.outer(w, w) / (w @ w) if w.any() else np.eye(len(w))
    K = tangential @ X[kink].T
    q, smooth = _held_by_kinks(rng, K)
    conditions = [
        (np.kron((side * ~kink * (X @ w))[None], every), np.zeros(len(every))),  # output weights
        (np.kron(np.eye(len(X))[kink], h), 2 * q / (slopes[1] - slopes[0])),  # kink coefficients
        (np.kron(tangential @ (side[:, None] * X).T, h), smooth),
    ]
    if quiet:  # no output pulls where the kinks leave freedom
        free = tangential - K @ np.linalg.pinv(K) if kink.any() else tangential
        pulls = np.kron(free @ (side[:, None] * X).T, every)
        conditions.append((pulls, np.zeros(len(pulls))))
    return conditions


def _held_by_kinks(rng: np.random.Generator, K: Array) -> tuple[Array, Array]:
    """Kink coefficients, and a smooth part they hold, hold exactly, or just fail to hold; ``K`` has them as columns."""
    count = K.shape[1]
    q = rng.uniform(0.2, 1.0, count) * rng.choice([1.0, 1.0, 1.0, 1.0, 0.0, -0.3], count)
    share = rng.uniform(-0.9, 0.9, count)
    choice = rng.integers(5)
    if choice and count:
        one = np.where(np.arange(count) == rng.integers(count), rng.choice([-1.0, 1.0]), share)
        vertex = np.sign(K.T @ rng.standard_normal(len(K)))
        share = (one if rng.random() < 0.5 else vertex) * (1.0, 1.0, 1 + 1e-4, 1 - 1e-4)[choice - 1]
    return q, -K @ (q * share)


def _skeleton(rng: np.random.Generator) -> Problem:
    """Weights and inputs with 0 to d + 1 kink samples a neuron, collinear ones and zero neurons among them."""
    d, J, neurons = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.choice([1, 1, 2]))
    W, H = rng.standard_normal((neurons, d)), rng.standard_normal((J, neurons))
    W[rng.random(neurons) < 0.1] = 0.0
    H[:, rng.random(neurons) < 0.3] = 0.0
    # Every sample is on the kink of a zero neuron: then as few as the patterns can bear.
    X = [rng.standard_normal((neurons * (d + 3) + 2 if W.any(axis=1).all() else 3, d))]
    for w in W[W.any(axis=1)]:
        U = rng.standard_normal((int(rng.integers(0, d if rng.random() < 0.7 else d + 2)), d))
        for _ in range(2):
            U -= np.outer(U @ w, w) / (w @ w)
        if len(U) > 1 and rng.random() < 0.2:
            U[0] = -1.7 * U[1]
        X.append(U if d > 1 else 0 * U)
    inputs = np.vstack(X)
    return Problem(W, H, inputs, np.zeros((len(inputs), J)), SLOPES[rng.integers(len(SLOPES))])
