"""How strongly any neuron can be pulled: the maximum of ``||D(v)||`` over unit input weights, bounded from above.

``D_j(v) = sum_k e_kj rho(v . x_k)``. One sweep in two dimensions, or all faces of few kinks, give the maximum itself.
In a few more dimensions branch and bound encloses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional._arrays import row_space
from relu_diag.functional.block import BlockSignal, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics import extremal_directions
from relu_diag.functional.local import enclosed_pull, radial_directions, slopes_at
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class LargestPull:
    """The largest ``||D(v)||`` over unit input weights.

    Attributes:
        v: Unit input weights of the largest value found, shape ``(d,)``; zero where no direction is felt.
        value: ``||D(v)||`` there.
        bound: What no unit vector exceeds, where that is certified; else the value found.
        certified: Whether the bound is proved.
        met: All directions met, some of them with smaller pulls, shape ``(M, d)``.
    """

    v: Tensor
    value: float
    bound: float
    certified: bool
    met: Tensor


def largest_pull(signal: BlockSignal, slopes: tuple[float, float], starts: Tensor, enough: float) -> LargestPull:
    """The largest pull on a neuron of unit input weights.

    Args:
        signal: Inputs and loss gradients, float64.
        slopes: ``(s-, s+)``.
        starts: Input weights to start from where not all maxima can be listed, shape ``(n, d)``.
        enough: A bound that needs not be made smaller.

    Returns:
        The maximum, certified where the inputs span at most two dimensions, are few, or a search of bounded size
        encloses it: up to about six dimensions.
    """
    if signal.X.numel() > BUDGETS.ascent_numbers and _spans_many_dimensions(signal.X):
        return _quick_ascent(signal, slopes, starts)
    found = extremal_directions(signal.X, signal.G, slopes, starts)
    if not len(found.v):
        return LargestPull(torch.zeros_like(signal.X[0]), 0.0, 0.0, certified=True, met=found.v)
    v, value = found.v[0], float(found.gain[0])
    if found.exhaustive:
        return LargestPull(v, value, value, certified=True, met=found.v)
    felt = signal.G.any(dim=1) & signal.X.any(dim=1)
    triangle = torch.linalg.qr(signal.X[felt], mode="r").R
    basis = torch.as_tensor(row_space(triangle.cpu().numpy())).to(signal.X)
    if len(basis) > BUDGETS.cap_inputs:
        return LargestPull(v, value, value, certified=False, met=found.v)
    within = BlockSignal(signal.X[felt] @ basis.T, signal.G[felt])
    target = max(value * (1 + FLOAT64.enclosed), enough)
    enclosed = enclosed_pull(within, slopes, value, target, BUDGETS.cap_numbers)
    met = found.v
    if enclosed.v is not None:
        v = enclosed.v @ basis
        met = torch.cat([v[None], met])
    bound = enclosed.bound if enclosed.closed else enclosed.value
    return LargestPull(v, enclosed.value, bound, enclosed.closed, met)


def _spans_many_dimensions(X: Tensor) -> bool:
    """Whether a few of the samples span more dimensions already than can be searched."""
    return len(row_space(X[: BUDGETS.starts].cpu().numpy())) > BUDGETS.cap_inputs


def _quick_ascent(signal: BlockSignal, slopes: tuple[float, float], starts: Tensor) -> LargestPull:
    """The highest point that undamped steps pass, from the starts and samples of the largest pull: an estimate."""
    weight = signal.X.norm(dim=1) * signal.G.norm(dim=1)
    strongest = signal.X[weight.argsort(descending=True)[: BUDGETS.starts]]
    V = radial_directions(torch.cat([starts, strongest, -strongest]))
    D = rho(V @ signal.X.T, slopes) @ signal.G
    V = V[D.norm(dim=1).argsort(descending=True)[: BUDGETS.starts]]
    best = V.new_zeros(len(V))
    met = V
    for _ in range(BUDGETS.rounds):
        Z = V @ signal.X.T
        D = rho(Z, slopes) @ signal.G
        gain = D.norm(dim=1)
        higher = gain > best
        if not bool(higher.any()):
            break
        best = torch.where(higher, gain, best)
        met = torch.where(higher[:, None], V, met)
        V = radial_directions((slopes_at(Z, slopes) * (D @ signal.G.T)) @ signal.X)
    highest = int(best.argmax())
    value = float(best[highest])
    return LargestPull(met[highest], value, value, certified=False, met=met)


def largest_pull_with_free_bias(
    signal: BlockSignal, slopes: tuple[float, float], starts: Tensor, enough: float
) -> LargestPull:
    """The largest pull on a neuron whose last input weight, of a constant column, does not count in its length.

    The loss gradients add up to zero, so that ``D`` does not change any more where all samples are on one side. Between
    kinks ``D`` is linear in the bias and its length convex: the maximum is where a sample is on the kink,
    ``D = sum_l e_l rho(w . (x_l - x_k))``.

    Args:
        signal: Inputs with a constant last column, and loss gradients that add up to zero, float64.
        slopes: ``(s-, s+)``.
        starts: Input weights to start from, shape ``(n, d)``.
        enough: A bound that needs not be made smaller.

    Returns:
        The maximum over ``w`` of length 1 and any bias; the last entry of its ``v`` is the bias. Certified for one
        input, and for two where the samples are few.
    """
    X = signal.X[:, :-1]
    kinks = torch.unique(X, dim=0)
    listed = X.shape[1] == 1 or (X.shape[1] == 2 and len(kinks) <= BUDGETS.free_bias_samples)
    if not listed:
        return _with_bias_met_by_chance(signal, slopes, starts, enough)
    constant = float(signal.X[0, -1])
    best = 0.0
    met = [torch.zeros_like(signal.X[0])]
    for kink in kinks:
        at = largest_pull(BlockSignal(X - kink, signal.G), slopes, X[:0], enough)
        if at.value > 0:
            met.append(torch.cat([at.v, -(at.v @ kink)[None] / constant]))
        if at.value > best:
            best = at.value
            met[0] = met[-1]
    return LargestPull(met[0], best, best, certified=True, met=torch.stack(met))


def _with_bias_met_by_chance(
    signal: BlockSignal, slopes: tuple[float, float], starts: Tensor, enough: float
) -> LargestPull:
    """The largest pull at the directions found as if the bias counted, with the length that does not count it."""
    found = largest_pull(signal, slopes, starts, enough)
    length = found.met[:, :-1].norm(dim=1)
    met = found.met[length > 0] / length[length > 0, None]
    if not len(met):
        return LargestPull(torch.zeros_like(signal.X[0]), 0.0, 0.0, certified=False, met=met)
    gain = (rho(met @ signal.X.T, slopes) @ signal.G).norm(dim=1)
    highest = int(gain.argmax())
    return LargestPull(met[highest], float(gain[highest]), float(gain[highest]), certified=False, met=met)
