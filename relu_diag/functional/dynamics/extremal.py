"""Extremal directions: where the input weights of small neurons gather, and how fast the neurons grow there.

With the loss gradient ``e_k`` at the outputs frozen, a neuron of negligible amplitude and direction ``v`` is felt
through ``D_j(v) = sum_k e_kj rho(v . x_k)``. Small neurons turn towards the local maxima of ``||D(v)||`` over the unit
sphere and grow there at the rate ``||D||``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional._arrays import row_space
from relu_diag.functional._checks import is_number
from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._ascent import ascend, climb_to_maxima, near_maxima
from relu_diag.functional.dynamics._faces import face_maxima
from relu_diag.functional.dynamics._height import Height
from relu_diag.functional.dynamics._starts import main_starts, other_starts
from relu_diag.functional.dynamics._sweep import priced_sweep, sweep
from relu_diag.functional.local import radial_directions
from relu_diag.functional.tolerances import tolerances


@dataclass(frozen=True, slots=True, eq=False)
class ExtremalDirections:
    """Local maxima of ``||D(v)||``, less the price of being active, over the unit sphere, highest first, in float64.

    Attributes:
        v: Unit input weights, shape ``(M, d)``.
        gain: ``||D(v)||`` less the price: growth rate of a neuron there, loss per unit of output, shape ``(M,)``.
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
    X: Tensor,
    G: Tensor,
    slopes: tuple[float, float] = (0.0, 1.0),
    starts: Tensor | None = None,
    price: float = 0.0,
) -> ExtremalDirections:
    """The directions small neurons are attracted to: local maxima of ``||D(v)||`` over the unit sphere.

    ``D_j(v) = sum_k e_kj rho(v . x_k)`` is what output ``j`` feels of a neuron with input weights ``v``. Where activity
    has a price, as under an L1 penalty, maxima of ``||D(v)|| - price mean_k |rho(v . x_k)|``, the positive ones.

    All of them where the samples span one or two dimensions, or, without a price, are few: up to 32, whose kinks cut
    the sphere into at most 100,000 faces (`ExtremalDirections.exhaustive`). Else those that ascents reach, from
    ``starts`` and from each of the 64 samples that weigh most, alone, against it, and against the others: up to 32
    samples exactly, one-sided on kinks; beyond, where kinks are dense, to about 1e-3 rad, and those within 0.05 rad as
    one.

    Source: Maennel et al. 2018; Wu et al., section 4.2.

    Args:
        X: Inputs, shape ``(N, d)``.
        G: Loss gradient at the outputs, shape ``(N, J)``.
        slopes: ``(s-, s+)`` of the activation.
        starts: Input weights to start from besides, any length, shape ``(n, d)``; not needed where all are listed.
        price: Loss per unit of mean activation, over the samples, of one neuron; for activations with one zero slope.

    Returns:
        The directions; none where no direction is felt, or none is worth the price.

    Raises:
        ValueError: If ``starts`` has not the columns of ``X``; or if the price is negative or not finite, or is asked
            of an activation that is never zero.

    Example:
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> G = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
        >>> extremal_directions(X, G).gain, extremal_directions(X, G, price=4.0).gain  # each costs 2 a unit of rho(x)
        (tensor([5.], dtype=torch.float64), tensor([2.2361], dtype=torch.float64))
    """
    BlockSignal(X, G)  # the checks every data set goes through
    ShallowBlock(X[:1], X.new_ones(1, 1), slopes)  # and those of slopes
    if starts is None:
        starts = X[:0]
    if starts.ndim != 2 or starts.shape[1] != X.shape[1]:
        raise ValueError(f"`starts` needs the columns of X {tuple(X.shape)}; got {tuple(starts.shape)}.")
    if not (is_number(price) and math.isfinite(price) and price >= 0):
        raise ValueError(f"`price` is loss per unit of mean activation, finite and not negative; got {price!r}.")
    if price and 0.0 not in slopes:
        raise ValueError(f"`price` needs an activation with one zero slope, as the ReLU has; got slopes {slopes}.")
    height = Height.over(BlockSignal(X.detach().double(), G.detach().double()), slopes, price)
    terms = max(map(abs, slopes)) * float(height.signal.X.norm(dim=1) @ height.signal.G.norm(dim=1))
    # The rounding of a sum over the samples is a few of its terms'; where it all cancels, a hundred are none.
    loud = 100 * tolerances(torch.promote_types(X.dtype, torch.float32)).eps * terms
    found = _maxima(height, starts.detach().to(height.signal.X), loud)
    D = height.pull(found.v)
    order = height.of(D).argsort(descending=True, stable=True)
    order = order[height.of(D)[order] > loud]
    gain = height.of(D)[order]
    o = -height.outputs(height.lead(D))[order]
    return ExtremalDirections(found.v[order], gain, o, found.exhaustive)


def climbed_directions(
    X: Tensor, G: Tensor, slopes: tuple[float, float], starts: Tensor, price: float = 0.0, steps: int = 10
) -> ExtremalDirections:
    """Where a few steps uphill from given directions end, for blocks too large to look for all maxima.

    Args:
        X: Inputs, shape ``(N, d)``; it computes in their dtype.
        G: Loss gradient at the outputs, shape ``(N, J)``.
        slopes: ``(s-, s+)`` of the activation.
        starts: Where to start, any length, shape ``(n, d)``.
        price: As in `extremal_directions`.
        steps: Number of steps.

    Returns:
        One direction for every start that ends where a neuron gains, highest first.

    Example:
        >>> X = torch.eye(2)
        >>> climbed_directions(X, torch.tensor([[3.0], [4.0]]), (0.0, 1.0), torch.tensor([[1.0, 0.9]])).gain
        tensor([5.])
    """
    height = Height.over(BlockSignal(X.detach(), G.detach()), slopes, price)
    V = near_maxima(radial_directions(starts.detach().to(X)), height, steps)
    D = height.pull(V)
    order = height.of(D).argsort(descending=True, stable=True)
    order = order[height.of(D)[order] > 0]
    return ExtremalDirections(V[order], height.of(D)[order], -height.outputs(height.lead(D))[order], exhaustive=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Maxima:
    """Unit vectors, shape ``(M, d)``, and whether all local maxima are among them."""

    v: Tensor
    exhaustive: bool


def _maxima(height: Height, starts: Tensor, loud: float) -> _Maxima:
    """The maxima in the span of the samples that the loss feels; a direction across it is felt less."""
    signal = height.signal
    weight = signal.X.norm(dim=1) * signal.G.norm(dim=1)
    felt = weight.argsort(descending=True)[: int((weight > 0).sum())]
    if not len(felt):
        return _Maxima(signal.X[:0], exhaustive=True)
    # Short samples with large residuals are felt as much as long ones with small.
    basis = _span(signal.X[felt] * signal.G[felt].norm(dim=1, keepdim=True))
    within = replace(height, signal=BlockSignal(signal.X[felt] @ basis.T, signal.G[felt]))
    found = _spanned_maxima(within, starts @ basis.T, loud)
    return _Maxima(found.v @ basis, found.exhaustive)


def _spanned_maxima(height: Height, starts: Tensor, loud: float) -> _Maxima:
    """All maxima in one or two dimensions, or on few faces, else those found, for samples that span the space."""
    X, G = height.signal.X, height.signal.G
    if X.shape[1] == 1:
        return _Maxima(X.new_tensor([[1.0], [-1.0]]), exhaustive=True)
    if X.shape[1] == 2:
        around = priced_sweep if height.priced else sweep
        return _Maxima(torch.as_tensor(around(X.cpu().numpy(), G.cpu().numpy(), height.slopes)).to(X), exhaustive=True)
    few = len(X) <= BUDGETS.few_samples and not height.priced
    listed = face_maxima(X.cpu().numpy(), G.cpu().numpy(), height.slopes) if few else None
    if listed is None:
        main = torch.cat([main_starts(height.signal), starts])
        return _Maxima(ascend(main, other_starts(height.signal), height, loud), exhaustive=False)
    V = torch.as_tensor(listed).to(X)
    V = V[height.pull(V).norm(dim=1) > loud]
    # They are maxima to rounding, or none: who has far to climb ends where another one is.
    return _Maxima(climb_to_maxima(V, height, BUDGETS.listed_climbs), exhaustive=True)


def _span(X: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows, shape ``(rank, d)``; the axes where that is the whole space."""
    # The triangle has the singular values and right singular vectors of X, whatever the number of samples.
    basis = torch.as_tensor(row_space(torch.linalg.qr(X, mode="r").R.cpu().numpy())).to(X)
    return basis if len(basis) < X.shape[1] else torch.eye(len(basis)).to(X)
