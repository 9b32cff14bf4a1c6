"""Steepest ascent of ``||D(v)||`` over the unit sphere, ``D_j(v) = sum_k e_kj rho(v . x_k)``, many starts at once.

A neuron with input weights ``v`` and output weights ``o = -D(v) / ||D(v)||`` sees the loss fall where ``||D||`` rises:
with few samples its steepest one-sided descent leads, along kinks, to the maximum itself. With many samples kinks are
dense and every climb would be short; damped steps ``v <- normalise((1 - t) v + t M^T D)`` come near the maxima.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relu_diag.functional._arrays import row_space
from relu_diag.functional.block import BlockSignal, ShallowBlock, chunk_rows, rho
from relu_diag.functional.local import neuron_geometry, radial_directions, slopes_at, tangential_part
from relu_diag.functional.tolerances import BUDGETS, FLOAT64, kink_tolerance

Pieces = list[tuple[Tensor, Tensor]]


def pieces(signal: BlockSignal, neurons: int) -> Pieces:
    """The samples in pieces small enough that their activations for some neurons fit into memory.

    Args:
        signal: Inputs and loss gradients.
        neurons: Number of neurons at once.

    Returns:
        Inputs and loss gradients, piece by piece.
    """
    W = signal.X.new_empty(neurons, signal.X.shape[1], device="meta")
    rows = chunk_rows(ShallowBlock(W, W[:, :1].T))
    return list(zip(torch.split(signal.X, rows), torch.split(signal.G, rows), strict=True))


def pull(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """The derivatives of the loss per unit of output weight of neurons with given input weights.

    Args:
        V: Input weights, shape ``(n, d)``.
        signal: Inputs and loss gradients.
        slopes: ``(s-, s+)``.

    Returns:
        ``D(v)``, shape ``(n, J)``.
    """
    total = V.new_zeros(len(V), signal.G.shape[1])
    for X, G in pieces(signal, max(len(V), 1)):
        total += rho(V @ X.T, slopes) @ G
    return total


def ascend(starts: Tensor, others: Tensor, signal: BlockSignal, slopes: tuple[float, float], loud: float) -> Tensor:
    """The local maxima of ``||D(v)||`` that ascents reach.

    With at most 32 samples exact ascents, from ``others`` after damped ones have brought them together, which is much
    cheaper and may leave the sector that a start is in. With more samples damped ones only: then the maxima are right
    to about 1e-3 rad, and one stands for all those within 0.05 rad.

    Args:
        starts: Directions, any length, shape ``(n, d)``.
        others: More of them, shape ``(m, d)``.
        signal: Inputs and loss gradients, float64.
        slopes: ``(s-, s+)``.
        loud: Largest ``||D||`` that counts as zero.

    Returns:
        Distinct maxima, unit vectors, shape ``(M, d)``.
    """
    starts, others = (_felt(_distinct(radial_directions(some)), signal, slopes, loud) for some in (starts, others))
    dense = len(signal.X) > BUDGETS.few_samples
    V = _near_maxima(torch.cat([starts, others]) if dense else others, signal, slopes)
    V = _distinct(V[pull(V, signal, slopes).norm(dim=1).argsort(descending=True)], FLOAT64.seen_as_one)
    return V if dense else climb_to_maxima(torch.cat([starts, V]), signal, slopes)


def _felt(V: Tensor, signal: BlockSignal, slopes: tuple[float, float], loud: float) -> Tensor:
    """The directions with a pull, shape ``(n, d)``."""
    return V[pull(V, signal, slopes).norm(dim=1) > loud]


def _near_maxima(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Where damped steps end: twice as long after one that goes up, half as long after one that does not."""
    arrived, damping = [V[:0]], V.new_ones(len(V))
    height, ahead = _uphill(V, signal, slopes)
    for _ in range(BUDGETS.damped_steps):
        on = (damping > FLOAT64.smallest_damping) & ((ahead - V).norm(dim=1) > FLOAT64.same_maximum)
        arrived.append(V[~on])
        V, ahead, height, damping = V[on], ahead[on], height[on], damping[on]
        trial = radial_directions(V + damping[:, None] * (ahead - V))
        trial_height, trial_ahead = _uphill(trial, signal, slopes)
        up = trial_height > height * (1 + FLOAT64.level)
        V, ahead = torch.where(up[:, None], trial, V), torch.where(up[:, None], trial_ahead, ahead)
        height = torch.where(up, trial_height, height)
        damping = torch.where(up, (2 * damping).clamp(max=1), damping / 2)
    return torch.cat([*arrived, V])


def _uphill(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """``||D||``, and the unit direction of ``M^T D``."""
    D, ahead = pull(V, signal, slopes), torch.zeros_like(V)
    for X, G in pieces(signal, max(len(V), 1)):
        ahead += (slopes_at(V @ X.T, slopes) * (D @ G.T)) @ X
    return D.norm(dim=1), radial_directions(ahead)


def climb_to_maxima(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """The maxima that steepest ascent reaches, each climb to the highest point of its arc or to the first kink before.

    Args:
        V: Unit vectors with ``D != 0``, shape ``(n, d)``.
        signal: Inputs and loss gradients, float64.
        slopes: ``(s-, s+)``.

    Returns:
        Distinct maxima, unit vectors, shape ``(M, d)``.
    """
    found = [V[:0]]
    for _ in range(BUDGETS.climbs):
        if not len(V):
            break
        D = pull(V, signal, slopes)
        along = _steepest(V, D, signal, slopes)
        rising = along.any(dim=1)
        found.append(V[~rising])
        V = _distinct(_climb(V[rising], D[rising], along[rising], signal, slopes))
    return _distinct(torch.cat(found))


def _steepest(V: Tensor, D: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Unit tangential directions of steepest ascent, zero at maxima."""
    gain = D.norm(dim=1)
    geometry = neuron_geometry(ShallowBlock(V, -(D / gain[:, None]).T, slopes), signal)
    rising = geometry.steepest < -FLOAT64.level * gain
    along = torch.where(rising[:, None], geometry.direction, 0.0)
    if D.shape[1] > 1:
        for i in (~rising).nonzero().squeeze(1).tolist():
            along[i] = _second_order(V[i], D[i], signal, slopes)
    return along


def _second_order(v: Tensor, D: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Where ``D`` keeps its length to first order and is longer a quarter turn away; zero for nowhere.

    Looked for on the kinks of ``v``, where one direction of a matrix decides, and straight off each of them.
    """
    z = signal.X @ v
    on_kink = z.abs() <= kink_tolerance(None, z.dtype) * signal.X.norm(dim=1)
    kinks = signal.X[on_kink]
    M = (signal.G * slopes_at(torch.where(on_kink, 0.0, z), slopes)[:, None]).T @ signal.X
    stay = torch.linalg.svd(without_span(M, torch.cat([v[None], kinks])), full_matrices=False)[2][:1]
    rows = torch.cat([stay, kinks, -kinks])
    directions = radial_directions(tangential_part(v.expand_as(rows), rows))
    B = directions @ signal.X.T
    ahead = (slopes_at(torch.where(on_kink, B, z), slopes) * B) @ signal.G
    gain, length = D.norm(), ahead.norm(dim=1)
    longer = (length > (1 + FLOAT64.curved) * gain) & (ahead @ D > -FLOAT64.level * gain * length)
    best = int(torch.where(longer, length, 0.0).argmax())
    return directions[best] if bool(longer[best]) else torch.zeros_like(v)


def without_span(M: Tensor, rows: Tensor) -> Tensor:
    """A matrix on the complement of some vectors.

    Args:
        M: Matrix, shape ``(J, d)``.
        rows: Vectors that it shall map to zero, shape ``(m, d)``.

    Returns:
        The matrix after a projection, shape ``(J, d)``.
    """
    basis = torch.as_tensor(row_space(rows.cpu().numpy())).to(M)
    return M - M @ basis.T @ basis


def _climb(V: Tensor, D: Tensor, along: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """The highest points of the arcs ``v cos t + along sin t`` up to the first kink, where ``D`` is linear in ``v``."""
    ahead, first = torch.zeros_like(D), V.new_full((len(V),), math.pi)
    for X, G in pieces(signal, max(len(V), 1)):
        Z, B = V @ X.T, along @ X.T
        on_kink = Z.abs() <= kink_tolerance(None, V.dtype) * X.norm(dim=1)
        side = torch.where(on_kink, B, Z).sign()
        crossing = torch.where(on_kink, math.pi, torch.atan2(Z.abs(), -side * B))
        first = torch.minimum(first, crossing.amin(dim=1))
        ahead += (slopes_at(side, slopes) * B) @ G
    highest = torch.atan2(2 * (D * ahead).sum(1), D.square().sum(1) - ahead.square().sum(1)) / 2
    turn = torch.minimum(highest, first)[:, None]
    return radial_directions(V * turn.cos() + along * turn.sin())


def _distinct(V: Tensor, apart: float = FLOAT64.same_maximum) -> Tensor:
    """Unit vectors without those close to one kept before."""
    kept = V.any(dim=1)
    close = (torch.cdist(V, V, compute_mode="donot_use_mm_for_euclid_dist") <= apart).tril(-1)
    for i in close.any(dim=1).nonzero().squeeze(1).tolist():
        kept[i] &= ~(close[i] & kept).any()
    return V[kept]
