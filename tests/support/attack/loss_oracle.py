"""What is wrong with a verdict under any loss, by evaluations of the loss alone: many moves at a time."""

from __future__ import annotations

import numpy as np

from relu_diag import Verdict

from .any_loss import KINK, Case
from .descent import escapes
from .first_order import point_of
from .problem import Array, Problem, rho
from .starts import Rng

# What a slope within the tolerance of a verdict may add up to, over the terms it is made of.
PRICE = 1e-7
# A slope that is a rise, and not what is left of one that was to be zero, over the same.
RISE = 1e-10
# Rounding of a change of the loss, over the terms it is made of.
BLUR = 1e-13
REACHES = (0.3, 1e-2, 1e-4)
# ``dW`` (B, I, d), ``dH`` (B, J, I) and ``db`` (B, J).
Moves = tuple[Array, Array, Array]


@np.errstate(over="ignore", invalid="ignore")
def complaints(case: Case, verdict: Verdict, rng: Rng) -> list[str]:
    """What is wrong with a verdict."""
    if verdict.kind in {"local minimum", "global minimum"}:
        excess = largest_excess(case, rng)
        return [f"{verdict.kind}, but the loss falls by {excess:.3g} tolerances"] if excess > 1 else []
    if verdict.kind not in {"saddle", "not stationary"}:
        return []
    if verdict.direction is not None:
        return _about_witness(case, verdict)
    if "no minimum" not in verdict.reason:
        return [f"{verdict.kind} without a witness"]
    return [] if _falls_for_ever(case) else ["no minimum, but the loss does not fall for ever as output weights grow"]


def _about_witness(case: Case, verdict: Verdict) -> list[str]:
    """What is wrong with a direction: the loss falls along it, by as much as is said, and never rises on the way."""
    direction, block = verdict.direction, case.block
    assert direction is not None
    steps = np.linspace(0, direction.step, 41)[1:, None, None]
    dW, dH = steps * direction.dW.numpy(), steps * direction.dH.numpy()
    db = 0 * dH[:, :, 0] if direction.db is None else steps[:, 0] * direction.db.numpy()
    W, H, X = block.W.numpy(), block.H.numpy(), case.X.numpy()
    paid = case.mu / 2 * (((2 * W + dW) * dW).sum((1, 2)) + ((2 * H + dH) * dH).sum((1, 2)))

    def changes_from(Z: Array) -> Array:
        A, there = rho(Z, block.slopes), rho(Z + X @ np.swapaxes(dW, 1, 2), block.slopes)
        moved = (there - A) @ np.swapaxes(H + dH, 1, 2) + A @ np.swapaxes(dH, 1, 2) + db[:, None]
        return case.own.change(moved).sum((1, 2)) + paid

    Z = X @ W.T
    changes = changes_from(Z)
    # On the way, samples within the kink's tolerance count as on it.
    reach = np.linalg.norm(X, axis=1)[:, None] * np.linalg.norm(W, axis=1)
    on_the_way = changes_from(np.where(np.abs(Z) <= KINK * reach, 0.0, Z))
    outputs = block(case.X)
    blur = BLUR * max(abs(float(case.value(block))), float(case.loss.gradient(outputs).abs().sum()))
    said = []
    if not changes[-1] < 0:
        said.append(f"{verdict.kind}: the loss changes by {changes[-1]:.3g} along the witness")
    if not abs(changes[-1] - direction.loss_change) <= 0.02 * abs(changes[-1]) + 2 * blur:
        said.append(f"{verdict.kind}: fall {changes[-1]:.6g}, said to be {direction.loss_change:.6g}")
    if not on_the_way.max() <= blur:
        said.append(f"{verdict.kind}: the loss rises by {on_the_way.max():.3g} on the way")
    return said


def _falls_for_ever(case: Case) -> bool:
    """Whether the loss never rises as the outputs grow along what they are now, with or without their bias."""
    outputs = case.block(case.X).numpy()
    bias = 0.0 if case.block.output_bias is None else case.block.output_bias.numpy()
    steps = np.geomspace(1e-3, 1e3, 60)[:, None, None]
    blur = BLUR * abs(float(case.loss(case.block(case.X))))
    for ray in (outputs, outputs - bias):
        changes = case.own.change(steps * ray).sum((1, 2))
        if changes[-1] < 0 and (np.diff(changes) <= blur).all():
            return True
    return False


@np.errstate(over="ignore", invalid="ignore")
def largest_excess(case: Case, rng: Rng, batch: int = 120, followed: int = 8, rounds: int = 60) -> float:
    """The largest fall that random and descended moves find, over what slopes of zero within the tolerance explain.

    The loss may not rise on the straight way there: further away, though before the next kink, it may well be lower.
    """
    box = _Box(case)
    reach = np.repeat(REACHES, batch)
    moves = box.drawn(rng, reach)
    excess = box.excess(moves)
    worst = max(float(excess.max()), 0.0)
    if worst > 1:
        return worst
    best = np.argpartition(excess.reshape(len(REACHES), batch), -followed, axis=1)[:, -followed:]
    chosen = (best + batch * np.arange(len(REACHES))[:, None]).ravel()
    dW, dH, db = (part[chosen] for part in moves)
    return max(worst, box.descended((dW, dH, db), reach[chosen], rounds))


class _Box:
    """The neighbourhood of a point up to the next kink, neurons balanced."""

    def __init__(self, case: Case) -> None:
        block = case.block
        self.case, self.X, self.slopes = case, case.X.numpy(), block.slopes
        W, H = block.W.numpy(), block.H.numpy()
        w, h = np.linalg.norm(W, axis=1), np.linalg.norm(H, axis=0)
        balance = np.where((w > 0) & (h > 0), np.sqrt(h / np.where(w > 0, w, 1.0)), 1.0)
        self.W, self.H = W * balance[:, None], H / balance
        self.w_norm, self.h_norm = np.linalg.norm(self.W, axis=1), np.linalg.norm(self.H, axis=0)
        Z, length = self.X @ self.W.T, np.linalg.norm(self.X, axis=1)[:, None]
        on = np.abs(Z) <= KINK * length * self.w_norm
        self.Z = np.where(on, 0.0, Z)
        self.A = rho(self.Z, self.slopes)
        distance = np.where(on, np.inf, np.abs(Z) / np.maximum(length, 1e-300)).min(0)
        self.h_reach = np.where(self.h_norm > 0, self.h_norm, 1.0)
        self.w_reach = np.minimum(distance, np.where(self.w_norm > 0, self.w_norm, self.h_reach))
        outputs = case.block(case.X)
        G = case.own.slope(np.zeros((1, *outputs.shape)))[0]
        self.G, felt = G, np.linalg.norm(G, axis=1)
        self.pull, self.push = max(map(abs, self.slopes)) * float(felt @ length[:, 0]), float(felt.sum())
        terms = felt @ np.linalg.norm(outputs.numpy(), axis=1)
        self.blur = BLUR * (abs(float(case.loss(outputs))) + float(terms)) + 1e-300
        self.biased = block.output_bias is not None
        b = None if block.output_bias is None else block.output_bias.numpy()
        plain = Problem(self.W, self.H, self.X, outputs.numpy() - G, self.slopes, b, "half_sum")
        self.escapes = escapes(point_of(plain), np.random.default_rng(0), 40)

    def drawn(self, rng: Rng, reach: Array) -> Moves:
        """Moves of all neurons or one, of one kind of weights more than the other, and of escapes."""
        (count, d), outs, batch = self.W.shape, len(self.H), len(reach)
        dW, dH = rng.standard_normal((batch, count, d)), rng.standard_normal((batch, outs, count))
        db = rng.standard_normal((batch, outs))
        db *= 10 ** rng.uniform(-4, 0, (batch, 1)) * (rng.random((batch, 1)) < 0.5)
        kind, small = rng.integers(6, size=batch), 10 ** rng.uniform(-6, 0, batch)
        one = np.where((kind == 0)[:, None], np.arange(count) == rng.integers(count, size=(batch, 1)), 1.0)
        dW *= (one * np.where(kind == 1, small, 1.0)[:, None])[:, :, None]
        dH *= (one * np.where(kind == 2, small, 1.0)[:, None])[:, None, :]
        if self.escapes:
            for row in np.flatnonzero(kind > 3):
                i, v, against = self._escape(rng)
                dW[row], dH[row], db[row] = 0.0, 0.0, 0.0
                dW[row, i], dH[row, :, i] = v, against
        return self.within((dW, dH, db), reach)

    def _escape(self, rng: Rng) -> tuple[int, Array, Array]:
        """A neuron along a direction that some output feels, its output weights against what that one feels."""
        i, v = self.escapes[int(rng.integers(len(self.escapes)))]
        along = self.X @ v
        side = np.where(self.Z[:, i] == 0, along, self.Z[:, i])
        pull = (np.where(side > 0, self.slopes[1], self.slopes[0]) * along) @ self.G
        return i, v, -(10 ** rng.uniform(-4, 0)) * pull / max(float(np.linalg.norm(pull)), 1e-300)

    def within(self, moves: Moves, reach: Array) -> Moves:
        """Moves cut to ``reach`` (B,) of the box."""
        dW, dH, db = moves
        over_w = np.maximum(_norm(dW, 2) / (reach[:, None] * self.w_reach), 1.0)
        over_h = np.maximum(_norm(dH, 1) / (reach[:, None] * self.h_reach), 1.0)
        over_b = np.maximum(_norm(db, 1) / reach, 1.0)
        return dW / over_w[:, :, None], dH / over_h[:, None, :], db / over_b[:, None] * self.biased

    def excess(self, moves: Moves) -> Array:
        """The fall of every move over its price, shape ``(B,)``, 0 where the loss rises on the way."""
        at_end = self._excess(moves)
        # A rise near the point, where slopes outweigh curvature, may end in a thousandth of the move, or far sooner.
        scales = np.geomspace(1e-6, 0.3, 12)
        for row in np.flatnonzero(at_end > 1):
            dW, dH, db = (part[row] for part in moves)
            shorter = (np.multiply.outer(scales, dW), np.multiply.outer(scales, dH), np.multiply.outer(scales, db))
            if self._rises((dW, dH, db)) or not self._excess(shorter).min() > -1e-3:
                at_end[row] = 0.0
        return at_end

    def _rises(self, move: tuple[Array, Array, Array]) -> bool:
        """Whether the loss rises to first order."""
        dW, dH, db = move
        dZ = self.X @ dW.T
        side = np.where(np.where(self.Z == 0, dZ, self.Z) > 0, self.slopes[1], self.slopes[0])
        first = (side * dZ) @ self.H.T + self.A @ dH.T + db
        slope = (self.G * first).sum() + self.case.mu * ((self.W * dW).sum() + (self.H * dH).sum())
        # Only input weights have slopes to one side: theirs are seen against their own terms.
        own = self.pull * float(np.linalg.norm(dW, axis=1) @ self.h_norm)
        return bool(slope > RISE * own + BLUR * self._price((dW[None], dH[None], db[None]))[0])

    def descended(self, moves: Moves, reach: Array, rounds: int) -> float:
        """The largest excess on the way of projected descents, every move at a pace of its own."""
        best, rate = np.zeros(len(reach)), np.full(len(reach), 0.3)
        w_size, h_size = self.w_reach[:, None], self.h_reach
        for _ in range(rounds):
            by_W, by_H, by_b = self._slopes(moves)
            by_W, by_H = w_size * by_W, h_size * by_H
            length = np.sqrt((by_W**2).sum((1, 2)) + (by_H**2).sum((1, 2)) + (by_b**2).sum(1))
            pace = rate * reach / np.where(length > 0, length, 1.0)
            dW = moves[0] - pace[:, None, None] * w_size * by_W
            dH = moves[1] - pace[:, None, None] * h_size * by_H
            moves = self.within((dW, dH, moves[2] - pace[:, None] * by_b), reach)
            excess = self.excess(moves)
            rate *= np.where(excess > best, 1.2, 0.7)
            best = np.maximum(best, excess)
            if best.max() > 1:
                break
        return float(best.max())

    def _moved(self, moves: Moves) -> tuple[Array, Array]:
        """Pre-activations after moves, ``(B, N, I)``, and what the outputs changed by, ``(B, N, J)``."""
        dW, dH, db = moves
        dZ = self.X @ np.swapaxes(dW, 1, 2)
        there = self.Z + dZ
        side = np.where(there > 0, self.slopes[1], self.slopes[0])
        risen = np.where((there > 0) == (self.Z > 0), side * dZ, side * there - self.A)
        return there, risen @ np.swapaxes(self.H + dH, 1, 2) + self.A @ np.swapaxes(dH, 1, 2) + db[:, None]

    def _slopes(self, moves: Moves) -> Moves:
        """The gradient of the loss after moves."""
        mu, (dW, dH, _) = self.case.mu, moves
        there, changed = self._moved(moves)
        G, H = self.case.own.slope(changed), self.H + dH
        side = np.where(there > 0, self.slopes[1], self.slopes[0])
        by_W = np.swapaxes(side * (G @ H), 1, 2) @ self.X + mu * (self.W + dW)
        return by_W, np.swapaxes(G, 1, 2) @ (side * there) + mu * H, G.sum(1)

    def _excess(self, moves: Moves) -> Array:
        """The fall of every move over its price."""
        dW, dH, _ = moves
        change = self.case.own.change(self._moved(moves)[1]).sum((1, 2))
        paid = ((2 * self.W + dW) * dW).sum((1, 2)) + ((2 * self.H + dH) * dH).sum((1, 2))
        # What overflows is no fall.
        change = np.nan_to_num(change + self.case.mu / 2 * paid, nan=np.inf)
        return np.asarray(-change / (PRICE * self._price(moves) + self.blur))

    def _price(self, moves: Moves) -> Array:
        """The terms that the changes of the loss are made of, to first order."""
        dW, dH, db = moves
        dw, dh, mu = _norm(dW, 2), _norm(dH, 1), self.case.mu
        price = self.pull * ((dw * _norm(self.H + dH, 1)).sum(1) + dh @ self.w_norm) + self.push * _norm(db, 1)
        price += mu * np.linalg.norm(self.w_norm) * np.linalg.norm(dw, axis=1)
        return np.asarray(price + mu * np.linalg.norm(self.h_norm) * np.linalg.norm(dh, axis=1))


def _norm(value: Array, axis: int) -> Array:
    return np.asarray(np.sqrt(np.square(value).sum(axis)))
