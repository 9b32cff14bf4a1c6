"""Extremal directions: where the input weights of small neurons gather, and how fast the neurons grow there.

With the loss gradient ``e_k`` at the outputs frozen, a neuron of negligible amplitude and direction ``v`` is felt
through ``D_j(v) = sum_k e_kj rho(v . x_k)``. Small neurons turn towards the local maxima of ``||D(v)||`` over the unit
sphere and grow there at the rate ``||D||``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.dynamics._ascent import ascend, pull

# Angles this close are one, rad; curvatures this small beside their mean are none.
_SAME_ANGLE = 1e-9
_FLAT = 1e-12
# Samples whose directions the ascent starts from: those the loss feels most.
_SAMPLES = 64
# Rounding of a sum over samples, in units of the dtype's and of the sum of the terms.
_ROUNDING = 100


@dataclass(frozen=True, slots=True, eq=False)
class ExtremalDirections:
    """Local maxima of ``||D(v)||`` over the unit sphere, highest first, in float64.

    Attributes:
        v: Unit input weights, shape ``(M, d)``.
        gain: ``||D(v)||``: growth rate of both weights of a neuron there, loss per unit of output, shape ``(M,)``.
        o: Unit output weights ``-D(v) / ||D(v)||`` with which a neuron there grows, shape ``(M, J)``.
    """

    v: Tensor
    gain: Tensor
    o: Tensor

    def __str__(self) -> str:
        best = f", largest gain {self.gain[0]:.3g}" if len(self.gain) else ""
        return f"{len(self.gain)} extremal directions{best}"


def extremal_directions(
    X: Tensor, G: Tensor, slopes: tuple[float, float] = (0.0, 1.0), starts: Tensor | None = None
) -> ExtremalDirections:
    """The directions small neurons are attracted to: local maxima of ``||D(v)||`` over the unit sphere.

    ``D_j(v) = sum_k e_kj rho(v . x_k)`` is what output ``j`` feels of a neuron with input weights ``v``.

    With one or two inputs all of them. With more, those that ascents reach from ``+-x_k`` of the 64 samples that weigh
    most and from ``starts``: up to 32 samples exactly, one-sided on kinks; beyond, where kinks are dense, to about
    1e-3 rad, and those within 0.05 rad as one.

    Source: Maennel et al. 2018; Wu et al., section 4.2.

    Args:
        X: Inputs, shape ``(N, d)``.
        G: Loss gradient at the outputs, shape ``(N, J)``.
        slopes: ``(s-, s+)`` of the activation.
        starts: Input weights to start from besides, any length, shape ``(n, d)``; with one or two inputs not needed.

    Returns:
        The directions; none where no direction is felt.

    Raises:
        ValueError: If ``starts`` has not the columns of ``X``.

    Example:
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> extremal_directions(X, G=torch.tensor([[3.0], [4.0]], dtype=torch.float64)).gain
        tensor([5.], dtype=torch.float64)
    """
    BlockSignal(X, G)  # the checks every data set goes through
    ShallowBlock(X[:1], X.new_ones(1, 1), slopes)  # and those of slopes
    if starts is None:
        starts = X[:0]
    if starts.ndim != 2 or starts.shape[1] != X.shape[1]:
        raise ValueError(f"`starts` needs the columns of X {tuple(X.shape)}; got {tuple(starts.shape)}.")
    signal = BlockSignal(X.detach().double(), G.detach().double())
    weight = signal.X.norm(dim=1) * signal.G.norm(dim=1)
    eps = torch.finfo(torch.promote_types(X.dtype, torch.float32)).eps
    loud = _ROUNDING * eps * max(map(abs, slopes)) * float(weight.sum())
    V = _candidates(signal, slopes, weight, starts.detach().to(signal.X), loud)
    D = pull(V, signal, slopes)
    order = D.norm(dim=1).argsort(descending=True, stable=True)
    order = order[D[order].norm(dim=1) > loud]
    gain = D[order].norm(dim=1)
    return ExtremalDirections(V[order], gain, -D[order] / gain[:, None])


def _candidates(
    signal: BlockSignal, slopes: tuple[float, float], weight: Tensor, starts: Tensor, loud: float
) -> Tensor:
    """All maxima in one or two dimensions, and those found in more."""
    X, felt = signal.X, weight.argsort(descending=True)[: int((weight > 0).sum())]
    if not len(felt):
        return X[:0]
    if X.shape[1] == 1:
        return X.new_tensor([[1.0], [-1.0]])
    if X.shape[1] == 2:
        return torch.as_tensor(_sweep(X[felt].cpu().numpy(), signal.G[felt].cpu().numpy(), slopes)).to(X)
    strongest = X[felt[:_SAMPLES]]
    return ascend(torch.cat([strongest, -strongest, starts]), signal, slopes, loud)


def _sweep(X: Array, G: Array, slopes: tuple[float, float]) -> Array:
    """Local maxima on the circle. Between kinks ``D = M v``, and ``||M v||^2`` is a sinusoid of twice the angle."""
    edge, M = _sectors(X, G, slopes)
    width = np.append(edge[1:], edge[0] + 2 * np.pi) - edge
    a, b, c = (M[:, :, 0] ** 2).sum(1), (M[:, :, 0] * M[:, :, 1]).sum(1), (M[:, :, 1] ** 2).sum(1)
    flat = np.hypot((a - c) / 2, b) <= _FLAT * (a + c) / 2
    top = np.arctan2(2 * b, a - c) / 2
    ahead = (top - edge) % np.pi
    inside = (ahead > _SAME_ANGLE) & (ahead < width - _SAME_ANGLE) & ~flat
    # On a kink: rising up to it on its left, not rising beyond it. At a quarter turn the sinusoid is lowest.
    left, right = _half_turn(np.roll(top, 1) - edge), _half_turn(top - edge)
    rises = (left >= -_SAME_ANGLE) & (left < np.pi / 2 - _SAME_ANGLE) | np.roll(flat, 1)
    falls = (right <= _SAME_ANGLE) & (right > _SAME_ANGLE - np.pi / 2) | flat
    angle = np.concatenate([(edge + ahead)[inside], edge[rises & falls]])
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _sectors(X: Array, G: Array, slopes: tuple[float, float]) -> tuple[Array, Array]:
    """Angles of the kinks, ascending, and the matrix ``M`` with ``D(v) = M v`` in the sector after each."""
    normal = np.arctan2(X[:, 1], X[:, 0])
    jump = (slopes[1] - slopes[0]) * G[:, :, None] * X[:, None, :]
    angle = np.concatenate([normal - np.pi / 2, normal + np.pi / 2]) % (2 * np.pi)
    order = angle.argsort()
    angle, jump = angle[order], np.concatenate([jump, -jump])[order]
    # Counted from the middle of the widest sector, no kink is cut in two by the end of the count.
    gap = np.append(angle[1:], angle[0] + 2 * np.pi) - angle
    widest = int(gap.argmax())
    origin = angle[widest] + gap[widest] / 2
    angle, jump = np.roll(angle, -widest - 1), np.roll(jump, -widest - 1, axis=0)
    start = np.where(X @ np.array([np.cos(origin), np.sin(origin)]) > 0, slopes[1], slopes[0])
    M = (G * start[:, None]).T @ X + jump.cumsum(axis=0)
    angle = origin + (angle - origin) % (2 * np.pi)
    last = np.append(np.diff(angle) > _SAME_ANGLE, True)
    return angle[last], M[last]


def _half_turn(angle: Array) -> Array:
    """The angle modulo pi, in [-pi/2, pi/2)."""
    return np.asarray((angle + np.pi / 2) % np.pi - np.pi / 2)
