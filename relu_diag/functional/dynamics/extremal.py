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

from relu_diag.functional._arrays import Array, row_space
from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.dynamics._ascent import ascend, climb_to_maxima, pull
from relu_diag.functional.dynamics._faces import face_maxima
from relu_diag.functional.dynamics._starts import main_starts, other_starts
from relu_diag.functional.tolerances import BUDGETS, FLOAT64, tolerances


@dataclass(frozen=True, slots=True, eq=False)
class ExtremalDirections:
    """Local maxima of ``||D(v)||`` over the unit sphere, highest first, in float64.

    Attributes:
        v: Unit input weights, shape ``(M, d)``.
        gain: ``||D(v)||``: growth rate of both weights of a neuron there, loss per unit of output, shape ``(M,)``.
        o: Unit output weights ``-D(v) / ||D(v)||`` with which a neuron there grows, shape ``(M, J)``.
        exhaustive: Whether all of them are listed; else there may be more, and higher ones.

    Example:
        >>> found = extremal_directions(torch.eye(2), G=torch.tensor([[3.0], [0.0]]))
        >>> found.exhaustive, round(float(found.gain[0]), 6)
        (True, 3.0)
    """

    v: Tensor
    gain: Tensor
    o: Tensor
    exhaustive: bool

    def __str__(self) -> str:
        best = f", largest gain {self.gain[0]:.3g}" if len(self.gain) else ""
        return f"{len(self.gain)} extremal directions{best}{'' if self.exhaustive else '; there may be others'}"


def extremal_directions(
    X: Tensor, G: Tensor, slopes: tuple[float, float] = (0.0, 1.0), starts: Tensor | None = None
) -> ExtremalDirections:
    """The directions small neurons are attracted to: local maxima of ``||D(v)||`` over the unit sphere.

    ``D_j(v) = sum_k e_kj rho(v . x_k)`` is what output ``j`` feels of a neuron with input weights ``v``.

    All of them where the samples span one or two dimensions, or are few: up to 32, whose kinks cut the sphere into at
    most 100,000 faces (`ExtremalDirections.exhaustive`). Else those that ascents reach, from ``starts`` and from each
    of the 64 samples that weigh most, alone, against it, and against the others: up to 32 samples exactly, one-sided on
    kinks; beyond, where kinks are dense, to about 1e-3 rad, and those within 0.05 rad as one.

    Source: Maennel et al. 2018; Wu et al., section 4.2.

    Args:
        X: Inputs, shape ``(N, d)``.
        G: Loss gradient at the outputs, shape ``(N, J)``.
        slopes: ``(s-, s+)`` of the activation.
        starts: Input weights to start from besides, any length, shape ``(n, d)``; not needed where all are listed.

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
    terms = max(map(abs, slopes)) * float(signal.X.norm(dim=1) @ signal.G.norm(dim=1))
    # The rounding of a sum over the samples is a few of its terms'; where it all cancels, a hundred are none.
    loud = 100 * tolerances(torch.promote_types(X.dtype, torch.float32)).eps * terms
    found = _maxima(signal, slopes, starts.detach().to(signal.X), loud)
    D = pull(found.v, signal, slopes)
    order = D.norm(dim=1).argsort(descending=True, stable=True)
    order = order[D[order].norm(dim=1) > loud]
    gain = D[order].norm(dim=1)
    return ExtremalDirections(found.v[order], gain, -D[order] / gain[:, None], found.exhaustive)


@dataclass(frozen=True, slots=True, eq=False)
class _Maxima:
    """Unit vectors, shape ``(M, d)``, and whether all local maxima are among them."""

    v: Tensor
    exhaustive: bool


def _maxima(signal: BlockSignal, slopes: tuple[float, float], starts: Tensor, loud: float) -> _Maxima:
    """The maxima in the span of the samples that the loss feels; a direction across it is felt less."""
    weight = signal.X.norm(dim=1) * signal.G.norm(dim=1)
    felt = weight.argsort(descending=True)[: int((weight > 0).sum())]
    if not len(felt):
        return _Maxima(signal.X[:0], exhaustive=True)
    basis = _span(signal.X[felt])
    within = BlockSignal(signal.X[felt] @ basis.T, signal.G[felt])
    found = _spanned_maxima(within, slopes, starts @ basis.T, loud)
    return _Maxima(found.v @ basis, found.exhaustive)


def _spanned_maxima(signal: BlockSignal, slopes: tuple[float, float], starts: Tensor, loud: float) -> _Maxima:
    """All maxima in one or two dimensions, or on few faces, else those found, for samples that span the space."""
    X, G = signal.X, signal.G
    if X.shape[1] == 1:
        return _Maxima(X.new_tensor([[1.0], [-1.0]]), exhaustive=True)
    if X.shape[1] == 2:
        return _Maxima(torch.as_tensor(_sweep(X.cpu().numpy(), G.cpu().numpy(), slopes)).to(X), exhaustive=True)
    listed = face_maxima(X.cpu().numpy(), G.cpu().numpy(), slopes) if len(X) <= BUDGETS.few_samples else None
    if listed is None:
        main = torch.cat([main_starts(signal), starts])
        return _Maxima(ascend(main, other_starts(signal), signal, slopes, loud), exhaustive=False)
    V = torch.as_tensor(listed).to(X)
    V = V[pull(V, signal, slopes).norm(dim=1) > loud]
    return _Maxima(climb_to_maxima(V, signal, slopes), exhaustive=True)


def _span(X: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows, shape ``(rank, d)``; the axes where that is the whole space."""
    # The triangle has the singular values and right singular vectors of X, whatever the number of samples.
    basis = torch.as_tensor(row_space(torch.linalg.qr(X, mode="r").R.cpu().numpy())).to(X)
    return basis if len(basis) < X.shape[1] else torch.eye(len(basis)).to(X)


def _sweep(X: Array, G: Array, slopes: tuple[float, float]) -> Array:
    """Local maxima on the circle. Between kinks ``D = M v``, and ``||M v||^2`` is a sinusoid of twice the angle."""
    edge, M = _sectors(X, G, slopes)
    width = np.append(edge[1:], edge[0] + 2 * np.pi) - edge
    a, b, c = (M[:, :, 0] ** 2).sum(1), (M[:, :, 0] * M[:, :, 1]).sum(1), (M[:, :, 1] ** 2).sum(1)
    flat = np.hypot((a - c) / 2, b) <= FLOAT64.flat * (a + c) / 2
    top = np.arctan2(2 * b, a - c) / 2
    ahead = (top - edge) % np.pi
    inside = (ahead > FLOAT64.same_angle) & (ahead < width - FLOAT64.same_angle) & ~flat
    # On a kink: rising up to it on its left, not rising beyond it. At a quarter turn the sinusoid is lowest.
    left, right = _half_turn(np.roll(top, 1) - edge), _half_turn(top - edge)
    rises = (left >= -FLOAT64.same_angle) & (left < np.pi / 2 - FLOAT64.same_angle) | np.roll(flat, 1)
    falls = (right <= FLOAT64.same_angle) & (right > FLOAT64.same_angle - np.pi / 2) | flat
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
    last = np.append(np.diff(angle) > FLOAT64.same_angle, True)
    return angle[last], M[last]


def _half_turn(angle: Array) -> Array:
    """The angle modulo pi, in [-pi/2, pi/2)."""
    return np.asarray((angle + np.pi / 2) % np.pi - np.pi / 2)
