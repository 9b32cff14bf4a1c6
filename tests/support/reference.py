"""Slow, obviously right definitions, independent of the package, and random problems with samples on kinks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from relu_diag import BlockSignal, ShallowBlock

Array = NDArray[np.float64]
SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (-0.5, 2.0), (1.0, 0.0), (2.0, -0.3), (0.0, -1.5)]


@dataclass(frozen=True)
class Problem:
    """A block, data with samples on its kinks, and a smooth loss of the outputs and the activations."""

    block: ShallowBlock
    X: Tensor
    Y: Tensor
    penalty: float = 0.0

    def loss(self, W: Tensor, H: Tensor) -> Tensor:
        """Squared loss plus a penalty on the activations, quadratic on each linear piece."""
        A = activation(self.X @ W.T, self.block.slopes)
        return 0.5 * (A @ H.T - self.Y).square().sum() + self.penalty * (A + 0.3 * A.square()).sum()

    @property
    def signal(self) -> BlockSignal:
        A = activation(self.X @ self.block.W.T, self.block.slopes)
        G = A @ self.block.H.T - self.Y
        C = G @ self.block.H + self.penalty * (1 + 0.6 * A)
        return BlockSignal(self.X, G, C if self.penalty else None)


def activation(Z: Tensor, slopes: tuple[float, float]) -> Tensor:
    return torch.where(Z >= 0, slopes[1] * Z, slopes[0] * Z)


def kinked_problem(
    seed: int,
    slopes: tuple[float, float] = (0.0, 1.0),
    d: int = 3,
    outputs: int = 1,
    neurons: int = 4,
    kinks: int = 2,
    penalty: float = 0.0,
) -> Problem:
    """Every neuron has ``kinks`` samples of its own on its kink (none where d = 1), among ten ordinary ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W, H = normal(neurons, d), normal(outputs, neurons)
    rows = [normal(10, d)]
    for w in W:
        if d > 1:
            rows.append(on_hyperplane(w, normal(kinks, d)))
    X = torch.cat(rows)
    return Problem(ShallowBlock(W, H, slopes), X, normal(len(X), outputs), penalty)


def on_hyperplane(w: Tensor, X: Tensor) -> Tensor:
    for _ in range(3):
        X = X - (X @ w)[:, None] * w / (w @ w)
    return X


def limit_derivative(loss: Callable[[Tensor], Tensor], W: Tensor, D: Tensor, step: float = 1e-4) -> float:
    """The one-sided derivative along ``D`` from three evaluated losses, exact where they are quadratic in the step.

    One Richardson step removes the quadratic term; rounding leaves about 1e-16 / step.
    """
    start = loss(W)
    whole, half = ((loss(W + t * D) - start) / t for t in (step, step / 2))
    return float(2 * half - whole)


def entered_derivative(block: ShallowBlock, signal: BlockSignal, i: int, D: Tensor, tol: float = 1e-10) -> float:
    """The one-sided derivative along ``D``, sample by sample: on the kink, the slope of the side that is entered."""
    s_minus, s_plus = block.slopes
    total = 0.0
    for k, x in enumerate(signal.X):
        z, dz = float(x @ block.W[i]), float(x @ D)
        if abs(z) <= tol * float(block.W[i].norm() * x.norm()):
            z = dz
        c = float(signal.G[k] @ block.H[:, i] if signal.C is None else signal.C[k, i])
        total += c * (s_plus if z > 0 else s_minus) * dz
    return total


def kink_samples(block: ShallowBlock, X: Tensor, i: int, tol: float = 1e-10) -> list[int]:
    reach = [tol * float(block.W[i].norm() * x.norm()) for x in X]
    return [k for k, x in enumerate(X) if x.any() and abs(float(x @ block.W[i])) <= reach[k]]


def tangent_basis(w: Tensor) -> Array:
    """Orthonormal rows that span the directions along which ``w`` moves tangentially: all of them where ``w = 0``."""
    if not w.any():
        return np.eye(len(w))
    _, _, rows = np.linalg.svd(w.numpy()[None])
    return rows[1:]


def steepest_by_sign_patterns(g: Array, q: Array, X: Array) -> float:
    """The minimum of ``g . v + sum q |x . v|`` over the unit ball, cone by cone of fixed signs.

    On the cone ``sigma_k x_k . v >= 0`` the function is linear, ``p . v``; its minimum over cone and ball is minus the
    length of the projection of ``-p`` on the cone, a nonnegative least squares (Moreau).
    """
    best = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=len(q)):
        walls = np.array(signs)[:, None] * X
        p = g + (np.array(signs) * q) @ X
        multipliers, _ = nnls(walls.T, p) if len(q) else (np.zeros(0), 0.0)
        best = min(best, -float(np.linalg.norm(p - walls.T @ multipliers)))
    return best


def steepest_by_sweep(slope: Callable[[Array], Array], turns: int = 200_000) -> float:
    """The minimum of a function on the unit circle by a dense sweep; error below slope scale x (2 pi / turns)^2."""
    angle = np.linspace(0, 2 * np.pi, turns, endpoint=False)
    return min(0.0, float(slope(np.stack([np.cos(angle), np.sin(angle)], axis=1)).min()))


def states_by_definition(block: ShallowBlock, X: Tensor, tol: float = 1e-10) -> list[str]:
    """ "dead", "brink", "linear" or "" for each neuron, sample by sample; samples x = 0 do not count."""
    s_minus, s_plus = block.slopes
    found = []
    for i in range(len(block.W)):
        kinks = kink_samples(block, X, i, tol)
        sides = [
            0 if k in kinks else (1 if float(x @ block.W[i]) > 0 else -1) for k, x in enumerate(X) if bool(x.any())
        ]
        slope = [{1: s_plus, -1: s_minus, 0: 0.0}[side] for side in sides]
        if all(side != 0 and s == 0 for side, s in zip(sides, slope, strict=True)):
            found.append("dead")
        elif all(s == 0 for s in slope):  # no activation anywhere, and some sample is on the kink
            found.append("brink")
        elif len(set(sides)) == 1:
            found.append("linear")
        else:
            found.append("")
    return found


def groups_by_union_find(W: Tensor, angle: float) -> list[int]:
    """Connected components of "directions differ by at most the angle", pair by pair."""
    parent = list(range(len(W)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    U = (W / W.norm(dim=1, keepdim=True)).tolist()
    for i, j in itertools.combinations(range(len(U)), 2):
        chord = sum((a - b) ** 2 for a, b in zip(U[i], U[j], strict=True)) ** 0.5
        if 2 * np.arcsin(min(chord / 2, 1.0)) <= angle:
            parent[root(i)] = root(j)
    return [root(i) for i in range(len(U))]


def same_partition(one: list[int], other: list[int]) -> bool:
    pairs = set(zip(one, other, strict=True))
    return len(pairs) == len(set(one)) == len(set(other))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Problems of all small sizes, with and without kinks and a penalty."""
    return kinked_problem(
        seed=draw(st.integers(0, 10_000)),
        slopes=draw(st.sampled_from(SLOPES)),
        d=draw(st.integers(1, 4)),
        outputs=draw(st.integers(1, 3)),
        neurons=draw(st.integers(1, 4)),
        kinks=draw(st.integers(0, 3)),
        penalty=draw(st.sampled_from([0.0, 0.7])),
    )
