"""Attempts to leave a point downhill, in a neighbourhood that crosses no kink but those the point is on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .first_order import EPS, Point, first_order
from .problem import Array, Problem, loss, rho

Rng = np.random.Generator


@dataclass(frozen=True)
class Fall:
    """The largest significant fall found, relative to what a tolerance could explain; the move that gives it."""

    excess: float
    change: float
    text: str


@dataclass(frozen=True)
class _Box:
    """The neighbourhood: how far every neuron's weights and the bias may go, and what slopes count as zero there.

    Weights are balanced, ``||w_i||`` and ``||h_i||`` alike for units of 1 in inputs and outputs.
    """

    Z: Array
    X: Array
    E: Array
    H: Array
    slopes: tuple[float, float]
    factor: float
    w_reach: Array
    h_reach: Array
    b_reach: float
    w_price: Array
    h_price: Array
    b_price: float
    noise: Array


def largest_fall(point: Point, rng: Rng, batch: int = 192, rounds: int = 30) -> Fall:
    """Random and structured moves, the best of them followed downhill; ``excess`` above 1 is a fall."""
    box = _box(point)
    worst = Fall(0.0, 0.0, "")
    for reach in (0.9, 0.1, 1e-3):
        moves = _starts(point, box, rng, batch, reach)
        change, excess = _judged(box, moves)
        chosen = excess.argsort()[-12:]
        followed = tuple(part[chosen] for part in moves)
        followed = _followed(box, followed, reach, rounds)
        for kind, tried in (("move", moves), ("descent", followed)):
            change, excess = _judged(box, tried)
            best = int(excess.argmax())
            if excess[best] > worst.excess:
                worst = Fall(float(excess[best]), float(change[best]), f"{kind} within {reach:g} of the nearest kink")
    return worst


def _box(point: Point) -> _Box:
    problem = point.problem
    length = np.linalg.norm(problem.X, axis=1)
    typical = float(np.median(length[length > 0])) if length.any() else 1.0
    w, h = np.linalg.norm(problem.W, axis=1), np.linalg.norm(problem.H, axis=0)
    target = float(np.sqrt(np.mean(np.square(problem.Y)))) or 1.0
    amplitude = np.where(w * h > 0, w * h, target / typical)
    balance = np.where((w > 0) & (h > 0), np.sqrt(h / np.where(w > 0, w, 1.0)), 1.0)
    balance = np.where((w > 0) & (h == 0), np.sqrt(amplitude) / np.where(w > 0, w, 1.0), balance)
    balance = np.where((w == 0) & (h > 0), np.where(h > 0, h, 1.0) / np.sqrt(amplitude), balance)
    balance = 2.0 ** np.round(np.log2(balance))
    size = np.sqrt(amplitude)
    Z = np.asarray(point.Z, dtype=float) * balance
    off = ~point.kink & (length[:, None] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(off, np.abs(Z) / length[:, None], np.inf).min(axis=0, initial=np.inf)
    E = np.asarray(point.E, dtype=float)
    H = problem.H / balance
    slope = np.where(point.Z > 0, abs(problem.slopes[1]), abs(problem.slopes[0]))
    slope = np.where(point.kink, max(map(abs, problem.slopes)), slope)
    error = np.linalg.norm(E, axis=1) + 300 / (100 * point.tol) * point.noise
    terms = (slope * length[:, None]).T @ error
    return _Box(
        Z=Z, X=problem.X, E=E, H=H, slopes=problem.slopes, factor=problem.factor,
        w_reach=np.minimum(distance, size), h_reach=size,
        b_reach=target if problem.b is not None else 0.0,
        w_price=terms * np.linalg.norm(H, axis=0), h_price=terms * np.linalg.norm(problem.W, axis=1) * balance,
        b_price=float(error.sum()), noise=100 * point.tol,
    )  # fmt: skip


def _starts(point: Point, box: _Box, rng: Rng, batch: int, reach: float) -> tuple[Array, Array, Array]:
    (count, d), outs = point.problem.W.shape, len(box.H)
    dW, dH = rng.standard_normal((batch, count, d)), rng.standard_normal((batch, outs, count))
    db = rng.standard_normal((batch, outs))
    third = batch // 3
    one = np.arange(count) == rng.integers(count, size=(third, 1))  # a single neuron
    dW[:third] *= one[:, :, None]
    dH[:third] *= one[:, None, :]
    dW[third : 2 * third] *= 10 ** rng.uniform(-6, 0, (third, 1, 1))
    dH[2 * third :] *= 10 ** rng.uniform(-6, 0, (batch - 2 * third, 1, 1))
    db *= 10 ** rng.uniform(-4, 0, (batch, 1)) * (rng.random((batch, 1)) < 0.5)
    for row, (i, v) in enumerate(escapes(point, rng, batch // 4)):
        D = rho((np.where(point.kink[:, i], 0.0, 1.0) * 0 + box.X @ v), box.slopes) * point.kink[:, i]
        D = D + np.where(point.kink[:, i], 0.0, np.where(box.Z[:, i] > 0, *box.slopes[::-1]) * (box.X @ v))
        pull = D @ box.E
        dW[row], dH[row], db[row] = 0.0, 0.0, 0.0
        dW[row, i] = v
        dH[row, :, i] = -(10 ** rng.uniform(-4, 0)) * pull / (np.linalg.norm(pull) or 1.0)
    return _within(box, (dW, dH, db), reach)


def escapes(point: Point, rng: Rng, most: int) -> list[tuple[int, Array]]:
    """Neurons with directions that pull."""
    found = []
    for i in range(len(point.problem.W)):
        direction = first_order(point, i).direction
        candidates = [direction, -direction, *point.problem.X[point.kink[:, i]][:4]]
        candidates += [-x for x in point.problem.X[point.kink[:, i]][:4]]
        candidates += list(rng.standard_normal((2, point.problem.W.shape[1])))
        found += [(i, v / np.linalg.norm(v)) for v in candidates if v.any()]
    order = rng.permutation(len(found))[:most]
    return [found[k] for k in order]


def _within(box: _Box, moves: tuple[Array, Array, Array], reach: float) -> tuple[Array, Array, Array]:
    """Moves cut to the box: their relative sizes kept as they are below 1."""
    dW, dH, db = moves
    W_size = np.linalg.norm(dW, axis=2, keepdims=True)
    H_size = np.linalg.norm(dH, axis=1, keepdims=True)
    b_size = np.linalg.norm(db, axis=1, keepdims=True)
    dW = dW / np.maximum(W_size, 1.0) * (reach * box.w_reach)[:, None]
    dH = dH / np.maximum(H_size, 1.0) * reach * box.h_reach
    return dW, dH, db / np.maximum(b_size, 1.0) * reach * box.b_reach


def _change(box: _Box, moves: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Loss changes, the changed outputs, and the new pre-activations."""
    dW, dH, db = moves
    dZ = dW @ box.X.T  # (B, I, N)
    before = rho(box.Z, box.slopes).T
    there = box.Z.T + dZ
    after = rho(there, box.slopes)
    same = (box.Z.T > 0) == (there > 0)
    difference = np.where(same, np.where(there > 0, box.slopes[1], box.slopes[0]) * dZ, after - before)
    delta = (box.H + dH) @ difference + dH @ before + db[:, :, None]  # (B, J, N)
    change = (delta * box.E.T).sum((1, 2)) + box.factor / 2 * np.square(delta).sum((1, 2))
    return change, delta, there


def _slope(box: _Box, moves: tuple[Array, Array, Array]) -> Array:
    """First-order changes of the loss."""
    dW, dH, db = moves
    dZ = dW @ box.X.T
    side = np.where(np.where(box.Z.T == 0, dZ, box.Z.T) > 0, box.slopes[1], box.slopes[0])
    delta = box.H @ (side * dZ) + dH @ rho(box.Z, box.slopes).T + db[:, :, None]
    return (delta * box.E.T).sum((1, 2))


def _judged(box: _Box, moves: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Changes, and falls over what slopes within the tolerance could give along the same move.

    A fall that begins only after a rise is none: the slope must be zero, and a hundredth of the move falls as well.
    """
    change, delta, _ = _change(box, moves)
    first, near, _ = _change(box, (moves[0] / 100, moves[1] / 100, moves[2] / 100))
    dW, dH, db = moves
    price = np.linalg.norm(dW, axis=2) @ box.w_price + np.linalg.norm(dH, axis=1) @ box.h_price
    price = box.noise * (price + np.linalg.norm(db, axis=1) * box.b_price)
    begins = (first < -100 * EPS * np.abs(near * box.E.T).sum((1, 2))) & (_slope(box, moves) <= price / 100)
    # Gradients may be wrong in proportion to the move as well.
    rounding = 100 * EPS * np.abs(delta * box.E.T).sum((1, 2))
    return change, np.where(begins, -change / np.maximum(price + rounding, 1e-200), 0.0)


def _followed(box: _Box, moves: tuple[Array, Array, Array], reach: float, rounds: int) -> tuple[Array, Array, Array]:
    """Projected descent in units of the box, all moves at once, each with its own step."""
    scales = (box.w_reach[:, None] + 0 * moves[0][0], box.h_reach + 0 * moves[1][0], box.b_reach + 0 * moves[2][0])
    step = np.full(len(moves[0]), 0.1)
    change = _change(box, moves)[0]
    for _ in range(rounds):
        gradient = _gradient(box, moves)
        scaled = [g * s for g, s in zip(gradient, scales, strict=True)]
        size = np.sqrt(sum(np.square(g).reshape(len(g), -1).sum(1) for g in scaled))
        size = np.where(size > 0, size, 1.0)
        tried = tuple(
            m - _column(step * reach / size, m) * g * s for m, g, s in zip(moves, scaled, scales, strict=True)
        )
        tried = _clipped(box, tried, reach)
        new = _change(box, tried)[0]
        better = new < change
        moves = tuple(np.where(_column(better, m), t, m) for t, m in zip(tried, moves, strict=True))
        change = np.where(better, new, change)
        step = np.where(better, step * 1.5, step * 0.3)
    return moves


def _gradient(box: _Box, moves: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    _, delta, there = _change(box, moves)
    error = box.E.T + box.factor * delta
    C = np.swapaxes(box.H + moves[1], 1, 2) @ error * np.where(there > 0, box.slopes[1], box.slopes[0])
    return C @ box.X, error @ np.swapaxes(rho(there, box.slopes), 1, 2), error.sum(2)


def _clipped(box: _Box, moves: tuple[Array, Array, Array], reach: float) -> tuple[Array, Array, Array]:
    dW, dH, db = moves
    W_size, H_size = np.linalg.norm(dW, axis=2, keepdims=True), np.linalg.norm(dH, axis=1, keepdims=True)
    b_size = np.linalg.norm(db, axis=1, keepdims=True)
    w_most, h_most, b_most = (reach * box.w_reach)[:, None], reach * box.h_reach, reach * box.b_reach
    dW = dW * np.minimum(1.0, w_most / np.maximum(W_size, 1e-300))
    dH = dH * np.minimum(1.0, h_most / np.maximum(H_size, 1e-300))
    return dW, dH, db * np.minimum(1.0, b_most / np.maximum(b_size, 1e-300))


def _column(value: Array, like: Array) -> Array:
    return value.reshape(-1, *[1] * (like.ndim - 1))


def lower_network(problem: Problem, rng: Rng, tries: int = 12) -> Problem | None:
    """Another network of the same width with a clearly lower loss: directions drawn, output weights fitted."""
    now = float(loss(problem))
    X, length = problem.X, np.linalg.norm(problem.X, axis=1)
    floor = problem.factor / 2 * float(np.square(1e-9 * np.abs(problem.Y)).sum())
    for attempt in range(tries):
        W = problem.W.copy()
        chosen = rng.integers(len(W)) if attempt < tries // 2 else slice(None)
        pick = X[rng.integers(len(X), size=np.shape(W[chosen])[:-1] or ())]
        W[chosen] = np.sign(rng.standard_normal()) * pick / max(float(length.max()), 1e-300)
        W[chosen] += 0.3 * (attempt % 3) * rng.standard_normal(W[chosen].shape) * np.linalg.norm(W[chosen])
        candidate = _fitted(replace(problem, W=W))
        there = float(loss(candidate))
        if there < now * (1 - 1e-6) - floor:
            return candidate
    return None


def _fitted(problem: Problem) -> Problem:
    A = rho(problem.X @ problem.W.T, problem.slopes)
    if problem.b is not None:
        A = np.concatenate([A, np.ones((len(A), 1))], axis=1)
    size = np.maximum(np.linalg.norm(A, axis=0), 1e-300)
    H = (np.linalg.lstsq(A / size, problem.Y, rcond=1e-12)[0] / size[:, None]).T
    return replace(problem, H=H[:, : len(problem.W)], b=None if problem.b is None else H[:, -1])
