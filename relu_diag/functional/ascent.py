"""Steepest ascent of ``||D(v)||`` over the unit sphere, ``D_j(v) = sum_k e_kj rho(v . x_k)``, many starts at once.

A neuron with input weights ``v`` and output weights ``o = -D(v) / ||D(v)||`` sees the loss fall where ``||D||`` rises:
the steepest one-sided descent of the loss is the steepest ascent wanted, kinks included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunk_rows, rho
from relu_diag.functional.chunks import kink_tolerance
from relu_diag.functional.fan import row_space
from relu_diag.functional.geometry import neuron_geometry, radial_directions, tangential_part
from relu_diag.functional.sums import slopes_at

_CLIMBS = 300
# Slopes relative to the height that count as none, and excess of a curvature over the height.
_LEVEL = 1e-9
_CURVED = 1e-7
# Maxima this close are one, as a chord.
_SAME = 1e-6

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


def ascend(starts: Tensor, signal: BlockSignal, slopes: tuple[float, float], loud: float) -> Tensor:
    """The local maxima of ``||D(v)||`` that ascents reach; ``||D||`` only grows on the way.

    Each climb follows the steepest direction to the highest point of its arc, or to the first kink if that is nearer.
    A maximum on a kink is thus reached on it, where step after step across the kink would never end.

    Args:
        starts: Directions, any length, shape ``(n, d)``.
        signal: Inputs and loss gradients, float64.
        slopes: ``(s-, s+)``.
        loud: Largest ``||D||`` that counts as zero.

    Returns:
        Distinct maxima, unit vectors, shape ``(M, d)``; an ascent that does not end in 300 climbs is left out.
    """
    V, found = _distinct(radial_directions(starts)), [starts[:0]]
    for _ in range(_CLIMBS):
        D = pull(V, signal, slopes)
        felt = D.norm(dim=1) > loud
        if not bool(felt.any()):
            break
        V, D = V[felt], D[felt]
        along = _steepest(V, D, signal, slopes)
        rising = along.any(dim=1)
        found.append(V[~rising])
        if not bool(rising.any()):
            break
        V = _distinct(_climb(V[rising], D[rising], along[rising], signal, slopes))
    return _distinct(torch.cat(found))


def _steepest(V: Tensor, D: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    """Unit tangential directions of steepest ascent, zero at maxima."""
    gain = D.norm(dim=1)
    geometry = neuron_geometry(ShallowBlock(V, -(D / gain[:, None]).T, slopes), signal)
    rising = geometry.steepest < -_LEVEL * gain
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
    longer = (length > (1 + _CURVED) * gain) & (ahead @ D > -_LEVEL * gain * length)
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
    for X, G in pieces(signal, len(V)):
        Z, B = V @ X.T, along @ X.T
        on_kink = Z.abs() <= kink_tolerance(None, V.dtype) * X.norm(dim=1)
        side = torch.where(on_kink, B, Z).sign()
        crossing = torch.where(on_kink, math.pi, torch.atan2(Z.abs(), -side * B))
        first = torch.minimum(first, crossing.amin(dim=1))
        ahead += (slopes_at(side, slopes) * B) @ G
    highest = torch.atan2(2 * (D * ahead).sum(1), D.square().sum(1) - ahead.square().sum(1)) / 2
    turn = torch.minimum(highest, first)[:, None]
    return radial_directions(V * turn.cos() + along * turn.sin())


def _distinct(V: Tensor) -> Tensor:
    """One of every set of equal unit vectors."""
    chord = torch.cdist(V, V, compute_mode="donot_use_mm_for_euclid_dist")
    return V[~(chord <= _SAME).tril(-1).any(dim=1) & V.any(dim=1)]
