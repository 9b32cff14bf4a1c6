"""The way down where targets are met and the loss has a kink, if no gradient there holds all weights.

To first order the loss changes along a move by ``sum G (yhat' - yhat)`` over the slopes that are fixed, and by the
larger of both slopes times the change of every output that is met. That is convex in the moves that leave each kink of
a neuron to one side: a linear program over them finds the steepest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linprog

from relu_diag.functional._arrays import Array, Index, unit_rows
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import fan_rays, hyperplanes
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._subgradient import Slopes, sides
from relu_diag.functional.verdict._witness import see_fall
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import EscapeNeurons, silent_escapes
from relu_diag.functional.verdict.line import Move


def steepest_fall(slopes: Slopes) -> Direction | None:
    """The fall along the steepest move to first order, evaluated; None where none is seen."""
    return _seen(slopes, _moves(slopes, None))


def fall_behind(slopes: Slopes, escape: EscapeNeurons) -> Direction | None:
    """The fall along a silent neuron's escape, the other weights held to first order; None where none is seen."""
    silent = silent_escapes(slopes.problem.block, escape).nonzero().squeeze(1)
    for i in silent[: BUDGETS.neurons_tried].tolist():
        for v in _ways(slopes, i, escape.direction[i].cpu().numpy()):
            fall = _seen(slopes, _moves(slopes, (i, v)))
            if fall is not None:
                return fall
    return None


def _ways(slopes: Slopes, i: int, first: Array) -> Iterator[Array]:
    """Directions of a neuron's input weights: one, the rays of its kinks, and along samples whose slopes are fixed."""
    yield first
    on = slopes.on_kink(i)
    rays = fan_rays(hyperplanes(on).X) if len(on) else None
    samples = unit_rows(slopes.X[slopes.fixed.any(axis=1)])
    more = np.concatenate([np.empty((0, len(first))) if rays is None else rays, samples, -samples])
    yield from more[: BUDGETS.neurons_tried]


def _seen(slopes: Slopes, moves: Iterator[Move]) -> Direction | None:
    """The first of some moves along which the loss is seen to fall."""
    return next((fall for move in moves if (fall := see_fall(slopes.problem, move)) is not None), None)


def _moves(slopes: Slopes, behind: tuple[int, Array] | None) -> Iterator[Move]:
    """The steepest moves, by the side to which every kink is left; behind an escape ``(i, v)``, where one is given."""
    program = _Program(slopes)
    for side in sides(len(slopes.choices)):
        found = program.steepest(np.array(side), behind)
        if found is not None:
            yield found


class _Program:
    """The linear program of the steepest move: input weights, output weights, output bias, in that order."""

    def __init__(self, slopes: Slopes) -> None:
        self.slopes = slopes
        block, decay = slopes.problem.block, slopes.problem.decay
        self.block = block
        self.W, self.H = block.W.cpu().numpy(), block.H.cpu().numpy()
        samples, outputs = slopes.fixed.shape
        # What outputs change by per unit of every weight, on the mean side of kinks.
        felt = slopes.slope[:, :, None] * slopes.X[:, None, :]
        by_W = self.H.T[None, :, :, None] * felt[:, :, None, :]
        by_H = (slopes.slope * (slopes.X @ self.W.T))[:, None, :, None] * np.eye(outputs)[None, :, None, :]
        bias = np.eye(outputs) * (block.output_bias is not None)
        self.first = np.concatenate(
            [
                by_W.transpose(0, 2, 1, 3).reshape(samples * outputs, -1),
                by_H.transpose(0, 3, 1, 2).reshape(samples * outputs, -1),
                np.repeat(bias[None], samples, axis=0).reshape(samples * outputs, -1),
            ],
            axis=1,
        )
        self.met: Index = slopes.sample * outputs + slopes.output
        # Kinks whose slope rises to both sides, and what it rises by.
        chosen = set(slopes.choices)
        on = np.argwhere(slopes.kinks & self.H.any(axis=0)).tolist()
        self.rising = [(k, i) for k, i in on if (k, i) not in chosen]
        self.rises = np.array([slopes.bend * slopes.fixed[k] @ self.H[:, i] for k, i in self.rising])
        self.paid = np.zeros(self.first.shape[1])
        if decay is not None:
            b = np.zeros(outputs) if block.output_bias is None else block.output_bias.cpu().numpy()
            paid = (decay.by_column(block).cpu().numpy() * self.W, decay.H * self.H, decay.output_bias * b)
            self.paid = np.concatenate([part.ravel() for part in paid])

    def steepest(self, side: Array, behind: tuple[int, Array] | None) -> Move | None:
        """The steepest move that leaves every kink to a side (+1 or -1); None where nothing falls."""
        slopes = self.slopes
        first = self.first.copy()
        width = slopes.X.shape[1]
        held = np.zeros((len(side), first.shape[1]))
        outputs = slopes.fixed.shape[1]
        for number, (k, i) in enumerate(slopes.choices):
            own = slice(i * width, (i + 1) * width)
            held[number, own] = -side[number] * slopes.X[k]
            for j in range(outputs):
                first[k * outputs + j, own] += side[number] * slopes.bend * self.H[j, i] * slopes.X[k]
        second = first if behind is None else first + self._ahead(*behind)
        return self._solved(first, second, held, behind)

    def _ahead(self, i: int, v: Array) -> Array:
        """What outputs change by per unit of the output weights of a neuron, once it has moved along ``v``."""
        felt = self.slopes.felt(i, v[None])[:, 0]
        outputs = len(self.H)
        ahead = np.zeros_like(self.first)
        for j in range(outputs):
            ahead[j::outputs, self.W.size + j * self.H.shape[1] + i] = felt
        return ahead

    def _solved(self, first: Array, second: Array, held: Array, behind: tuple[int, Array] | None) -> Move | None:
        """The move of the lowest slope ``second``, that of ``first`` not positive, of weights up to 1."""
        slopes = self.slopes
        size, met, rising = first.shape[1], len(self.met), len(self.rises)
        fixed = slopes.fixed.ravel()
        parts = [first, second] if behind is not None else [first]
        more = met * len(parts) + rising
        rows = [np.concatenate([held, np.zeros((len(held), more))], axis=1)]
        for number, part in enumerate(parts):
            above = np.zeros((met, more))
            above[:, number * met : (number + 1) * met] = -np.eye(met)
            for slope in (slopes.least, slopes.most):
                rows.append(np.concatenate([slope[:, None] * part[self.met], above], axis=1))
        rows += self._risen(size, more)
        costs = [
            np.concatenate([fixed @ part + self.paid, np.repeat(np.arange(len(parts)) == number, met), self.rises])
            for number, part in enumerate(parts)
        ]
        if behind is not None:
            rows.append(costs[0][None])
        A = np.concatenate(rows)
        moving = (first.any(axis=0) | second.any(axis=0) | (self.paid != 0)).astype(float)
        outcome = linprog(
            costs[-1],
            A_ub=A,
            b_ub=np.zeros(len(A)),
            bounds=[(-one, one) for one in moving] + [(None, None)] * more,
            options={"primal_feasibility_tolerance": FLOAT64.program, "dual_feasibility_tolerance": FLOAT64.program},
        )
        if outcome.status != 0 or outcome.fun >= -FLOAT64.inside:
            return None
        return self._move(outcome.x[:size], behind)

    def _risen(self, size: int, more: int) -> list[Array]:
        """That the last variables are no less than ``|x . dw|`` of the kinks that rise, as rows."""
        width = self.slopes.X.shape[1]
        rows = np.zeros((2, len(self.rising), size + more))
        for number, (k, i) in enumerate(self.rising):
            along = rows[:, number, i * width : (i + 1) * width]
            along[:] = np.array([[1.0], [-1.0]]) * self.slopes.X[k]
            rows[:, number, size + more - len(self.rising) + number] = -1.0
        return list(rows)

    def _move(self, flat: Array, behind: tuple[int, Array] | None) -> Move:
        """A vector of weights as a move; behind an escape a small part of it, so that nothing else is felt."""
        W, H, b = np.split(flat if behind is None else FLOAT64.short * flat, np.cumsum([self.W.size, self.H.size]))
        W = W.reshape(self.W.shape)
        if behind is not None:
            i, v = behind
            W[i] += v * (float(np.linalg.norm(self.W[i])) or 1.0)
        parts = (W, H.reshape(self.H.shape), b)
        return Move(*(torch.as_tensor(part).to(self.block.W) for part in parts))
