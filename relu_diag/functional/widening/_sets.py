"""Sets of new neurons: chosen from many of a kind, their output weights fitted, and trained for a few steps."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._greedy import GreedyChoice, filled, greedy_choice
from relu_diag.functional.widening._pools import POOLS, Situation, has_constant
from relu_diag.functional.widening._refit import Start, proposed_outputs, refitted_outputs
from relu_diag.functional.widening._short_training import short_training

# Input weights ``(n, d)`` and output weights ``(J, n)``.
Weights = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the rows: inputs, outputs without new neurons, and their loss, scaled as if they were all."""

    X: Tensor
    outputs: Tensor
    loss: Loss

    @cached_property
    def start(self) -> Start:
        """Where fits begin."""
        return Start(self.loss, self.outputs)

    @cached_property
    def end(self) -> Tensor:
        """Outputs of the whole network without new neurons, shape ``(N, K)``."""
        return self.loss.at_the_end(self.outputs)

    @cached_property
    def before(self) -> float:
        """The loss without new neurons."""
        return float(self.loss.of_the_end(self.end))

    def chosen(self, index: Tensor) -> Part:
        """Some of these rows."""
        loss = self.loss.rows(index).scaled(len(self.X) / len(index))
        return Part(self.X[index], self.outputs[index], loss)


@dataclass(frozen=True, eq=False)
class Rows:
    """A network as it was ``given``, and on its rows.

    Neurons are proposed by the rows ``few``, fitted to ``fit``, and judged by ``judge``. None changes an output of the
    whole network by more than ``furthest``, for which they are weighed on all rows, ``judging`` among them.
    """

    given: ShallowBlock
    block: ShallowBlock
    all: Part
    fit: Part
    few: Part
    judge: Part
    judging: Tensor | None
    furthest: float
    draw: torch.Generator

    @cached_property
    def situation(self) -> Situation:
        """What candidates are made from."""
        signal = BlockSignal(self.few.X, self.few.start.gradient)
        return Situation(self.block, signal, has_constant(self.all.X), self.draw)

    @property
    def weigh(self) -> Part:
        """The rows on which neurons are weighed: those that judge, and all where these tell what goes too far."""
        return self.judge if math.isinf(self.furthest) else self.all

    @property
    def judged_before(self) -> float:
        """The loss that judges, without neurons."""
        return self.judge.before

    def activations(self, part: Part, V: Tensor) -> Tensor:
        """Of neurons of input weights ``(n, d)`` on some rows, shape ``(N, n)``."""
        return rho(part.X @ V.T, self.block.slopes)

    def tried(self, part: Part, added: Tensor) -> tuple[float, bool]:
        """The loss that judges with so much added to outputs of ``weigh`` or ``judge``, and whether it goes too far."""
        end = part.loss.at_the_end(part.outputs + added)
        own = end if self.judging is None or part is self.judge else end[self.judging]
        far = not math.isinf(self.furthest) and bool((end - part.end).abs().max() > self.furthest)
        return float(self.judge.loss.of_the_end(own)), far

    def within(self, part: Part, A: Tensor, H: Tensor, lowering: int = 0) -> tuple[Tensor, float]:
        """Output weights ``(J, n)``, halved until nothing goes too far on some rows, and the loss that judges.

        They are halved as well, so many times at most, until that loss falls.
        """
        for halving in range(BUDGETS.halvings):
            judged, far = self.tried(part, A @ H.T)
            if not far and (halving >= lowering or judged < self.judged_before):
                return H, judged
            H = H / 2
        return H, self.tried(part, A @ H.T)[0]


@dataclass(frozen=True, slots=True, eq=False)
class UnitSet:
    """New neurons and their loss on the rows that judge."""

    kind: str
    V: Tensor
    H: Tensor
    judged: float


def split_rows(
    block: ShallowBlock, X: Tensor, loss: Loss, held_out: float, seed: int, outputs: Tensor | None = None
) -> Rows:
    """The rows in two parts, and outputs of the block for them; in float32 at least, cut from any graph."""
    dtype = torch.promote_types(block.W.dtype, torch.float32)
    own = block.cast(dtype)
    X = X.detach().to(dtype)
    outputs = chunked_outputs(own, X) if outputs is None else outputs.detach().to(dtype)
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
    furthest = math.inf if loss.attained else max(float(everything.end.abs().max()), FLOAT64.certain)
    judging = order[:count] if count else None
    return Rows(block, own, everything, fit, few, judge, judging, furthest, draw)


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
    start = rows.few.start
    V = POOLS[kind](rows.situation, max(BUDGETS.pool, BUDGETS.pool_for_one * most))
    A = rows.activations(rows.few, V)
    choice = greedy_choice(A, start.gradient, most)
    count = max(1, _worthwhile(choice, start)) if worthwhile else most
    index = filled(choice.index[:count], count, len(V))
    size = A[:, index].square().mean(dim=0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    V = V[index] / size[:, None]
    A = A[:, index] / size
    H = proposed_outputs(start, A, BUDGETS.usual_ridge)
    H, judged = rows.within(rows.judge, rows.activations(rows.judge, V), H, BUDGETS.halvings_to_propose)
    return UnitSet(kind, V, H, judged)


def _worthwhile(choice: GreedyChoice, start: Start) -> int:
    """How many neurons, from the first on, lower the loss by enough each, as far as gradient and curvature say."""
    drops = choice.explained / (2 * start.scale)
    enough = drops > FLOAT64.worth_a_neuron * abs(start.value)
    return int(enough.cumprod(dim=0).sum())


def fitted_set(rows: Rows, start: UnitSet) -> UnitSet:
    """Output weights by the ridge that the judging rows prefer, from stiff to loose for as long as the loss falls.

    Args:
        rows: The network on its rows.
        start: The neurons.

    Returns:
        The neurons, fitted on all rows that neurons are fitted to.
    """
    weighed = rows.activations(rows.weigh, start.V)
    A = weighed if rows.fit is rows.weigh else rows.activations(rows.fit, start.V)
    H = torch.zeros_like(start.H)
    best = replace(start, H=H, judged=rows.judged_before)
    for ridge in BUDGETS.ridges:
        H = refitted_outputs(rows.fit.start, A, H, ridge)
        near, judged = rows.within(rows.weigh, weighed, H)
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
        judged, far = _tried(rows, V, H)
        if far or not judged < best.judged:
            return _on_the_way(rows, best, last, (V, H))
        best = UnitSet(start.kind, V, H, judged)
        last = V, H
    return best


def _on_the_way(rows: Rows, best: UnitSet, start: Weights, end: Weights) -> UnitSet:
    """The neurons on the way from weights that the judging rows agree with to some that go too far, if better."""
    for halving in range(1, BUDGETS.ways_back + 1):
        V, H = (one.lerp(other, 0.5**halving) for one, other in zip(start, end, strict=True))
        judged, far = _tried(rows, V, H)
        if judged < best.judged and not far:
            return UnitSet(best.kind, V, H, judged)
    return best


def _tried(rows: Rows, V: Tensor, H: Tensor) -> tuple[float, bool]:
    """The loss that judges with neurons of weights ``(n, d)`` and ``(J, n)``, and whether something goes too far."""
    return rows.tried(rows.weigh, rows.activations(rows.weigh, V) @ H.T)
