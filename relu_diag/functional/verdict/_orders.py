"""What the first and the second order of a loss say of a point, one after the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from relu_diag.functional.assumptions import Assumptions
from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.problem import Problem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._orthant import orthant_fall
from relu_diag.functional.verdict._reach import nothing_reachable
from relu_diag.functional.verdict._rounding import ResidualRounding
from relu_diag.functional.verdict._weight import left_open_by_kinks
from relu_diag.functional.verdict._witness import (
    fall_of_tiny_neuron,
    first_order_fall,
    silent_escape_fall,
    whitened_fall,
)
from relu_diag.functional.verdict.escape import escapes_at, silent_escapes
from relu_diag.functional.verdict.stationarity import Stationarity
from relu_diag.functional.verdict.verdict import DESCENT, Verdict

STATIONARY = "Wu et al., Definition 3.3"
_THEOREM = "Wu et al., Theorem 4.2"
TOO_MANY = "the kinks of these neurons are too many to enumerate"
_HIDDEN = "outputs whose terms cancel: their rounding is larger than the slopes of these neurons"
CONVEX = "convexity in the outputs"
ORTHOGONAL = "the loss gradient is orthogonal to every function a neuron can compute"


def at_best(block: ShallowBlock, signal: BlockSignal, tol: float, rounding: ResidualRounding | None) -> bool:
    """Whether nothing is reachable, by the numbers or within their rounding."""
    if rounding is None:
        return nothing_reachable(block, signal, tol)
    beyond_reach = partial(nothing_reachable, block, signal, tol)
    return beyond_reach(0 * rounding.most) or (beyond_reach(rounding.most) and beyond_reach(rounding.usable))


def first_order(problem: Problem, found: Stationarity, rounding: ResidualRounding) -> Verdict:
    """The verdict where not every neuron is stationary."""
    verdict = partial(Verdict, theorem=STATIONARY, assumptions=Assumptions({}), margins=margins_of(found))
    broken = found.violation > found.tol
    if not bool(broken.any()) and found.bias_violation <= found.tol:
        many = ~found.decided & ~found.geometry.exact
        if bool(many.any()):
            return verdict("undecided", named(many), None, reason=TOO_MANY)
        return verdict("undecided", named(~found.decided), None, reason=_HIDDEN)
    direction = first_order_fall(problem, found)
    if direction is None:  # the slopes are tiny: beside a saddle its second-order fall is larger
        escape = escapes_at(problem.block, problem.signal, found, problem.kink_tol, rounding)
        direction = silent_escape_fall(problem, escape)
    if direction is None:
        worst = max(float(found.violation.max()), found.bias_violation)
        if worst <= FLOAT64.unseen * found.tol or _left_open_by_kinks(problem, found):
            # Slopes whose fall nobody can see are none: all neurons are asked for an escape.
            return second_order(problem, replace(found, stationary=torch.ones_like(found.stationary)), rounding)
        direction = first_order_fall(problem, found, rounding.exact)
    if direction is None:
        direction = fall_of_tiny_neuron(problem, found, rounding.usable)
    if direction is None:
        reason = f"slopes above tol={found.tol:.3g}, but no fall above the rounding of the loss: raise tol"
        return verdict("undecided", named(broken), None, reason=reason)
    return verdict("not stationary", named(broken), direction, reason=DESCENT)


def _left_open_by_kinks(problem: Problem, found: Stationarity) -> bool:
    """Whether output weights alone are violated, by no more than their kinks' tolerance leaves open."""
    geometry = found.geometry
    slope = torch.maximum(geometry.radial.abs(), -geometry.steepest)
    push = geometry.output_gradient.norm(dim=0)
    hidden = left_open_by_kinks(problem.block, problem.loss_signal, problem.kink_tol)
    explained = (slope <= found.tol * found.scale) & (push <= hidden)
    return found.bias_violation <= found.tol and bool(explained[found.violation > found.tol].all())


def second_order(problem: Problem, found: Stationarity, rounding: ResidualRounding) -> Verdict:
    """The verdict where every neuron is stationary."""
    escape = escapes_at(problem.block, problem.signal, found, problem.kink_tol, rounding)
    margins = margins_of(found) | {"largest pull": _largest(escape.D.norm(dim=1), found.pull_scale)}
    verdict = partial(Verdict, theorem=_THEOREM, assumptions=Assumptions({}), margins=margins)
    if not bool(escape.mask.any()):
        if not bool(escape.decided.all()):
            return verdict("undecided", named(~escape.decided), None, reason=TOO_MANY)
        return _held(problem, found, verdict)
    direction = silent_escape_fall(problem, escape) or silent_escape_fall(problem, escape, rounding.exact)
    if direction is None and len(problem.block.H) > 1:
        direction = orthant_fall(problem, found, escape, rounding)
    if direction is not None:
        return verdict("saddle", named(escape.mask), direction, reason="stationary with escape neurons")
    if margins["largest pull"] <= FLOAT64.unseen * found.tol:
        return _held(problem, found, verdict)
    if len(problem.block.H) > 1 and not bool(silent_escapes(problem.block, escape).any()):
        reason = "stationary with escape neurons; no second-order descent found"
        return verdict("type-2 candidate", named(escape.mask), None, reason=reason)
    reason = "an escape neuron makes it no minimum, but the fall is below the rounding of the loss"
    return verdict("undecided", named(escape.mask), None, reason=reason)


def _held(problem: Problem, found: Stationarity, verdict: partial[Verdict]) -> Verdict:
    """A local minimum, unless inputs of very different lengths hide a descent from scales that hold all of them."""
    direction = whitened_fall(problem, found)
    allowed = FLOAT64.left_to_fall * found.tol**2 * float(problem.loss)
    if direction is None or -direction.loss_change <= allowed:
        return verdict("local minimum", nobody(problem.block), None, reason="stationary without escape neurons")
    return replace(
        verdict("not stationary", named(direction.dW.any(dim=1)), direction, reason=DESCENT), theorem=STATIONARY
    )


def margins_of(found: Stationarity) -> dict[str, float]:
    """The numbers behind a first-order answer."""
    margins = {"largest violation": max(float(found.violation.max()), found.bias_violation), "tolerance": found.tol}
    held = found.margin.isfinite() & (found.scale > 0)
    if bool(held.any()):
        margins["smallest kink margin"] = float((found.margin[held] / found.scale[held]).min())
    return margins


def _largest(values: Tensor, scales: Tensor) -> float:
    """The largest of values relative to their scales."""
    return float((values / torch.where(scales > 0, scales, 1.0)).max())


def named(mask: Tensor) -> Tensor:
    """The neurons of a mask, long, shape ``(n,)``."""
    return mask.nonzero().squeeze(1)


def nobody(block: ShallowBlock) -> Tensor:
    """No neuron, long, shape ``(0,)``."""
    return torch.empty(0, dtype=torch.long, device=block.W.device)
