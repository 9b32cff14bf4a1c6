"""An affine problem in standard form: what scaling and moving it changes is taken out before anything is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.integral._bend import Bend
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

    def given_hessian(self, bend: Bend) -> Tensor:
        """A Hessian of the standard form as one of the given problem, shape ``(3 n + 1, 3 n + 1)``."""
        inputs, outputs = self.inputs[bend.neurons], self.outputs[bend.neurons]
        factors = torch.cat([inputs * self.length, inputs, outputs, inputs.new_tensor([1 / self.unit])])
        out = self.loss(1.0) * factors[:, None] * bend.hessian * factors
        # The value at the midpoint is b + w middle.
        width = len(inputs)
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
        The standard form, or None where float64 does not hold it.
    """
    mirrored = abs(given.slopes[0]) > abs(given.slopes[1])
    slope = -given.slopes[0] if mirrored else given.slopes[1]
    A, B = given.interval
    unit = abs(given.slope) * (B - A)
    if given.slope == 0:
        unit = abs(given.intercept) or given.terms or 1.0
    if not 0 < unit < math.inf:
        return None
    near_one = _near_one(given, slope / unit)
    c = (given.c.cpu() - (given.slope * _middle(given) + given.intercept)) / unit
    if near_one is None or not math.isfinite(c):
        return None
    near = (4 * eps * near_one.size).clamp(touching, FLOAT64.unresolved)
    w = near_one.w * (-1 if mirrored else 1)
    value = _put_on_ends(w, near_one.value * (-1 if mirrored else 1), near_one.h, near)
    w = torch.where((w.abs() <= near) & ((near_one.h * w).abs() <= near), 0.0, w)
    sign = float(np.sign(given.slope))
    problem = AffineProblem(w, value, near_one.h, c, sign, 0.0, (-0.5, 0.5), (zeta, 1.0))
    heard = (value + w.abs() / 2 > 0) | (zeta > 0)
    far = max(abs(A), abs(B))
    outside = abs(float(given.c)) + abs(given.intercept) + abs(given.slope) * far
    terms = float((near_one.h.abs() * near_one.size)[heard].sum()) + outside / unit
    one = torch.ones_like(w)
    inputs = _scaled(one, -near_one.exponents) * (-1 if mirrored else 1)
    return Standard(given, problem, unit, inputs, _scaled(one * slope / unit, near_one.exponents), terms)


@dataclass(frozen=True, slots=True, eq=False)
class _NearOne:
    """Neurons whose values on the interval are near 1, all of shape ``(I,)``.

    Attributes:
        w: Input weights times the length of the interval.
        value: Values at the midpoint.
        size: The size of what the values are made of: the rounding of these is its rounding.
        h: Output weights, of all that is taken out of the rest.
        exponents: Pre-activations were divided by two to this power.
    """

    w: Tensor
    value: Tensor
    size: Tensor
    h: Tensor
    exponents: Tensor


def _near_one(given: AffineProblem, factor: float) -> _NearOne | None:
    """The neurons scaled, their output weights times a factor; None where float64 does not hold them."""
    A, B = given.interval
    w, b, h = (value.cpu() for value in (given.w, given.b, given.h))
    first = _exponents(torch.maximum(w.abs(), b.abs()))
    w, b = _scaled(w, -first), _scaled(b, -first)
    size = w.abs() * max(abs(A), abs(B)) + b.abs()
    value = w * _middle(given) + b
    w = w * (B - A)
    reach = w.abs() / 2 + value.abs()
    out = _scaled(h, first) * factor
    second = torch.where(reach == 0, -_exponents(out.abs()), _exponents(reach) - 1)
    out = _scaled(out, second)
    w, value, size = (_scaled(part, -second) for part in (w, value, size))
    lost = (out == 0) & (h != 0)
    hidden = 4 * FLOAT64.eps * size > FLOAT64.unresolved
    finite = torch.isfinite(torch.cat([w, value, out, size])).all()
    if bool((lost | hidden).any()) or not bool(finite):
        return None
    return _NearOne(w, value, size, out, first + second)


def _middle(given: AffineProblem) -> float:
    """Midpoint of the interval, whatever its size."""
    A, B = given.interval
    return A / 2 + B / 2


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
