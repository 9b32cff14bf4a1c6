"""Directions along which the integral loss against an affine target was evaluated and seen to fall.

All is computed in standard form, on ``[-1/2, 1/2]`` against ``x`` or ``-x``; what is returned belongs to the given
problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from relu_diag.functional.integral._bend import Bend
from relu_diag.functional.integral._standard import Standard
from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict import Direction

# Directions of w, b, h (rows) and of c.
Step = tuple[Tensor, Tensor]
# Steps that are tried: the longest, the factor between two of them, how many, and points on the way to the best.
_LONGEST = 8.0
_SHORTER = 4.0
_LENGTHS = 24
_BETWEEN = 16
# Kinks that are offered to a neuron at zero, in each direction, and how many of them are tried.
_PLACES = 33
_TRIED = 3
_ROUNDING = 32 * FLOAT64.eps


def see_affine_fall(standard: Standard, steps: Iterator[Step]) -> Direction | None:
    """The first of some directions along which a clear fall is seen, or the one with the largest.

    Args:
        standard: Network and target.
        steps: Directions to try; their length is the scale around which steps are tried.

    Returns:
        The direction at unit length with step and fall, or None where none falls by more than its rounding.
    """
    now = standard.loss(float(standard.problem.loss(standard.problem.neurons, standard.problem.c)))
    best = None
    for neurons, c in steps:
        t = _longest_fall(standard, neurons, c)
        direction = None if t is None else _in_given(standard, t * neurons, t * c)
        if direction is None or (best is not None and direction.loss_change >= best.loss_change):
            continue
        best = direction
        if best.loss_change < -FLOAT64.clear_fall * now:
            break
    return best


def steepest_steps(problem: AffineProblem, gradient: Tensor) -> Iterator[Step]:
    """The steepest direction when parameters are measured by their sizes.

    Args:
        problem: Network and target.
        gradient: In the order ``w, b, h, c``, shape ``(3 I + 1,)``.

    Yields:
        The direction, and those of the steepest input weight, output weight and bias alone.
    """
    sizes = _sizes(problem)
    steepest = sizes * gradient
    if bool(steepest.any()):
        yield _as_step(-sizes * steepest / steepest.norm())
    width = len(problem.w)
    for part in (slice(0, 2 * width), slice(2 * width, 3 * width), slice(3 * width, None)):
        k = part.start + int(steepest[part].abs().argmax())
        alone = torch.zeros_like(sizes)
        alone[k] = -sizes[k] * steepest[k].sign()
        yield _as_step(alone)


def bent_steps(problem: AffineProblem, bend: Bend) -> Iterator[Step]:
    """The direction bent down most when parameters are measured by their sizes, and its opposite.

    Args:
        problem: Network and target.
        bend: The Hessian among some of the neurons.

    Yields:
        Two directions.
    """
    rows, one = _as_step(_sizes(problem))
    sizes = torch.cat([rows[:, bend.neurons].flatten(), one.reshape(1)])
    measured = sizes[:, None] * (bend.hessian + bend.hessian.T) / 2 * sizes
    if not bool(torch.isfinite(measured).all()):
        return
    neurons, c = _as_step(sizes * torch.linalg.eigh(measured)[1][:, 0])
    wide = torch.zeros_like(rows).index_copy(1, bend.neurons, neurons)
    yield wide, c
    yield -wide, -c


def relu_saddle_steps(problem: AffineProblem, idle: Tensor, drawn: Tensor) -> Iterator[Step]:
    """Ways out where the network is constant: turn a flat semi-active neuron, or move a kink into the interval.

    The error has slope ``-f'``. A semi-active neuron with ``h = 0`` that turns about the midpoint while ``c`` takes up
    its value adds ``t^2 f' x``: all the way to zero loss. A kink that enters gains where ``h w`` has the sign of
    ``f'``; a flat neuron takes that on the way.

    Source: Cheridito et al., Lemma 4.6.

    Args:
        problem: Network and target.
        idle: Flat semi-active neurons, bool, shape ``(I,)``.
        drawn: Semi-inactive neurons with ``f' h w >= 0``, bool, shape ``(I,)``.

    Yields:
        Directions, one neuron at a time, as long as a step that changes the loss by much.
    """
    sizes = _sizes(problem)
    width = len(problem.w)
    for j in idle.nonzero().flatten().tolist():
        b = float(problem.b[j])
        step = problem.w.new_zeros(3, width)
        step[0, j] = b
        step[2, j] = problem.slope / b
        yield step, -step[2, j] * b
    for j in drawn.nonzero().flatten().tolist():
        step = problem.w.new_zeros(3, width)
        step[1, j] = sizes[width + j]
        step[2, j] = problem.slope / problem.w[j] if problem.h[j] == 0 else 0.0
        yield step, problem.c.new_zeros(())


def degenerate_steps(problem: AffineProblem, degenerate: Tensor) -> Iterator[Step]:
    """Ways out for neurons with ``w = b = 0``: towards the kink that fits the error best.

    Args:
        problem: Network and target.
        degenerate: Which neurons, bool, shape ``(I,)``.

    Yields:
        Directions, one neuron and one kink at a time, the best fit first.
    """
    if not bool(degenerate.any()):
        return
    A, B = problem.interval
    places = torch.linspace(A, B, _PLACES, dtype=torch.float64)
    toward = torch.cat([torch.stack([s * torch.ones_like(places), -s * places], dim=1) for s in (1.0, -1.0)])
    pull = _pulls(problem, toward)
    for j in degenerate.nonzero().flatten().tolist():
        h = float(problem.h[j])
        gain = pull.abs() if h == 0 else -h * pull
        for k in gain.argsort(descending=True)[:_TRIED].tolist():
            if gain[k] > 0:
                step = problem.w.new_zeros(3, len(problem.w))
                step[:2, j] = toward[k] / (abs(h) or 1.0)
                step[2, j] = -pull[k].sign() if h == 0 else 0.0
                yield step, problem.c.new_zeros(())


def _longest_fall(standard: Standard, neurons: Tensor, c: Tensor) -> float | None:
    """The step with the lowest loss that is reached without a rise, over the length of the direction."""
    problem = standard.problem
    now = float(problem.loss(problem.neurons, problem.c))
    # Of the loss only as much is known as of the error, whose terms cancel.
    noise = _ROUNDING * (now + 2 * standard.terms * math.sqrt(now))

    def change(t: float) -> float:
        return float(problem.loss(problem.neurons + t * neurons, problem.c + t * c)) - now

    lengths = [_LONGEST / _SHORTER**k for k in reversed(range(_LENGTHS))]
    best = 0.0
    lowest = -noise
    for t in lengths:
        there = change(t)
        if there > noise or (best > 0 and there >= lowest):
            break
        if there < lowest:
            best, lowest = t, there
    if best == 0:
        return None
    # The loss must not rise on the way: the way ends before the lowest point, which may lie between two of these.
    way = [best * k / _BETWEEN for k in range(_BETWEEN + 1)]
    falls = [change(t) for t in way]
    turns = (after > before + noise or before < min(after, -noise) for before, after in pairwise(falls))
    lowest_at = next((k for k, turned in enumerate(turns) if turned), _BETWEEN)
    end = max(lowest_at - 1, 0)
    return way[end] if falls[end] < -noise else None


def _in_given(standard: Standard, neurons: Tensor, c: Tensor) -> Direction | None:
    """The step in the given problem, evaluated there; None where its rounding hides the fall."""
    given = standard.given
    (dw, db, dh), dc = standard.back(neurons, c)
    length = float(torch.cat([dw, db, dh, dc.reshape(1)]).norm())
    if not (0 < length < math.inf):
        return None
    moved = torch.stack([dw, db, dh])
    if not bool(torch.isfinite(given.neurons + moved).all()):
        return None
    fall = float(given.loss(given.neurons + moved, given.c + dc) - given.loss(given.neurons, given.c))
    if not fall < 0:
        return None
    return Direction(
        torch.stack([dw, db], dim=1) / length,
        dh[None] / length,
        length,
        fall,
        dc.reshape(1) / length if bool(dc != 0) else None,
    )


def _sizes(problem: AffineProblem) -> Tensor:
    """The sizes of parameters: steps that move a kink across the interval, or a neuron's part of the output by 1.

    A neuron that is louder than that shares it among its weights, so that neither moves by more than itself.
    """
    inputs = problem.w.abs() / 2 + problem.b.abs()
    outputs = problem.h.abs()
    inputs = torch.where(inputs == 0, 1 / torch.where(outputs == 0, 1.0, outputs), inputs)
    step = inputs / (inputs * outputs).clamp_min(1).sqrt()
    return torch.cat([step, step, 1 / step, step.new_ones(1)])


def _as_step(vector: Tensor) -> Step:
    """Rows ``(3, I)`` and the rest of a vector in the order ``w, b, h, c``."""
    return vector[:-1].reshape(3, -1), vector[-1]


def _pulls(problem: AffineProblem, toward: Tensor) -> Tensor:
    """Derivative of the loss with respect to the output weight of a further neuron, for each of many, at 0."""
    w = torch.cat([problem.w, toward[:, 0]])
    b = torch.cat([problem.b, toward[:, 1]])
    h = torch.cat([problem.h, torch.zeros_like(toward[:, 0])]).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(problem.loss(torch.stack([w, b, h]), problem.c), h)
    return gradient[len(problem.w) :]
