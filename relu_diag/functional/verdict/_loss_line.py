"""Any loss along a move: evaluated step by step, on the piece it starts on and across the kinks behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks
from relu_diag.functional.problem import LossProblem, SquaredProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._rounding import curvature_of_rows, reach, seen_terms
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.line import Move, TaylorExpansion, entered

P = TypeVar("P", LossProblem, SquaredProblem)


@dataclass(frozen=True, slots=True, eq=False)
class _Crossed:
    """The pairs of a sample and a neuron that cross their kink up to a step, in order.

    Attributes:
        end: The step.
        time: Steps at which they cross, shape ``(M,)``.
        sample: Samples, long, shape ``(M,)``.
        neuron: Neurons, long, shape ``(M,)``.
        depth: Minus the sizes of their pre-activations, shape ``(M,)``.
        towards: What these grow by per step, shape ``(M,)``.
    """

    end: float
    time: Tensor
    sample: Tensor
    neuron: Tensor
    depth: Tensor
    towards: Tensor

    @classmethod
    def nobody(cls, end: float, like: Tensor) -> _Crossed:
        """No pair up to a step; numbers like those of a tensor."""
        none = like.new_empty(0)
        return cls(end, none, none.long(), none.long(), none, none)


@dataclass(frozen=True, slots=True, eq=False)
class LossLine:
    """The outputs along a move, a quadratic in the step up to the first kink, and the loss of them.

    Attributes:
        problem: The loss.
        move: The direction.
        first: What the outputs change by to first order, shape ``(N, J)``.
        second: And to second order.
        terms: Lengths of the terms that either is made of, shape ``(2, N)``.
        eps_max: Step to the first kink.
        bend: Largest curvature of the loss of every sample, shape ``(N,)``.
        price: What weight decay adds per step and per squared step.
        crossed: The pairs that cross their kink, up to a step behind which all pairs are looked at.
    """

    problem: LossProblem
    move: Move
    first: Tensor
    second: Tensor
    terms: Tensor
    eps_max: float
    bend: Tensor
    price: tuple[float, float]
    crossed: _Crossed

    def followed(self, end: float) -> LossLine:
        """The line with the pairs that cross their kink before an end, the first of them where they are many."""
        if end <= self.eps_max:
            return self
        found = [self.first.new_empty(5, 0)]
        for here, Z, dZ in _by_rows(self.problem, self.move):
            root = (Z / dZ).neg_()
            row, neuron = ((root > 0) & (root < end)).nonzero().unbind(1)
            z, dz = Z[row, neuron], dZ[row, neuron]
            found.append(torch.stack([root[row, neuron], here[row].to(z), neuron.to(z), -z.abs(), -z.sign() * dz]))
            if sum(part.shape[1] for part in found) > 2 * BUDGETS.crossed:
                found, end = _earliest(found, end)
        found, end = _earliest(found, end)
        pairs = found[0]
        time, sample, neuron, depth, towards = pairs[:, pairs[0].argsort()]
        return replace(self, crossed=_Crossed(end, time, sample.long(), neuron.long(), depth, towards))

    def changes(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of the loss at steps ``(S,)`` in order, and their rounding, each of shape ``(S,)``."""
        near = steps <= self.crossed.end
        outputs = [self._near(step) for step in steps[near].tolist()]
        if not bool(near.all()):
            outputs += list(self._across(steps[~near]))
        found = []
        for step, change in zip(steps, outputs, strict=True):
            value = self.problem.output_loss.change(self.problem.outputs, change)
            value = value + step * (self.price[0] + step * self.price[1])
            weight = self.problem.signal.G.norm(dim=1) + self.bend * change.norm(dim=1)
            terms = step * (self.terms[0] + step * self.terms[1])
            paid = step * (abs(self.price[0]) + step * abs(self.price[1]))
            found.append(torch.stack([value, FLOAT64.roundings * FLOAT64.eps * (weight @ terms + paid)]))
        values, rounding = torch.stack(found).unbind(1)
        return values, rounding

    def crossings(self, end: float) -> Tensor:
        """Steps before an end at which samples cross kinks, ``(S,)``; none where they are many."""
        steps = self.crossed.time[self.crossed.time < end]
        # Of many each bends the loss too little for a peak of its own.
        return steps if end <= self.crossed.end and len(steps) <= BUDGETS.peaks else steps[:0]

    @property
    def end(self) -> float:
        """Where the loss is lowest along the move as far as its first two derivatives tell, 0 where they do not."""
        curved = self.problem.output_loss.curvature
        outputs, G = self.problem.outputs, self.problem.signal.G
        by_first, by_second = curved(outputs, self.first), curved(outputs, self.second)
        coefficients = [
            torch.zeros_like(G[0, 0]),
            (G * self.first).sum() + self.price[0],
            (G * self.second).sum() + (by_first * self.first).sum() / 2 + self.price[1],
            (by_first * self.second).sum(),
            (by_second * self.second).sum() / 2,
        ]
        minima = TaylorExpansion(torch.stack(coefficients), self.eps_max).minima
        return minima[0] if minima else 0.0

    def _near(self, step: float) -> Tensor:
        """Changes of the outputs at a step up to which all pairs that cross are known, shape ``(N, J)``."""
        block, crossed = self.problem.block, self.crossed
        change = step * (self.first + step * self.second)
        count = int((crossed.time < step).sum())
        if not count:
            return change
        neuron, behind = crossed.neuron[:count], crossed.depth[:count] + step * crossed.towards[:count]
        bend = (block.slopes[1] - block.slopes[0]) * (block.H + step * self.move.dH).T
        return change.index_add_(0, crossed.sample[:count], behind.relu_()[:, None] * bend[neuron])

    def _across(self, steps: Tensor) -> Tensor:
        """The same at steps behind so many kinks that all pairs are looked at, shape ``(S, N, J)``."""
        block, move = self.problem.block, self.move
        far = steps[:, None, None]
        changes = far * (self.first + far * self.second)
        # Whichever side a neuron comes from, it bends by so much times the depth behind its kink.
        bend = (block.slopes[1] - block.slopes[0]) * (block.H + far * move.dH).transpose(1, 2)
        for here, Z, dZ in _by_rows(self.problem, move):
            depth = -Z.abs()
            towards = -Z.sign() * dZ
            behind = (torch.add(depth, towards, alpha=step).relu_() for step in steps.tolist())
            changes[:, here] += torch.stack([depth @ by for depth, by in zip(behind, bend, strict=True)])
        return changes


def loss_line(problem: LossProblem, move: Move) -> LossLine:
    """The outputs along a move."""
    block, signal = problem.block, problem.signal
    first = move.db.expand_as(signal.G).clone()
    second = torch.zeros_like(first)
    terms = torch.zeros(2, len(first), dtype=first.dtype, device=first.device)
    terms[0] = move.db.norm()
    h, dh = block.H.norm(dim=0), move.dH.norm(dim=0)
    eps_max = torch.inf
    for here, Z, dZ in _by_rows(problem, move):
        A = rho(Z, block.slopes)
        dA = entered(Z, dZ, block.slopes)
        first[here] += A @ move.dH.T + dA @ block.H.T
        second[here] = dA @ move.dH.T
        changed = dA.abs_()
        terms[0, here] += A.abs_() @ dh + changed @ h
        terms[1, here] = changed @ dh
        root = (Z / dZ).neg_()
        eps_max = min(eps_max, float(torch.where(root > 0, root, torch.inf).amin()))
    price = price_of(problem, move)
    nobody = _Crossed.nobody(eps_max, first)
    return LossLine(problem, move, first, second, terms, eps_max, curvature_of_rows(problem), price, nobody)


def price_of(problem: LossProblem, move: Move) -> tuple[float, float]:
    """What weight decay adds along a move, per step and per squared step."""
    block, decay = problem.block, problem.decay
    if decay is None:
        return 0.0, 0.0
    by_input = decay.by_column(block)
    first = (by_input * block.W * move.dW).sum() + decay.H * (block.H * move.dH).sum()
    second = (by_input * move.dW.square()).sum() + decay.H * move.dH.square().sum()
    if block.output_bias is not None:
        first += decay.output_bias * (block.output_bias @ move.db)
        second += decay.output_bias * move.db.square().sum()
    return float(first), float(second) / 2


def _earliest(pairs: list[Tensor], end: float) -> tuple[list[Tensor], float]:
    """As many of the pairs ``(5, m)`` that cross first as a budget, and the step up to which these are all."""
    together = torch.cat(pairs, dim=1)
    if together.shape[1] <= BUDGETS.crossed:
        return [together], end
    end = float(together[0].kthvalue(BUDGETS.crossed).values)
    return [together[:, together[0] < end]], end


def _by_rows(problem: LossProblem, move: Move) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Samples that are not zero, ``(n,)``, their pre-activations and how these change, ``(n, I)``, a few at once."""
    moving = problem.signal.X.any(dim=1).nonzero().squeeze(1)
    # Few enough to stay in the fastest memory through all that is done to them.
    rows = max(1, BUDGETS.cached // len(problem.block.W))
    start = 0
    for chunk in chunks(problem.block, problem.signal, problem.kink_tol):
        changes = chunk.X @ move.dW.T
        for Z, dZ in zip(torch.split(chunk.Z, rows), torch.split(changes, rows), strict=True):
            yield moving[start : start + len(Z)], Z, dZ
            start += len(Z)


def see_fall_of_loss(problem: LossProblem, move: Move) -> Direction | None:
    """A step along a move of length 1 at which the loss, evaluated there, is lower by more than its rounding.

    The loss is evaluated on a scale of steps and on points between: it does not rise on the way, or by no more than a
    unit roundoff of itself, as it does where slopes of rounding point up.
    """
    line = loss_line(*moving_part(problem, move))
    scale = _scale_of_steps(line).to(line.first.device)
    line = line.followed(float(scale[-1]))
    values, rounding = line.changes(scale)
    # Points between those of the scale, denser near the start, where a rise would be small.
    between = torch.linspace(0, 1, BUDGETS.steps_between + 1, dtype=torch.float64)[1:].square()
    for hidden in (0.0, FLOAT64.eps * abs(float(problem.loss))):
        step = _lowest(scale, values, rounding + hidden)
        if step == 0:
            continue
        # Between two kinks the loss is smooth: peaks are at kinks.
        inner = torch.cat([(step * between).to(scale), line.crossings(step)]).sort().values
        there, blur = line.changes(inner)
        step = _lowest(inner, there, blur + hidden)
        change = _evaluated_change(problem, move, step, line.bend) if step > 0 else 0.0
        if change < 0:
            return Direction(move.dW, move.dH, step, change, move.db if bool(move.db.any()) else None)
    return None


def _evaluated_change(problem: LossProblem, move: Move, step: float, bend: Tensor) -> float:
    """The change of the loss between two evaluations, 0 where rounding could hide its sign; ``bend`` of `LossLine`."""
    block = problem.block
    bias = None if block.output_bias is None else block.output_bias + step * move.db
    there = ShallowBlock(block.W + step * move.dW, block.H + step * move.dH, block.slopes, bias)
    outputs = chunked_outputs(there, problem.signal.X)
    linear, square = price_of(problem, move)
    paid = step * (linear + step * square)
    change = float(problem.output_loss.change(problem.outputs, outputs - problem.outputs)) + paid
    moved = (outputs - problem.outputs).norm(dim=1)
    weight = problem.signal.G.norm(dim=1) + bend * moved
    if not float(problem.output_loss(outputs)) + paid < float(problem.output_loss(problem.outputs)):
        return 0.0
    given = 0.0 if block.output_bias is None else float(block.output_bias.norm() + step * move.db.norm())
    resolution = FLOAT64.roundings * FLOAT64.eps
    most = problem.signal.X.norm(dim=1) * (reach(block) + reach(there)) + given
    if change < -resolution * (float(weight @ most) + abs(paid)):
        return change
    seen = sum(seen_terms(one, problem.signal, problem.kink_tol) for one in (block, there))
    return change if change < -resolution * (float(weight @ (seen + given)) + abs(paid)) else 0.0


def _scale_of_steps(line: LossLine) -> Tensor:
    """Steps to look at, from tiny ones to beyond the end that the derivatives tell, in order, shape ``(S,)``."""
    block = line.problem.block
    size = float(torch.cat([block.W.flatten(), block.H.flatten()]).norm()) or 1.0
    end = line.end or size
    powers = torch.arange(-BUDGETS.steps_below, BUDGETS.steps_above + 1, dtype=torch.float64)
    return end * 4.0**powers


def _lowest(steps: Tensor, values: Tensor, rounding: Tensor) -> float:
    """The step at which the loss is lowest before it first rises, 0 where it rises at once."""
    lowest, at = 0.0, 0.0
    for step, value, blur in zip(steps.tolist(), values.tolist(), rounding.tolist(), strict=True):
        if not value <= lowest + blur:  # a number that is none is no fall
            break
        if value < lowest - blur:
            lowest, at = value, step
    return at


def moving_part(problem: P, move: Move) -> tuple[P, Move]:
    """The neurons that move, at least one of them: the others add nothing to a change of the outputs."""
    block = problem.block
    moved = move.dW.any(dim=1) | move.dH.any(dim=0)
    moved[0] |= not bool(moved.any())
    part = replace(block, W=block.W[moved], H=block.H[:, moved])
    return replace(problem, block=part), Move(move.dW[moved], move.dH[:, moved], move.db)
