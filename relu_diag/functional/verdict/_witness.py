"""Falls of the loss: moves proposed by the derivatives, evaluated, and kept where the loss is seen lower."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock, chunked_outputs, rho
from relu_diag.functional.local import radial_directions
from relu_diag.functional.problem import SquaredProblem
from relu_diag.functional.tolerances import BUDGETS, FLOAT64
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import EscapeNeurons, silent_escapes
from relu_diag.functional.verdict.line import Move, TaylorExpansion, expand
from relu_diag.functional.verdict.stationarity import Stationarity

# Where the fall along a step is looked at again.
_PARTS = (0.08, 0.2, 0.4, 0.7)
# Rounding of a loss evaluated in float64, as a multiple of its unit roundoff times the size of what is summed.
_RESOLUTION = 4 * FLOAT64.eps


def see_fall(problem: SquaredProblem, move: Move) -> Direction | None:
    """A step along a move at which the loss is lower by more than its rounding, if one is seen.

    The minima of the exact quartic propose the steps. Beyond its validity radius the loss is another one: the way back
    to it is tried too, by halves. A step that leads over a rise is none.

    Args:
        problem: The squared loss.
        move: The direction, of any length.

    Returns:
        The direction at unit length with the step and the fall, or None.
    """
    length = float(torch.cat([part.flatten() for part in (move.dW, move.dH, move.db)]).norm())
    if length == 0:
        return None
    move = Move(move.dW / length, move.dH / length, move.db / length)
    line = expand(problem, move)
    if not line.minima:
        return None
    first = line.minima[0]
    steps = {tried for step in line.minima for tried in (step, min(step, line.eps_max))}
    seen = sorted((_change(problem, move, step), step) for step in steps)
    shorter = itertools.takewhile(lambda step: step > max(line.eps_max, FLOAT64.shortest * first) / 2, _halves(first))
    halves = ((_change(problem, move, step), step) for step in shorter)
    for change, step in itertools.chain(seen, halves):
        if change < 0 and _falls_to(problem, move, line, step):
            return Direction(move.dW, move.dH, step, change, move.db if bool(move.db.any()) else None)
    return None


def first_order_fall(problem: SquaredProblem, found: Stationarity) -> Direction | None:
    """The fall along the steepest descent of all neurons that are not stationary, or of the worst of them alone.

    Args:
        problem: The squared loss.
        found: Its stationarity.

    Returns:
        The direction, or None where no fall exceeds the rounding of the loss.
    """
    geometry = found.geometry
    dW = -geometry.steepest[:, None] * geometry.direction
    dW -= geometry.radial[:, None] * radial_directions(problem.block.W)
    bias = found.bias_violation > found.tol
    db = problem.loss_signal.G.sum(0) * (-1.0 if bias else 0.0)
    broken = found.violation > found.tol
    tries = [(broken, 0 * db), (broken, db)] if bias else [(broken, db)]
    worst = found.violation.argsort(descending=True)[: min(BUDGETS.neurons_tried, int(broken.sum()))]
    tries += [(torch.zeros_like(broken).index_fill(0, i, True), 0 * db) for i in worst]
    moves = (Move(dW * mask[:, None], -geometry.output_gradient * mask, bias_part) for mask, bias_part in tries)
    return next((fall for fall in (see_fall(problem, move) for move in moves) if fall is not None), None)


def silent_escape_fall(problem: SquaredProblem, escape: EscapeNeurons) -> Direction | None:
    """The fall that an escape neuron with ``h_i = 0`` opens: output weights against ``D``, input weights along ``v``.

    With ``delta h_i = -a D / ||D||`` and ``delta w_i = t v`` the loss changes by ``f/2 a^2 ||rho(z_i)||^2 - a t ||D||``
    to second order, negative for ``t > f ||rho(z_i)||^2 a / (2 ||D||)``.

    Source: Wu et al., Corollary 4.4.

    Args:
        problem: The squared loss, ``f / 2`` times a sum of squares.
        escape: Its escape neurons.

    Returns:
        The direction, or None where there is no such neuron or no fall exceeds the rounding of the loss.
    """
    block, X = problem.block, problem.signal.X
    pull = escape.D.norm(dim=1) * silent_escapes(block, problem.signal, escape)
    for i in pull.argsort(descending=True)[: min(BUDGETS.neurons_tried, int((pull > 0).sum()))].tolist():
        D, v = escape.D[i], escape.direction[i]
        t = float(block.W[i].norm()) or 1.0
        now, ahead = (rho(X @ w, block.slopes).square().sum() for w in (block.W[i], v))
        a = t * pull[i] / (problem.factor * (now + t**2 * ahead))
        move = Move(torch.zeros_like(block.W), torch.zeros_like(block.H), torch.zeros_like(D))
        move.dW[i], move.dH[:, i] = t * v, -a * D / pull[i]
        fall = see_fall(problem, move)
        if fall is not None:
            return fall
    return None


def _falls_to(problem: SquaredProblem, move: Move, line: TaylorExpansion, step: float) -> bool:
    """Whether the loss is below its start, or within rounding of it, all the way to a step."""
    if step <= line.eps_max:
        change = replace(line, coefficients=torch.cat([line.coefficients[:1] * 0, line.coefficients[1:]]))
        return bool((change(step * torch.tensor(_PARTS)) <= 0).all())
    return all(_change(problem, move, part * step) <= 0 for part in _PARTS)


def _halves(step: float) -> Iterator[float]:
    while True:
        step /= 2
        yield step


def _change(problem: SquaredProblem, move: Move, step: float) -> float:
    """Loss change at the moved point as a difference of outputs, 0 where rounding could hide its sign."""
    block, X, residual = problem.block, problem.signal.X, problem.signal.G
    moved = move.dW.any(dim=1) | move.dH.any(dim=0)
    change, after = step * move.db.expand_as(residual), block.W.new_zeros(())
    if bool(moved.any()):
        before = ShallowBlock(block.W[moved], block.H[:, moved], block.slopes)
        there = ShallowBlock(before.W + step * move.dW[moved], before.H + step * move.dH[:, moved], block.slopes)
        change = change + chunked_outputs(there, X) - chunked_outputs(before, X)
        after = _reach(there)
    difference = problem.factor / 2 * float((change * (2 * residual + change)).sum())
    # Every output is a sum of terms this large, and each carries a unit roundoff.
    size = residual.norm(dim=1) + X.norm(dim=1) * (_reach(block) + after)
    if block.output_bias is not None:
        size = size + block.output_bias.norm() + step * move.db.norm()
    rounding = _RESOLUTION * problem.factor * float((residual.norm(dim=1) + change.norm(dim=1)) @ size)
    return difference if abs(difference) > rounding else 0.0


def _reach(block: ShallowBlock) -> Tensor:
    amplitude: Tensor = block.W.norm(dim=1) @ block.H.norm(dim=0)
    return amplitude * max(map(abs, block.slopes))
