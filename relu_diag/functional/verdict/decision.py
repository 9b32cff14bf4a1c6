"""What a point is: saddle, minimum or nothing, and which neurons say so."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from relu_diag.functional.assumptions import Assumptions, State, checked
from relu_diag.functional.block import BlockSignal, Reduction, ShallowBlock
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.problem import SquaredProblem, squared_problem
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance, kink_tolerance
from relu_diag.functional.verdict._normal_form import normal_form
from relu_diag.functional.verdict._orthant import orthant_fall
from relu_diag.functional.verdict._reach import nothing_reachable
from relu_diag.functional.verdict._rounding import (
    ResidualRounding,
    output_size,
    reach,
    rounding_of_problem,
    rounding_of_signal,
)
from relu_diag.functional.verdict._witness import first_order_fall, silent_escape_fall, whitened_fall
from relu_diag.functional.verdict.escape import escapes_at, silent_escapes
from relu_diag.functional.verdict.stationarity import Stationarity, assess
from relu_diag.functional.verdict.verdict import Verdict

_STATIONARY = "Wu et al., Definition 3.3"
_THEOREM = "Wu et al., Theorem 4.2"
_CONVEX = "convexity in the outputs"
_ORTHOGONAL = "the loss gradient is orthogonal to every function a neuron can compute"
_DESCENT = "a first-order descent exists"
_OUT_OF_RANGE = "weights or data so large or small that squares leave the range of float64: rescale them"
_TOO_MANY = "the kinks of these neurons are too many to enumerate"
_HIDDEN = "outputs whose terms cancel: their rounding is larger than the slopes of these neurons"


def classify(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    tol: float | None = None,
) -> Verdict:
    """What the point is for the squared loss, proven, or "undecided".

    "not stationary" and "saddle" carry a direction along which the loss, evaluated in float64, falls by more than its
    rounding. Samples on kinks need no smoothness: all derivatives are one-sided.

    Source: Wu et al., Definition 3.3, Theorem 4.2 and Corollary 4.4.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale (`Stationarity`), and on the residual relative to
            targets and outputs; None: 1e-9 in float64, 1e-5 in float32.

    Returns:
        The verdict.

    Example:
        >>> X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> origin = ShallowBlock(W=torch.zeros(1, 2), H=torch.zeros(1, 1))
        >>> classify(origin, X, Y).kind
        'saddle'
        >>> fitted = ShallowBlock(W=torch.tensor([[1.0, -1.0]]), H=torch.ones(1, 1))
        >>> classify(fitted, X, Y, reduction="half_sum").kind  # the second sample is on the dead side
        'local minimum'
    """
    tol = derivative_tolerance(tol, kink_tol, block.W.dtype)
    problem = squared_problem(block, X, Y, reduction, kink_tol)
    assumptions = Assumptions({"squared loss": "holds", **_assumptions(problem.block)})
    about = partial(replace, assumptions=assumptions, loss=float(problem.loss))
    if not problem.in_range:
        return about(Verdict("undecided", _nobody(block), None, assumptions, reason=_OUT_OF_RANGE))
    normal = normal_form(problem)
    found = about(_of_squared_loss(normal.problem, tol))
    return found if found.direction is None else replace(found, direction=normal.outside(found.direction))


def classify_signal(
    block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None, tol: float | None = None
) -> Verdict:
    """What the point is for any loss that is convex in the outputs (cross-entropy, say), from its gradient alone.

    The first-order part holds for any differentiable loss. Minima and saddles are claimed only where no sample is on a
    kink: there the loss is convex in the products ``R_i = h_i w_i``. With samples on kinks the answer ends at
    "undecided" after the first order, and no direction is given, because a signal cannot be evaluated anywhere else.

    Source: Wu et al., Definition 3.3; Liu, Lemma 1 and Theorem 1.

    Args:
        block: The network.
        signal: Inputs and loss gradients of the whole data set.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale; None: 1e-9 in float64, 1e-5 in float32.

    Returns:
        The verdict.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, -1.0]]), H=torch.ones(1, 1))
        >>> signal = BlockSignal(X=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), G=torch.tensor([[0.0], [-0.5]]))
        >>> classify_signal(block, signal).kind
        'local minimum'
    """
    tol = derivative_tolerance(tol, kink_tol, block.W.dtype)
    rounding = rounding_of_signal(block, signal, kink_tolerance(kink_tol, block.W.dtype))
    found = assess(block, signal, kink_tol, tol, rounding)
    smooth = not bool(found.geometry.kink_count.any())
    alone = signal.C is None
    assumptions = Assumptions({
        "convex loss": "assumed",
        "loss of the outputs alone": checked(alone),
        "no sample on a kink": checked(smooth),
        **_assumptions(block),
    })
    verdict = partial(Verdict, direction=None, assumptions=assumptions, margins=_margins(found))
    nobody = _nobody(block)
    if alone and _at_best(block, signal, tol, rounding):
        return verdict("global minimum", nobody, theorem=_CONVEX, reason=_ORTHOGONAL)
    broken = found.violation > tol
    if bool(broken.any()) or found.bias_violation > tol:
        return verdict("not stationary", _named(broken), theorem=_STATIONARY, reason=_DESCENT)
    if not bool(found.decided.all()):
        return verdict("undecided", _named(~found.decided), theorem=_STATIONARY, reason=_TOO_MANY)
    if not (smooth and alone):
        return verdict("undecided", nobody, theorem=_STATIONARY, reason="stationary; no theorem goes on from here")
    escape = escapes_at(block, signal, found, kink_tol)
    silent = silent_escapes(block, escape)
    if not bool(escape.mask.any()):
        return verdict("local minimum", nobody, theorem="Liu, Theorem 1", reason="dL/dR = 0: the minimum of its cell")
    if bool(silent.any()):
        return verdict("saddle", _named(silent), theorem="Liu, Lemma 1", reason="dL/dR is not 0")
    reason = "stationary with escape neurons; no theorem goes on from here for several outputs"
    return verdict("undecided", _named(escape.mask), theorem="Liu, Theorem 1", reason=reason)


def is_zero(problem: SquaredProblem, tol: float) -> bool:
    """Whether a squared loss is zero up to a tolerance, or up to the rounding of outputs whose terms cancel.

    The residuals together are compared with targets and outputs; each by itself, more loosely, with its own terms.

    Args:
        problem: The squared loss at its parameters.
        tol: Largest residual that counts as zero, relative to targets and outputs.

    Returns:
        Whether it is.

    Example:
        >>> from relu_diag.functional.problem import squared_problem
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> dead = ShallowBlock(W=torch.tensor([[-1e8, -1e8]]), H=torch.tensor([[1e8]]))
        >>> is_zero(squared_problem(dead, X, torch.ones(2, 1)), tol=1e-9)
        False
    """
    miss = float(problem.signal.G.norm())
    size = output_size(problem)
    # Rounding that takes more than half of the digits says nothing about the loss.
    if miss > max(tol, math.sqrt(FLOAT64.eps)) * size:
        return False
    # Where some outputs are far larger than others, these must be met as well: as far as living neurons reach there.
    targets = (problem.outputs - problem.signal.G).norm(dim=1)
    near = targets + problem.signal.X.norm(dim=1) * reach(_living(problem))
    if bool((problem.signal.G.norm(dim=1) > math.sqrt(max(tol, FLOAT64.eps)) * near).any()):
        return False
    return miss <= max(tol * size, float(rounding_of_problem(problem).exact.norm()))


def _living(problem: SquaredProblem) -> ShallowBlock:
    """The neurons that some sample sees, the others with no output weights."""
    living = torch.zeros_like(problem.block.W[:, 0], dtype=torch.bool)
    for chunk in chunks(problem.block, problem.signal, problem.kink_tol):
        living |= slopes_at(chunk.Z, problem.block.slopes).any(dim=0)
    return replace(problem.block, H=problem.block.H * living)


def _of_squared_loss(problem: SquaredProblem, tol: float) -> Verdict:
    """The verdict on a squared loss in its normal form, its assumptions left to be said."""
    block, signal = problem.block, problem.signal
    verdict = partial(Verdict, direction=None, assumptions=Assumptions({}))
    if is_zero(problem, tol):
        return verdict("global minimum", _nobody(block), theorem="zero loss")
    rounding = rounding_of_problem(problem)
    if _at_best(block, signal, tol, rounding):
        return verdict("global minimum", _nobody(block), theorem=_CONVEX, reason=_ORTHOGONAL)
    found = assess(block, signal, problem.kink_tol, tol, rounding)
    if not bool(found.stationary.all()):
        return _first_order(problem, found, rounding)
    return _second_order(problem, found, rounding)


def _at_best(block: ShallowBlock, signal: BlockSignal, tol: float, rounding: ResidualRounding | None) -> bool:
    """Whether nothing is reachable, by the numbers or within their rounding."""
    if rounding is None:
        return nothing_reachable(block, signal, tol)
    beyond_reach = partial(nothing_reachable, block, signal, tol)
    return beyond_reach(0 * rounding.most) or (beyond_reach(rounding.most) and beyond_reach(rounding.usable))


def _first_order(problem: SquaredProblem, found: Stationarity, rounding: ResidualRounding) -> Verdict:
    """The verdict where not every neuron is stationary."""
    verdict = partial(Verdict, theorem=_STATIONARY, assumptions=Assumptions({}), margins=_margins(found))
    broken = found.violation > found.tol
    if not bool(broken.any()) and found.bias_violation <= found.tol:
        many = ~found.decided & ~found.geometry.exact
        if bool(many.any()):
            return verdict("undecided", _named(many), None, reason=_TOO_MANY)
        return verdict("undecided", _named(~found.decided), None, reason=_HIDDEN)
    direction = first_order_fall(problem, found)
    if direction is None:  # the slopes are tiny: beside a saddle its second-order fall is larger
        escape = escapes_at(problem.block, problem.signal, found, problem.kink_tol, rounding)
        direction = silent_escape_fall(problem, escape)
    if direction is None:
        worst = max(float(found.violation.max()), found.bias_violation)
        if worst <= FLOAT64.unseen * found.tol:
            return _second_order(problem, found, rounding)
        direction = first_order_fall(problem, found, rounding.exact)
    if direction is None:
        reason = f"slopes above tol={found.tol:.3g}, but no fall above the rounding of the loss: raise tol"
        return verdict("undecided", _named(broken), None, reason=reason)
    return verdict("not stationary", _named(broken), direction, reason=_DESCENT)


def _second_order(problem: SquaredProblem, found: Stationarity, rounding: ResidualRounding) -> Verdict:
    """The verdict where every neuron is stationary."""
    escape = escapes_at(problem.block, problem.signal, found, problem.kink_tol, rounding)
    margins = _margins(found) | {"largest pull": _largest(escape.D.norm(dim=1), found.pull_scale)}
    verdict = partial(Verdict, theorem=_THEOREM, assumptions=Assumptions({}), margins=margins)
    if not bool(escape.mask.any()):
        if not bool(escape.decided.all()):
            return verdict("undecided", _named(~escape.decided), None, reason=_TOO_MANY)
        return _held(problem, found, verdict)
    direction = silent_escape_fall(problem, escape) or silent_escape_fall(problem, escape, rounding.exact)
    if direction is None and len(problem.block.H) > 1:
        direction = orthant_fall(problem, found, escape)
    if direction is not None:
        return verdict("saddle", _named(escape.mask), direction, reason="stationary with escape neurons")
    if margins["largest pull"] <= FLOAT64.unseen * found.tol:
        return _held(problem, found, verdict)
    if len(problem.block.H) > 1 and not bool(silent_escapes(problem.block, escape).any()):
        reason = "stationary with escape neurons; no second-order descent found"
        return verdict("type-2 candidate", _named(escape.mask), None, reason=reason)
    reason = "an escape neuron makes it no minimum, but the fall is below the rounding of the loss"
    return verdict("undecided", _named(escape.mask), None, reason=reason)


def _held(problem: SquaredProblem, found: Stationarity, verdict: partial[Verdict]) -> Verdict:
    """A local minimum, unless inputs of very different lengths hide a descent from scales that hold all of them."""
    direction = whitened_fall(problem, found)
    allowed = FLOAT64.left_to_fall * found.tol**2 * float(problem.loss)
    if direction is None or -direction.loss_change <= allowed:
        return verdict("local minimum", _nobody(problem.block), None, reason="stationary without escape neurons")
    return replace(
        verdict("not stationary", _named(direction.dW.any(dim=1)), direction, reason=_DESCENT), theorem=_STATIONARY
    )


def _assumptions(block: ShallowBlock) -> dict[str, State]:
    """What every theorem here assumes; whether the loss given is all of the loss only the caller can know."""
    return {
        "slopes differ": checked(block.slopes[0] != block.slopes[1]),
        "d > 1": checked(block.W.shape[1] > 1),
        "full data set": "assumed",
        "no regulariser": "assumed",
    }


def _margins(found: Stationarity) -> dict[str, float]:
    """The numbers behind a first-order answer."""
    margins = {"largest violation": max(float(found.violation.max()), found.bias_violation), "tolerance": found.tol}
    held = found.margin.isfinite() & (found.scale > 0)
    if bool(held.any()):
        margins["smallest kink margin"] = float((found.margin[held] / found.scale[held]).min())
    return margins


def _largest(values: Tensor, scales: Tensor) -> float:
    """The largest of values relative to their scales."""
    return float((values / torch.where(scales > 0, scales, 1.0)).max())


def _named(mask: Tensor) -> Tensor:
    """The neurons of a mask, long, shape ``(n,)``."""
    return mask.nonzero().squeeze(1)


def _nobody(block: ShallowBlock) -> Tensor:
    """No neuron, long, shape ``(0,)``."""
    return torch.empty(0, dtype=torch.long, device=block.W.device)
