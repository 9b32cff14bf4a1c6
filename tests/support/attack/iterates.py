"""Iterates of training, brought to the stationary point of their pattern of signs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from .problem import Array, Problem, rho
from .starts import SLOPES, Rng


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


def trained_outputs(rng: Rng) -> Problem:
    """Several outputs: an iterate of training, polished by Newton steps while no sample changes sides."""
    d, J, count = int(rng.integers(1, 4)), int(rng.integers(2, 4)), int(rng.integers(1, 5))
    samples, scale = int(rng.integers(3, 10)), 10 ** rng.uniform(-3, 0.3)
    X, Y = rng.standard_normal((samples, d)), rng.standard_normal((samples, J))
    W, H = scale * rng.standard_normal((count, d)), scale * rng.standard_normal((J, count))
    b = rng.standard_normal(J) * scale if rng.random() < 0.3 else None
    iterate = _descended(Problem(W, H, X, Y, SLOPES[int(rng.integers(6))], b, "half_sum"), 500)
    for _ in range(6):
        iterate = _newton_step(iterate)
    return iterate


def _newton_step(problem: Problem) -> Problem:
    (count, d), J = problem.W.shape, len(problem.H)
    Z = problem.X @ problem.W.T
    side = np.where(Z > 0, problem.slopes[1], problem.slopes[0])
    A, seen = side * Z, side[:, :, None] * problem.X[:, None, :]  # (N, I), (N, I, d)
    E = A @ problem.H.T + (0.0 if problem.b is None else problem.b) - problem.Y
    by_w = np.einsum("kid,ji->kjid", seen, problem.H).reshape(len(Z), J, -1)
    by_h = np.einsum("ki,jl->kjli", A, np.eye(J)).reshape(len(Z), J, -1)
    parts = [by_w, by_h, *([np.tile(np.eye(J), (len(Z), 1, 1))] if problem.b is not None else [])]
    jacobian = np.concatenate(parts, axis=2).reshape(len(Z) * J, -1)
    hessian = jacobian.T @ jacobian
    mixed = np.einsum("kj,kid,il->idjl", E, seen, np.eye(count)).reshape(count * d, J * count)
    ends = count * d, count * d + J * count
    hessian[: ends[0], ends[0] : ends[1]] += mixed
    hessian[ends[0] : ends[1], : ends[0]] += mixed.T
    step = -np.linalg.lstsq(hessian, jacobian.T @ E.ravel(), rcond=1e-9)[0]
    W, H = problem.W + step[: ends[0]].reshape(count, d), problem.H + step[ends[0] : ends[1]].reshape(J, count)
    if (np.sign(problem.X @ W.T) != np.sign(Z)).any():
        return problem
    return replace(problem, W=W, H=H, b=None if problem.b is None else problem.b + step[ends[1] :])


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
