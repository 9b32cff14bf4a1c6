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
from relu_diag.functional.output_loss import Loss, as_loss
from relu_diag.functional.problem import (
    LossProblem,
    Problem,
    SquaredProblem,
    decayed_problem,
    loss_problem,
    squared_problem,
)
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance, kink_tolerance
from relu_diag.functional.verdict._any_loss import KINKED_THEOREM, assumptions_of, of_any_loss
from relu_diag.functional.verdict._decayed import of_decayed_loss
from relu_diag.functional.verdict._normal_form import normal_form
from relu_diag.functional.verdict._orders import (
    CONVEX,
    ORTHOGONAL,
    STATIONARY,
    TOO_MANY,
    at_best,
    first_order,
    margins_of,
    named,
    nobody,
    second_order,
)
from relu_diag.functional.verdict._rounding import (
    output_size,
    reach,
    rounding_of_problem,
    rounding_of_signal,
)
from relu_diag.functional.verdict.escape import escapes_at, silent_escapes
from relu_diag.functional.verdict.stationarity import assess
from relu_diag.functional.verdict.verdict import DESCENT, Verdict
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay

_ZERO = "zero loss"
_REACHED = "every sample that a weight can reach is met"
_OUT_OF_RANGE = "weights or data so large or small that squares leave the range of float64: rescale them"


def classify(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    tol: float | None = None,
    weight_decay: float | WeightDecay = 0.0,
) -> Verdict:
    """What the point is for the squared loss, or any loss of the outputs, proven, or "undecided".

    "not stationary" and "saddle" carry a direction along which the loss, evaluated in float64, falls by more than its
    rounding. Samples on kinks need no smoothness: all derivatives are one-sided.

    Under any convex loss a stationary point without escape neurons is a local minimum, kinks included. Where some
    weights can grow for ever and lower the loss all the way, as with labels that are separable, the loss has no minimum
    with these signs, and the reason says so. Of a loss that is not convex only descents are claimed. Where an absolute
    error is zero, at a kink of the loss itself, the point is stationary if a gradient there holds all weights.

    Weight decay is part of the loss, which has to be convex then. A stationary point is a local minimum if every neuron
    by itself is: if no direction of its input weights that costs nothing pulls by more than the decay. A neuron without
    any weights grows where the largest pull exceeds the decay; where none does the minimum is one of all widths.

    Source: Wu et al., Definition 3.3, Theorem 4.2 and Corollary 4.4.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets of the squared loss, shape ``(N, J)``, or a loss, such as `CrossEntropy`.
        reduction: "mean", "sum" or "half_sum", of the squared loss.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale (`Stationarity`), and on the residual relative to
            targets and outputs; None: 1e-9 in float64, 1e-5 in float32.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, an output bias being free; or one for each
            part. AdamW's decay is no part of a loss.

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
    decay = as_weight_decay(weight_decay)
    if decay.any:
        return of_decayed_loss(decayed_problem(block, X, as_loss(Y, reduction), decay, kink_tol), tol)
    if isinstance(Y, Tensor):
        problem: Problem = squared_problem(block, X, Y, reduction, kink_tol)
    else:
        problem = loss_problem(block, X, as_loss(Y), kink_tol)
    of_loss: dict[str, State] = {"squared loss": "holds"}
    if isinstance(problem, LossProblem):
        of_loss = assumptions_of(problem)
    assumptions = Assumptions({**of_loss, **_assumptions(problem.block)})
    whole = float(problem.loss)
    about = partial(replace, assumptions=assumptions, loss=whole)
    if isinstance(problem, SquaredProblem):
        problem = problem.reachable()
    if not problem.in_range:
        return about(Verdict("undecided", nobody(block), None, assumptions, reason=_OUT_OF_RANGE))
    normal = normal_form(problem)
    if isinstance(normal.problem, LossProblem):
        found = about(of_any_loss(normal.problem, tol))
    else:
        found = about(_of_squared_loss(normal.problem, tol))
        if found.theorem == _ZERO and float(problem.loss) < whole:
            found = replace(found, theorem=CONVEX, reason=_REACHED)
    return found if found.direction is None else replace(found, direction=normal.outside(found.direction))


def classify_signal(
    block: ShallowBlock,
    signal: BlockSignal,
    kink_tol: float | None = None,
    tol: float | None = None,
    convex: bool = False,
) -> Verdict:
    """What the point is for any loss that is convex in the outputs (cross-entropy, say), from its gradient alone.

    The first-order part holds for any differentiable loss. With samples on kinks the answer ends at "undecided" after
    the first order, unless the caller knows that the loss is convex in the outputs: then a stationary point without
    escape neurons is a local minimum, kinks included, also with a price on the sum of all activations. No direction is
    given, because a signal cannot be evaluated anywhere else.

    Source: Wu et al., Definition 3.3; Liu, Lemma 1 and Theorem 1.

    Args:
        block: The network.
        signal: Inputs and loss gradients of the whole data set.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale; None: 1e-9 in float64, 1e-5 in float32.
        convex: Whether the loss is known to be convex in the outputs.

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
    smooth = not bool(found.geometry.within.any())
    alone = signal.C is None
    assumptions = Assumptions({
        "convex loss": "assumed",
        "loss of the outputs alone": checked(alone),
        "no sample on a kink": checked(smooth),
        **_assumptions(block),
    })
    verdict = partial(Verdict, direction=None, assumptions=assumptions, margins=margins_of(found))
    none = nobody(block)
    if alone and at_best(block, signal, tol, rounding):
        return verdict("global minimum", none, theorem=CONVEX, reason=ORTHOGONAL)
    broken = found.violation > tol
    if bool(broken.any()) or found.bias_violation > tol:
        return verdict("not stationary", named(broken), theorem=STATIONARY, reason=DESCENT)
    if not bool(found.decided.all()):
        return verdict("undecided", named(~found.decided), theorem=STATIONARY, reason=TOO_MANY)
    held = (smooth and alone) or (convex and _priced(block, signal, tol))
    if not held:
        return verdict("undecided", none, theorem=STATIONARY, reason="stationary; no theorem goes on from here")
    escape = escapes_at(block, signal, found, kink_tol)
    silent = silent_escapes(block, escape)
    if not bool(escape.decided.all()):
        return verdict("undecided", named(~escape.decided), theorem=STATIONARY, reason=TOO_MANY)
    if not bool(escape.mask.any()):
        if smooth and alone:
            reason = "dL/dR = 0: the minimum of its cell"
            return verdict("local minimum", none, theorem="Liu, Theorem 1", reason=reason)
        return verdict("local minimum", none, theorem=KINKED_THEOREM, reason="stationary without escape neurons")
    if bool(silent.any()):
        reason = "dL/dR is not 0" if smooth else "a neuron without output weights escapes"
        return verdict("saddle", named(silent), theorem="Liu, Lemma 1" if smooth else KINKED_THEOREM, reason=reason)
    where = "several outputs" if len(block.H) > 1 else "a price on activations"
    reason = f"stationary with escape neurons; no theorem goes on from here for {where}"
    return verdict("undecided", named(escape.mask), theorem="Liu, Theorem 1", reason=reason)


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
        return verdict("global minimum", nobody(block), theorem=_ZERO)
    rounding = rounding_of_problem(problem)
    if at_best(block, signal, tol, rounding):
        return verdict("global minimum", nobody(block), theorem=CONVEX, reason=ORTHOGONAL)
    found = assess(block, signal, problem.kink_tol, tol, rounding)
    if not bool(found.stationary.all()):
        return first_order(problem, found, rounding)
    return second_order(problem, found, rounding)


def _priced(block: ShallowBlock, signal: BlockSignal, tol: float) -> bool:
    """Whether the activations are felt through the outputs alone, but for one price on all of them, >= 0."""
    if signal.C is None:
        return True
    C = signal.C.detach().double()
    price = C - signal.G.detach().double() @ block.H.detach().double()
    rounding = max(tol, FLOAT64.roundings * FLOAT64.eps) * float(C.abs().max())
    mean = float(price.mean())
    return mean >= -rounding and min(block.slopes) >= 0 and bool(((price - mean).abs() <= rounding).all())


def _assumptions(block: ShallowBlock) -> dict[str, State]:
    """What every theorem here assumes; whether the loss given is all of the loss only the caller can know."""
    return {
        "slopes differ": checked(block.slopes[0] != block.slopes[1]),
        "d > 1": checked(block.W.shape[1] > 1),
        "full data set": "assumed",
        "no regulariser": "assumed",
    }
