"""What a point is under any loss of the outputs: as far as it is convex, and as far as it is smooth."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch

from relu_diag.functional.assumptions import Assumptions, State, checked
from relu_diag.functional.output_loss import OutputLoss
from relu_diag.functional.problem import LossProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._endless import falls_for_ever
from relu_diag.functional.verdict._loss_line import loss_line
from relu_diag.functional.verdict._met_fall import fall_behind, steepest_fall
from relu_diag.functional.verdict._orders import (
    CONVEX,
    ORTHOGONAL,
    STATIONARY,
    at_best,
    first_order,
    named,
    nobody,
    second_order,
)
from relu_diag.functional.verdict._rounding import curvature_of_rows, reach, rounding_of_problem
from relu_diag.functional.verdict._subgradient import Slopes, free_slopes, held_by, held_on_every_side
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import escapes_at
from relu_diag.functional.verdict.line import Move
from relu_diag.functional.verdict.stationarity import assess
from relu_diag.functional.verdict.verdict import DESCENT, NO_MINIMUM, Verdict

KINKED_THEOREM = "a stationary point without escape neurons is a local minimum of any convex loss"
_NOT_CONVEX = "stationary, but the loss is not convex in the outputs: no theorem goes on from here"
_NOT_SMOOTH = "targets are met where the loss has a kink: one of its gradients there is not stationary, others may be"
_NOT_HELD = "targets are met where the loss has a kink: no one gradient there holds all weights, and no fall was found"
_BY_EVERY = "targets are met where the loss has a kink: by each gradient there a neuron escapes, and no fall was found"
_BY_SIDES = "stationary without escape neurons, by a gradient of the loss for each side of the kinks"
_BEHIND = "stationary with escape neurons by every gradient of the loss"
_MET = "no outputs at all have a lower loss"


def of_any_loss(problem: LossProblem, tol: float) -> Verdict:
    """The verdict on a loss in its normal form, its assumptions left to be said."""
    slopes = free_slopes(problem) if problem.output_loss.convex else None
    return _by_gradient(problem, tol) if slopes is None else _where_met(slopes, tol)


def _where_met(slopes: Slopes, tol: float) -> Verdict:
    """The verdict where targets are met at a kink of the loss: by a gradient there that holds the weights, if any."""
    problem = slopes.problem
    block = problem.block
    verdict = partial(Verdict, assumptions=Assumptions({}))
    if slopes.at_best:
        return verdict("global minimum", nobody(block), None, theorem=CONVEX, reason=_MET)
    still = held_by(slopes, still=True)
    if still is not None:
        return _by_gradient(still, tol)
    if held_on_every_side(slopes):
        return verdict("local minimum", nobody(block), None, theorem=KINKED_THEOREM, reason=_BY_SIDES)
    held = held_by(slopes, still=False)
    if held is None:
        return held_by_none(slopes, verdict)
    said = _by_gradient(held, tol)
    if said.kind not in {"undecided", "type-2 candidate"}:
        return said
    rounding = rounding_of_problem(held)
    found = assess(block, held.signal, held.kink_tol, tol, rounding)
    escape = escapes_at(block, held.signal, found, held.kink_tol, rounding)
    fall = fall_behind(slopes, escape)
    if fall is None:
        return replace(said, reason=_BY_EVERY) if said.kind == "undecided" else said
    return replace(
        said, kind="saddle", neurons=named(escape.mask), direction=fall, theorem=KINKED_THEOREM, reason=_BEHIND
    )


def held_by_none(slopes: Slopes, verdict: partial[Verdict]) -> Verdict:
    """The verdict where targets are met and no gradient of the loss there holds all weights."""
    fall = steepest_fall(slopes)
    if fall is None:
        return verdict("undecided", nobody(slopes.problem.block), None, theorem=STATIONARY, reason=_NOT_HELD)
    return verdict("not stationary", named(fall.moved), fall, theorem=STATIONARY, reason=DESCENT)


def _by_gradient(problem: LossProblem, tol: float) -> Verdict:
    """The verdict by the gradient of the loss at the outputs."""
    block, signal, loss = problem.block, problem.signal, problem.output_loss
    verdict = partial(Verdict, neurons=nobody(block), direction=None, assumptions=Assumptions({}))
    rounding = rounding_of_problem(problem)
    endless = falls_for_ever(problem)
    if loss.convex and not endless:
        if _no_lower_outputs(problem, tol):
            return verdict("global minimum", theorem=CONVEX, reason=_MET)
        if at_best(block, signal, tol, rounding):
            return verdict("global minimum", theorem=CONVEX, reason=ORTHOGONAL)
    found = assess(block, signal, problem.kink_tol, tol, rounding)
    if bool(found.stationary.all()):
        said = second_order(problem, found, rounding)
    else:
        said = first_order(problem, found, rounding)
    if endless:
        broken = said.neurons if said.kind == "not stationary" else named(block.H.any(dim=0))
        direction = said.direction if said.kind == "not stationary" else None
        return replace(
            said, kind="not stationary", theorem=STATIONARY, neurons=broken, direction=direction, reason=NO_MINIMUM
        )
    return _as_far_as_known(problem, said)


def assumptions_of(problem: LossProblem) -> dict[str, State]:
    """What the theorems assume of the loss; a function of the user's is taken at its word."""
    loss = problem.output_loss
    told = isinstance(loss, OutputLoss)
    return {
        "convex loss": "assumed" if told and loss.convex else checked(loss.convex),
        "smooth loss": "assumed" if told and loss.smooth else checked(loss.smooth),
    }


def _as_far_as_known(problem: LossProblem, said: Verdict) -> Verdict:
    """The verdict without what the loss does not allow to say."""
    loss = problem.output_loss
    if not loss.convex and said.kind in {"local minimum", "type-2 candidate"}:
        return replace(said, kind="undecided", theorem=STATIONARY, reason=_NOT_CONVEX)
    if not loss.smooth and _may_be_bent(problem, said):
        return replace(said, kind="undecided", direction=None, theorem=STATIONARY, reason=_NOT_SMOOTH)
    if said.kind in {"local minimum", "type-2 candidate", "saddle"}:
        return replace(said, theorem=KINKED_THEOREM)
    return said


def _no_lower_outputs(problem: LossProblem, tol: float) -> bool:
    """Whether the outputs, each for itself, are where a convex loss is lowest, up to a tolerance of their size."""
    G, outputs = problem.signal.G, problem.outputs
    if not bool(G.any()):
        return True
    unit = curvature_of_rows(problem)
    miss, size = G.norm(dim=1), unit * outputs.norm(dim=1)
    near = size + unit * outputs.norm(dim=1).mean()
    if bool((miss > math.sqrt(max(tol, FLOAT64.eps)) * near).any()):
        return False
    return float(miss.norm()) <= tol * float(size.norm())


def _may_be_bent(problem: LossProblem, said: Verdict) -> bool:
    """Whether a loss has a kink at its outputs, and another of its gradients there may hold all weights."""
    unseen = said.kind == "undecided" and said.reason.startswith(("slopes above", "an escape neuron"))
    falls = said.kind == "not stationary" and said.direction is not None
    if not (unseen or falls) or not _on_kink(problem):
        return False
    return said.direction is None or not _starts_down(problem, said.direction)


def _on_kink(problem: LossProblem) -> bool:
    """Whether gradients of a loss differ within rounding of its outputs, to opposite sides of them."""
    outputs = problem.outputs
    signs = torch.randint(2, outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs) * 2 - 1
    size = problem.signal.X.norm(dim=1) * reach(problem.block) + outputs.norm(dim=1)
    near = signs * (FLOAT64.residual * size)[:, None].clamp_min(torch.finfo(outputs.dtype).tiny)
    ahead, behind = (problem.output_loss.gradient(outputs + step) for step in (near, -near))
    return float((ahead - behind).norm()) > FLOAT64.blurred * float(torch.maximum(ahead.norm(), behind.norm()))


def _starts_down(problem: LossProblem, direction: Direction) -> bool:
    """Whether the loss falls to first order along a direction: in proportion to short steps.

    The gradient of a convex loss a little ahead bounds its slope here, whatever kinks are on the way.
    """
    db = torch.zeros_like(problem.outputs[0]) if direction.db is None else direction.db
    first = loss_line(problem, Move(direction.dW, direction.dH, db)).first
    terms = problem.output_loss.gradient(problem.outputs + FLOAT64.short * direction.step * first) * first
    return bool(terms.sum() < -FLOAT64.roundings * FLOAT64.eps * terms.abs().sum())
