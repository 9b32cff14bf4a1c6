"""What a point is: saddle, minimum or nothing, which neurons say so, and a direction anyone can check."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.block import BlockSignal, Reduction, ShallowBlock
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.problem import SquaredProblem, squared_problem
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance
from relu_diag.functional.verdict._orthant import orthant_fall
from relu_diag.functional.verdict._witness import first_order_fall, silent_escape_fall
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import EscapeNeurons, escapes_at, nothing_reachable, silent_escapes
from relu_diag.functional.verdict.stationarity import Stationarity, assess, derivative_scale

Kind = Literal["not stationary", "saddle", "local minimum", "global minimum", "type-2 candidate", "undecided"]

_NAMED = 8
_STATIONARY = "Wu et al., Definition 3.3"
_THEOREM = "Wu et al., Theorem 4.2"
_CONVEX = "convexity in the outputs"
_ORTHOGONAL = "the loss gradient is orthogonal to every function a neuron can compute"
_DESCENT = "a first-order descent exists"
_OUT_OF_RANGE = "weights or data so large or small that squares leave the range of float64: rescale them"
_TOO_MANY = "the kinks of these neurons are too many to enumerate"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What the parameters are a point of, and why.

    Attributes:
        kind: "not stationary"; "saddle" (stationary, and the loss falls along ``direction``); "local minimum";
            "global minimum"; "type-2 candidate" (stationary with escape neurons, and no fall was found; several outputs
            only); "undecided" (``reason`` says why).
        neurons: The descending or escape neurons, long, shape ``(n,)``.
        direction: Where the loss was evaluated and lower; None at minima, and where only a signal was given.
        assumptions: What the theorem assumes, each "holds", "broken", or "assumed" where only the caller can know.
        theorem: The statement the verdict rests on.
        reason: What it rests on here, or what is missing.
        loss: The loss at the point, nan where only a signal was given.
        margins: The numbers behind the decision; violations and pulls are relative to their natural scale.
    """

    kind: Kind
    neurons: Tensor
    direction: Direction | None
    assumptions: Assumptions
    theorem: str = ""
    reason: str = ""
    loss: float = float("nan")
    margins: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts: list[str] = [self.kind]
        if len(self.neurons):
            named = ", ".join(str(i) for i in self.neurons[:_NAMED].tolist())
            more = len(self.neurons) - _NAMED
            word = "neuron" if len(self.neurons) == 1 else "neurons"
            parts.append(f"{word} {named}" + (f" and {more} more" if more > 0 else ""))
        parts += [str(text) for text in (self.direction, self.reason) if text]
        parts += [f"{name}: broken" for name in self.assumptions.broken]
        return "; ".join(parts) + (f" ({self.theorem})" if self.theorem else "")

    def summary(self) -> str:
        """The verdict as a table.

        Returns:
            Text, one fact a line.
        """
        neurons = ", ".join(str(i) for i in self.neurons.tolist()) or "none"
        rows = [("verdict", self.kind), ("loss", f"{self.loss:.6g}"), ("neurons", neurons)]
        rows += [("direction", str(self.direction or "none")), ("rests on", self.theorem), ("because", self.reason)]
        rows += [(name, f"{value:.3g}") for name, value in self.margins.items()]
        rows += [(f"assumes {name}", state) for name, state in self.assumptions.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


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
    assumptions = Assumptions({"squared loss": "holds"}) | _assumptions(problem.block)
    verdict = partial(Verdict, assumptions=assumptions, loss=float(problem.loss))
    nobody = torch.empty(0, dtype=torch.long, device=block.W.device)
    if not problem.in_range:
        return verdict("undecided", nobody, None, reason=_OUT_OF_RANGE)
    if is_zero(problem, tol):
        return verdict("global minimum", nobody, None, theorem="zero loss")
    if nothing_reachable(problem.block, problem.loss_signal, tol):
        return verdict("global minimum", nobody, None, theorem=_CONVEX, reason=_ORTHOGONAL)
    found = assess(problem.block, problem.loss_signal, problem.kink_tol, tol)
    if not bool(found.stationary.all()):
        return _first_order(problem, found, partial(verdict, margins=_margins(found)))
    escape = escapes_at(problem.block, problem.loss_signal, found, problem.kink_tol)
    return _second_order(problem, found, escape, partial(verdict, margins=_margins(found) | _pull(problem, escape)))


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
    found = assess(block, signal, kink_tol, tol)
    smooth = not bool(found.geometry.kink_count.any())
    alone = signal.C is None
    first = {
        "convex loss": "assumed",
        "loss of the outputs alone": checked(alone),
        "no sample on a kink": checked(smooth),
    }
    assumptions = Assumptions(first) | _assumptions(block)
    verdict = partial(Verdict, direction=None, assumptions=assumptions, margins=_margins(found))
    nobody = torch.empty(0, dtype=torch.long, device=block.W.device)
    if alone and nothing_reachable(block, signal, tol):
        return verdict("global minimum", nobody, theorem=_CONVEX, reason=_ORTHOGONAL)
    broken = found.violation > tol
    if bool(broken.any()) or found.bias_violation > tol:
        return verdict("not stationary", broken.nonzero().squeeze(1), theorem=_STATIONARY, reason=_DESCENT)
    if not bool(found.decided.all()):
        return verdict("undecided", (~found.decided).nonzero().squeeze(1), theorem=_STATIONARY, reason=_TOO_MANY)
    if not (smooth and alone):
        return verdict("undecided", nobody, theorem=_STATIONARY, reason="stationary; no theorem goes on from here")
    escape = escapes_at(block, signal, found, kink_tol)
    silent = silent_escapes(block, signal, escape)
    if not bool(escape.mask.any()):
        return verdict("local minimum", nobody, theorem="Liu, Theorem 1", reason="dL/dR = 0: the minimum of its cell")
    if bool(silent.any()):
        return verdict("saddle", silent.nonzero().squeeze(1), theorem="Liu, Lemma 1", reason="dL/dR is not 0")
    reason = "stationary with escape neurons; no theorem goes on from here for several outputs"
    return verdict("undecided", escape.mask.nonzero().squeeze(1), theorem="Liu, Theorem 1", reason=reason)


def is_zero(problem: SquaredProblem, tol: float) -> bool:
    """Whether a squared loss is zero up to a tolerance, or up to the rounding of outputs whose terms cancel.

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
    residual, outputs = problem.signal.G, problem.outputs
    miss = float(residual.norm())
    size = max(float((outputs - residual).norm()), float(outputs.norm()))
    if miss <= tol * size:
        return True
    # Rounding that takes more than half of the digits says nothing about the loss.
    return miss <= math.sqrt(FLOAT64.eps) * size and miss <= 4 * FLOAT64.eps * float(_terms(problem).norm())


def _terms(problem: SquaredProblem) -> Tensor:
    """Sums of the absolute terms of the outputs: of what each sample sees and nothing else, shape ``(n,)``."""
    block = problem.block
    amplitude = block.W.norm(dim=1) * block.H.norm(dim=0)
    terms = [amplitude.new_zeros(1)]
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        terms.append(chunk.X.norm(dim=1) * (slopes_at(chunk.Z, block.slopes).abs() @ amplitude))
    return torch.cat(terms)


def _first_order(problem: SquaredProblem, found: Stationarity, verdict: Callable[..., Verdict]) -> Verdict:
    broken = (found.violation > found.tol).nonzero().squeeze(1)
    if not len(broken) and found.bias_violation <= found.tol:
        return verdict("undecided", (~found.decided).nonzero().squeeze(1), None, theorem=_STATIONARY, reason=_TOO_MANY)
    direction = first_order_fall(problem, found)
    if direction is None:  # the slopes are tiny: beside a saddle its second-order fall is larger
        escape = escapes_at(problem.block, problem.loss_signal, found, problem.kink_tol)
        direction = silent_escape_fall(problem, escape)
    if direction is None:
        reason = f"slopes above tol={found.tol:.3g}, but no fall above the rounding of the loss: raise tol"
        return verdict("undecided", broken, None, theorem=_STATIONARY, reason=reason)
    return verdict("not stationary", broken, direction, theorem=_STATIONARY, reason=_DESCENT)


def _second_order(
    problem: SquaredProblem, found: Stationarity, escape: EscapeNeurons, verdict: Callable[..., Verdict]
) -> Verdict:
    pulled = escape.mask.nonzero().squeeze(1)
    if not len(pulled):
        if bool(escape.decided.all()):
            return verdict("local minimum", pulled, None, theorem=_THEOREM, reason="stationary without escape neurons")
        return verdict("undecided", (~escape.decided).nonzero().squeeze(1), None, theorem=_THEOREM, reason=_TOO_MANY)
    direction = silent_escape_fall(problem, escape)
    if direction is None and len(problem.block.H) > 1:
        direction = orthant_fall(problem, found, escape)
    if direction is not None:
        return verdict("saddle", pulled, direction, theorem=_THEOREM, reason="stationary with escape neurons")
    if len(problem.block.H) > 1 and not bool(silent_escapes(problem.block, problem.signal, escape).any()):
        reason = "stationary with escape neurons; no second-order descent found"
        return verdict("type-2 candidate", pulled, None, theorem=_THEOREM, reason=reason)
    reason = "an escape neuron makes it no minimum, but the fall is below the rounding of the loss"
    return verdict("undecided", pulled, None, theorem=_THEOREM, reason=reason)


def _assumptions(block: ShallowBlock) -> Assumptions:
    """What every theorem here assumes; whether the loss given is all of the loss only the caller can know."""
    return Assumptions({
        "slopes differ": checked(block.slopes[0] != block.slopes[1]),
        "d > 1": checked(block.W.shape[1] > 1),
        "full data set": "assumed",
        "no regulariser": "assumed",
    })


def _margins(found: Stationarity) -> dict[str, float]:
    held = found.margin[found.margin.isfinite()] / found.scale[found.margin.isfinite()]
    margins = {"largest violation": max(float(found.violation.max()), found.bias_violation), "tolerance": found.tol}
    return margins | ({"smallest kink margin": float(held.min())} if len(held) else {})


def _pull(problem: SquaredProblem, escape: EscapeNeurons) -> dict[str, float]:
    scale = float(derivative_scale(problem.block, problem.loss_signal))
    return {"largest pull": float(escape.D.norm(dim=1).max()) / scale}
