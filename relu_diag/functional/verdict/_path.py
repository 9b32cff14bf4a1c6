"""The loss along a move, across all kinks on the way: a quartic on every piece, exact, and where it first rises."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks
from relu_diag.functional.problem import SquaredProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict.line import Move, TaylorExpansion, entered


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """The first part of a way, on which the loss never rises by more than rounding.

    Attributes:
        step: Where the loss is lowest on it, 0 where it rises at once.
        change: Loss change there, <= 0.
        rounding: What adding up the quartic there may get wrong.
    """

    step: float
    change: float
    rounding: float


@dataclass(frozen=True, slots=True, eq=False)
class _Crossings:
    """The pairs (sample, neuron) that cross their kink on the way.

    Attributes:
        time: Where on the way, shape ``(M,)``.
        sample: Number of the sample, long, shape ``(M,)``.
        jump: By what the outputs of the sample change from there on, a quadratic in the step, shape ``(M, 3, J)``.
    """

    time: Tensor
    sample: Tensor
    jump: Tensor


def falling_stretch(problem: SquaredProblem, move: Move, line: TaylorExpansion, slack: float = 0.0) -> Stretch:
    """How far the loss never rises along a move; a slope at the start within the slack, or rounding, is none.

    The quartic of the first piece says how far to look: to its first minimum, or less where too many kinks are on the
    way.
    """
    if not line.minima:
        return Stretch(0.0, 0.0, 0.0)
    end = line.minima[0]
    first = line.coefficients.cpu().numpy().copy()
    first[0] = 0.0
    if abs(first[1]) <= max(slack, FLOAT64.roundings * FLOAT64.eps * line.slope_terms):
        first[1] = 0.0
    if end <= line.eps_max:
        return _first_rise(np.array([0.0, end]), first[None])
    residuals, crossings, end = _crossings(problem, move, end)
    order = crossings.time.argsort()
    times = crossings.time[order].cpu().numpy()
    jumps = problem.factor * _loss_jumps(residuals, crossings)[order].cpu().numpy()
    pieces = np.concatenate([first[None], first + jumps.cumsum(axis=0)])
    return _first_rise(np.concatenate([[0.0], times, [end]]), pieces)


def _crossings(problem: SquaredProblem, move: Move, end: float) -> tuple[Tensor, _Crossings, float]:
    """Residuals of the samples on the first piece, quadratics ``(n, 3, J)``; the crossings up to an end; that end."""
    block = problem.block
    residuals, found = [], [move.dW.new_zeros(0, 5)]
    count = 0
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        dZ = chunk.X @ move.dW.T
        dA = entered(chunk.Z, dZ, block.slopes)
        first = rho(chunk.Z, block.slopes) @ move.dH.T + dA @ block.H.T + move.db
        residuals.append(torch.stack([chunk.G, first, dA @ move.dH.T], dim=1))
        time = -chunk.Z / dZ
        row, neuron = ((time > 0) & (time < end)).nonzero().unbind(1)
        values = (time[row, neuron], row + count, neuron, chunk.Z[row, neuron], dZ[row, neuron])
        found.append(torch.stack([value.double() for value in values], dim=1))
        count += len(chunk.X)
        if sum(map(len, found)) > BUDGETS.crossings:
            together = torch.cat(found)
            end = float(together[:, 0].kthvalue(BUDGETS.crossings).values)
            found = [together[together[:, 0] < end]]
    time, sample, neuron, z, dz = torch.cat(found).unbind(1)
    h, dh = (part.T[neuron.long()] for part in (block.H, move.dH))
    powers = [z[:, None] * h, dz[:, None] * h + z[:, None] * dh, dz[:, None] * dh]
    bend = (block.slopes[1] - block.slopes[0]) * dz.sign()
    return torch.cat(residuals), _Crossings(time, sample.long(), bend[:, None, None] * torch.stack(powers, dim=1)), end


def _loss_jumps(residuals: Tensor, crossings: _Crossings) -> Tensor:
    """By what the quartic of half the squared residuals changes at each crossing, shape ``(M, 5)``."""
    jumps = crossings.time.new_zeros(len(crossings.time), 5)
    now = residuals.clone()
    left = torch.arange(len(crossings.time), device=jumps.device)
    left = left[crossings.time.argsort(stable=True)]
    while len(left):  # the next crossing of every sample that has one
        samples, inverse = torch.unique(crossings.sample[left], return_inverse=True)
        place = torch.arange(len(left), device=left.device)
        first = torch.full_like(samples, len(left)).scatter_reduce_(0, inverse, place, "amin")
        at = left[first]
        before = now[samples]
        after = before + crossings.jump[at]
        jumps[at] = _half_square(after) - _half_square(before)
        now[samples] = after
        rest = torch.ones_like(left, dtype=torch.bool)
        rest[first] = False
        left = left[rest]
    return jumps


def _half_square(quadratic: Tensor) -> Tensor:
    """Half the squared length of quadratics ``(M, 3, J)``, quartics ``(M, 5)``."""
    a, b, c = quadratic.unbind(1)
    products = [a * a / 2, a * b, a * c + b * b / 2, b * c, c * c / 2]
    return torch.stack([product.sum(1) for product in products], dim=1)


def _first_rise(ends: Array, pieces: Array) -> Stretch:
    """Where the loss is lowest before it first rises above that by more than rounding.

    Piece ``p``, a quartic in the step ``(P, 5)``, holds from ``ends[p]`` to ``ends[p + 1]``; the loss is 0 at first.
    A slope that is positive by next to nothing leads over a hump at the start, which nobody feels beside the fall.
    """
    left, right = ends[:-1], ends[1:]
    scaled = pieces * right[:, None] ** np.arange(5)  # in shares of the right end
    rounding = FLOAT64.roundings * FLOAT64.eps * np.abs(scaled).sum(axis=1)
    value = scaled.sum(axis=1)
    # Beyond a piece whose terms cancel so much that a rise would not be seen nothing is claimed.
    blurred = np.flatnonzero(rounding[1:] > FLOAT64.blurred * np.abs(value[:-1]))
    count = int(blurred[0]) + 1 if len(blurred) else len(pieces)
    lowest = Stretch(0.0, 0.0, 0.0)
    hump = 0.0
    rising = np.flatnonzero(np.logical_not(_never_rises(scaled[:count], left[:count] / right[:count])))
    for p in [*rising.tolist(), count]:
        if p and value[p - 1] < lowest.change:  # down to here all the way
            lowest = Stretch(float(right[p - 1]), float(value[p - 1]), float(rounding[p - 1]))
        if p == count:
            break
        for stop in _stops(scaled[p], left[p] / right[p]):
            there = float((scaled[p] * stop ** np.arange(5)).sum())
            if p == 0 and hump == 0 and lowest.step == 0:
                hump = max(there, 0.0)
            if there > lowest.change + rounding[p] + hump:
                return _beyond(hump, lowest, ends, pieces)
            if there < lowest.change:
                lowest = Stretch(stop * float(right[p]), there, float(rounding[p]))
    return _beyond(hump, lowest, ends, pieces)


def _beyond(hump: float, lowest: Stretch, ends: Array, pieces: Array) -> Stretch:
    """A stretch, none where it starts with a hump that is felt beside its fall, and short of the kink it may end at."""
    soon = FLOAT64.behind_hump * lowest.step
    there = pieces[np.searchsorted(ends[1:-1], soon, side="right")]
    # A hump that lasts is none that a slope explains: the fall begins at a kink further on.
    if hump > FLOAT64.hump * -lowest.change or (hump > 0 and float((there * soon ** np.arange(5)).sum()) > 0):
        return Stretch(0.0, 0.0, 0.0)
    # At the kink itself rounding decides on which side the evaluated loss is, and behind it the loss rises.
    return replace(lowest, step=lowest.step * (1 - FLOAT64.same_side))


def _never_rises(scaled: Array, left: Array) -> Array:
    """Which quartics fall from a left end to 1 because all Bernstein coefficients of their slopes say so, ``(P,)``."""
    c = scaled[:, 1:] * np.arange(1, 5)  # the slope, a cubic
    width = 1 - left
    value = c[:, 0] + left * (c[:, 1] + left * (c[:, 2] + left * c[:, 3]))
    first = width * (c[:, 1] + left * (2 * c[:, 2] + left * 3 * c[:, 3]))
    second = width**2 * (c[:, 2] + left * 3 * c[:, 3])
    third = width**3 * c[:, 3]
    bernstein = [value, value + first / 3, value + 2 * first / 3 + second / 3, value + first + second + third]
    return np.asarray((np.stack(bernstein) <= 0).all(axis=0))


def _stops(quartic: Array, left: float) -> list[float]:
    """Turning points of a quartic ``(5,)`` between a left end and 1, in order, and 1.

    Between the turning points of its slope the slope is monotonic, so that no leading coefficient, which may be all
    rounding, stands in the way of a root.
    """
    one, two, three, four = (float(value) for value in quartic[1:])
    a, b, c = 12 * four, 6 * three, 2 * two  # of the slope's slope
    square = b * b - 4 * a * c
    bends: list[float] = []
    if square > 0:
        half = -(b + math.copysign(math.sqrt(square), b)) / 2
        bends = [half / a if a != 0 else math.inf, c / half if half != 0 else math.inf]
    edges = [left, *sorted(bend for bend in bends if left < bend < 1), 1.0]

    def slope(t: float) -> float:
        return one + t * (2 * two + t * (3 * three + t * 4 * four))

    signs = [slope(edge) > 0 for edge in edges]
    turns = [brentq(slope, *edges[i : i + 2]) for i in range(len(edges) - 1) if signs[i] != signs[i + 1]]
    return [*(float(turn) for turn in turns), 1.0]
