"""Where problems start: weights, data and residuals of every structure, at ordinary scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import linprog

from .problem import Array, Problem, Slopes, outputs, with_targets

Rng = np.random.Generator

SLOPES: list[Slopes] = [
    (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.01, 1.0), (0.1, 1.0), (-1.0, 1.0),
    (-0.5, 2.0), (1.0, 0.0), (2.0, -0.3), (0.0, -1.5), (0.0, 3.0), (1e-3, 1e3),
]  # fmt: skip


def skeleton(rng: Rng, neurons: int | None = None) -> Problem:
    """Weights and inputs with samples on kinks: own, shared, collinear, opposite, duplicated and zero ones."""
    d, J = int(rng.integers(1, 7)), int(rng.choice([1, 1, 1, 2, 3, 4]))
    count = neurons or int(rng.integers(1, 5))
    hidden_bias = d > 1 and rng.random() < 0.4
    W, H = rng.standard_normal((count, d)), rng.standard_normal((J, count))
    _quieten(rng, W, H)
    # As many samples as leave the residuals some freedom; fewer at times, and where every sample is on a kink (w = 0).
    enough = count * (d // min(J, 2) + 1) if rng.random() < 0.9 and W.any(axis=1).all() else 0
    rows = [rng.standard_normal((int(rng.integers(2, 8)) + enough, d))]
    if d > 1:
        for i in np.flatnonzero(W.any(axis=1)):
            chosen = W[i : i + 2] if d > 2 and rng.random() < 0.2 else W[i : i + 1]
            most = d + 1 if rng.random() < 0.9 else 2 * d + 2
            rows.append(_orthogonal(rng.standard_normal((int(rng.integers(0, most)), d)), chosen, hidden_bias))
    X = np.concatenate(rows)
    if hidden_bias:
        X = X[np.abs(X[:, -1]) > 1e-3]
        X = X / X[:, -1:] if len(X) else np.ones((1, d))
    X = _repeated(rng, X, hidden_bias)
    b = rng.standard_normal(J) if rng.random() < 0.3 else None
    reduction = str(rng.choice(["sum", "sum", "mean", "half_sum"]))
    slopes = SLOPES[int(rng.integers(len(SLOPES)))]
    return Problem(W, H, X, np.zeros((len(X), J)), slopes, b, reduction)


def _quieten(rng: Rng, W: Array, H: Array) -> None:
    """Zero, silent, input-free and duplicated neurons, in place."""
    for i in range(len(W)):
        choice = rng.random()
        if choice < 0.08:
            W[i] = 0.0
        elif choice < 0.25:
            H[:, i] = 0.0
        elif choice < 0.3:
            W[i], H[:, i] = 0.0, 0.0
        elif choice < 0.35 and i:
            W[i] = W[i - 1] * rng.choice([1.0, 2.0, -1.0])


def _orthogonal(U: Array, W: Array, affine: bool) -> Array:
    """Rows moved onto the kink of ``w``."""
    W = W[W.any(axis=1)]
    basis = np.linalg.qr(W.T)[0] if len(W) else np.zeros((U.shape[1], 0))
    for _ in range(3):
        U = U - (U @ basis) @ basis.T
    return U if not affine else U[np.abs(U[:, -1]) > 0.1]


def _repeated(rng: Rng, X: Array, affine: bool) -> Array:
    """Some samples again: the same, collinear, opposite, zero, or nearly coincident."""
    extra = []
    for _ in range(int(rng.integers(0, 3))):
        x = X[rng.integers(len(X))]
        choice = rng.integers(5)
        if choice == 0 or affine:
            extra.append(x)
        elif choice == 1:
            extra.append(x * rng.choice([0.5, 3.0, 1e-3]))
        elif choice == 2:
            extra.append(-x * rng.choice([1.0, 1.7]))
        elif choice == 3:
            extra.append(0 * x)
        else:
            extra.append(x + np.linalg.norm(x) * 10 ** rng.uniform(-11, -8) * rng.standard_normal(len(x)))
    return np.concatenate([X, np.array(extra)]) if extra else X


def random_targets(rng: Rng) -> Problem:
    """Kinks, and no stationarity."""
    problem = skeleton(rng)
    return with_targets(problem, rng.standard_normal(problem.Y.shape))


def integers(rng: Rng) -> Problem:
    """Small whole numbers: everything coincides that can, and coincides exactly."""
    d, J, count = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2])), int(rng.integers(1, 4))
    samples, size = int(rng.integers(1, 8)), int(rng.integers(1, 4))
    W, H = rng.integers(-size, size + 1, (count, d)), rng.integers(-size, size + 1, (J, count))
    X, Y = rng.integers(-size, size + 1, (samples, d)), rng.integers(-size, size + 1, (samples, J))
    if rng.random() < 0.3:
        X[:, -1] = 1
    for i in range(count):
        if rng.random() < 0.3:
            W[i] = 0
        if rng.random() < 0.3:
            H[:, i] = 0
    slopes = SLOPES[int(rng.integers(len(SLOPES)))]
    return Problem(*(value.astype(float) for value in (W, H, X, Y)), slopes)


def backward(rng: Rng, zero_sums: bool = False) -> Problem:
    """Stationary by construction: residuals from the null space of the conditions, on kinks of any structure.

    A sample on a kink acts with some slope between the two; with that slope fixed stationarity is linear in the
    residuals, and what is left to ask is the sign of every kink coefficient. With `zero_sums` the residuals of a sample
    add up to zero, as the gradient of a cross-entropy does.
    """
    problem = skeleton(rng)
    while zero_sums and len(problem.H) < 2:
        problem = skeleton(rng)
    E = _stationary_residuals(rng, problem, zero_sums)
    if E is None:
        E = rng.standard_normal(problem.Y.shape)
        E = E - E.mean(axis=1, keepdims=True) * zero_sums
    return with_targets(problem, E)


def _stationary_residuals(rng: Rng, problem: Problem, zero_sums: bool) -> Array | None:
    conditions, signs = _conditions(rng, problem)
    if zero_sums:
        samples, outs = problem.Y.shape
        conditions = np.concatenate([conditions, np.kron(np.eye(samples), np.ones((1, outs)))])
    size = problem.Y.size
    _, values, rows = np.linalg.svd(conditions, full_matrices=True)
    rank = int((values > 1e-10 * max(values.max(initial=0.0), 1.0)).sum())
    basis = rows[rank:].T
    if not basis.shape[1]:
        return np.zeros(problem.Y.shape)
    E = basis @ rng.standard_normal(basis.shape[1])
    if len(signs) and (signs @ E < 0).any():
        margin = rng.choice([0.0, 0.05, 0.05])
        bounds = np.full(len(signs), -margin)
        found = linprog(
            rng.standard_normal(basis.shape[1]), A_ub=-signs @ basis, b_ub=bounds, bounds=[(-5, 5)] * basis.shape[1]
        )
        if found.status != 0 and margin:
            found = linprog(
                rng.standard_normal(basis.shape[1]),
                A_ub=-signs @ basis,
                b_ub=0 * bounds,
                bounds=[(-5, 5)] * basis.shape[1],
            )
        if found.status == 0 and rng.random() < 0.95:
            E = basis @ found.x
    for _ in range(2):  # removes what rounding left
        E = E - rows[:rank].T @ (rows[:rank] @ E)
    return np.where(np.abs(E) < 1e-12, 0.0, E).reshape(problem.Y.shape) if size else None


def _conditions(rng: Rng, problem: Problem) -> tuple[Array, Array]:
    """Rows that must vanish on the residuals, raveled, and rows that must not be negative."""
    (samples, outs), quiet = problem.Y.shape, rng.random() < 0.6
    every = np.eye(outs)
    b = (problem.slopes[1] - problem.slopes[0]) / 2
    equal, signs = [np.zeros((1, samples * outs))], []
    if problem.b is not None:
        equal.append(np.kron(np.ones((1, samples)), every))
    for w, h in zip(problem.W, problem.H.T, strict=True):
        z = problem.X @ w
        kink = np.abs(z) <= 1e-12 * np.linalg.norm(w) * np.linalg.norm(problem.X, axis=1)
        share = np.clip(rng.uniform(-1.3, 1.3, samples), -1, 1) if rng.random() < 0.5 else rng.uniform(-1, 1, samples)
        slope = np.where(kink, sum(problem.slopes) / 2 + b * share, np.where(z > 0, *problem.slopes[::-1]))
        equal.append(np.kron((slope * ~kink * z)[None], every))
        if h.any():
            equal.append(np.kron((slope[:, None] * problem.X).T, h[None]))
            signs.append(np.kron(np.eye(samples)[kink], b * h[None]))
        if quiet and not (h.any() and outs == 1) and (w.any() or rng.random() < 0.3):
            equal.append(np.kron((slope * ~kink)[:, None].T * problem.X.T, every))
            if not h.any() and kink.any():
                equal.append(np.kron(np.eye(samples)[kink], every))
    return np.concatenate(equal), np.concatenate(signs) if signs else np.zeros((0, samples * outs))


def rounding_residuals(rng: Rng) -> Problem:
    """A fit to the last bit or two, and beside it samples that nothing can change."""
    problem = skeleton(rng)
    E = rng.standard_normal(problem.Y.shape) * 10 ** rng.uniform(-17, -14)
    fitted = with_targets(problem, E * np.abs(outputs(problem)).max())
    if rng.random() < 0.5:
        X, Y = np.concatenate([fitted.X, 0 * fitted.X[:1]]), np.concatenate([fitted.Y, 5 + 0 * fitted.Y[:1]])
        return replace(fitted, X=X, Y=Y)
    return fitted
