"""The integral loss against an affine target in rational numbers: no rounding at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from torch import Tensor

from relu_diag.functional.verdict import Direction


@dataclass(frozen=True)
class AffineCase:
    """What `classify_affine` is given."""

    w: Tensor
    b: Tensor
    h: Tensor
    c: float
    slope: float
    intercept: float
    interval: tuple[float, float]
    slopes: tuple[float, float] = (0.0, 1.0)

    @property
    def arguments(self) -> tuple[object, ...]:
        return self.w, self.b, self.h, self.c, self.slope, self.intercept, self.interval, self.slopes

    def loss(self, direction: Direction | None = None, step: float = 0.0) -> Fraction:
        """The loss there, or a step away along a direction."""
        w, b, h, c = self.w, self.b, self.h, self.c
        if direction is not None:
            w, b = w + step * direction.dW[:, 0], b + step * direction.dW[:, 1]
            h = h + step * direction.dH[0]
            c = c if direction.db is None else c + step * float(direction.db)
        return rational_loss((w.tolist(), b.tolist(), h.tolist()), c, self)


def rational_loss(neurons: tuple[Sequence[float], ...], c: float, case: AffineCase) -> Fraction:
    """Piece by piece: the square of an affine error between two breakpoints, by Simpson's rule."""
    w, b, h = ([Fraction(value) for value in row] for row in neurons)
    A, B, s_minus, s_plus, slope, intercept, bias = (
        Fraction(value) for value in (*case.interval, *case.slopes, case.slope, case.intercept, c)
    )

    def error(x: Fraction) -> Fraction:
        z = [wi * x + bi for wi, bi in zip(w, b, strict=True)]
        out = sum(hi * (s_plus * zi if zi > 0 else s_minus * zi) for hi, zi in zip(h, z, strict=True))
        return bias + out - slope * x - intercept

    kinks = {-bi / wi for wi, bi in zip(w, b, strict=True) if wi != 0}
    edges = [A, *sorted(t for t in kinks if A < t < B), B]
    total = Fraction(0)
    for left, right in pairwise(edges):
        ends = error(left), error(right)
        total += (right - left) * (ends[0] ** 2 + ends[0] * ends[1] + ends[1] ** 2) / 3
    return total
