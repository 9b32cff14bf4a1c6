"""Families of problems, each a structure that numerical code trips over; `FAMILIES` names them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import linprog, minimize

from .problem import Array, Problem, Slopes, outputs, rho, with_targets

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


def backward(rng: Rng) -> Problem:
    """Stationary by construction: residuals from the null space of the conditions, on kinks of any structure.

    A sample on a kink acts with some slope between the two; with that slope fixed stationarity is linear in the
    residuals, and what is left to ask is the sign of every kink coefficient.
    """
    problem = skeleton(rng)
    E = _stationary_residuals(rng, problem)
    return with_targets(problem, E if E is not None else rng.standard_normal(problem.Y.shape))


def _stationary_residuals(rng: Rng, problem: Problem) -> Array | None:
    conditions, signs = _conditions(rng, problem)
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


def trained(rng: Rng) -> Problem:
    """An iterate of training, polished to the stationary point of its stratum."""
    d, count, samples = int(rng.integers(1, 4)), int(rng.integers(1, 6)), int(rng.integers(3, 12))
    X, Y = rng.standard_normal((samples, d)), rng.standard_normal((samples, 1))
    if d > 1 and rng.random() < 0.6:
        X[:, -1] = 1.0
    scale = 10 ** rng.uniform(-3, 0.3)
    W, H = scale * rng.standard_normal((count, d)), scale * rng.standard_normal((1, count))
    slopes = SLOPES[int(rng.integers(6))]
    start = Problem(W, H, X, Y, slopes, rng.standard_normal(1) * scale if rng.random() < 0.3 else None, "half_sum")
    iterate = _descended(start, int(rng.choice([20, 100, 400])))
    return polished(iterate, 10 ** rng.uniform(-6, -2)) if rng.random() < 0.85 else iterate


def _descended(problem: Problem, steps: int) -> Problem:
    bias = 0 if problem.b is None else len(problem.b)
    ends = np.cumsum([problem.W.size, problem.H.size, bias])

    def parts(flat: Array) -> Problem:
        W, H = flat[: ends[0]].reshape(problem.W.shape), flat[ends[0] : ends[1]].reshape(problem.H.shape)
        return replace(problem, W=W, H=H, b=flat[ends[1] :] if bias else None)

    def value(flat: Array) -> tuple[float, Array]:
        p = parts(flat)
        Z = p.X @ p.W.T
        A = rho(Z, p.slopes)
        E = A @ p.H.T + (0.0 if p.b is None else p.b) - p.Y
        C = (E @ p.H) * np.where(Z > 0, p.slopes[1], p.slopes[0])
        gradient = [(C.T @ p.X).ravel(), (E.T @ A).ravel(), E.sum(0) if bias else np.zeros(0)]
        return 0.5 * float(np.square(E).sum()), np.concatenate(gradient)

    flat = np.concatenate([problem.W.ravel(), problem.H.ravel(), np.zeros(0) if problem.b is None else problem.b])
    found = minimize(value, flat, jac=True, method="L-BFGS-B", options={"maxiter": steps, "ftol": 1e-16, "gtol": 1e-12})
    return parts(found.x)


def polished(problem: Problem, kink_tol: float) -> Problem:
    """One output: the least squares in ``R_i = h_i w_i`` at its signs, kinks within a tolerance held."""
    size = np.linalg.norm(problem.W, axis=1)
    Z = problem.X @ problem.W.T
    kink = np.abs(Z) <= kink_tol * size * np.linalg.norm(problem.X, axis=1)[:, None]
    sides = np.where(kink, 0.0, np.where(Z > 0, problem.slopes[1], problem.slopes[0]))
    blocks = []
    for i in range(len(problem.W)):
        held = problem.X[kink[:, i]]
        _, values, rows = np.linalg.svd(held, full_matrices=True) if len(held) else (0, np.zeros(0), np.eye(Z.shape[1]))
        free = rows[int((values > 1e-9).sum()) :] if len(held) else np.eye(problem.X.shape[1])
        blocks.append(free if len(free) and problem.H[0, i] != 0 else np.zeros((0, problem.X.shape[1])))
    columns = [(sides[:, i, None] * problem.X) @ free.T for i, free in enumerate(blocks)]
    if problem.b is not None:
        columns.append(np.ones((len(problem.X), 1)))
    A = np.concatenate(columns, axis=1)
    now = np.concatenate([free @ (problem.W[i] * problem.H[0, i]) for i, free in enumerate(blocks)])
    now = now if problem.b is None else np.append(now, problem.b)
    for _ in range(2):
        now = now + np.linalg.lstsq(A, problem.Y[:, 0] - A @ now, rcond=1e-11)[0]
    W, H, at = problem.W.copy(), problem.H.copy(), 0
    for i, free in enumerate(blocks):
        R = now[at : at + len(free)] @ free
        at += len(free)
        length = np.sqrt(np.linalg.norm(R))
        if length > 0:
            H[0, i] = np.sign(problem.H[0, i]) * length
            W[i] = R / H[0, i]
    return replace(problem, W=W, H=H, b=None if problem.b is None else now[at:])


def rounding_residuals(rng: Rng) -> Problem:
    """A fit to the last bit or two, and beside it samples that nothing can change."""
    problem = skeleton(rng)
    E = rng.standard_normal(problem.Y.shape) * 10 ** rng.uniform(-17, -14)
    fitted = with_targets(problem, E * np.abs(outputs(problem)).max())
    if rng.random() < 0.5:
        X, Y = np.concatenate([fitted.X, 0 * fitted.X[:1]]), np.concatenate([fitted.Y, 5 + 0 * fitted.Y[:1]])
        return replace(fitted, X=X, Y=Y)
    return fitted


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
