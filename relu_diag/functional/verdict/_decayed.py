"""What a point is under a convex loss with weight decay: every neuron by itself decides.

For convex losses the objective changes by no less than the sum over neurons of the change of

    Psi_i(w, h) = h . D(w) + (mu_W ||w||^2 + mu_H ||h||^2) / 2,   D_j(w) = sum_k e_kj rho(w . x_k).

At a stationary point Psi_i changes along ``(v, dh)``, the best ``dh`` chosen, by a first-order part ``S(v) >= 0`` and
``(mu_W ||v||^2 - ||D(v)||^2 / mu_H) / 2``, exactly up to the next kink. So the point is a local minimum if
``||D(v)||^2 <= mu_W mu_H ||v||^2`` wherever ``S(v) = 0``. With one output that holds for every neuron with weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.linalg import null_space
from torch import Tensor

from relu_diag.functional._arrays import Array, row_space
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import (
    NeuronSums,
    chunks,
    fan_rays,
    merge_collinear,
    neuron_sums,
    one_sided,
    radial_directions,
    slopes_at,
    steepest_descent,
)
from relu_diag.functional.problem import LossProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._any_loss import assumptions_of, held_by_none
from relu_diag.functional.verdict._bend import least_bend
from relu_diag.functional.verdict._largest_growth import Growth, largest_growth
from relu_diag.functional.verdict._orders import CONVEX, STATIONARY, TOO_MANY, named, nobody
from relu_diag.functional.verdict._subgradient import free_slopes, held_against
from relu_diag.functional.verdict._weight import positive
from relu_diag.functional.verdict._witness import see_fall
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.line import Move
from relu_diag.functional.verdict.verdict import DESCENT, Verdict

_THEOREM = "with weight decay and a convex loss minima of every neuron's own part are minima"
_EVERY_WIDTH = "no neuron pulls by more than the decay: the minimum of networks of every width"
_HELD = "stationary, and no neuron pulls by more than the decay in a direction that costs nothing"
_GROWS = "stationary, and a neuron pulls by more than the decay"
_UNPROVEN = "no direction was found in which a neuron without weights grows, and none is proven not to be there"
_STRICT = "second-order sufficient condition, samples on kinks held with a margin"
_SECOND = "second-order necessary condition"
_BENT_UP = "stationary, and the loss bends up in all directions that cost nothing"
_BENT_DOWN = "stationary, and the loss bends down in a direction that costs nothing"
_NO_MARGIN = "kinks that hold these neurons without a margin"


@dataclass(frozen=True, slots=True, eq=False)
class _FirstOrder:
    """Steepest descents of the objective.

    Attributes:
        dW: Steepest descent of the input weights of every neuron, as long as it is steep, shape ``(I, d)``.
        dH: Of the output weights, shape ``(J, I)``.
        db: Of the output bias, shape ``(J,)``.
        violation: Largest relative violation of every neuron, shape ``(I,)``.
        bias_violation: The same of the output bias.
        exact: Whether no steeper descent exists, bool, shape ``(I,)``.
        kinks: Coefficients and inputs of the kinks of every neuron that has some.
        smooth: Smooth parts, decay included, shape ``(I, d)``.
    """

    dW: Tensor
    dH: Tensor
    db: Tensor
    violation: Tensor
    bias_violation: float
    exact: Tensor
    kinks: dict[int, tuple[Array, Array]]
    smooth: Tensor


def of_decayed_loss(problem: LossProblem, tol: float) -> Verdict:
    """The verdict on a loss with weight decay.

    Raises:
        ValueError: If the loss is not convex.
    """
    loss, decay = problem.output_loss, problem.decay
    assert decay is not None
    if not loss.convex:
        raise ValueError(f"`weight_decay` needs a loss that is convex in the outputs; the {loss.name} is not known to.")
    assumptions = Assumptions({
        **assumptions_of(problem),
        "slopes differ": checked(problem.block.slopes[0] != problem.block.slopes[1]),
        "full data set": "assumed",
        "weight decay is a gradient": "assumed",
    })
    verdict = partial(Verdict, assumptions=assumptions, loss=float(problem.loss))
    slopes = free_slopes(problem)
    if slopes is None:
        return _by_gradient(problem, tol, verdict)
    held = held_against(slopes, partial(_growth, tol=tol))
    return held_by_none(slopes, verdict) if held is None else _by_gradient(held, tol, verdict)


def _growth(problem: LossProblem, tol: float) -> tuple[Array, float] | None:
    """The direction in which a neuron without weights grows most, and the pull up to which it does not; or None."""
    decay, block = problem.decay, problem.block
    assert decay is not None
    if bool((block.W.any(dim=1) | block.H.any(dim=0)).all()):
        return None
    by_input = decay.by_column(block)
    growth = largest_growth(problem, by_input, decay.H, tol)
    bound = math.sqrt(decay.H * float(by_input @ growth.v.square()))
    return (growth.v.cpu().numpy(), bound) if growth.grows else None


def _by_gradient(problem: LossProblem, tol: float, verdict: partial[Verdict]) -> Verdict:
    """The verdict by the gradient of the loss at the outputs."""
    first = _first_order(problem)
    broken = first.violation > tol
    margins = {"largest violation": max(float(first.violation.max()), first.bias_violation), "tolerance": tol}
    verdict = partial(verdict, margins=margins)
    if bool(broken.any()) or first.bias_violation > tol:
        direction = next((fall for move in _descents(first, broken) if (fall := see_fall(problem, move))), None)
        if direction is None:
            reason = f"slopes above tol={tol:.3g}, but no fall above the rounding of the loss: raise tol"
            return verdict("undecided", named(broken), None, theorem=STATIONARY, reason=reason)
        return verdict("not stationary", named(broken), direction, theorem=STATIONARY, reason=DESCENT)
    if not bool(first.exact.all()):
        return verdict("undecided", named(~first.exact), None, theorem=STATIONARY, reason=TOO_MANY)
    return _second_order(problem, first, tol, verdict)


def _first_order(problem: LossProblem) -> _FirstOrder:
    """Steepest descents, decay included."""
    block, signal, decay = problem.block, problem.signal, problem.decay
    assert decay is not None
    sums = neuron_sums(block, signal, problem.kink_tol)
    pull = decay.by_column(block) * block.W
    smooth = sums.smooth.double() + pull
    kinks = _kinks(problem, sums)
    dW = -smooth
    exact = sums.lost == 0
    for i, (q, X) in kinks.items():
        descent = steepest_descent(smooth[i].cpu().numpy(), q, X)
        dW[i] = -descent.slope * torch.as_tensor(descent.direction).to(dW)
        exact[i] &= descent.exact
    dH = -(sums.output_gradient + decay.H * block.H)
    db = torch.zeros_like(block.H[:, 0])
    bias_violation = 0.0
    if block.output_bias is not None:
        db = -(signal.G.sum(0) + decay.output_bias * block.output_bias)
        bias_terms = signal.G.norm(dim=1).sum() + decay.output_bias * block.output_bias.norm()
        bias_violation = float(db.norm() / positive(bias_terms))
    by_input = dW.norm(dim=1) / positive(sums.terms + pull.norm(dim=1))
    by_output = dH.norm(dim=0) / positive(sums.output_terms + decay.H * block.H.norm(dim=0))
    return _FirstOrder(dW, dH, db, torch.maximum(by_input, by_output), bias_violation, exact, kinks, smooth)


def _kinks(problem: LossProblem, sums: NeuronSums) -> dict[int, tuple[Array, Array]]:
    """Coefficients ``(m,)`` and inputs ``(m, d)`` of the kinks of every neuron that feels some."""
    b = (problem.block.slopes[1] - problem.block.slopes[0]) / 2
    found = {}
    for i in sorted(set(sums.kinks.neuron.tolist())):
        own = sums.kinks.neuron == i
        found[i] = merge_collinear(b * sums.kinks.c[own].cpu().numpy(), sums.kinks.X[own].cpu().numpy())
    return found


def _descents(first: _FirstOrder, broken: Tensor) -> Iterator[Move]:
    """Moves downhill: of all that are not stationary, then of one part and one neuron at a time."""
    dW, dH = first.dW * broken[:, None], first.dH * broken
    yield Move(dW, dH, first.db)
    yield Move(dW, 0 * dH, 0 * first.db)
    yield Move(0 * dW, dH, 0 * first.db)
    yield Move(0 * dW, 0 * dH, first.db)
    worst = first.violation.argsort(descending=True)[: min(BUDGETS.neurons_tried, int(broken.sum()))]
    for i in worst:
        alone = torch.zeros_like(broken).index_fill(0, i, True)
        yield Move(dW * alone[:, None], dH * alone, 0 * first.db)


def _second_order(problem: LossProblem, first: _FirstOrder, tol: float, verdict: partial[Verdict]) -> Verdict:
    """The verdict at a stationary point."""
    block, decay = problem.block, problem.decay
    assert decay is not None
    zero = ~block.W.any(dim=1) & ~block.H.any(dim=0)
    growth = largest_growth(problem, decay.by_column(block), decay.H, tol)
    if growth.certified and not growth.grows:
        return verdict("global minimum", nobody(block), None, theorem=CONVEX, reason=_EVERY_WIDTH)
    if growth.grows and bool(zero.any()):
        direction = see_fall(problem, _growing(problem, growth, int(zero.nonzero()[0])))
        if direction is not None:
            return verdict("saddle", named(zero), direction, theorem=_THEOREM, reason=_GROWS)
    if bool(zero.any()):
        return verdict("undecided", named(zero), None, theorem=_THEOREM, reason=_UNPROVEN)
    loud = _loud(problem, first, tol)
    if not loud:
        return verdict("local minimum", nobody(block), None, theorem=_THEOREM, reason=_HELD)
    escaping = torch.tensor([i for i, v in loud.items() if v is not None], dtype=torch.long, device=block.W.device)
    # With one output only neurons without output weights were asked.
    held = len(escaping) == len(loud) and len(block.H) > 1
    bend = least_bend(problem, {i: X for i, (_, X) in first.kinks.items()})
    if bend is not None and held and bend.least > FLOAT64.unseen * tol:
        return verdict("local minimum", nobody(block), None, theorem=_STRICT, reason=_BENT_UP)
    bent_down = () if bend is None or bend.least > -FLOAT64.unseen * tol else bend.both_ways()
    direction = next((fall for move in bent_down if (fall := see_fall(problem, move))), None)
    if direction is not None:
        return verdict("saddle", named(direction.dW.any(dim=1)), direction, theorem=_SECOND, reason=_BENT_DOWN)
    direction = next((fall for i, v in loud.items() if v is not None and (fall := _seen(problem, i, v))), None)
    if direction is not None:
        return verdict("saddle", escaping, direction, theorem=_THEOREM, reason=_GROWS)
    if len(escaping):
        return verdict("type-2 candidate", escaping, None, theorem=_THEOREM, reason=f"{_GROWS}; no fall was found")
    index = torch.tensor(list(loud), dtype=torch.long, device=block.W.device)
    return verdict("undecided", index, None, theorem=_THEOREM, reason=_NO_MARGIN)


def _growing(problem: LossProblem, growth: Growth, i: int) -> Move:
    """A neuron without weights along the direction in which it grows, both weights in the best proportion."""
    assert problem.decay is not None
    block = problem.block
    move = Move(torch.zeros_like(block.W), torch.zeros_like(block.H), torch.zeros_like(block.H[:, 0]))
    D = rho(problem.signal.X @ growth.v, block.slopes) @ problem.signal.G
    price = float(problem.decay.by_column(block) @ growth.v.square())
    ratio = math.sqrt(price / problem.decay.H) if price > 0 and problem.decay.H > 0 else 1.0
    move.dW[i] = growth.v
    move.dH[:, i] = -ratio * D / D.norm()
    return move


def _loud(problem: LossProblem, first: _FirstOrder, tol: float) -> dict[int, Tensor | None]:
    """Directions in which neurons pull by more than the decay at no cost; None where that is not known."""
    decay = problem.decay
    assert decay is not None
    parts = _parts(problem)
    M = torch.diag(decay.by_column(problem.block)).cpu().numpy()
    found: dict[int, Tensor | None] = {}
    asked = torch.ones_like(problem.block.H[0], dtype=torch.bool)
    if len(problem.block.H) == 1:  # only neurons without output weights have such directions
        asked = ~problem.block.H.any(dim=0)
    for i in named(asked).tolist():
        free = np.eye(len(M))
        if i in first.kinks:
            q, X = first.kinks[i]
            rays = fan_rays(X)
            terms = np.abs(q) @ np.linalg.norm(X, axis=1)
            if rays is None or (one_sided(rays, first.smooth[i].cpu().numpy(), q, X) <= tol * terms).any():
                found[i] = None
                continue
            free = null_space(row_space(X))
        form = parts[i].T @ parts[i] - decay.H * M
        values, vectors = np.linalg.eigh(free.T @ form @ free) if free.shape[1] else (np.zeros(1), np.zeros((0, 1)))
        size = float(np.square(parts[i]).sum()) + decay.H * float(M.max())
        if values[-1] > FLOAT64.unseen * tol * size:
            found[i] = torch.as_tensor(free @ vectors[:, -1]).to(problem.block.W)
    return found


def _parts(problem: LossProblem) -> Array:
    """Smooth parts of ``D_j`` of every neuron, those of kinks left out, shape ``(I, J, d)``."""
    block = problem.block
    parts = torch.zeros(len(block.W), len(block.H), block.W.shape[1], dtype=torch.float64, device=block.W.device)
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        slopes = slopes_at(chunk.Z, block.slopes)
        slopes[chunk.kinks.unbind(1)] = 0.0
        for j in range(len(block.H)):
            parts[:, j] += (slopes * chunk.G[:, j, None]).T @ chunk.X
    return np.asarray(parts.cpu().numpy())


def _seen(problem: LossProblem, i: int, v: Tensor) -> Direction | None:
    """The fall along a loud direction of a neuron with weights, its output weights against what it pulls."""
    block = problem.block
    for side, ratio in itertools.product((v, -v), BUDGETS.proportions):
        move = Move(torch.zeros_like(block.W), torch.zeros_like(block.H), torch.zeros_like(block.H[:, 0]))
        slope = slopes_at(problem.signal.X @ block.W[i], block.slopes)
        D = (slope * (problem.signal.X @ side)) @ problem.signal.G
        move.dW[i] = side
        move.dH[:, i] = -ratio * radial_directions(D[None])[0]
        fall = see_fall(problem, move)
        if fall is not None:
            return fall
    return None
