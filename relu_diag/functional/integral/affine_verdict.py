"""What a point is for the integral loss against an affine target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.integral._affine_witness import (
    Step,
    bent_steps,
    degenerate_steps,
    relu_saddle_steps,
    see_affine_fall,
    steepest_steps,
)
from relu_diag.functional.integral._bend import bend_among
from relu_diag.functional.integral._standard import Standard, standard_form
from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.integral.interval import Interval, network_pieces
from relu_diag.functional.integral.levels import critical_levels
from relu_diag.functional.integral.neuron_types import NeuronTypes, neuron_types
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance, tolerances
from relu_diag.functional.verdict import Direction, Verdict

_Kind = Literal["not stationary", "saddle", "local minimum", "global minimum", "undecided"]
_PROPOSITION = "Cheridito et al., Proposition 4.5"
_LEAKY = "Cheridito et al., section 5"
_DESCENT = "a first-order descent exists"
_OUT_OF_RANGE = "weights, interval or target so large, small or far away that float64 does not hold their products"
_HIDDEN = "the error, or its derivatives, are below the rounding of the terms they are made of"
_UNSEEN = "no fall above the rounding of the loss was seen"
_NEARLY = "derivatives are below tol, but no critical point looks like this; the loss falls"
# Rounding of an error, over its terms; of a derivative, over the error that it is a part of.
_ROUNDED_ERROR = 16 * FLOAT64.eps
_ROUNDED_DERIVATIVE = 8 * FLOAT64.eps


def classify_affine(
    w: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor | float,
    slope: float,
    intercept: float,
    interval: Interval,
    slopes: tuple[float, float] = (0.0, 1.0),
    tol: float | None = None,
) -> Verdict:
    """What the point is for the integral of ``(N(x) - slope x - intercept)^2``, proven, or "undecided".

    Every critical point that is no global minimum is a local minimum or a saddle, and the neurons' types say which. No
    point is a local maximum. "saddle" and "not stationary" carry a direction along which the loss was evaluated to
    fall; rows of its ``dW`` are ``(w_j, b_j)``. The verdict is that of the problem in standard form: moving and scaling
    interval or target, ``(w, b, h) -> (k w, k b, h / k)``, a common factor of the slopes, and mirrored units such as
    ``min(z, 0)`` change nothing.

    Source: Cheridito et al., Proposition 4.5 and section 5.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        c: Output bias.
        slope: Slope of the target.
        intercept: Intercept of the target.
        interval: ``(A, B)``.
        slopes: ``(s-, s+)`` of ReLU or leaky units, or mirrored ones: one of them 0, or both of the same sign.
        tol: Tolerance on derivatives relative to the terms they are made of, and on the error relative to the spread of
            the target; None: 1e-9 in float64, 1e-5 in float32. Never below what the rounding of the parameters does.

    Returns:
        The verdict.

    Example:
        >>> w, b, h = torch.tensor([[1.0, -1.0], [-1 / 3, 2 / 3], [2 / 3, -2 / 3]], dtype=torch.float64)
        >>> verdict = classify_affine(w, b, h, c=0.5, slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> verdict.kind, round(1 / verdict.loss, 6)
        ('saddle', 972.0)
    """
    c = torch.as_tensor(c, dtype=torch.float64, device=w.device)
    given = AffineProblem(w, b, h, c, slope, intercept, interval, slopes)
    zeta = _slope_ratio(slopes)
    assumptions = Assumptions({
        "integral loss": "holds",
        "affine target": "holds",
        "target not constant": checked(slope != 0),
        "leaky units" if zeta > 0 else "ReLU units": "holds",
        "no degenerate neuron": checked(not bool(((w == 0) & (b == 0)).any())),
    })
    tol = derivative_tolerance(tol, None, w.dtype)
    eps = tolerances(w.dtype).eps
    standard = standard_form(given, zeta, max(FLOAT64.touching, tol / 10), eps)
    if standard is None:
        nobody = torch.empty(0, dtype=torch.long, device=w.device)
        return Verdict("undecided", nobody, None, assumptions, theorem=_PROPOSITION, reason=_OUT_OF_RANGE)
    return _verdict(_point(standard, assumptions, tol, eps / FLOAT64.eps))


def _slope_ratio(slopes: tuple[float, float]) -> float:
    """The smaller slope over the larger; in mirrored units, ``rho(z) = -rho'(-z)``, the two are swapped.

    Raises:
        ValueError: If one slope is positive and one negative.
    """
    smaller, larger = sorted(slopes, key=abs)
    if smaller * larger < 0:
        raise ValueError(
            "`slopes` must be those of ReLU or leaky units, or mirrored ones: one of them 0, or both of the same sign; "
            f"got {slopes!r}."
        )
    return abs(smaller / larger)


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """The point in standard form, and what was measured there.

    Attributes:
        standard: The problem.
        assumptions: What the theorem assumes.
        types: The neurons' types.
        loss: Loss of the standard form.
        gradient: In the order ``w, b, h, c``, shape ``(3 I + 1,)``.
        violation: The same over the terms it is made of.
        rounding: What rounding makes of a violation.
        rounded_error: What rounding makes of the error.
        tol: Violations that count as zero.
        zero: Error that counts as zero.
        lowest: Error that no tolerance takes for zero, however wide.
    """

    standard: Standard
    assumptions: Assumptions
    types: NeuronTypes
    loss: float
    gradient: Tensor
    violation: Tensor
    rounding: float
    rounded_error: float
    tol: float
    zero: float
    lowest: float

    @property
    def problem(self) -> AffineProblem:
        """The problem in standard form."""
        return self.standard.problem

    @property
    def error(self) -> float:
        """The root mean square of the error, in units of the target's spread."""
        return math.sqrt(self.loss)

    @property
    def passive(self) -> Tensor:
        """Neurons that are zero on the interval, bool, shape ``(I,)``."""
        silent = self.types.inactive | self.types.semi_inactive
        return silent if self.problem.slopes[0] == 0 else torch.zeros_like(silent)

    @property
    def idle(self) -> Tensor:
        """Constant neurons without output weight, bool, shape ``(I,)``."""
        return self.types.semi_active & self.types.flat

    @property
    def broken(self) -> Tensor:
        """Neurons that are not stationary within the tolerance, bool, shape ``(I,)``."""
        return self.violation[:-1].reshape(3, -1).amax(0) > self.tol

    def says(
        self,
        kind: _Kind,
        who: Tensor | None = None,
        direction: Direction | None = None,
        theorem: str = _PROPOSITION,
        reason: str = "",
        margins: dict[str, float] | None = None,
    ) -> Verdict:
        """A verdict about the given problem; ``who`` is a mask, shape ``(I,)``."""
        neurons = torch.empty(0, dtype=torch.long) if who is None else who.nonzero().squeeze(1)
        measured = {"largest violation": float(self.violation.max()), "tolerance": self.tol}
        return Verdict(
            kind,
            neurons.to(self.standard.given.w.device),
            direction,
            self.assumptions,
            theorem,
            reason,
            self.standard.loss(self.loss),
            measured | (margins or {}),
        )

    def falls(
        self,
        kind: _Kind,
        who: Tensor,
        steps: Iterator[Step],
        theorem: str = _PROPOSITION,
        reason: str = "",
        margins: dict[str, float] | None = None,
    ) -> Verdict:
        """The verdict with a fall along one of the steps, "undecided" where none is seen."""
        direction = see_affine_fall(self.standard, steps)
        if direction is None:
            return self.says("undecided", who, None, theorem, "; ".join(filter(None, (reason, _UNSEEN))), margins)
        return self.says(kind, who, direction, theorem, reason, margins)


def _point(standard: Standard, assumptions: Assumptions, tol: float, coarser: float) -> _Point:
    """What is measured at a point; parameters are rounded ``coarser`` times as much as float64."""
    problem = standard.problem
    parameters = [value.clone().requires_grad_() for value in (problem.neurons, problem.c)]
    with torch.enable_grad():
        loss = problem.loss(*parameters)
        gradients = torch.autograd.grad(loss, parameters)
    value = float(loss.detach())
    gradient = torch.cat([part.reshape(-1) for part in gradients])
    terms = _terms(problem)
    violation = torch.where(terms > 0, gradient.abs() / torch.where(terms > 0, terms, 1.0), 0.0)
    rounding = _ROUNDED_DERIVATIVE * standard.terms / math.sqrt(value) if value > 0 else 0.0
    rounded_error = _ROUNDED_ERROR * standard.terms
    zeta = problem.slopes[0]
    # The lowest level of ReLU units has an error of 1 / (sqrt(12) (I + 1)^2); leaky units count twice.
    width = len(problem.w) * (2 if zeta > 0 else 1)
    lowest = FLOAT64.below_levels * (1 - zeta) / (math.sqrt(12) * (width + 1) ** 2)
    return _Point(
        standard,
        assumptions,
        neuron_types(problem.w, problem.b, problem.h, problem.interval, 4 * FLOAT64.eps),
        value,
        gradient,
        violation,
        rounding,
        rounded_error,
        tol=max(tol, min(coarser * rounding, FLOAT64.unresolved)),
        zero=min(max(tol, coarser * rounded_error), lowest),
        lowest=lowest,
    )


def _terms(problem: AffineProblem) -> Tensor:
    """The sum of the absolute terms that each derivative is made of, at most, shape ``(3 I + 1,)``."""
    zeta = problem.slopes[0]
    pieces = network_pieces(problem.w, problem.b, problem.h, problem.c, problem.interval, problem.slopes)
    ends = torch.stack([pieces.edges[:-1], pieces.edges[1:]])
    highest = (pieces.value + (pieces.slope - problem.slope) * ends).abs().max()
    at_ends = torch.stack([problem.b - problem.w / 2, problem.b + problem.w / 2])
    low, high = at_ends.amin(0), at_ends.amax(0)
    steep = torch.where(problem.w == 0, 1.0, problem.w.abs())
    active = torch.where(problem.w == 0, (problem.b > 0).double(), (high.clamp_min(0) - low.clamp_min(0)) / steep)
    positive = active * (high.clamp_min(0) + low.clamp_min(0)) / 2
    negative = (1 - active) * (high.clamp_max(0) + low.clamp_max(0)).abs() / 2
    seen = problem.h.abs() * (active + zeta * (1 - active))
    own = positive + zeta * negative
    return 2 * highest * torch.cat([seen / 2, seen, own, torch.ones_like(own[:1])])


def _verdict(point: _Point) -> Verdict:
    """The verdict: zero loss, no stationary point, or a critical point by the neurons' types."""
    if not (math.isfinite(point.loss) and bool(torch.isfinite(point.gradient).all())):
        return point.says("undecided", reason=_OUT_OF_RANGE)
    if point.error <= point.rounded_error and point.rounded_error > point.lowest:
        return point.says("undecided", reason=_HIDDEN)
    if point.error <= point.zero:
        return point.says("global minimum", theorem="zero loss")
    degenerate = point.types.degenerate
    kinked = degenerate & ~point.types.flat
    steps = chain(
        steepest_steps(point.problem, point.gradient),
        degenerate_steps(point.problem, kinked),
        _bent_anywhere(point),
    )
    if bool(kinked.any()) or bool((point.violation > max(point.tol, point.rounding)).any()):
        return point.falls("not stationary", point.broken | kinked, steps, _DESCENT)
    if point.rounding > FLOAT64.unresolved:
        return point.says("undecided", reason=_HIDDEN)
    if bool(degenerate.any()):
        # Proposition 4.5 leaves out neurons with w = b = h = 0.
        waking = degenerate_steps(point.problem, degenerate)
        return point.falls("saddle", degenerate, waking, "Wu et al., Corollary 4.4", "a neuron at zero can grow")
    if point.problem.slope == 0:
        return _nearly(point)
    return _leaky_verdict(point) if point.problem.slopes[0] > 0 else _relu_verdict(point)


def _relu_verdict(point: _Point) -> Verdict:
    """The branches of Proposition 4.5 at a critical point without degenerate neurons."""
    problem = point.problem
    drawn = point.types.semi_inactive & (problem.slope * problem.h * problem.w >= 0)
    if bool((point.passive & ~drawn).all()):
        return point.says("local minimum", reason="constant, and no neuron is drawn into the interval")
    if bool((point.passive | point.idle).all()):
        steps = relu_saddle_steps(problem, point.idle, drawn)
        reason = "constant, with a neuron that the slope draws in"
        return point.falls("saddle", point.idle | drawn, steps, reason=reason)
    n = _level(point)
    if n is None:
        return _nearly(point)
    inside = point.types.type_2_active
    reason = f"zigzag of level n = {n}"
    return _bent(point, inside, _PROPOSITION, reason, {"level": float(n)})


def _leaky_verdict(point: _Point) -> Verdict:
    """A critical point of leaky units without degenerate neurons is a global minimum or a saddle."""
    who = point.types.type_2_active | (point.problem.w == 0)
    if not bool(who.all()):
        return _nearly(point)
    return _bent(point, who, _LEAKY, "leaky units have no local minima but the global ones", {})


def _bent(point: _Point, who: Tensor, theorem: str, reason: str, margins: dict[str, float]) -> Verdict:
    """A saddle with a negative eigenvalue among the parameters of some neurons, a mask of shape ``(I,)``."""
    bend = bend_among(point.problem, who)
    own = point.standard.given_hessian(bend)
    if bool(torch.isfinite(own).all()):
        margins = margins | {"smallest eigenvalue": float(torch.linalg.eigvalsh((own + own.T) / 2)[0])}
    return point.falls("saddle", who, bent_steps(point.problem, bend), theorem, reason, margins)


def _nearly(point: _Point) -> Verdict:
    """A point that is critical within the tolerance, and looks like none of the critical points there are."""
    everybody = torch.ones_like(point.passive)
    steps = chain(steepest_steps(point.problem, point.gradient), _bent_anywhere(point))
    return point.falls("not stationary", everybody & ~point.passive, steps, reason=_NEARLY)


def _bent_anywhere(point: _Point) -> Iterator[Step]:
    """The directions bent down most among the neurons that are not zero on the interval."""
    yield from bent_steps(point.problem, bend_among(point.problem, ~point.passive))


def _level(point: _Point) -> int | None:
    """``n`` where the kinks inside form the zigzag of level ``n``, within the tolerance."""
    problem = point.problem
    inside = point.types.type_2_active
    if not bool((inside | point.passive | point.idle).all()):
        return None
    # Derivatives below tol leave positions and levels further off.
    loose = min(1e3 * point.tol, FLOAT64.level_match)
    levels = critical_levels(1.0, problem.interval, len(problem.w)).tolist()
    n = next((2 * k for k, level in enumerate(levels) if k and abs(point.loss / level - 1) < loose), None)
    if n is None:
        return None
    loose *= n + 1
    place = (point.types.breakpoint[inside] + 0.5) * (n + 1)
    i = place.round()
    kink = torch.zeros(n + 2, dtype=torch.float64)
    kink.index_add_(0, i.long().clamp(0, n + 1), (problem.h * problem.w)[inside])
    expected = 2 * problem.slope / (n + 1)
    placed = bool(((place - i).abs() < loose).all()) and bool(((i > 0) & (i <= n)).all())
    signed = bool((problem.w[inside].sign() == 1 - 2 * ((i + 1) % 2)).all())
    balanced = bool(((kink[1:-1] - expected).abs() < loose * abs(expected)).all())
    return n if placed and signed and balanced else None
