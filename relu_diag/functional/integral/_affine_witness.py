"""Directions along which the integral loss against an affine target was evaluated and seen to fall."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.verdict import Direction

# Directions of w, b, h (rows) and of c.
Step = tuple[Tensor, Tensor]
_LONGEST, _HALVINGS = 8.0, 48
_PLACES, _TRIED = 33, 3
_ROUNDING = 32 * torch.finfo(torch.float64).eps


def see_affine_fall(problem: AffineProblem, steps: Iterator[Step]) -> Direction | None:
    """The largest fall along the first of some directions along which one is seen.

    Args:
        problem: Network and target.
        steps: Directions to try; their length is the scale around which steps are tried.

    Returns:
        The direction at unit length with step and fall, or None where none falls by more than its rounding.
    """
    now = problem.loss(problem.neurons, problem.c)
    # Of the loss only as much is known as of the error, whose terms cancel.
    mean_square = float(now) / (problem.interval[1] - problem.interval[0])
    rounding = _ROUNDING * (1 + problem.terms / max(math.sqrt(mean_square), 1e-300)) * float(now)
    for neurons, bias in steps:
        length = float(torch.cat([neurons.flatten(), bias.reshape(1)]).norm())
        if length == 0:
            continue
        dw, db, dh = dneurons = neurons / length
        dc = bias / length
        # From steps that leave the surroundings to steps that stay in them; the deepest is the clearest.
        falls = []
        for k in range(_HALVINGS):
            t = length * _LONGEST / 2**k
            there = problem.loss(problem.neurons + t * dneurons, problem.c + t * dc)
            falls.append((float(there - now), t))
        change, step = min(falls)
        if change < -rounding:
            moved = bool(dc != 0)
            return Direction(torch.stack([dw, db], dim=1), dh[None], step, change, dc.reshape(1) if moved else None)
    return None


def steepest_steps(problem: AffineProblem, gradient: Tensor) -> Iterator[Step]:
    """The steepest direction when parameters are measured by their sizes, and its opposite.

    Args:
        problem: Network and target.
        gradient: In the order ``w, b, h, c``, shape ``(3 I + 1,)``.

    Yields:
        Two directions.
    """
    sizes = _sizes(problem)
    steepest = sizes * gradient
    yield from _both_ways(sizes * steepest / steepest.norm().clamp_min(torch.finfo(steepest.dtype).tiny))


def bent_steps(problem: AffineProblem, hessian: Tensor) -> Iterator[Step]:
    """The direction bent down most when parameters are measured by their sizes, and its opposite.

    Args:
        problem: Network and target.
        hessian: In the order ``w, b, h, c``, shape ``(3 I + 1, 3 I + 1)``.

    Yields:
        Two directions.
    """
    sizes = _sizes(problem)
    measured = sizes[:, None] * (hessian + hessian.T) / 2 * sizes
    vectors = torch.linalg.eigh(measured / measured.abs().max().clamp_min(torch.finfo(sizes.dtype).tiny))[1]
    yield from _both_ways(sizes * vectors[:, 0])


def relu_saddle_steps(problem: AffineProblem, idle: Tensor, drawn: Tensor) -> Iterator[Step]:
    """Ways out where the network is constant: turn a flat semi-active neuron, or move a kink into the interval.

    The error has slope ``-f'``. A semi-active neuron with ``h = 0`` that turns about the midpoint while ``c`` takes up
    its value adds ``t^2 f' (x - midpoint)``: all the way to zero loss. A kink that enters gains where ``h w`` has the
    sign of ``f'``; a flat neuron takes that on the way.

    Source: Cheridito et al., Lemma 4.6.

    Args:
        problem: Network and target.
        idle: Flat semi-active neurons, bool, shape ``(I,)``.
        drawn: Semi-inactive neurons with ``f' h w >= 0``, bool, shape ``(I,)``.

    Yields:
        Directions, one neuron at a time, as long as a step that changes the loss by much.
    """
    A, B = problem.interval
    length, middle = B - A, (A + B) / 2
    for j in idle.nonzero().flatten().tolist():
        step, b = problem.w.new_zeros(3, len(problem.w)), float(problem.b[j])
        turn, output = b / length, problem.slope * length / b
        step[:, j] = step.new_tensor([turn, -turn * middle, output])
        yield step, problem.c.new_tensor(-output * b)
    for j in drawn.nonzero().flatten().tolist():
        step, w = problem.w.new_zeros(3, len(problem.w)), float(problem.w[j])
        step[1, j] = abs(w) * length
        step[2, j] = problem.slope / w if problem.h[j] == 0 else 0.0
        yield step, problem.c.new_zeros(())


def degenerate_steps(problem: AffineProblem, degenerate: Tensor) -> Iterator[Step]:
    """Ways out for neurons with ``w = b = 0``: towards the kink that fits the error best.

    Args:
        problem: Network and target.
        degenerate: Which neurons, bool, shape ``(I,)``.

    Yields:
        Directions, one neuron and one kink at a time, the best fit first.
    """
    A, B = problem.interval
    places = torch.linspace(A, B, _PLACES + 2, dtype=problem.w.dtype, device=problem.w.device)[1:-1]
    toward = torch.cat([torch.stack([s * torch.ones_like(places), -s * places], dim=1) for s in (1.0, -1.0)])
    pull = _pulls(problem, toward)
    scale = abs(problem.slope) or 1.0
    for j in degenerate.nonzero().flatten().tolist():
        h = float(problem.h[j])
        gain = pull.abs() if h == 0 else -h * pull
        for k in gain.argsort(descending=True)[:_TRIED].tolist():
            if gain[k] > 0:
                step = problem.w.new_zeros(3, len(problem.w))
                step[:2, j] = toward[k] * (scale / abs(h) if h else 1.0)
                step[2, j] = -scale * pull[k].sign() if h == 0 else 0.0
                yield step, problem.c.new_zeros(())


def _sizes(problem: AffineProblem) -> Tensor:
    """The sizes of parameters where each neuron makes up the spread of the target, shared among its weights as now."""
    (A, B), far = problem.interval, max(map(abs, problem.interval))
    alone = math.sqrt(abs(problem.slope) * (B - A)) or 1.0
    inputs, outputs = problem.w.abs() * far + problem.b.abs(), problem.h.abs()
    inputs, outputs = (torch.where(size == 0, alone, size) for size in (inputs, outputs))
    share = inputs.sqrt() / outputs.sqrt()
    return alone * torch.cat([share / far, share, 1 / share, share.new_full((1,), alone)])


def _both_ways(direction: Tensor) -> Iterator[Step]:
    for sign in (-1.0, 1.0):
        yield sign * direction[:-1].reshape(3, -1), sign * direction[-1]


def _pulls(problem: AffineProblem, toward: Tensor) -> Tensor:
    """Derivative of the loss with respect to the output weight of a further neuron, for each of many, at 0."""
    w = torch.cat([problem.w, toward[:, 0]])
    b = torch.cat([problem.b, toward[:, 1]])
    h = torch.cat([problem.h, torch.zeros_like(toward[:, 0])]).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(problem.loss(torch.stack([w, b, h]), problem.c), h)
    return gradient[len(problem.w) :]
