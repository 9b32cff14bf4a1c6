"""Small networks in training: polished to an exact minimum, or with the stationary point near them found by force."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from relu_diag import ShallowBlock
from relu_diag import functional as F

Array = NDArray[np.float64]
SLOPES = [(0.0, 1.0), (0.0, 1.0), (0.01, 1.0), (0.2, 1.0), (-0.5, 1.0)]
REACH = 0.5
MINIMA = {"local minimum", "global minimum"}


@dataclass
class Problem:
    """A network and its data; the loss is half the squared error."""

    X: Array
    Y: Array
    W: Array
    H: Array
    b: Array
    slopes: tuple[float, float]
    biased: bool

    @property
    def block(self) -> ShallowBlock:
        bias = torch.as_tensor(self.b) if self.biased else None
        return ShallowBlock(torch.as_tensor(self.W), torch.as_tensor(self.H), self.slopes, bias)

    @property
    def data(self) -> tuple[torch.Tensor, torch.Tensor, str]:
        return torch.as_tensor(self.X), torch.as_tensor(self.Y), "half_sum"

    def slope(self, Z: Array) -> Array:
        return np.where(Z > 0, self.slopes[1], self.slopes[0])


def draw_problem(seed: int, small: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    d, N, width, J = (int(rng.integers(low, high)) for low, high in ((1, 5), (3, 13), (2, 9), (1, 3)))
    if small:
        d, N, width, J = 2, int(rng.integers(3, 7)), int(rng.integers(1, 4)), 1
    X = rng.standard_normal((N, d))
    if d > 1 and rng.random() < 0.5:
        X[:, -1] = 1.0
    slopes = SLOPES[rng.integers(len(SLOPES))]
    Y = rng.standard_normal((N, J))
    scale = rng.choice([1e-3, 0.1, 1.0])
    W, H = scale * rng.standard_normal((width, d)), scale * rng.standard_normal((J, width))
    return Problem(X, Y, W, H, np.zeros(J), slopes, bool(rng.random() < 0.3))


def descend(p: Problem, steps: int) -> None:
    """Gradient descent in place, the rate as large as the data and weights allow."""
    for _ in range(steps):
        Z = p.X @ p.W.T
        S = p.slope(Z)
        A = S * Z
        E = A @ p.H.T + p.b - p.Y
        dW, dH = (S * (E @ p.H)).T @ p.X, E.T @ A
        size = np.square(p.X).sum() * (np.square(p.W).sum() + np.square(p.H).sum()) + p.biased * len(p.X)
        rate = 0.5 / (size + np.abs(E).sum() * np.abs(p.X).max())
        p.W -= rate * dW
        p.H -= rate * dH
        p.b -= rate * p.biased * E.sum(0)


def polish(p: Problem, kinks: NDArray[np.bool_], steps: int = 60) -> bool:
    """Damped Newton to a zero of the gradient at fixed signs, the weights held on the kinks; whether it got there."""
    W0, H0, b0 = p.W.copy(), p.H.copy(), p.b.copy()
    projections = []
    for i in range(len(p.W)):
        rows = p.X[kinks[:, i]]
        projections.append(np.eye(p.X.shape[1]) - np.linalg.pinv(rows) @ rows if len(rows) else np.eye(p.X.shape[1]))
        p.W[i] = projections[i] @ p.W[i]
    sides = np.where(kinks, 0.0, p.slope(p.X @ p.W.T))
    width, d = p.W.shape
    J = len(p.H)
    first = np.einsum("ki,kd,ide->kie", sides, p.X, np.array(projections))  # activation by free input weights
    for _ in range(steps):
        A = sides * (p.X @ p.W.T)
        E = A @ p.H.T + p.b - p.Y
        jac = []
        for j in range(J):
            by_input = np.einsum("i,kie->kie", p.H[j], first).reshape(len(p.X), -1)
            by_output = [A if other == j else 0 * A for other in range(J)]
            by_bias = [np.full((len(p.X), 1), float(p.biased and other == j)) for other in range(J)]
            jac.append(np.concatenate([by_input, *by_output, *by_bias], axis=1))
        gradient = sum(jac[j].T @ E[:, j] for j in range(J))
        hessian = sum(jac[j].T @ jac[j] for j in range(J))
        for j in range(J):
            cross = np.einsum("k,kie->ie", E[:, j], first)
            for i in range(width):
                rows, column = slice(i * d, i * d + d), width * d + j * width + i
                hessian[rows, column] += cross[i]
                hessian[column, rows] += cross[i]
        values, vectors = np.linalg.eigh(hessian)
        keep = np.abs(values) > 1e-10 * np.abs(values).max(initial=1e-300)
        step = -vectors[:, keep] @ ((vectors[:, keep].T @ gradient) / np.abs(values[keep]))
        size = min(1.0, 0.3 * np.sqrt(np.square(p.W).sum() + np.square(p.H).sum()) / (np.linalg.norm(step) + 1e-300))
        dW, dH, db = np.split(size * step, [width * d, width * d + J * width])
        p.W += np.einsum("ide,ie->id", np.array(projections), dW.reshape(width, d))
        p.H += dH.reshape(J, width)
        p.b += db
        if np.linalg.norm(step) < 1e-15 * np.sqrt(np.square(p.W).sum() + np.square(p.H).sum()):
            break
    held = np.where(kinks, 0.0, p.slope(p.X @ p.W.T))
    if np.array_equal(held, sides) and np.isfinite(p.W).all() and np.abs(p.W).max() < 1e3:
        return True
    p.W, p.H, p.b = W0, H0, b0
    return False


def cosines(p: Problem) -> Array:
    length = np.linalg.norm(p.X, axis=1)[:, None] * np.linalg.norm(p.W, axis=1)
    return p.X @ p.W.T / np.where(length > 0, length, 1.0)


def exact_minimum(seed: int) -> Problem | None:
    """A trained network polished to rounding, if that is a minimum."""
    p = draw_problem(seed)
    for _ in range(6):
        descend(p, 1500)
        near = np.abs(cosines(p)) < 1e-2
        for kinks in (np.zeros_like(near), near):
            if polish(p, kinks) and F.classify(p.block, *p.data).kind in MINIMA:
                return p
    return None


def strata_of(p: Problem, i: int) -> list[NDArray[np.int8] | None]:
    """Signs of one neuron in two dimensions: zero (None), and every cell and kink within 0.5 rad of where it is."""
    angle = np.arctan2(p.W[i, 1], p.W[i, 0])
    kinks = [a + s * np.pi / 2 for a in np.arctan2(p.X[:, 1], p.X[:, 0]) for s in (1, -1)]
    near = sorted({round(float((k - angle + np.pi) % (2 * np.pi) - np.pi), 14) for k in kinks})
    edges = [near[-1] - 2 * np.pi, *near, near[0] + 2 * np.pi]
    cells = [(a + b) / 2 for a, b in itertools.pairwise(edges) if a <= REACH and b >= -REACH and b - a > 1e-9]
    found: list[NDArray[np.int8] | None] = [None]
    for turn in cells + [k for k in near if abs(k) <= REACH]:
        v = np.array([np.cos(angle + turn), np.sin(angle + turn)])
        cosine = p.X @ v / np.linalg.norm(p.X, axis=1)
        found.append(np.where(np.abs(cosine) < 1e-9, 0, np.sign(cosine)).astype(np.int8))
    return found


def nearest_by_force(p: Problem) -> tuple[float, str]:
    """Distance and kind of the nearest stationary point of all strata, one output in two dimensions."""
    best = (np.inf, "none")
    R0 = p.H[0, :, None] * p.W
    size = np.linalg.norm(R0, axis=1)
    points = []
    for signs in itertools.product(*(strata_of(p, i) for i in range(len(p.W)))):
        kept = [i for i, sign in enumerate(signs) if sign is not None]
        columns, bases = [], []
        for i in kept:
            sign = signs[i]
            kink = p.X[sign == 0]
            basis = np.eye(2) if not len(kink) else np.array([[-kink[0, 1]], [kink[0, 0]]]) / np.linalg.norm(kink[0])
            slope = np.where(sign > 0, p.slopes[1], np.where(sign < 0, p.slopes[0], 0.0))
            columns.append(np.sqrt(size[i]) * slope[:, None] * (p.X @ basis))
            bases.append(basis)
        A = np.hstack([*columns, np.ones((len(p.X), int(p.biased)))])
        start = np.concatenate([
            *(b.T @ R0[i] / np.sqrt(size[i]) for i, b in zip(kept, bases, strict=True)),
            p.b[: p.biased],
        ])
        if not A.shape[1]:
            continue
        solution = start + np.linalg.lstsq(A, p.Y[:, 0] - A @ start, rcond=1e-12)[0]
        W, H, place = np.zeros_like(p.W), np.zeros_like(p.H), 0
        holds = True
        for i, basis in zip(kept, bases, strict=True):
            R = np.sqrt(size[i]) * basis @ solution[place : place + basis.shape[1]]
            place += basis.shape[1]
            balance = np.square(p.W[i]).sum() - p.H[0, i] ** 2
            h2 = (np.sqrt(balance**2 + 4 * R @ R) - balance) / 2
            if h2 <= 1e-12:
                holds = False
                break
            H[0, i] = np.copysign(np.sqrt(h2), p.H[0, i])
            W[i] = R / H[0, i]
            cosine = p.X @ W[i] / (np.linalg.norm(p.X, axis=1) * np.linalg.norm(W[i]))
            holds &= np.array_equal(np.where(np.abs(cosine) < 1e-9, 0, np.sign(cosine)), signs[i])
        if holds:
            b = solution[place:] if p.biased else p.b
            points.append((
                float(np.sqrt(np.square(W - p.W).sum() + np.square(H - p.H).sum() + np.square(b - p.b).sum())),
                W,
                H,
                b,
            ))
    for distance, W, H, b in sorted(points, key=lambda point: point[0]):
        kind = F.classify(Problem(p.X, p.Y, W, H, b, p.slopes, p.biased).block, *p.data).kind
        if kind not in {"not stationary", "undecided"}:
            best = (distance, kind)
            break
    return best
