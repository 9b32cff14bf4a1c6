"""Points of any loss, made from those of the squared error: the same gradient at the outputs, other curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag import ShallowBlock, Verdict
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

from .descent import escapes
from .first_order import point_of
from .problem import Array, Problem, outputs
from .starts import Rng, backward, integers, random_targets

KINK = 1e-10
# What a slope within the tolerance of a verdict may add up to, over the terms it is made of.
PRICE = 1e-7


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and a loss whose gradient at its outputs is that of a squared error, up to a factor."""

    block: ShallowBlock
    X: Tensor
    loss: Loss
    mu: float = 0.0

    def value(self, block: ShallowBlock) -> Tensor:
        """The loss, weight decay included."""
        return self.loss(block(self.X)) + self.mu / 2 * (block.W.square().sum() + block.H.square().sum())


Maker = Callable[[Rng, Array, Array], Loss]


def squared(rng: Rng, out: Array, E: Array) -> Loss:
    weight = 10 ** rng.uniform(-1, 1, E.shape if rng.random() < 0.5 else (len(E), 1))
    return F.SquaredError(tensor(out - E / (2 * weight)), "sum", tensor(weight))


def huber(rng: Rng, out: Array, E: Array) -> Loss:
    delta = float(np.abs(E).max() * rng.uniform(0.2, 1.5)) or 1.0
    weight = np.maximum(1.0, np.abs(E) / delta)
    beyond = np.abs(E) >= delta
    residual = np.where(beyond, np.sign(E) * delta * rng.uniform(1.01, 3, E.shape), E)
    return F.Huber(tensor(out - residual), delta, "sum", tensor(weight))


def absolute(rng: Rng, out: Array, E: Array) -> Loss:
    residual = np.sign(E) * rng.uniform(0.1, 2, E.shape)
    return F.AbsoluteError(tensor(out - residual), "sum", tensor(np.abs(E)))


def poisson(rng: Rng, out: Array, E: Array) -> Loss:
    size = float(np.abs(E).max()) or 1.0
    scale = 10 ** rng.uniform(-1, 1) / size
    return F.Poisson(tensor(np.exp(out) - scale * E), "sum").scaled(1 / scale)


def binary(rng: Rng, out: Array, E: Array) -> Loss:
    """Labels hard and soft; the weights make up for the difference."""
    p, q = 1 / (1 + np.exp(-out)), 1 / (1 + np.exp(out))
    share = np.where(rng.random(E.shape) < 0.5, 0.0, rng.uniform(0, 0.9, E.shape))
    Y = np.where(E > 0, p * share, np.where(E < 0, 1 - q * share, p))
    slope = np.where(E > 0, p * (1 - share), np.where(E < 0, q * (1 - share), 1.0))
    return F.BinaryCrossEntropy(tensor(Y), weight=tensor(np.where(E == 0, 1.0, np.abs(E) / slope)), reduction="sum")


def classes(rng: Rng, out: Array, E: Array) -> Loss:
    """Shares that are as near to labels as the gradient allows, or softer."""
    E = E - E.mean(axis=1, keepdims=True)
    p = np.exp(out - out.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    size = (E / p).max(axis=1, keepdims=True)
    weight = np.where(size > 0, size * np.where(rng.random(size.shape) < 0.5, 1.0, 3.0), 1.0)
    shares = np.maximum(p - E / weight, 0.0)
    return F.CrossEntropy(tensor(shares), reduction="sum", sample_weight=tensor(weight[:, 0]))


def log_cosh(rng: Rng, out: Array, E: Array) -> Loss:
    """A loss that nobody but its user knows."""
    size = float(np.abs(E).max() * rng.uniform(1.1, 3)) or 1.0
    Y = tensor(out - np.arctanh(E / size))
    return F.OutputLoss(lambda outputs: size * (outputs - Y).cosh().log().sum(), convex=True)


MAKERS: dict[str, Maker] = {
    "squared": squared,
    "huber": huber,
    "absolute": absolute,
    "poisson": poisson,
    "binary": binary,
    "classes": classes,
    "log cosh": log_cosh,
}


def case_of(name: str, seed: int, number: int) -> Case:
    """The same case for the same three; on half of them samples are on kinks, and all is stationary."""
    rng = np.random.default_rng([seed, sorted(MAKERS).index(name), number])
    zero_sums = name == "classes"
    problem = backward(rng, zero_sums)
    if rng.random() < 0.15:
        problem = integers(rng) if rng.random() < 0.5 else random_targets(rng)
        while zero_sums and len(problem.H) < 2:
            problem = random_targets(rng)
    return with_loss(rng, MAKERS[name], problem)


def decayed_case(name: str, seed: int, number: int) -> Case:
    """A stationary point under weight decay, samples on kinks and neurons without weights among the rest."""
    rng = np.random.default_rng([seed, sorted(MAKERS).index(name), number])
    E = None
    while E is None:
        d, count, J = int(rng.integers(2, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
        J = max(J, 2) if name == "classes" else J
        W, H = rng.standard_normal((count, d)), rng.standard_normal((J, count))
        size = rng.uniform(0.5, 1.5, count) * (rng.random(count) > 0.2)
        W *= (size / np.linalg.norm(W, axis=1))[:, None]
        H *= size / np.linalg.norm(H, axis=0)
        X = rng.standard_normal((count * (d + J) + int(rng.integers(1, 6)), d))
        if W[0].any() and rng.random() < 0.5:
            X[: d - 1] -= (X[: d - 1] @ W[0])[:, None] * W[0] / (W[0] @ W[0])
        mu = 10 ** rng.uniform(-1, 1)
        E = _decayed_gradient(rng, W, H, X, mu, name == "classes")
    out = np.maximum(X @ W.T, 0) @ H.T
    return Case(ShallowBlock(tensor(W), tensor(H)), tensor(X), MAKERS[name](rng, out, E), mu)


def _decayed_gradient(rng: Rng, W: Array, H: Array, X: Array, mu: float, zero_sums: bool) -> Array | None:
    """Loss gradients at the outputs that hold all weights against their decay, ``(N, J)``, kinks with a margin."""
    (samples, _), J = X.shape, len(H)
    rows, right = [], []
    signs = [np.zeros((0, samples * J))]
    for w, h in zip(W, H.T, strict=True):
        if not w.any():
            continue
        z = X @ w
        kink = np.abs(z) <= 1e-12 * np.linalg.norm(w) * np.linalg.norm(X, axis=1)
        slope = np.where(kink, rng.uniform(0.2, 0.8, samples), z > 0)
        rows += [np.kron((slope[:, None] * X).T, h[None]), np.kron((slope * ~kink * z)[None], np.eye(J))]
        right += [-mu * w, -mu * h]
        signs.append(np.kron(np.eye(samples)[kink], h[None]))
    if zero_sums:
        rows.append(np.kron(np.eye(samples), np.ones((1, J))))
        right.append(np.zeros(samples))
    if not rows:
        return mu * rng.standard_normal((samples, J)) if not zero_sums else None
    A, b = np.concatenate(rows), np.concatenate(right)
    E = np.linalg.lstsq(A, b, rcond=1e-10)[0]
    if np.abs(A @ E - b).max() > 1e-10:
        return None
    for _ in range(30):
        loose = rng.standard_normal(len(E))
        tried = E + rng.uniform(0, mu) * (loose - np.linalg.lstsq(A, A @ loose, rcond=1e-10)[0])
        if (np.concatenate(signs) @ tried > 1e-3).all():
            return np.asarray(tried.reshape(samples, J))
    return None


def with_loss(rng: Rng, maker: Maker, problem: Problem) -> Case:
    """A point of the squared error as one of another loss, outputs brought to where logits are."""
    out = np.asarray(outputs(problem), dtype=np.float64)
    E = out - problem.Y
    size = max(float(np.abs(out).max()) / 3, 1.0)
    H, b = problem.H / size, None if problem.b is None else tensor(problem.b / size)
    block = ShallowBlock(tensor(problem.W), tensor(H), problem.slopes, b)
    return Case(block, tensor(problem.X), maker(rng, out / size, E))


def complaints(case: Case, verdict: Verdict, rng: Rng) -> list[str]:
    """What is wrong with a verdict, by evaluations of the loss alone."""
    if verdict.kind in {"local minimum", "global minimum"}:
        excess = largest_excess(case, rng)
        return [f"{verdict.kind}, but the loss falls by {excess:.3g} tolerances"] if excess > 1 else []
    if verdict.kind not in {"saddle", "not stationary"}:
        return []
    if verdict.direction is None:
        return [] if "no minimum" in verdict.reason else [f"{verdict.kind} without a witness"]
    here = case.value(case.block)
    steps = torch.linspace(0, verdict.direction.step, 41, dtype=torch.float64)[1:].tolist()
    changes = [float(case.value(verdict.direction.applied_to(case.block, step)) - here) for step in steps]
    blur = 1e-13 * max(float(here.abs()), float(case.loss.gradient(case.block(case.X)).abs().sum()))
    said = []
    if not changes[-1] < 0:
        said.append(f"{verdict.kind}: the loss changes by {changes[-1]:.3g} along the witness")
    if abs(changes[-1] - verdict.direction.loss_change) > 0.02 * abs(changes[-1]) + 2 * blur:
        said.append(f"{verdict.kind}: fall {changes[-1]:.6g}, said to be {verdict.direction.loss_change:.6g}")
    if max(changes) > blur:
        said.append(f"{verdict.kind}: the loss rises by {max(changes):.3g} on the way")
    return said


def largest_excess(case: Case, rng: Rng, batch: int = 60, rounds: int = 40) -> float:
    """The largest fall that random and descended moves find, over what slopes of zero within the tolerance explain.

    The loss may not rise on the straight way there: further away, though before the next kink, it may well be lower.
    """
    box = _Box(case)
    worst = 0.0
    for reach in (0.3, 1e-2, 1e-4):
        moves = [box.drawn(rng, reach) for _ in range(batch)]
        ranked = sorted(((box.excess(move), number) for number, move in enumerate(moves)), reverse=True)
        worst = max(worst, ranked[0][0])
        for _, number in ranked[:3]:
            worst = max(worst, box.descended(moves[number], reach, rounds))
        if worst > 1:
            break
    return worst


Moved = tuple[Tensor, Tensor, Tensor]


class _Box:
    """The neighbourhood of a point up to the next kink, neurons balanced."""

    def __init__(self, case: Case) -> None:
        block = case.block
        self.case = case
        w, h = block.W.norm(dim=1), block.H.norm(dim=0)
        balance = torch.where((w > 0) & (h > 0), (h / torch.where(w > 0, w, 1.0)).sqrt(), 1.0)
        self.W, self.H = block.W * balance[:, None], block.H / balance
        Z, length = case.X @ self.W.T, case.X.norm(dim=1, keepdim=True)
        on = Z.abs() <= KINK * length * self.W.norm(dim=1)
        self.Z = torch.where(on, 0.0, Z)
        distance = torch.where(on, torch.inf, Z.abs() / length.clamp(min=1e-300)).amin(0)
        size = torch.where(self.H.norm(dim=0) > 0, self.H.norm(dim=0), 1.0)
        self.w_reach = torch.minimum(distance, torch.where(self.W.norm(dim=1) > 0, self.W.norm(dim=1), size))
        self.h_reach = size
        self.outputs = case.block(case.X)
        self.G = case.loss.gradient(self.outputs)
        self.A = self._rho(self.Z)
        self.w_norm, self.h_norm = self.W.norm(dim=1), self.H.norm(dim=0)
        self.pull = max(map(abs, block.slopes)) * float(self.G.norm(dim=1) @ case.X.norm(dim=1))
        self.push = float(self.G.norm(dim=1).sum())
        terms = self.G.norm(dim=1) @ self.outputs.norm(dim=1)
        self.blur = 1e-13 * (abs(float(case.loss(self.outputs))) + float(terms)) + 1e-300
        plain = [np.asarray(part) for part in (self.W, self.H, case.X, self.outputs - self.G)]
        bias = block.output_bias
        point = point_of(
            Problem(*plain, slopes=block.slopes, b=None if bias is None else np.asarray(bias), reduction="half_sum")
        )
        self.escapes = escapes(point, np.random.default_rng(0), 40)

    def drawn(self, rng: Rng, reach: float) -> Moved:
        dW, dH, db = (tensor(rng.standard_normal(part.shape)) for part in (self.W, self.H, self.H[:, 0]))
        choice = rng.integers(6)
        if choice > 3 and self.escapes:
            return self.within(self._escape(rng), reach)
        if choice == 0:
            one = tensor(np.arange(len(self.W)) == rng.integers(len(self.W)))
            dW, dH = dW * one[:, None], dH * one
        elif choice == 1:
            dW = dW * 10 ** rng.uniform(-6, 0)
        elif choice == 2:
            dH = dH * 10 ** rng.uniform(-6, 0)
        db = db * 10 ** rng.uniform(-4, 0) * (rng.random() < 0.5)
        return self.within((dW, dH, db), reach)

    def _escape(self, rng: Rng) -> Moved:
        """A neuron along a direction that some output feels, its output weights against what that one feels."""
        i, v = self.escapes[int(rng.integers(len(self.escapes)))]
        dW, dH, db = (torch.zeros_like(part) for part in (self.W, self.H, self.H[:, 0]))
        along = self.case.X @ tensor(v)
        slope = torch.where(self.Z[:, i] > 0, self.case.block.slopes[1], self.case.block.slopes[0])
        pull = torch.where(self.Z[:, i] == 0, self._rho(along), slope * along) @ self.G
        dW[i] = tensor(v)
        dH[:, i] = -(10 ** rng.uniform(-4, 0)) * pull / max(float(pull.norm()), 1e-300)
        return dW, dH, db

    def within(self, move: Moved, reach: float) -> Moved:
        dW, dH, db = move
        over_w = (dW.norm(dim=1) / (reach * self.w_reach)).clamp(min=1)
        over_h = (dH.norm(dim=0) / (reach * self.h_reach)).clamp(min=1)
        db = db * min(1.0, reach / max(float(db.norm()), 1e-300))
        return dW / over_w[:, None], dH / over_h, db * (self.case.block.output_bias is not None)

    def excess(self, move: Moved) -> float:
        """The fall at a move over its price, 0 where the loss rises on the way."""
        at_end = self._excess(move)
        # A rise near the point, where slopes outweigh curvature, may end in a thousandth of the move.
        scales = np.geomspace(1e-6, 0.3, 12) if at_end > 1 else ()
        shorter = [self._excess((t * move[0], t * move[1], t * move[2])) for t in scales]
        return at_end if min(shorter, default=0.0) > -1e-3 else 0.0

    def descended(self, move: Moved, reach: float, rounds: int) -> float:
        best, rate = 0.0, 0.3
        sizes = (self.w_reach[:, None], self.h_reach, torch.ones(()))
        for _ in range(rounds):
            scaled = tuple(size * slope for size, slope in zip(sizes, self._slopes(move), strict=True))
            length = float(torch.cat([part.flatten() for part in scaled]).norm())
            if length == 0:
                break
            pace = rate * reach / length
            dW, dH, db = (part - pace * size * slope for part, size, slope in zip(move, sizes, scaled, strict=True))
            move = self.within((dW, dH, db), reach)
            excess = self.excess(move)
            rate *= 1.2 if excess > best else 0.7
            best = max(best, excess)
        return best

    def _slopes(self, move: Moved) -> Moved:
        """The gradient of the loss after a move."""
        mu, X = self.case.mu, self.case.X
        Z = self.Z + X @ move[0].T
        W, H = self.W + move[0], self.H + move[1]
        A = self._rho(Z)
        G = self.case.loss.gradient(self.outputs + (A - self.A) @ H.T + self.A @ move[1].T + move[2])
        C = torch.where(Z > 0, self.case.block.slopes[1], self.case.block.slopes[0]) * (G @ H)
        return C.T @ X + mu * W, G.T @ A + mu * H, G.sum(0)

    def _excess(self, move: Moved) -> float:
        dW, dH, db = move
        there = self._rho(self.Z + self.case.X @ dW.T)
        moved = (there - self.A) @ (self.H + dH).T + self.A @ dH.T + db
        change = float(self.case.loss.change(self.outputs, moved))
        dw, dh = dW.norm(dim=1), dH.norm(dim=0)
        price = self.pull * (dw @ (self.H + dH).norm(dim=0) + self.w_norm @ dh) + self.push * db.norm()
        if self.case.mu:
            paid = ((2 * self.W + dW) * dW).sum() + ((2 * self.H + dH) * dH).sum()
            change += self.case.mu / 2 * float(paid)
            price += self.case.mu * (self.w_norm.norm() * dw.norm() + self.h_norm.norm() * dh.norm())
        return -change / (PRICE * float(price) + self.blur)

    def _rho(self, Z: Tensor) -> Tensor:
        s_minus, s_plus = self.case.block.slopes
        return torch.where(Z > 0, s_plus * Z, s_minus * Z)


def tensor(value: Array) -> Tensor:
    return torch.as_tensor(np.array(value, dtype=np.float64))
