"""How strongly any neuron can be pulled: the maximum of ``||D(v)||`` over unit input weights, bounded from above.

``D_j(v) = sum_k e_kj rho(v . x_k)``. One sweep in two dimensions, or all faces of few kinks, give the maximum itself.
In a few more dimensions branch and bound encloses it: on a cap around ``c`` of angle ``r`` only samples within ``r`` of
their kink change sides, and each adds no more than ``|s+ - s-| ||e_k|| ||x_k|| sin(r - angle)`` to the ``||M v||`` of
the others, so that the bound closes with the square of ``r``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional._arrays import row_space
from relu_diag.functional.block import BlockSignal, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics import extremal_directions
from relu_diag.functional.local import radial_directions, slopes_at
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
    enclosed = _enclosed(within, slopes, value, enough)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Enclosed:
    """A maximum between a value attained, at ``v`` if it is new, and a bound; whether the two are close enough."""

    v: Tensor | None
    value: float
    bound: float
    closed: bool


def _enclosed(signal: BlockSignal, slopes: tuple[float, float], value: float, enough: float) -> _Enclosed:
    """The maximum in a few dimensions, from a value that is attained, by branch and bound."""
    boxes = _whole_cube(signal.X)
    v = None
    looked = 0
    target = max(value * (1 + FLOAT64.enclosed), enough)
    while looked <= BUDGETS.cap_numbers:
        looked += len(boxes.axis) * signal.G.numel()
        if looked > BUDGETS.cap_numbers:
            break
        C, angle = boxes.caps()
        bound, height = _cap_bounds(C, angle, signal, slopes)
        highest = int(height.argmax())
        if float(height[highest]) > value:
            v, value = C[highest], float(height[highest])
            target = max(value * (1 + FLOAT64.enclosed), enough)
        boxes = boxes.halved(bound > target)
        if not len(boxes.axis):
            return _Enclosed(v, value, target, closed=True)
    return _Enclosed(v, value, math.inf, closed=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Boxes:
    """Boxes on the surface of the cube ``||v||_max = 1``, each the directions through it.

    ``axis`` and ``sign`` say which side a box is on, shape ``(n,)``; ``centre`` and ``half`` have its middle and half
    widths along the other axes, shape ``(n, d - 1)``.
    """

    axis: Tensor
    sign: Tensor
    centre: Tensor
    half: Tensor

    def caps(self) -> tuple[Tensor, Tensor]:
        """The unit vectors through the middles, shape ``(n, d)``, and the largest angles to a corner, ``(n,)``."""
        C = self._through(self.centre)
        chord = torch.zeros_like(self.sign)
        for corner in itertools.product((-1.0, 1.0), repeat=self.half.shape[1]):
            V = self._through(self.centre + self.half * self.half.new_tensor(corner))
            chord = torch.maximum(chord, (V - C).norm(dim=1))
        return C, 2 * torch.asin((chord / 2).clamp(max=1))

    def halved(self, kept: Tensor) -> _Boxes:
        """Some of the boxes, each cut in two across its longest side."""
        half = self.half[kept]
        longest = half.argmax(dim=1, keepdim=True)
        width = half.gather(1, longest) / 2
        half = half.scatter(1, longest, width)
        shift = torch.zeros_like(half).scatter(1, longest, width)
        centre = self.centre[kept]
        return _Boxes(
            self.axis[kept].repeat(2),
            self.sign[kept].repeat(2),
            torch.cat([centre - shift, centre + shift]),
            half.repeat(2, 1),
        )

    def _through(self, points: Tensor) -> Tensor:
        """The unit vectors through points of the boxes, shape ``(n, d)``."""
        V = self.half.new_empty(len(points), points.shape[1] + 1)
        axes = torch.arange(V.shape[1], device=V.device)
        others = torch.stack([axes[axes != axis] for axis in axes])[self.axis]
        V.scatter_(1, others, points)
        V.scatter_(1, self.axis[:, None], self.sign[:, None])
        unit: Tensor = V / V.norm(dim=1, keepdim=True)
        return unit


def _whole_cube(X: Tensor) -> _Boxes:
    """The sides of the cube in the space of the rows."""
    inputs = X.shape[1]
    axis = torch.arange(inputs, device=X.device).repeat(2)
    sign = X.new_tensor([1.0, -1.0]).repeat_interleave(inputs)
    half = X.new_ones(2 * inputs, inputs - 1)
    return _Boxes(axis, sign, torch.zeros_like(half), half)


def _cap_bounds(C: Tensor, angle: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Upper bounds of ``||D||`` on caps around ``C``, shape ``(n, d)``, and its values in the middle, both ``(n,)``."""
    rows = max(1, BUDGETS.chunk // signal.G.numel())
    parts = [
        _some_cap_bounds(*one, signal, slopes)
        for one in zip(torch.split(C, rows), torch.split(angle, rows), strict=True)
    ]
    return torch.cat([bound for bound, _ in parts]), torch.cat([height for _, height in parts])


def _some_cap_bounds(
    C: Tensor, angle: Tensor, signal: BlockSignal, slopes: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    X, G = signal.X, signal.G
    length = X.norm(dim=1)
    Z = C @ X.T
    off_kink = torch.asin((Z.abs() / length).clamp(max=1))
    # What a sample on the other side adds is at most its depth there, and has the sign of the jump of the slope.
    depth = abs(slopes[1] - slopes[0]) * length * torch.sin((angle[:, None] - off_kink).clamp(min=0))
    M = ((slopes_at(Z, slopes)[:, :, None] * G).transpose(1, 2)) @ X
    D = (M @ C[:, :, None])[:, :, 0]
    height = D.norm(dim=1)
    if G.shape[1] > 1:
        return _highest_on_caps(M, C, D, angle) + depth @ G.norm(dim=1), height
    jump = G[:, 0] if slopes[1] > slopes[0] else -G[:, 0]
    steep = M[:, 0].norm(dim=1)
    aside = torch.acos((D[:, 0] / torch.where(steep > 0, steep, 1.0)).clamp(-1, 1))
    up = steep * torch.cos((aside - angle).clamp(min=0)) + depth @ jump.clamp(min=0)
    down = steep * torch.cos((math.pi - aside - angle).clamp(min=0)) + depth @ (-jump).clamp(min=0)
    return torch.maximum(up, down), height


def _highest_on_caps(M: Tensor, C: Tensor, D: Tensor, angle: Tensor) -> Tensor:
    """Upper bounds of ``||M v||`` on caps, shape ``(n,)``, by the curvature across the middle at its strongest."""
    across = M - D[:, :, None] * C[:, None, :]
    gram = across @ across.transpose(1, 2)
    if M.shape[1] > M.shape[2]:
        gram = across.transpose(1, 2) @ across
    along = D.square().sum(dim=1)
    tilt = (across.transpose(1, 2) @ D[:, :, None])[:, :, 0].norm(dim=1)
    strongest = torch.linalg.eigvalsh(gram)[:, -1]
    # (cos t, sin t) [along, tilt; tilt, strongest] (cos t, sin t): a sinusoid of twice the angle.
    twice = torch.minimum(torch.atan2(2 * tilt, along - strongest), 2 * angle)
    square = (along + strongest) / 2 + (along - strongest) / 2 * twice.cos() + tilt * twice.sin()
    highest: Tensor = square.clamp(min=0).sqrt()
    return highest
