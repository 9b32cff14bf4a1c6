"""An affine problem in standard form: what scaling and moving it changes is taken out before anything is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """An affine problem on ``[-1/2, 1/2]`` against ``x``, ``-x`` or 0, with slopes ``(zeta, 1)`` and inputs near 1.

    Attributes:
        given: The problem as it was given.
        problem: The same, in float64 on the CPU; ``|w| / 2 + |b|`` lies in [1, 2), or is 0.
        unit: What an output of 1 is in the given problem: the spread of the target where it has one.
        inputs: Factors of the given pre-activations, powers of two, negative where units are mirrored, shape ``(I,)``.
        outputs: Factors of the given output weights, shape ``(I,)``.
        terms: The size of what is added up to the error, in units of `unit`: it is no more accurate than its terms.
    """

    given: AffineProblem
    problem: AffineProblem
    unit: float
    inputs: Tensor
    outputs: Tensor
    terms: float

    @property
    def length(self) -> float:
        """Length of the given interval."""
        A, B = self.given.interval
        return B - A

    @property
    def middle(self) -> float:
        """Midpoint of the given interval."""
        return _middle(self.given)

    def loss(self, value: float) -> float:
        """A loss of the standard form as one of the given problem."""
        return value * self.unit * self.unit * self.length

    def back(self, neurons: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """A direction ``(3, I)`` and ``()`` of the standard form as one of the given problem."""
        w, b, h = neurons
        w = w / self.inputs / self.length
        moved = torch.stack([w, b / self.inputs - w * self.middle, h / self.outputs])
        return moved.to(self.given.w.device), (c * self.unit).to(self.given.w.device)

    def given_hessian(self, hessian: Tensor) -> Tensor:
        """A Hessian of the standard form, ``(3 I + 1, 3 I + 1)``, as one of the given problem."""
        width = len(self.inputs)
        one = hessian.new_ones(1)
        factors = torch.cat([self.inputs * self.length, self.inputs, self.outputs, one / self.unit])
        out = self.loss(1.0) * factors[:, None] * hessian * factors
        # The value at the midpoint is b + w middle.
        w, b = slice(0, width), slice(width, 2 * width)
        out[w] += self.middle * out[b]
        out[:, w] += self.middle * out[:, b]
        return out


def standard_form(given: AffineProblem, zeta: float, touching: float, eps: float) -> Standard | None:
    """The standard form of a problem.

    What rounding moved off an end of the interval is put back on it: a neuron that is positive within the tolerance of
    the end alone touches it.

    Args:
        given: The problem.
        zeta: The smaller slope of its units over the larger.
        touching: Value at an end, over the neuron's largest, that counts as 0.
        eps: Rounding of the given numbers.

    Returns:
        The standard form, or None where a number of it leaves the range of float64.
    """
    A, B = given.interval
    length, middle = B - A, _middle(given)
    mirrored = abs(given.slopes[0]) > abs(given.slopes[1])
    slope = -given.slopes[0] if mirrored else given.slopes[1]
    unit = abs(given.slope) * length
    if given.slope == 0:
        unit = abs(given.intercept) or given.terms or 1.0
    w, b, h = (value.cpu() for value in (given.w, given.b, given.h))
    first = _exponents(torch.maximum(w.abs(), b.abs()))
    w, b, h = _scaled(w, -first), _scaled(b, -first), _scaled(h, first)
    # The size of what the values on the interval are made of: its rounding is theirs.
    size = w.abs() * max(abs(A), abs(B)) + b.abs()
    value = w * middle + b
    w = w * length
    reach = w.abs() / 2 + value.abs()
    h = h * (slope / unit) if unit > 0 else torch.full_like(h, math.inf)
    second = torch.where(reach == 0, -_exponents(h.abs()), _exponents(reach) - 1)
    w, value, size, h = (_scaled(part, sign * second) for part, sign in ((w, -1), (value, -1), (size, -1), (h, 1)))
    c = (given.c.cpu() - (given.slope * middle + given.intercept)) / unit
    lost = (h == 0) & (given.h.cpu() != 0)
    if bool(lost.any()) or not bool(torch.isfinite(torch.cat([w, value, h, size, c.reshape(1)])).all()):
        return None
    inputs = _scaled(torch.ones_like(w), -first - second)
    if mirrored:
        w, value, inputs = -w, -value, -inputs
    near = (4 * eps * size).clamp(touching, FLOAT64.unresolved)
    value = _put_on_ends(w, value, h, near)
    w = torch.where((w.abs() <= near) & ((h * w).abs() <= near), 0.0, w)
    problem = AffineProblem(w, value, h, c, float(np.sign(given.slope)), 0.0, (-0.5, 0.5), (zeta, 1.0))
    heard = (value + w.abs() / 2 > 0) | (zeta > 0)
    terms = float((h.abs() * size)[heard].sum()) + _target_terms(given) / unit
    outputs = _scaled(torch.full_like(h, slope / unit), first + second)
    return Standard(given, problem, unit, inputs, outputs, terms)


def _middle(given: AffineProblem) -> float:
    """Midpoint of the interval, whatever its size."""
    A, B = given.interval
    return A / 2 + B / 2


def _target_terms(given: AffineProblem) -> float:
    """What the output bias and the target are made of."""
    far = max(map(abs, given.interval))
    return abs(float(given.c)) + abs(given.intercept) + abs(given.slope) * far


def _exponents(sizes: Tensor) -> Tensor:
    """Exponents ``e`` with ``2^(e - 1) <= size < 2^e``; 0 where the size is 0, int, shape ``(I,)``."""
    return torch.frexp(sizes)[1].long()


def _scaled(values: Tensor, exponents: Tensor) -> Tensor:
    """``values 2^exponents``, exact also where ``2^exponents`` alone is out of range, shape ``(I,)``."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.ldexp(values.numpy(), exponents.numpy()))


def _put_on_ends(w: Tensor, value: Tensor, h: Tensor, near: Tensor) -> Tensor:
    """Values at the midpoint, with neurons that are positive next to an end alone, or just not, touching it."""
    highest = value + w.abs() / 2
    sliver = highest.clamp_min(0).square() * (h / torch.where(w == 0, 1.0, w)).abs()
    touches = (w != 0) & (value < 0) & (highest.abs() <= near) & (sliver <= near)
    return torch.where(touches, -w.abs() / 2, value)
