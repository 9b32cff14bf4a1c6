"""What a point is for the integral loss against an affine target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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
from relu_diag.functional.integral._network import leakiness
from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.integral.generalised_gradient import generalised_jacobian
from relu_diag.functional.integral.interval import Interval
from relu_diag.functional.integral.levels import critical_levels
from relu_diag.functional.integral.neuron_types import NeuronTypes, neuron_types
from relu_diag.functional.verdict import Verdict

_PROPOSITION = "Cheridito et al., Proposition 4.5"
_LEAKY = "Cheridito et al., section 5"
_ROUNDING = 16 * torch.finfo(torch.float64).eps
# How far the rounding of parameters reaches, and how far positions and levels may be off in a zigzag.
_ROUNDED, _LOOSEST, _LOOSE = 8, 1e-4, 1e-2
_BELOW_LEVELS = 0.1


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
    fall; rows of its ``dW`` are ``(w_j, b_j)``.

    Source: Cheridito et al., Proposition 4.5 and section 5.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        c: Output bias.
        slope: Slope of the target.
        intercept: Intercept of the target.
        interval: ``(A, B)``.
        slopes: ``(s-, s+)`` of ReLU or leaky units.
        tol: Tolerance on derivatives and positions relative to their natural scale; None: 1e-9 in float64, 1e-5 in
            float32, more where the error is small against the terms that make it.

    Returns:
        The verdict.

    Example:
        >>> w, b, h = torch.tensor([[1.0, -1.0], [-1 / 3, 2 / 3], [2 / 3, -2 / 3]], dtype=torch.float64)
        >>> verdict = classify_affine(w, b, h, c=0.5, slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> verdict.kind, round(1 / verdict.loss, 6)
        ('saddle', 972.0)
    """
    c = torch.as_tensor(c, dtype=torch.float64, device=w.device)
    problem = AffineProblem(w, b, h, c, slope, intercept, interval, slopes)
    value, gradient = _loss_and_gradient(problem)
    tol = _tolerance(problem, value, w.dtype) if tol is None else tol
    leaky = leakiness(slopes) > 0
    types = neuron_types(problem.w, problem.b, problem.h, interval, tol / 10)
    assumptions = Assumptions({
        "integral loss": "holds",
        "affine target": "holds",
        "target not constant": checked(slope != 0),
        "leaky units" if leaky else "ReLU units": "holds",
        "no degenerate neuron": checked(not bool(types.degenerate.any())),
    })
    verdict = partial(Verdict, assumptions=assumptions, loss=value)
    nobody = torch.empty(0, dtype=torch.long, device=w.device)
    if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
        return verdict(
            "undecided", nobody, None, theorem=_PROPOSITION, reason="the loss or its gradient leaves float64"
        )
    if _is_zero(problem, value, tol):
        return verdict("global minimum", nobody, None, theorem="zero loss")
    violation = gradient.abs() / _scales(problem, value)
    verdict = partial(verdict, margins={"largest violation": float(violation.max()), "tolerance": tol})
    kinked = types.degenerate & ~types.flat
    broken = violation[:-1].reshape(3, -1).amax(0) > tol
    if bool(kinked.any()) or bool((violation > tol).any()):
        return _descending(problem, broken | kinked, kinked, gradient, verdict)
    if bool(types.degenerate.any()):
        return _silent(problem, types.degenerate, verdict)
    return (_leaky_verdict if leaky else _relu_verdict)(problem, types, value, tol, verdict)


def _relu_verdict(
    problem: AffineProblem, types: NeuronTypes, value: float, tol: float, verdict: Callable[..., Verdict]
) -> Verdict:
    """The branches of Proposition 4.5 at a critical point without degenerate neurons."""
    passive = types.inactive | types.semi_inactive
    pull = problem.slope * problem.h * problem.w
    nobody = passive.nonzero().squeeze(1)[:0]
    if bool((passive & ~(types.semi_inactive & (pull >= 0))).all()):
        reason = "constant, and no neuron is drawn into the interval"
        return verdict("local minimum", nobody, None, theorem=_PROPOSITION, reason=reason)
    if not bool(types.type_2_active.any()):
        idle = types.semi_active & types.flat
        drawn = types.semi_inactive & (pull >= 0)
        if not bool((passive | idle).all()):
            return verdict(
                "undecided", nobody, None, theorem=_PROPOSITION, reason="the point is critical only within tol"
            )
        steps = relu_saddle_steps(problem, idle, drawn)
        reason = "constant, with a neuron that the slope draws in"
        return _saddle(problem, (idle | drawn), steps, partial(verdict, theorem=_PROPOSITION, reason=reason))
    n = _level(problem, types, value, tol)
    if n is None:
        reason = "the gradient is below tol, but the kinks do not form a level's zigzag: lower tol"
        return verdict("undecided", nobody, None, theorem=_PROPOSITION, reason=reason)
    known = partial(verdict, theorem=_PROPOSITION, reason=f"zigzag of level n = {n}")
    return _bent(problem, types.type_2_active, generalised_jacobian(problem), known, {"level": float(n)})


def _leaky_verdict(
    problem: AffineProblem, types: NeuronTypes, value: float, tol: float, verdict: Callable[..., Verdict]
) -> Verdict:
    """A critical point of leaky units without degenerate neurons is a global minimum or a saddle."""
    theta = torch.cat([problem.w, problem.b, problem.h, problem.c.reshape(1)])
    hessian: Any = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        lambda t: problem.loss(t[:-1].reshape(3, -1), t[-1]), theta
    )
    reason = "leaky units have no local minima but the global ones"
    return _bent(problem, ~types.degenerate, hessian, partial(verdict, theorem=_LEAKY, reason=reason), {})


def _bent(
    problem: AffineProblem, who: Tensor, hessian: Tensor, verdict: Callable[..., Verdict], margins: dict[str, float]
) -> Verdict:
    """A saddle with a negative eigenvalue."""
    if not bool(torch.isfinite(hessian).all()):
        return verdict("undecided", who.nonzero().squeeze(1), None, reason="products of the weights leave float64")
    lowest = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[0])
    return _saddle(problem, who, bent_steps(problem, hessian), verdict, {**margins, "smallest eigenvalue": lowest})


def _saddle(
    problem: AffineProblem,
    who: Tensor,
    steps: Iterator[Step],
    verdict: Callable[..., Verdict],
    margins: dict[str, float] | None = None,
) -> Verdict:
    direction = see_affine_fall(problem, steps)
    neurons = who.nonzero().squeeze(1)
    made = verdict("saddle" if direction else "undecided", neurons, direction)
    made.margins.update(margins or {})
    if direction is not None:
        return made
    reason = f"{made.reason}: no minimum, but the fall is below the rounding of the loss"
    return Verdict("undecided", neurons, None, made.assumptions, made.theorem, reason, made.loss, made.margins)


def _descending(
    problem: AffineProblem, broken: Tensor, kinked: Tensor, gradient: Tensor, verdict: Callable[..., Verdict]
) -> Verdict:
    neurons = broken.nonzero().squeeze(1)
    steps = [*steepest_steps(problem, gradient), *degenerate_steps(problem, kinked)]
    direction = see_affine_fall(problem, iter(steps))
    if direction is None:
        reason = "no fall above the rounding of the loss was seen; where w = b = 0 and h is not, there is no gradient"
        return verdict("undecided", neurons, None, theorem=_PROPOSITION, reason=reason)
    return verdict("not stationary", neurons, direction, theorem="a first-order descent exists")


def _silent(problem: AffineProblem, degenerate: Tensor, verdict: Callable[..., Verdict]) -> Verdict:
    """Neurons with ``w = b = h = 0``, which Proposition 4.5 excludes, at a critical point: wake one up."""
    known = partial(verdict, theorem="Wu et al., Corollary 4.4", reason="a neuron at zero can grow")
    return _saddle(problem, degenerate, degenerate_steps(problem, degenerate), known)


def _loss_and_gradient(problem: AffineProblem) -> tuple[float, Tensor]:
    parameters = [value.clone().requires_grad_() for value in (problem.neurons, problem.c)]
    with torch.enable_grad():
        loss = problem.loss(*parameters)
        gradient = torch.autograd.grad(loss, parameters)
    return float(loss.detach()), torch.cat([part.reshape(-1) for part in gradient])


def _tolerance(problem: AffineProblem, value: float, dtype: torch.dtype) -> float:
    """The tolerance of the dtype, or what the rounding of the parameters does to an error this small."""
    least, eps = (1e-9 if dtype == torch.float64 else 1e-5), torch.finfo(dtype).eps
    A, B = problem.interval
    error = math.sqrt(value / (B - A))
    rounding = _ROUNDED * eps * problem.terms / error if error > 0 else 0.0
    return max(least, min(rounding, _LOOSEST))


def _is_zero(problem: AffineProblem, value: float, tol: float) -> bool:
    A, B = problem.interval
    spread, terms = abs(problem.slope) * (B - A), problem.terms
    size = spread if problem.slope else abs(problem.intercept) or terms
    # No tolerance takes a critical level for zero: the lowest has an error of spread / (sqrt(12) (I + 1)^2).
    width = len(problem.w) * (2 if problem.slopes[0] else 1)
    tol = min(tol, _BELOW_LEVELS / (math.sqrt(12) * (width + 1) ** 2))
    return math.sqrt(value / (B - A)) <= max(tol * size, _ROUNDING * terms)


def _scales(problem: AffineProblem, value: float) -> Tensor:
    """What each derivative could be at most with an error of this size: the bound of Cauchy and Schwarz."""
    A, B = problem.interval
    far = max(abs(A), abs(B))
    error = 2 * math.sqrt(value * (B - A))
    # An output weight of 0 leaves nothing to compare with; its neuron's input weights have no derivative either.
    h = torch.where(problem.h == 0, 1.0, problem.h.abs()) * max(map(abs, problem.slopes))
    reach = (problem.w.abs() * far + problem.b.abs()) * max(map(abs, problem.slopes))
    reach = torch.where(reach == 0, 1.0, reach)
    return error * torch.cat([h * far, h, reach, torch.ones_like(h[:1])])


def _level(problem: AffineProblem, types: NeuronTypes, value: float, tol: float) -> int | None:
    """``n`` where the kinks inside form the zigzag of level ``n``, within the tolerance."""
    A, B = problem.interval
    inside = types.type_2_active
    if bool((~(inside | types.inactive | types.semi_inactive | (types.semi_active & types.flat))).any()):
        return None
    width, loose = len(problem.w), min(1e3 * tol, _LOOSE)
    levels = critical_levels(problem.slope, problem.interval, width) if problem.slope else torch.ones(0)
    n = next((2 * k for k in range(1, len(levels)) if abs(value / float(levels[k]) - 1) < loose), None)
    if n is None:
        return None
    cell = (B - A) / (n + 1)
    place = (types.breakpoint[inside] - A) / cell
    i = place.round()
    kink = torch.zeros(n + 2, dtype=torch.float64, device=i.device)
    kink.index_add_(0, i.long().clamp(0, n + 1), (problem.h * problem.w)[inside])
    expected = 2 * problem.slope / (n + 1)
    fits = bool(((place - i).abs() < loose * (n + 1)).all()) and bool(((i > 0) & (i <= n)).all())
    signs = bool((problem.w[inside].sign() == 1 - 2 * ((i + 1) % 2)).all())
    return (
        n if fits and signs and bool(((kink[1:-1] - expected).abs() < loose * (n + 1) * abs(expected)).all()) else None
    )
