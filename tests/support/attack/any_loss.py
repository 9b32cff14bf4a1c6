"""Points of any loss, made from those of the squared error: the same gradient at the outputs, other curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

from . import own_losses
from .own_losses import OwnLoss
from .problem import Array, Problem, outputs
from .starts import Rng, backward, integers, random_targets

KINK = 1e-10


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and a loss, whose gradient at its outputs is that of a squared error, in two forms."""

    block: ShallowBlock
    X: Tensor
    loss: Loss
    own: OwnLoss
    mu: float = 0.0

    def value(self, block: ShallowBlock) -> Tensor:
        """The loss, weight decay included."""
        return self.loss(block(self.X)) + self.mu / 2 * (block.W.square().sum() + block.H.square().sum())


Maker = Callable[[Rng, Array, Array], tuple[Loss, OwnLoss]]


def squared(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    weight = 10 ** rng.uniform(-1, 1, E.shape if rng.random() < 0.5 else (len(E), 1))
    residual = E / (2 * weight)
    return F.SquaredError(tensor(out - residual), "sum", tensor(weight)), own_losses.squared(residual, weight)


def huber(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    delta = float(np.abs(E).max() * rng.uniform(0.2, 1.5)) or 1.0
    weight = np.maximum(1.0, np.abs(E) / delta)
    beyond = np.abs(E) >= delta
    residual = np.where(beyond, np.sign(E) * delta * rng.uniform(1.01, 3, E.shape), E)
    loss = F.Huber(tensor(out - residual), delta, "sum", tensor(weight))
    return loss, own_losses.huber(residual, weight, delta)


def absolute(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    residual = np.sign(E) * rng.uniform(0.1, 2, E.shape)
    loss = F.AbsoluteError(tensor(out - residual), "sum", tensor(np.abs(E)))
    return loss, own_losses.absolute(residual, np.abs(E))


def met(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    """Absolute errors, half of them met exactly: any slope between minus and plus their weight is a gradient there."""
    there = rng.random(E.shape) < 0.5
    residual = np.where(there, 0.0, np.sign(E) * rng.uniform(0.1, 2, E.shape))
    weight = np.abs(E) * np.where(there, rng.uniform(1.0, 3.0, E.shape), 1.0)
    loss = F.AbsoluteError(tensor(out - residual), "sum", tensor(weight))
    return loss, own_losses.absolute(residual, weight)


def poisson(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    size = float(np.abs(E).max()) or 1.0
    scale = 10 ** rng.uniform(-1, 1) / size
    loss = F.Poisson(tensor(np.exp(out) - scale * E), "sum").scaled(1 / scale)
    return loss, own_losses.poisson(out, E, scale)


def binary(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    """Labels hard and soft; the weights make up for the difference."""
    p, q = 1 / (1 + np.exp(-out)), 1 / (1 + np.exp(out))
    share = np.where(rng.random(E.shape) < 0.5, 0.0, rng.uniform(0, 0.9, E.shape))
    Y = np.where(E > 0, p * share, np.where(E < 0, 1 - q * share, p))
    slope = np.where(E > 0, p * (1 - share), np.where(E < 0, q * (1 - share), 1.0))
    weight = np.where(E == 0, 1.0, np.abs(E) / slope)
    loss = F.BinaryCrossEntropy(tensor(Y), weight=tensor(weight), reduction="sum")
    return loss, own_losses.binary(out, Y, weight)


def classes(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    """Shares that are as near to labels as the gradient allows, or softer."""
    E = E - E.mean(axis=1, keepdims=True)
    p = np.exp(out - out.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    size = (E / p).max(axis=1, keepdims=True)
    weight = np.where(size > 0, size * np.where(rng.random(size.shape) < 0.5, 1.0, 3.0), 1.0)
    shares = np.maximum(p - E / weight, 0.0)
    loss = F.CrossEntropy(tensor(shares), reduction="sum", sample_weight=tensor(weight[:, 0]))
    return loss, own_losses.classes(out, shares, weight)


def log_cosh(rng: Rng, out: Array, E: Array) -> tuple[Loss, OwnLoss]:
    """A loss that only its user knows."""
    size = float(np.abs(E).max() * rng.uniform(1.1, 3)) or 1.0
    u = np.arctanh(E / size)
    Y = tensor(out - u)
    loss = F.OutputLoss(lambda outputs: size * (outputs - Y).cosh().log().sum(), convex=True)
    return loss, own_losses.log_cosh(u, size)


MAKERS: dict[str, Maker] = {
    "squared": squared,
    "huber": huber,
    "absolute": absolute,
    "poisson": poisson,
    "binary": binary,
    "classes": classes,
    "log cosh": log_cosh,
}
# Points at which the gradient of the loss is not the one at hand: fewer of them are decided.
KINKED: dict[str, Maker] = {"targets met": met}
_EVERY = {**{name: MAKERS[name] for name in sorted(MAKERS)}, **KINKED}


def case_of(name: str, seed: int, number: int) -> Case:
    """The same case for the same three; on half of them samples are on kinks, and all is stationary."""
    rng = np.random.default_rng([seed, list(_EVERY).index(name), number])
    zero_sums = name == "classes"
    problem = backward(rng, zero_sums)
    if rng.random() < 0.15:
        problem = integers(rng) if rng.random() < 0.5 else random_targets(rng)
        while zero_sums and len(problem.H) < 2:
            problem = random_targets(rng)
    return with_loss(rng, _EVERY[name], problem)


def decayed_case(name: str, seed: int, number: int) -> Case:
    """A stationary point under weight decay, samples on kinks and neurons without weights among the rest."""
    rng = np.random.default_rng([seed, list(_EVERY).index(name), number])
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
    return Case(ShallowBlock(tensor(W), tensor(H)), tensor(X), *_EVERY[name](rng, out, E), mu)


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
    return Case(block, tensor(problem.X), *maker(rng, out / size, E))


def tensor(value: Array) -> Tensor:
    return torch.as_tensor(np.array(value, dtype=np.float64))
