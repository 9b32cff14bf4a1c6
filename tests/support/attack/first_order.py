"""First order at a point, kinks included: what the one-sided derivatives of every neuron are, and their rounding.

On every cone that a neuron's kink samples cut, the derivative is linear; so its sign is decided on the rays of the
cones and on the directions that leave all kinks alone. A linear program over sign patterns says the same again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from .problem import Array, Problem, outputs, rho

LONG = np.longdouble
EPS = float(np.finfo(np.float64).eps)
# Subsets of kinks whose rays are looked at; of a neuron with more nothing is said.
_SUBSETS = 1500
# What is this many times its rounding is no rounding.
_CLEAR = 300
_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True)
class Point:
    """A problem at its weights, samples within the kink tolerance put on the kink.

    ``Z`` (N, I) pre-activations, ``kink`` (N, I), ``E`` (N, J) gradient of the loss at the outputs, ``noise`` (N,)
    what the weights' dtype may get wrong of its rows, ``fine`` what float64 may as a share of that, ``tol`` the
    tolerance on derivatives.
    """

    problem: Problem
    Z: Array
    kink: Array
    E: Array
    noise: Array
    fine: float
    tol: float


@dataclass(frozen=True)
class Neuron:
    """One neuron to first order.

    ``least`` and ``most`` are the largest violation of its conditions, relative to the largest and to the smallest sum
    of absolute terms it can be measured by; what may be rounding is nothing in ``least``, what must be in ``most``,
    and ``raw`` is ``most`` with it.
    ``pull`` is the largest ``|D|`` over its terms along a direction of slope zero, ``fall`` the drop of the loss that
    violation or pull promise, ``descent`` that of a violation beyond its rounding alone, ``hidden`` whether a pull that
    is no rounding of its own terms may be one of the residuals, ``certain`` whether all cones were seen.
    """

    least: float
    most: float
    raw: float
    fall: float
    descent: float
    pull: float
    direction: Array
    hidden: bool
    certain: bool


def point_of(problem: Problem) -> Point:
    kink_tol, tol = (1e-6, 1e-5) if problem.float32 else (1e-10, 1e-9)
    W, X = (value.astype(LONG) for value in (problem.W, problem.X))
    Z = X @ W.T
    length = np.linalg.norm(problem.X, axis=1)[:, None]
    reach = length * np.linalg.norm(problem.W, axis=1)
    kink = (np.abs(Z) <= kink_tol * reach) & (length > 0)
    E = LONG(problem.factor) * (outputs(problem) - problem.Y)
    active = np.where(Z > 0, abs(problem.slopes[1]), abs(problem.slopes[0]))
    # On the kink rounding decides which of the two it is.
    active = np.where(kink, max(map(abs, problem.slopes)), active) * reach
    terms = active @ np.linalg.norm(problem.H, axis=0) + np.linalg.norm(problem.Y, axis=1)
    terms = terms + (0.0 if problem.b is None else np.linalg.norm(problem.b))
    eps = float(np.finfo(np.float32).eps) if problem.float32 else EPS
    noise = 4 * eps * problem.factor * np.asarray(terms, dtype=np.float64)
    return Point(problem, np.where(kink, LONG(0), Z), kink, E, noise, EPS / eps, tol)


def first_order(point: Point, i: int) -> Neuron:
    """Violations, the falls they promise, and the pull of neuron ``i``."""
    by_w, by_h, cones = _by_input_weights(point, i), _by_output_weights(point, i), _cones(point, i)
    pull, direction, pulled, hidden = _pull(point, i, cones)
    return Neuron(
        least=max(by_w.least, by_h.least),
        most=max(by_w.most, by_h.most),
        raw=max(by_w.raw, by_h.raw),
        fall=max(by_w.fall, by_h.fall, pulled),
        descent=max(by_w.fall, by_h.fall),
        pull=pull,
        direction=direction,
        hidden=hidden,
        certain=cones.certain,
    )


@dataclass(frozen=True)
class _Violation:
    """Relative to the largest and the smallest sum of terms, and the drop of the loss a step along it gives."""

    least: float
    most: float
    raw: float
    fall: float


@dataclass(frozen=True)
class _Cones:
    """Of one neuron: smooth part of ``D`` (J, d), kink samples ``K`` (m, d) with coefficients ``e`` (m, J), the rays
    of their cones, the directions that leave them alone, ``reach`` (N,) the length of each sample it sees times the
    slope, and whether all rays are there.
    """

    parts: Array
    K: Array
    e: Array
    rays: Array
    free: Array
    reach: Array
    certain: bool


def _cones(point: Point, i: int) -> _Cones:
    problem, slope = point.problem, _slopes(point, i)
    parts = ((slope[:, None] * point.E).T @ problem.X.astype(LONG)).astype(float)
    K = problem.X[point.kink[:, i]]
    e = (problem.slopes[1] - problem.slopes[0]) / 2 * point.E[point.kink[:, i]].astype(float)
    seen = np.maximum(np.abs(slope), point.kink[:, i] * max(map(abs, problem.slopes)))
    return _Cones(parts, K, e, *_rays(K)[:2], seen * np.linalg.norm(problem.X, axis=1), _rays(K)[2])


def _by_input_weights(point: Point, i: int) -> _Violation:
    cones, h = _cones(point, i), point.problem.H[:, i]
    g, q = h @ cones.parts, cones.e @ h
    error = np.linalg.norm(point.E.astype(float), axis=1)
    small = float(cones.reach @ np.abs(point.E.astype(float) @ h))
    large, noise = (float(cones.reach @ size) * _norm(h) for size in (error, point.noise + 4 * EPS * error))
    smooth = (g @ cones.free.T) @ cones.free
    values = _along(cones.rays, g, q, cones.K)
    steepest = int(values.argmin()) if len(values) else 0
    lowest = float(values.min(initial=0.0))
    value, direction = _norm(smooth), -smooth / (_norm(smooth) or 1.0)
    if -lowest > value:
        value, direction = -lowest, cones.rays[steepest]
    least = _beyond(value, noise, large)
    fall = _fall_along(point, i, direction, value) if least else 0.0
    return _Violation(least, _above(value, noise * point.fine, small), _ratio(value, small), fall)


def _fall_along(point: Point, i: int, v: Array, value: float) -> float:
    """The drop along ``v`` up to the first kink, from the slope and the curvature."""
    z, ahead = point.Z[:, i].astype(float), point.problem.X @ v
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.where((z != 0) & (z * ahead < 0), -z / ahead, np.inf)
    felt = float(np.square(_ahead(point, i, v)).sum())
    curvature = point.problem.factor * _norm(point.problem.H[:, i]) ** 2 * felt
    step = min(float(crossing.min(initial=np.inf)), _ratio(value, curvature))
    return value * step - curvature * step**2 / 2 if np.isfinite(step) else np.inf


def _ahead(point: Point, i: int, v: Array) -> Array:
    """Change of the activations per step along ``v``, (N,)."""
    z, dz = point.Z[:, i].astype(float), point.problem.X @ v
    return np.where(np.where(point.kink[:, i], dz, z) > 0, *point.problem.slopes[::-1]) * dz


def _by_output_weights(point: Point, i: int) -> _Violation:
    problem, cones = point.problem, _cones(point, i)
    E = point.E.astype(float)
    error = np.linalg.norm(E, axis=1)
    a = np.where(point.Z[:, i] > 0, *problem.slopes[::-1]) * point.Z[:, i]
    value = float(np.abs((a @ point.E).astype(float)).max(initial=0.0))
    a, w = np.abs(a.astype(float)), _norm(problem.W[i])
    noise = float(a @ point.noise) + 4 * EPS * float(cones.reach @ error) * w
    least = _beyond(value, noise, float(cones.reach @ error) * w)
    fall = _ratio(value**2, 2 * problem.factor * float(a @ a)) if least else 0.0
    small = float(np.max(a @ np.abs(E)))
    return _Violation(least, _above(value, noise * point.fine, small), _ratio(value, small), fall)


def bias_violation(point: Point) -> float:
    """Of the output bias, rounding included."""
    if point.problem.b is None:
        return 0.0
    return _ratio(float(np.abs(point.E.sum(0)).max()), float(np.linalg.norm(point.E.astype(float), axis=1).sum()))


def lowest_by_programs(point: Point, i: int, most: int = 8) -> float | None:
    """The lowest slope in the unit box over its terms, by the sign patterns of concave kinks; None if too many."""
    problem, h = point.problem, point.problem.H[:, i]
    slope = _slopes(point, i)
    g = (h @ ((slope[:, None] * point.E).T @ problem.X.astype(LONG))).astype(float)
    b = (problem.slopes[1] - problem.slopes[0]) / 2
    q = b * (point.E[point.kink[:, i]] @ h).astype(float)
    K = problem.X[point.kink[:, i]]
    length = np.linalg.norm(K, axis=1)
    q, K = q * length, K / length[:, None]
    # What is rounding of the residuals stays well below any tolerance.
    error = np.linalg.norm(point.E.astype(float), axis=1) + 1e9 * point.noise
    size = float(_cones(point, i).reach @ error) * _norm(h)
    concave = q < 0
    if size == 0 or concave.sum() > most:
        return 0.0 if size == 0 else None
    convex, d = K[~concave], len(g)
    hinges = np.block([[convex, -np.eye(len(convex))], [-convex, -np.eye(len(convex))]])
    lowest = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=int(concave.sum())):
        cost = np.concatenate([g + (np.array(signs) * q[concave]) @ K[concave], q[~concave]]) / size
        bounds = [(-1, 1)] * d + [(0, None)] * len(convex)
        found = linprog(cost, hinges, np.zeros(len(hinges)), bounds=bounds, method="highs", options=_OPTIONS)
        if found.status != 0:
            return None
        lowest = min(lowest, float(found.fun))
    return lowest


def _slopes(point: Point, i: int) -> Array:
    """The slope of every sample, the mean of both on the kink."""
    minus, plus = point.problem.slopes
    side = np.where(point.Z[:, i] > 0, plus, minus)
    mean = np.where(point.kink[:, i], (plus + minus) / 2, side)
    return np.where(point.problem.X.any(axis=1), mean, 0.0)


def _rays(K: Array) -> tuple[Array, Array, bool]:
    """Unit rays of the cones in the span of the kinks, a basis of the directions that leave all alone, and if all."""
    d = K.shape[1]
    if not len(K):
        return np.zeros((0, d)), np.eye(d), True
    U = _merged(K)
    _, values, rows = np.linalg.svd(U, full_matrices=True)
    rank = int((values > 1e-7 * values[0]).sum())
    certain = not bool(((values > 1e-14 * values[0]) & (values <= 1e-7 * values[0])).any())
    span, free = rows[:rank], rows[rank:]
    if rank == 1:
        return np.concatenate([span, -span]), free, certain
    subsets = list(itertools.islice(itertools.combinations(range(len(U)), rank - 1), _SUBSETS + 1))
    if len(subsets) > _SUBSETS:
        return np.zeros((0, d)), free, False
    planes = (U @ span.T)[np.array(subsets)]
    _, values, rows = np.linalg.svd(planes, full_matrices=True)
    good = values[:, -1] > 1e-7
    certain &= not bool(((values[:, -1] > 1e-13) & ~good).any())
    rays = rows[good, -1] @ span
    return np.concatenate([rays, -rays]), free, certain


def _merged(K: Array) -> Array:
    """One unit row for every line."""
    U = K / np.linalg.norm(K, axis=1, keepdims=True)
    kept: list[Array] = []
    for u in U:
        if all(np.linalg.norm(u - (u @ v) * v) > 1e-13 for v in kept):
            kept.append(u)
    return np.array(kept)


def _along(rays: Array, g: Array, q: Array, K: Array) -> Array:
    return np.asarray(rays @ g + np.abs(rays @ K.T) @ q)


def _pull(point: Point, i: int, cones: _Cones) -> tuple[float, Array, float, bool]:
    """Largest ``||D||`` over its terms where the loss is flat, where, a silent neuron's fall there, and if hidden."""
    problem, h = point.problem, point.problem.H[:, i]
    error = np.linalg.norm(point.E.astype(float), axis=1)
    size, noise = float(cones.reach @ error), float(cones.reach @ (point.noise + 4 * EPS * error))
    slopes = _along(cones.rays, h @ cones.parts, cones.e @ h, cones.K)
    flat = np.abs(slopes) <= 1e-12 * size * _norm(h)
    candidates = [cones.rays[flat]]
    outs = [cones.rays[flat] @ cones.parts.T + np.abs(cones.rays[flat] @ cones.K.T) @ cones.e]
    if len(cones.free):
        _, _, best = np.linalg.svd(cones.parts @ cones.free.T)
        candidates.append(best[:1] @ cones.free)
        outs.append(candidates[-1] @ cones.parts.T)
    D = np.linalg.norm(np.concatenate(outs), axis=1)
    if not len(D) or D.max() <= _CLEAR * noise:
        return 0.0, np.zeros(len(problem.W[i])), 0.0, bool(D.max(initial=0.0) > 1e-13 * size)
    v = np.concatenate(candidates)[int(D.argmax())]
    t = _norm(problem.W[i]) or 1.0
    z = point.Z[:, i].astype(float)
    now, ahead = float(np.square(rho(z, problem.slopes)).sum()), float(np.square(_ahead(point, i, v)).sum())
    return float(D.max()) / size, v, _ratio((t * D.max()) ** 2, 2 * problem.factor * (now + t**2 * ahead)), False


def _beyond(value: float, noise: float, scale: float) -> float:
    return _ratio(value, scale) if value > _CLEAR * noise else 0.0


def _above(value: float, noise: float, scale: float) -> float:
    """Nothing where it is within a unit roundoff of float64 of its terms."""
    return _ratio(value, scale) if value > noise / 4 else 0.0


def _norm(value: Array) -> float:
    return float(np.linalg.norm(value))


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale > 0 else (0.0 if value == 0 else np.inf)
