"""Sets of new neurons: chosen from many of a kind, their output weights fitted, and trained for a few steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._greedy import GreedyChoice, filled, greedy_choice
from relu_diag.functional.widening._pools import POOLS, Situation
from relu_diag.functional.widening._refit import curvature_scale, refitted_outputs
from relu_diag.functional.widening._short_training import short_training


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A network as it was ``given``, and on its rows.

    ``fit`` and ``judge`` index the rows that neurons are fitted to, and those that they are judged by.

    The losses of a part of the rows are scaled as if it were all of them.
    """

    given: ShallowBlock
    block: ShallowBlock
    X: Tensor
    outputs: Tensor
    loss: Loss
    fit: Tensor
    judge: Tensor
    fit_loss: Loss
    judge_loss: Loss
    draw: torch.Generator

    @property
    def judged_before(self) -> float:
        """Loss without new neurons on the rows that judge."""
        return float(self.judge_loss(self.outputs[self.judge]))

    def judged(self, V: Tensor, H: Tensor) -> float:
        """The same with neurons of input weights ``(n, d)`` and output weights ``(J, n)``."""
        added = rho(self.X[self.judge] @ V.T, self.block.slopes) @ H.T
        return float(self.judge_loss(self.outputs[self.judge] + added))


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
    draw = torch.Generator().manual_seed(seed)
    count = min(round(held_out * len(X)), len(X) - 1)
    if count == 0:
        everything = torch.arange(len(X), device=X.device)
        return Rows(block, own, X, outputs, loss, everything, everything, loss, loss, draw)
    order = torch.randperm(len(X), generator=draw).to(X.device)
    judge = order[:count]
    fit = order[count:]
    fit_loss, judge_loss = (loss.rows(part).scaled(len(X) / len(part)) for part in (fit, judge))
    return Rows(block, own, X, outputs, loss, fit, judge, fit_loss, judge_loss, draw)


def fitted_set(rows: Rows, kind: str, most: int, worthwhile: bool) -> UnitSet:
    """The neurons of a kind that explain most of the loss gradient together, with the output weights that fit best.

    Args:
        rows: The network on its rows.
        kind: Where input weights come from.
        most: Number of neurons at most.
        worthwhile: Whether to stop where the next neuron is not worth it.

    Returns:
        The neurons.
    """
    block = rows.block
    X = rows.X[rows.fit]
    at = rows.outputs[rows.fit]
    G = rows.fit_loss.gradient(at)
    biased = bool((rows.X[:, -1] == rows.X[0, -1]).all()) and bool(rows.X[0, -1] != 0)
    situation = Situation(block, BlockSignal(X, G), biased, rows.draw)
    V = POOLS[kind](situation, max(BUDGETS.pool, BUDGETS.pool_for_one * most))
    A = rho(X @ V.T, block.slopes)
    choice = greedy_choice(A, G, most)
    count = max(1, _worthwhile(choice, rows.fit_loss, at)) if worthwhile else most
    index = filled(choice.index[:count], count, len(V))
    size = A[:, index].square().mean(dim=0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    return _best_ridge(rows, kind, V[index] / size[:, None], at)


def _worthwhile(choice: GreedyChoice, loss: Loss, at: Tensor) -> int:
    """How many neurons, from the first on, lower the loss by enough each, as far as gradient and curvature say."""
    drops = choice.explained / (2 * curvature_scale(loss, at))
    enough = drops > FLOAT64.worth_a_neuron * abs(float(loss(at)))
    return int(enough.cumprod(dim=0).sum())


def _best_ridge(rows: Rows, kind: str, V: Tensor, at: Tensor) -> UnitSet:
    """Output weights by the ridge that the judging rows prefer, from stiff to loose for as long as the loss falls."""
    A = rho(rows.X[rows.fit] @ V.T, rows.block.slopes)
    H = A.new_zeros(at.shape[1], len(V))
    best = UnitSet(kind, V, H, rows.judged_before)
    for ridge in BUDGETS.ridges:
        H = refitted_outputs(rows.fit_loss, at, A, H, ridge)
        judged = rows.judged(V, H)
        if not judged < best.judged:
            break
        best = UnitSet(kind, V, H, judged)
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
        rows.fit_loss,
        rows.outputs[rows.fit],
        rows.X[rows.fit],
        rows.block.slopes,
        start.V * root[:, None],
        start.H / root,
    )
    best = start
    for V, H in itertools.islice(pieces, steps // BUDGETS.short_steps):
        judged = rows.judged(V, H)
        if not judged < best.judged:
            break
        best = UnitSet(start.kind, V, H, judged)
    return best
