"""Sets of new neurons: chosen from many of a kind, their output weights fitted, and trained for a few steps."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss, LossAt
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._greedy import GreedyChoice, filled, greedy_choice
from relu_diag.functional.widening._pools import POOLS, Situation
from relu_diag.functional.widening._refit import curvature_scale, refitted_outputs
from relu_diag.functional.widening._short_training import short_training

# Input weights ``(n, d)`` and output weights ``(J, n)``.
Weights = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the rows: inputs, outputs without new neurons, and their loss, scaled as if they were all."""

    X: Tensor
    outputs: Tensor
    loss: Loss

    def before(self) -> float:
        """Loss without new neurons."""
        return float(self.loss(self.outputs))

    def chosen(self, index: Tensor) -> Part:
        """Some of these rows."""
        loss = self.loss.rows(index).scaled(len(self.X) / len(index))
        return Part(self.X[index], self.outputs[index], loss)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A network as it was ``given``, and on its rows.

    Neurons are fitted to the rows ``fit``, proposed by ``few`` of them, and judged by the rows ``judge``. None
    changes an output of the whole network by more than ``furthest``.
    """

    given: ShallowBlock
    block: ShallowBlock
    all: Part
    fit: Part
    few: Part
    judge: Part
    judged_before: float
    furthest: float
    draw: torch.Generator

    def judged(self, V: Tensor, H: Tensor) -> float:
        """The loss that judges, with neurons of input weights ``(n, d)`` and output weights ``(J, n)``."""
        return float(self.judge.loss(self.judge.outputs + self._added(self.judge, V, H)))

    def goes_too_far(self, V: Tensor, H: Tensor) -> bool:
        """Whether an output of the whole network changes too much."""
        if math.isinf(self.furthest):
            return False
        everything = self.all
        moved = everything.loss.at_the_end(everything.outputs + self._added(everything, V, H))
        return float((moved - everything.loss.at_the_end(everything.outputs)).abs().max()) > self.furthest

    def within(self, V: Tensor, H: Tensor) -> Tensor:
        """Output weights ``(J, n)``, halved until no output changes too much."""
        for _ in range(BUDGETS.halvings):
            if not self.goes_too_far(V, H):
                break
            H = H / 2
        return H

    def _added(self, part: Part, V: Tensor, H: Tensor) -> Tensor:
        """What neurons add to the outputs of some rows, shape ``(N, J)``."""
        return rho(part.X @ V.T, self.block.slopes) @ H.T


@dataclass(frozen=True, slots=True, eq=False)
class UnitSet:
    """New neurons and their loss on the rows that judge."""

    kind: str
    V: Tensor
    H: Tensor
    judged: float


def split_rows(block: ShallowBlock, X: Tensor, loss: Loss, held_out: float, seed: int) -> Rows:
    """The rows in two parts; in float32 at least, cut from any graph."""
    dtype = torch.promote_types(block.W.dtype, torch.float32)
    own = block.cast(dtype)
    X = X.detach().to(dtype)
    outputs = chunked_outputs(own, X)
    everything = Part(X, outputs, loss.prepared(outputs))
    draw = torch.Generator().manual_seed(seed)
    count = min(round(held_out * len(X)), len(X) - 1)
    fit = judge = everything
    order = torch.randperm(len(X), generator=draw).to(X.device)
    if count:
        judge = everything.chosen(order[:count])
        fit = everything.chosen(order[count:])
    few = fit
    if len(fit.X) > BUDGETS.rows_to_propose:
        with suppress(NotImplementedError):  # a loss without rows of its own
            few = everything.chosen(order[count:][: BUDGETS.rows_to_propose])
    furthest = math.inf if loss.attained else max(float(loss.at_the_end(outputs).abs().max()), FLOAT64.certain)
    return Rows(block, own, everything, fit, few, judge, judge.before(), furthest, draw)


def proposed_set(rows: Rows, kind: str, most: int, worthwhile: bool) -> UnitSet:
    """The neurons of a kind that explain most of the loss gradient together, their output weights fitted on few rows.

    Args:
        rows: The network on its rows.
        kind: Where input weights come from.
        most: Number of neurons at most.
        worthwhile: Whether to stop where the next neuron is not worth it.

    Returns:
        The neurons.
    """
    block = rows.block
    few = rows.few
    X, at = few.X, few.outputs
    here = few.loss.at(at)
    G = here.gradient()
    constant = rows.all.X[:, -1]
    biased = bool((constant == constant[0]).all()) and bool(constant[0] != 0)
    situation = Situation(block, BlockSignal(X, G), biased, rows.draw)
    V = POOLS[kind](situation, max(BUDGETS.pool, BUDGETS.pool_for_one * most))
    A = rho(X @ V.T, block.slopes)
    choice = greedy_choice(A, G, most)
    count = max(1, _worthwhile(choice, here)) if worthwhile else most
    index = filled(choice.index[:count], count, len(V))
    size = A[:, index].square().mean(dim=0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    V = V[index] / size[:, None]
    A = A[:, index] / size
    H = refitted_outputs(few.loss, at, A, A.new_zeros(at.shape[1], len(V)), BUDGETS.usual_ridge)
    H = rows.within(V, H)
    return UnitSet(kind, V, H, rows.judged(V, H))


def _worthwhile(choice: GreedyChoice, here: LossAt) -> int:
    """How many neurons, from the first on, lower the loss by enough each, as far as gradient and curvature say."""
    drops = choice.explained / (2 * curvature_scale(here))
    enough = drops > FLOAT64.worth_a_neuron * abs(float(here.value()))
    return int(enough.cumprod(dim=0).sum())


def fitted_set(rows: Rows, start: UnitSet) -> UnitSet:
    """Output weights by the ridge that the judging rows prefer, from stiff to loose for as long as the loss falls.

    Args:
        rows: The network on its rows.
        start: The neurons.

    Returns:
        The neurons, fitted on all rows that neurons are fitted to.
    """
    fit = rows.fit
    A = rho(fit.X @ start.V.T, rows.block.slopes)
    H = torch.zeros_like(start.H)
    best = replace(start, H=H, judged=rows.judged_before)
    for ridge in BUDGETS.ridges:
        H = refitted_outputs(fit.loss, fit.outputs, A, H, ridge)
        near = rows.within(start.V, H)
        judged = rows.judged(start.V, near)
        if not judged < best.judged:
            break
        best = replace(start, H=near, judged=judged)
    return best


def trained_set(rows: Rows, start: UnitSet, steps: int) -> UnitSet:
    """The neurons after quasi-Newton steps of both weights, as many as the judging rows agree with.

    Args:
        rows: The network on its rows.
        start: The neurons.
        steps: Number of steps at most.

    Returns:
        The neurons, with a lower loss on those rows or as they were.
    """
    length = start.V.norm(dim=1)
    loudness = start.H.norm(dim=0)
    if not bool((length > 0).all() and (loudness > 0).all()):
        return start
    root = (loudness / length).sqrt()
    pieces = short_training(
        rows.fit.loss,
        rows.fit.outputs,
        rows.fit.X,
        rows.block.slopes,
        start.V * root[:, None],
        start.H / root,
    )
    best = start
    last = next(pieces)
    for V, H in itertools.islice(pieces, steps // BUDGETS.short_steps):
        judged = rows.judged(V, H)
        if not judged < best.judged or rows.goes_too_far(V, H):
            return _on_the_way(rows, best, last, (V, H))
        best = UnitSet(start.kind, V, H, judged)
        last = V, H
    return best


def _on_the_way(rows: Rows, best: UnitSet, start: Weights, end: Weights) -> UnitSet:
    """The neurons on the way from weights that the judging rows agree with to some that go too far, if better."""
    for halving in range(1, BUDGETS.ways_back + 1):
        V, H = (one.lerp(other, 0.5**halving) for one, other in zip(start, end, strict=True))
        judged = rows.judged(V, H)
        if judged < best.judged and not rows.goes_too_far(V, H):
            return UnitSet(best.kind, V, H, judged)
    return best
