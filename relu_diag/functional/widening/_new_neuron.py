"""What a new neuron can achieve: the directions small neurons grow in, turned to where they lower the loss most.

Input weights ``v`` and output weights ``h`` change the outputs by ``a h^T`` with ``a = rho(X v)``. Where the curvature
``c`` of the loss is the same for all outputs, the best ``h`` is ``-D(v) / (c ||a||^2)``, and the loss drops by
``||D(v)||^2 / (2 c ||a||^2)``: of this merit nothing but ``c`` depends on the loss. Its maxima are not those of
``||D||``, which long samples draw towards them however little of the loss is theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import radial_directions, slopes_at
from relu_diag.functional.tolerances import FLOAT64


def promising_directions(extremal: Tensor, signal: BlockSignal, slopes: tuple[float, float], most: int) -> Tensor:
    """Input weights from which a new neuron achieves much.

    Args:
        extremal: Extremal directions, shape ``(M, d)``.
        signal: Inputs and loss gradients, float64.
        slopes: ``(s-, s+)``.
        most: How many of each kind.

    Returns:
        Unit vectors, shape ``(n, d)``: extremal directions; what they end at when turned, where that is worth it; and
        what others end at, if the best of them is better than all of these.
    """
    most = min(most, max(1, BUDGETS.search_numbers // len(signal.X)))
    extremal = _best(extremal, signal, slopes, most)
    if not len(extremal):
        return extremal
    starts = torch.cat([extremal, _best(_random_sides(signal.X, most), signal, slopes, most)])
    turned = _turned(starts, signal, slopes)
    before, merit = _merits(starts, signal, slopes), _merits(turned, signal, slopes)
    before[len(extremal) :] = merit[: len(extremal)].max()
    worth = merit > before * (1 + FLOAT64.still_worth)
    worth[len(extremal) :] &= merit[len(extremal) :] >= merit.max()
    offered = torch.cat([extremal, turned[worth]])
    return offered[_first_of_each(offered)]


def _random_sides(X: Tensor, most: int) -> Tensor:
    """Input weights that mix the samples, or choose a side for each as far as least squares go, shape ``(2 n, d)``."""
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(min(most, BUDGETS.starts), len(X), generator=draw, dtype=torch.float64).to(X) @ X
    return torch.cat([mixed, mixed @ torch.linalg.pinv(X.T @ X, hermitian=True)])


def _best(V: Tensor, signal: BlockSignal, slopes: tuple[float, float], most: int) -> Tensor:
    """Those of largest merit, as unit vectors, shape ``(n, d)``."""
    merit = _merits(V, signal, slopes)
    order = merit.argsort(descending=True, stable=True)[:most]
    return radial_directions(V[order[merit[order] > 0]])


def _first_of_each(V: Tensor) -> Tensor:
    """Whether no unit vector before is the same, of ``(n, d)``, bool, shape ``(n,)``."""
    close = (torch.cdist(V, V, compute_mode="donot_use_mm_for_euclid_dist") <= FLOAT64.same_maximum).tril(-1)
    repeated: Tensor = close.any(dim=1)
    return ~repeated


def _merits(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """``||D(v)||^2 / ||rho(X v)||^2`` of input weights ``(n, d)``, 0 where no sample is felt, shape ``(n,)``."""
    A = rho(V @ signal.X.T, slopes)
    size = A.square().sum(dim=1)
    return (A @ signal.G).square().sum(dim=1) / torch.where(size > 0, size, 1.0)


def _turned(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Unit input weights ``(n, d)`` turned uphill on the merit, each to where one more fit hardly helps."""
    P = radial_directions(V)
    merit = _merits(P, signal, slopes)
    for _ in range(BUDGETS.fits):
        P = _scaled(P, signal, slopes)
        step = _toward_fit(P, signal, slopes)
        best, best_merit = P, merit
        for halving in range(BUDGETS.fit_halvings):
            trial = P + step / 2**halving
            trial_merit = _merits(trial, signal, slopes)
            better = trial_merit > best_merit
            best = torch.where(better[:, None], trial, best)
            best_merit = torch.where(better, trial_merit, best_merit)
        rises = bool((best_merit > merit * (1 + FLOAT64.still_worth)).any())
        P, merit = best, best_merit
        if not rises:
            break
    return radial_directions(P)


def _scaled(P: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Input weights ``(n, d)`` as long as fits the residuals best, the output weights being of length 1."""
    A = rho(P @ signal.X.T, slopes)
    size = A.square().sum(dim=1)
    length: Tensor = (A @ signal.G).norm(dim=1) / torch.where(size > 0, size, 1.0)
    return P * length[:, None]


def _toward_fit(P: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Steps ``(n, d)`` to the least squares fit of the residuals that neurons had if no sample changed its side.

    Conjugate gradients on ``||r - s o (X p)||^2``, ``r`` what the output weights of the neuron feel.
    """
    Z = P @ signal.X.T
    S = slopes_at(Z, slopes)
    o = radial_directions((S * Z) @ signal.G)
    residual = o @ signal.G.T - S * Z
    total = torch.zeros_like(P)
    gradient = (S * residual) @ signal.X
    direction, norm = gradient, gradient.square().sum(dim=1)
    for _ in range(min(BUDGETS.fit_products, P.shape[1])):
        image = S * (direction @ signal.X.T)
        curvature = image.square().sum(dim=1)
        length = torch.where(curvature > 0, norm / torch.where(curvature > 0, curvature, 1.0), 0.0)[:, None]
        total = total + length * direction
        residual = residual - length * image
        gradient = (S * residual) @ signal.X
        before, norm = norm, gradient.square().sum(dim=1)
        direction = gradient + (norm / torch.where(before > 0, before, 1.0))[:, None] * direction
    return total
