"""The largest pull on a neuron in a few dimensions, enclosed by branch and bound.

On a cap around ``c`` of angle ``r`` only samples within ``r`` of their kink change sides, and each adds no more than
``|s+ - s-| ||e_k|| ||x_k|| sin(r - angle)`` to the ``||M v||`` of the others, so that the bound closes with the square
of ``r``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local.sums import slopes_at
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class EnclosedPull:
    """A maximum of ``||D(v)||`` over unit input weights between a value attained and a bound.

    Attributes:
        v: Unit input weights of the value, if it is a new one, shape ``(d,)``.
        value: The largest value attained.
        bound: What no unit vector exceeds.
        closed: Whether the bound is as close as was asked for; else it is infinite.

    Example:
        >>> EnclosedPull(v=None, value=1.0, bound=1.0, closed=True).closed
        True
    """

    v: Tensor | None
    value: float
    bound: float
    closed: bool


def enclosed_pull(
    signal: BlockSignal, slopes: tuple[float, float], value: float, target: float, most: int
) -> EnclosedPull:
    """Whether the largest ``||D(v)||`` over unit vectors is below a target, by branch and bound.

    Args:
        signal: Inputs that span the space, and loss gradients, float64.
        slopes: ``(s-, s+)``.
        value: A value that is attained.
        target: The bound to prove; where a larger value than the one given is met, a little above that.
        most: Loss gradients of all caps together at which the search gives up.

    Returns:
        The enclosure; it is not closed where the search would be too long, as it is in more than about six dimensions.

    Example:
        >>> X = torch.eye(3, dtype=torch.float64)
        >>> enclosed_pull(BlockSignal(X, X[:, :1]), (0.0, 1.0), value=0.9, target=1.01, most=10_000).bound
        1.01
    """
    boxes = _whole_cube(signal.X)
    v = None
    looked = 0
    while True:
        looked += len(boxes.axis) * signal.G.numel()
        if looked > most or signal.X.shape[1] > BUDGETS.cap_inputs:
            return EnclosedPull(v, value, math.inf, closed=False)
        C, angle = boxes.caps()
        bound, height = _cap_bounds(C, angle, signal, slopes)
        highest = int(height.argmax())
        if float(height[highest]) > value:
            v, value = C[highest], float(height[highest])
            target = max(value * (1 + FLOAT64.enclosed), target)
        boxes = boxes.halved(bound > target)
        if not len(boxes.axis):
            return EnclosedPull(v, value, target, closed=True)


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
