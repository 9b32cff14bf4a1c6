"""Input weights that new neurons may have, many of each kind, among which a greedy choice is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import radial_directions, slopes_at, tangential_part


def has_constant(X: Tensor) -> bool:
    """Whether the last of the inputs ``(N, d)`` is constant and not zero, so that a neuron has a bias."""
    return bool(X[0, -1] != 0) and bool((X[:, -1] == X[0, -1]).all())


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """What candidates are made from.

    Attributes:
        block: The network.
        signal: Some of its inputs, and the loss gradients there.
        biased: Whether the last column of the inputs is constant, so that a neuron has a bias.
        draw: Source of random numbers, on the CPU.
    """

    block: ShallowBlock
    signal: BlockSignal
    biased: bool
    draw: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64).to(self.signal.X)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers between 0 and 1."""
        return torch.rand(*shape, generator=self.draw, dtype=torch.float64).to(self.signal.X)

    def chosen(self, weight: Tensor, count: int) -> Tensor:
        """Indices drawn in proportion to some weights, the same one more than once."""
        total = weight.detach().double().cpu()
        if not bool(total.sum() > 0):
            total = torch.ones_like(total)
        return torch.multinomial(total, count, replacement=True, generator=self.draw).to(weight.device)


def random_units(situation: Situation, count: int) -> Tensor:
    """Units as torch's Linear draws them, bias included, shape ``(count, d)``."""
    return 2 * situation.uniform(count, situation.signal.X.shape[1]) - 1


def units_between_samples(situation: Situation, count: int) -> Tensor:
    """Units that tell two samples apart whose loss gradients differ, the kink between the two, shape ``(count, d)``.

    Pairs are drawn in proportion to the difference of the gradients over that of the inputs.
    """
    X, G = situation.signal.X, situation.signal.G
    one = situation.chosen(G.norm(dim=1), BUDGETS.pairs_for_one * count)
    other = situation.chosen(torch.ones_like(G[:, 0]), BUDGETS.pairs_for_one * count)
    apart = (X[one] - X[other]).norm(dim=1)
    steep = (G[one] - G[other]).norm(dim=1) / torch.where(apart > 0, apart, math.inf)
    pair = situation.chosen(steep, count)
    across = X[one[pair]] - X[other[pair]]
    if not situation.biased:
        return across
    part = situation.uniform(count, 1)
    between = part * X[one[pair]] + (1 - part) * X[other[pair]]
    across[:, -1] = -(across * between).sum(dim=1) / X[0, -1]
    return across


def extremal_units(situation: Situation, count: int) -> Tensor:
    """Other units turned uphill on ``||D||`` by a few steps, shape ``(count, d)``."""
    signal, slopes = situation.signal, situation.block.slopes
    half = count // 2
    V = torch.cat([random_units(situation, half), units_between_samples(situation, count - half)])
    for _ in range(BUDGETS.uphill_steps):
        Z = V @ signal.X.T
        D = rho(Z, slopes) @ signal.G
        V = radial_directions((slopes_at(Z, slopes) * (radial_directions(D) @ signal.G.T)) @ signal.X)
    return V


def steepest_units(situation: Situation, count: int) -> Tensor:
    """Units whose weights feel the largest gradient, as GradMax places them, behind half of the samples.

    For a random half-space of samples the strongest right singular vectors of ``sum_k e_k x_k^T``, both signs, shape
    ``(n, d)`` with ``n`` near ``count``.

    Source: Evci et al. 2022.
    """
    X, G = situation.signal.X, situation.signal.G
    most = min(*G.shape, X.shape[1], BUDGETS.singular_vectors)
    sides = random_units(situation, max(1, count // (2 * most)))
    within = (X @ sides.T > 0).to(G).T[:, :, None]
    if min(G.shape[1], X.shape[1]) <= BUDGETS.dense_singular:
        found = _right_vectors(G.T @ (within * X) if X.shape[1] < G.shape[1] else (within * G).mT @ X, most)
    else:
        found = _near_right_vectors(X, within, G, most)
    length = found.norm(dim=2, keepdim=True)
    # Where fewer are felt than are looked for, the rest are rounding: the side itself stands for them.
    felt = length > torch.finfo(found.dtype).eps ** 0.5 * length.max()
    V = torch.where(felt, found, sides[:, None]).flatten(0, 1)
    return torch.cat([V, -V])


def _right_vectors(M: Tensor, most: int) -> Tensor:
    """The strongest right singular vectors of matrices ``(S, J, d)``, of any length, ``(S, most, d)``."""
    is_tall = M.shape[1] > M.shape[2]
    _, vectors = torch.linalg.eigh(M.mT @ M if is_tall else M @ M.mT)
    strongest: Tensor = vectors[:, :, -most:].mT
    return strongest if is_tall else strongest @ M


def _near_right_vectors(X: Tensor, within: Tensor, G: Tensor, most: int) -> Tensor:
    """Nearly those of ``G^T diag(within) X`` for some sides ``(S, N, 1)``, which is never written down."""
    draw = torch.Generator().manual_seed(0)
    V = torch.randn(X.shape[1], 2 * most, generator=draw, dtype=torch.float64).to(X).expand(len(within), -1, -1)
    for _ in range(BUDGETS.singular_steps):
        U = _orthonormal(_all_at_once(G.T, within * _all_at_once(X, V)))
        V = _orthonormal(_all_at_once(X.T, within * _all_at_once(G, U)))
    U = _orthonormal(_all_at_once(G.T, within * _all_at_once(X, V)))
    return _right_vectors(_all_at_once(X.T, within * _all_at_once(G, U)).mT, most)


def _all_at_once(M: Tensor, columns: Tensor) -> Tensor:
    """The product of a matrix ``(m, n)`` with matrices of few columns ``(S, n, k)``, as one product, ``(S, m, k)``."""
    sides, _, count = columns.shape
    product: Tensor = M @ columns.transpose(0, 1).reshape(M.shape[1], -1)
    return product.view(len(M), sides, count).transpose(0, 1)


def _orthonormal(U: Tensor) -> Tensor:
    """Columns of matrices ``(S, n, k)``, fewer than rows, made orthonormal; those that rounding makes become zero."""
    values, vectors = torch.linalg.eigh(U.mT @ U)
    least = U.shape[2] * torch.finfo(U.dtype).eps * values[:, -1:]
    found: Tensor = U @ (vectors * torch.where(values > least, values.clamp(min=0).rsqrt(), 0.0)[:, None])
    return found


def turned_copies(situation: Situation, count: int) -> Tensor:
    """Copies of living neurons turned across the kinks near them, along or against their slope, shape ``(count, d)``.

    Without a slope, as at a point where training has ended, in a random direction.
    """
    block, signal = situation.block, situation.signal
    unit = situation.chosen(block.W.norm(dim=1) * block.H.norm(dim=0), count)
    distinct, place = torch.unique(unit, return_inverse=True)
    W = radial_directions(block.W[distinct])
    C = signal.G @ block.H[:, distinct]
    slope = (slopes_at(W @ signal.X.T, block.slopes) * C.T) @ signal.X
    along = radial_directions(tangential_part(W, slope))[place]
    aside = radial_directions(tangential_part(W[place], situation.normal(*along.shape)))
    mixed = radial_directions(along + situation.uniform(count, 1) * aside)
    angle = math.pi / 4 * (2 * situation.uniform(count, 1) - 1)
    return angle.cos() * W[place] + angle.sin() * mixed


POOLS: dict[str, Callable[[Situation, int], Tensor]] = {
    "random": random_units,
    "between samples": units_between_samples,
    "extremal": extremal_units,
    "GradMax": steepest_units,
    "copies": turned_copies,
}
