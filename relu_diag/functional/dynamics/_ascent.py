"""Steepest ascent of ``||D(v)||`` over the unit sphere, ``D_j(v) = sum_k e_kj rho(v . x_k)``, many starts at once.

The same of ``||D(v)||`` less the price of being active (`Height`).

A neuron with input weights ``v`` and output weights ``o = -D(v) / ||D(v)||`` sees the loss fall where ``||D||`` rises:
with few samples its steepest one-sided descent leads, along kinks, to the maximum itself. With many samples kinks are
dense and every climb would be short; damped steps ``v <- normalise((1 - t) v + t M^T D)`` come near the maxima.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relu_diag.functional._arrays import row_space
from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._height import Height, pieces
from relu_diag.functional.local import neuron_geometry, radial_directions, slopes_at, tangential_part
from relu_diag.functional.tolerances import FLOAT64, kink_tolerance


def ascend(starts: Tensor, others: Tensor, height: Height, loud: float) -> Tensor:
    """The local maxima of ``||D(v)||`` that ascents reach.

    With at most 32 samples exact ascents, from ``others`` after damped ones have brought them together, which is much
    cheaper and may leave the sector that a start is in. With more samples damped ones only: then the maxima are right
    to about 1e-3 rad, and one stands for all those within 0.05 rad.

    Args:
        starts: Directions, any length, shape ``(n, d)``.
        others: More of them, shape ``(m, d)``.
        height: What to climb.
        loud: Largest ``||D||`` that counts as zero.

    Returns:
        Distinct maxima, unit vectors, shape ``(M, d)``.
    """
    starts, others = (_felt(_distinct(radial_directions(some)), height, loud) for some in (starts, others))
    dense = len(height.signal.X) > BUDGETS.few_samples
    V = near_maxima(torch.cat([starts, others]) if dense else others, height, BUDGETS.damped_steps)
    V = _distinct(V[height.of(height.pull(V)).argsort(descending=True)], FLOAT64.seen_as_one)
    return V if dense else climb_to_maxima(torch.cat([starts, V]), height)


def _felt(V: Tensor, height: Height, loud: float) -> Tensor:
    """The directions with a pull, shape ``(n, d)``."""
    return V[height.outputs(height.pull(V)).norm(dim=1) > loud]


def near_maxima(V: Tensor, height: Height, steps: int) -> Tensor:
    """Where damped steps end: twice as long after one that goes up, half as long after one that does not.

    Args:
        V: Unit vectors, shape ``(n, d)``.
        height: What to climb.
        steps: Number of steps at most.

    Returns:
        Unit vectors, in another order, shape ``(n, d)``.
    """
    arrived, damping = [V[:0]], V.new_ones(len(V))
    level, ahead = _uphill(V, height)
    for _ in range(steps):
        on = (damping > FLOAT64.smallest_damping) & ((ahead - V).norm(dim=1) > FLOAT64.same_maximum)
        arrived.append(V[~on])
        V, ahead, level, damping = V[on], ahead[on], level[on], damping[on]
        trial = radial_directions(V + damping[:, None] * (ahead - V))
        trial_level, trial_ahead = _uphill(trial, height)
        up = trial_level > level + FLOAT64.level * level.abs()
        V, ahead = torch.where(up[:, None], trial, V), torch.where(up[:, None], trial_ahead, ahead)
        level = torch.where(up, trial_level, level)
        damping = torch.where(up, (2 * damping).clamp(max=1), damping / 2)
    return torch.cat([*arrived, V])


def _uphill(V: Tensor, height: Height) -> tuple[Tensor, Tensor]:
    """The height, and the unit direction of its gradient."""
    D, ahead = height.pull(V), torch.zeros_like(V)
    lead = height.lead(D)
    for X, G in pieces(height.signal, max(len(V), 1)):
        ahead += (slopes_at(V @ X.T, height.slopes) * (lead @ G.T)) @ X
    return height.of(D), radial_directions(ahead)


def climb_to_maxima(V: Tensor, height: Height, climbs: int = BUDGETS.climbs) -> Tensor:
    """The maxima that steepest ascent reaches, each climb to the highest point of its arc or to the first kink before.

    Args:
        V: Unit vectors with ``D != 0``, shape ``(n, d)``.
        height: What to climb.
        climbs: How often each may climb.

    Returns:
        Distinct maxima, unit vectors, shape ``(M, d)``.
    """
    found = [V[:0]]
    for _ in range(climbs):
        if not len(V):
            break
        D = height.pull(V)
        along = _steepest(V, D, height)
        rising = along.any(dim=1)
        found.append(V[~rising])
        V = _distinct(_climb(V[rising], D[rising], along[rising], height))
    if len(V):
        found.append(V[_at_rest(V, height)])
    return _distinct(torch.cat(found))


def _at_rest(V: Tensor, height: Height) -> Tensor:
    """Which climb no higher, though kinks that all but coincide leave them a slope of rounding, bool ``(n,)``."""
    D = height.pull(V)
    ahead = _climb(V, D, _steepest(V, D, height), height)
    still: Tensor = height.of(height.pull(ahead)) <= (1 + FLOAT64.roundings * FLOAT64.eps) * height.of(D)
    return still


def _steepest(V: Tensor, D: Tensor, height: Height) -> Tensor:
    """Unit tangential directions of steepest ascent, zero at maxima."""
    felt = height.outputs(D)
    geometry = neuron_geometry(ShallowBlock(V, -height.lead(D).T, height.slopes), height.signal)
    rising = geometry.steepest < -FLOAT64.level * felt.norm(dim=1)
    along = torch.where(rising[:, None], geometry.direction, 0.0)
    if felt.shape[1] > 1:
        for i in (~rising).nonzero().squeeze(1).tolist():
            along[i] = _second_order(V[i], D[i], height)
    return along


def _second_order(v: Tensor, D: Tensor, height: Height) -> Tensor:
    """Where the height is level to first order and ``D`` turns so fast that it rises beyond; zero for nowhere.

    Looked for on the kinks of ``v``, where one direction of a matrix decides, and straight off each of them.
    """
    signal, slopes = height.signal, height.slopes
    z = signal.X @ v
    on_kink = z.abs() <= kink_tolerance(None, z.dtype) * signal.X.norm(dim=1)
    kinks = signal.X[on_kink]
    lead = height.lead(D)
    o = height.outputs(lead)
    M = (height.outputs(signal.G) * slopes_at(torch.where(on_kink, 0.0, z), slopes)[:, None]).T @ signal.X
    M = M - torch.outer(o, o @ M)
    stay = torch.linalg.svd(without_span(M, torch.cat([v[None], kinks])), full_matrices=False)[2][:1]
    rows = torch.cat([stay, kinks, -kinks])
    directions = radial_directions(tangential_part(v.expand_as(rows), rows))
    B = directions @ signal.X.T
    ahead = (slopes_at(torch.where(on_kink, B, z), slopes) * B) @ signal.G
    turning = height.outputs(ahead)
    turning = turning - torch.outer(turning @ o, o)
    # Along an arc the second derivative of the height is |turning|^2 / |D| minus the height.
    needed = (height.outputs(D).norm() * height.of(D).clamp(min=0)).sqrt()
    length = turning.norm(dim=1)
    rises = (length > (1 + FLOAT64.curved) * needed) & (ahead @ lead > -FLOAT64.level * ahead.norm(dim=1))
    best = int(torch.where(rises, length, 0.0).argmax())
    return directions[best] if bool(rises[best]) else torch.zeros_like(v)


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


def _climb(V: Tensor, D: Tensor, along: Tensor, height: Height) -> Tensor:
    """The highest points of the arcs ``v cos t + along sin t`` up to the first kink, where ``D`` is linear in ``v``."""
    ahead, first = torch.zeros_like(D), V.new_full((len(V),), math.pi)
    for X, G in pieces(height.signal, max(len(V), 1)):
        Z, B = V @ X.T, along @ X.T
        on_kink = Z.abs() <= kink_tolerance(None, V.dtype) * X.norm(dim=1)
        side = torch.where(on_kink, B, Z).sign()
        crossing = torch.where(on_kink, math.pi, torch.atan2(Z.abs(), -side * B))
        first = torch.minimum(first, crossing.amin(dim=1))
        ahead += (slopes_at(side, height.slopes) * B) @ G
    turn = _highest(D, ahead, first, height)[:, None]
    return radial_directions(V * turn.cos() + along * turn.sin())


def _highest(D: Tensor, ahead: Tensor, last: Tensor, height: Height) -> Tensor:
    """The turn up to which the height rises along ``D cos t + ahead sin t``, the last one at most, ``(n,)``."""
    if not height.priced:
        top = torch.atan2(2 * (D * ahead).sum(1), D.square().sum(1) - ahead.square().sum(1)) / 2
        return torch.minimum(top, last)
    low, high = torch.zeros_like(last), last
    for _ in range(BUDGETS.bisections):
        turn = ((low + high) / 2)[:, None]
        here, onwards = D * turn.cos() + ahead * turn.sin(), ahead * turn.cos() - D * turn.sin()
        rising = (height.lead(here) * onwards).sum(1) > 0
        low, high = torch.where(rising, turn[:, 0], low), torch.where(rising, high, turn[:, 0])
    return high


def _distinct(V: Tensor, apart: float = FLOAT64.same_maximum) -> Tensor:
    """Unit vectors without those close to one kept before."""
    kept = V.any(dim=1)
    close = (torch.cdist(V, V, compute_mode="donot_use_mm_for_euclid_dist") <= apart).tril(-1)
    for i in close.any(dim=1).nonzero().squeeze(1).tolist():
        kept[i] &= ~(close[i] & kept).any()
    return V[kept]
