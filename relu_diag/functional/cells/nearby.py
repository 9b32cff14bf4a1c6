"""The stationary point a training iterate is near: put on the kinks it oscillates around, its small neurons to zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Index
from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._decay import no_decay
from relu_diag.functional.cells._reach import Reach
from relu_diag.functional.cells._search import NOWHERE, Found, Search
from relu_diag.functional.cells._solver import Effort
from relu_diag.functional.cells._stratum import weights_of
from relu_diag.functional.cells._term import HalfSquares, LossTerm, Term
from relu_diag.functional.cells._units import Units, decayed_units, own_units
from relu_diag.functional.errors import NotFiniteError
from relu_diag.functional.local import NeuronStates, neuron_states
from relu_diag.functional.output_loss import Loss, SquaredError, as_loss
from relu_diag.functional.problem import LossProblem, Problem, decayed_problem, loss_problem, squared_problem
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import FLOAT64, kink_tolerance, training_kink_tolerance
from relu_diag.functional.verdict import NO_MINIMUM, Verdict, classify
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay

_STATIONARY = {"saddle", "type-2 candidate", "local minimum", "global minimum"}
_LETS_GO = f"{NOWHERE}: the loss falls where samples leave their kinks"
_ROUNDED = "stationary up to rounding only: of the residual nothing else is left"
_FAR = "no stationary point is near: this one is the nearest found"


@dataclass(frozen=True, slots=True, eq=False)
class NearbyStationaryPoint:
    """The stationary point of a stratum near given parameters, and what it is.

    The stratum is a choice: which samples are on the kink of which neuron, from which side the others are seen, which
    neurons are zero. ``zeroed`` and ``kink_count`` say what was done to the weights, ``distance`` and ``loss_gap`` how
    near the point is.

    Attributes:
        block: The network there, of the same width and order, dead neurons as they were; where the point is not
            genuine, the network where the search ended.
        loss: Its loss, weight decay included.
        distance: Distance between the two vectors of parameters.
        loss_gap: Loss of the given parameters minus ``loss``.
        genuine: Whether there is such a point: the search converged, every neuron has the signs of the stratum, and
            none is gone. Where not, there is no stationary point of the stratum nearby.
        verdict: What the point is in the whole landscape; "undecided" where it is not genuine, and "not stationary"
            where the loss falls when samples leave their kinks: then, too, the stratum has no stationary point here.
        reason: What is missing to a stationary point nearby, empty where nothing is.
        zeroed: Small living neurons put to zero, under weight decay dead ones too, long, shape ``(n,)``.
        kink_count: Number of pairs (sample, neuron) put on the kink.
        kink_tol: The tolerance that chose them.

    Example:
        >>> X, Y = torch.eye(2), torch.tensor([[2.0], [0.0]])
        >>> near = nearby_stationary_point(ShallowBlock(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.9]])), X, Y)
        >>> near.verdict.kind, near.genuine, round(near.loss_gap, 6)
        ('global minimum', True, 0.005)
    """

    block: ShallowBlock
    loss: float
    distance: float
    loss_gap: float
    genuine: bool
    verdict: Verdict
    reason: str
    zeroed: Tensor
    kink_count: int
    kink_tol: float

    def __str__(self) -> str:
        return (
            f"{self.verdict.kind} at distance {self.distance:.3g}, loss {self.loss:.6g} (gap {self.loss_gap:.3g}); "
            f"{counted(len(self.zeroed), 'neuron')} put to zero, "
            f"{counted(self.kink_count, 'kink')} within {self.kink_tol:.3g}"
            + (f"; {self.reason}" if self.reason else "")
        )


def nearby_stationary_point(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    small: float = 0.01,
    weight_decay: float | WeightDecay = 0.0,
) -> NearbyStationaryPoint:
    """The stationary point of the squared loss, or of any loss, that parameters in training are near, with its verdict.

    A stationary point is its own answer. Elsewhere the strata within reach are searched: the one the weights are in,
    with nothing put to zero; those with samples within ``kink_tol`` on their kinks, with small living neurons at zero,
    and with both; and those that these searches lead to. Inside a stratum the outputs are smooth: with one output the
    search is a least squares in ``R_i = h_i w_i``, nearest to the present ones (of another convex loss damped Newton
    steps to its minimum), with several it takes damped Newton steps to a zero of the gradient;
    ``||w_i||^2 - ||h_i||^2`` stays. The stationary point nearest in distance and loss wins. Small living neurons that
    nothing pulls there are kept, and dead ones are left as they are.

    Of weights that are free to turn at one loss, up to a kink, two points may be the answer. Where four neurons of one
    direction or more are beside the same kink, they are put on it: training held them there.

    Weight decay is part of the loss, which has to be convex then. The search takes damped Newton steps to a zero of the
    gradient, decay included; neurons that it takes to zero are zero at the point, dead ones among them.

    Source: Wu et al., sections 4.1.1 and 4.2; Liu, equations 10 to 18.

    Args:
        block: The network in training.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets of the squared loss, shape ``(N, J)``, or a loss, such as `CrossEntropy`.
        reduction: "mean", "sum" or "half_sum", of the squared loss.
        kink_tol: A sample is put on the kink where ``|z_ki| <= kink_tol ||w_i|| ||x_k||``, and no other one is; None:
            strata with and without samples on the kink are compared, those within 0.01 for a few samples, within
            ``1 / (16 N sqrt(d - 1))`` for many, so that one neuron in twenty is that close by accident.
        small: Largest contribution of a small group of neurons, as a fraction of the target scale.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, an output bias being free; or one for each
            part. AdamW's decay is no part of a loss.

    Returns:
        The point. Where there is none, it says so.

    Example:
        >>> X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> iterate = ShallowBlock(W=torch.tensor([[0.9, -0.9], [1e-3, 2e-3]]), H=torch.tensor([[1.0, -1e-3]]))
        >>> print(nearby_stationary_point(iterate, X, Y))  # the second neuron is about to grow
        saddle at distance 0.0809, loss 0.5 (gap 0.005); 1 neuron put to zero, 0 kinks within 0.01
    """
    landscape = _landscape(Y, reduction, as_weight_decay(weight_decay))
    problem = landscape.problem(block, X)
    tol = training_kink_tolerance(*X.shape) if kink_tol is None else kink_tolerance(kink_tol, block.W.dtype)
    here = landscape.classify(block, X)
    if here.kind == "global minimum":
        return _unmoved(block, here, "", 0, 0.0)
    if not problem.in_range:
        return _unmoved(block, here, here.reason, 0, tol)
    states = neuron_states(problem.block, problem.signal.X, landscape.targets(problem), small=small)
    neurons = np.arange(len(block.W)) if landscape.decay.any else _looked_at(states, len(X))
    if len(X) * len(neurons) > BUDGETS.signs:
        reason = f"the signs of {len(neurons)} neurons on {len(X)} samples are too many to keep"
        return _unmoved(block, _blamed(here, neurons, reason), reason, 0, tol)
    start = _start(block, problem, landscape, neurons)
    exact = kink_tolerance(None, block.W.dtype)
    tols = (exact, tol, FLOAT64.wider * tol) if kink_tol is None else (tol, tol, tol)
    reach = start.reach(states, *tols)
    effort = Effort(BUDGETS.products)
    if here.kind in _STATIONARY and np.array_equal(reach.own, start.search.signs(exact)):
        there = _unmoved(block, here, "", start.search.kink_count(reach.own), exact)
        return start.on_held_kinks(there, [start.search.solve(choice, effort) for choice in reach.on_held_kinks], reach)
    found = start.search.everywhere(reach, follow=kink_tol is None)
    near = sorted((f for f in found if not f.reason and f.score <= FLOAT64.near), key=lambda f: f.rank)
    points = (start.point(f, tol) for f in near)
    nearest = next((point for point in points if point.verdict.kind in _STATIONARY), None)
    if nearest is not None:
        return start.on_held_kinks(nearest, near, reach)
    looked_at = (f for f in found if f.choice.key == reach.usual.key and f.distance**2 <= FLOAT64.near)
    usual = next(looked_at, None) or start.search.solve(reach.usual, effort)
    return start.nothing_near(found, usual, here, tol)


def _looked_at(states: NeuronStates, samples: int) -> Index:
    """The neurons that may move: the living, without the small ones where the signs of all are too many."""
    living = np.flatnonzero(_array(~states.dead))
    if samples * len(living) <= BUDGETS.signs:
        return living
    return np.flatnonzero(_array(~states.dead & ~states.small_living))


def _unmoved(block: ShallowBlock, verdict: Verdict, reason: str, kink_count: int, tol: float) -> NearbyStationaryPoint:
    """The answer that changes no weight."""
    nobody = torch.empty(0, dtype=torch.long, device=block.W.device)
    return NearbyStationaryPoint(block, verdict.loss, 0.0, 0.0, not reason, verdict, reason, nobody, kink_count, tol)


def _blamed(verdict: Verdict, neurons: Index, reason: str) -> Verdict:
    """Nothing is claimed where the search failed."""
    broken = torch.as_tensor(neurons, device=verdict.neurons.device)
    return replace(verdict, kind="undecided", neurons=broken, direction=None, theorem="", reason=reason)


@dataclass(frozen=True, slots=True, eq=False)
class _Landscape:
    """The loss that is asked about: targets ``(N, J)`` of a squared loss or any loss, and weight decay."""

    Y: Tensor | Loss
    reduction: Reduction
    decay: WeightDecay

    def problem(self, block: ShallowBlock, X: Tensor) -> Problem:
        """The loss of a block in float64."""
        if self.decay.any:
            return decayed_problem(block, X, as_loss(self.Y, self.reduction), self.decay)
        if isinstance(self.Y, Tensor):
            return squared_problem(block, X, self.Y.to(X), self.reduction)
        return loss_problem(block, X, as_loss(self.Y))

    def classify(self, block: ShallowBlock, X: Tensor) -> Verdict:
        """The verdict on a block."""
        Y = self.Y.detach().to(X) if isinstance(self.Y, Tensor) else self.Y
        return classify(block, X, Y, self.reduction, weight_decay=self.decay)

    def targets(self, problem: Problem) -> Tensor:
        """Targets of the squared loss in float64; of any other loss numbers of the size of outputs that matter."""
        if isinstance(self.Y, Tensor):
            return self.Y.detach().double()
        if isinstance(problem, LossProblem):
            return torch.full_like(problem.outputs, self.Y.output_scale)
        assert isinstance(self.Y, SquaredError)
        return self.Y.Y.to(problem.outputs)


def _landscape(Y: Tensor | Loss, reduction: Reduction, decay: WeightDecay) -> _Landscape:
    """The loss asked about, the squared one as a loss like any other where weights decay."""
    return _Landscape(as_loss(Y, reduction) if decay.any else Y, reduction, decay)


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """Where a search starts, in the caller's terms and in units of its own.

    Attributes:
        block: The caller's network.
        problem: Its loss in float64.
        landscape: The loss as the caller gave it.
        neurons: The neurons that may move.
        units: Units of the search.
        search: The search.
    """

    block: ShallowBlock
    problem: Problem
    landscape: _Landscape
    neurons: Index
    units: Units
    search: Search

    def reach(self, states: NeuronStates, own: float, near: float, wide: float) -> Reach:
        """What is within reach, for three tolerances on the distance to a kink."""
        # Dead neurons are among those that move only where they decay: to zero.
        small = _array(states.small_living | states.dead)[self.neurons]
        group = _array(states.group)[self.neurons]
        see = self.search.signs
        return Reach(see(own), see(near), see(wide), small, group)

    def point(self, found: Found, tol: float) -> NearbyStationaryPoint:
        """What was found, with its verdict."""
        before = weights_of(self.problem.block)
        after = before.replaced(self.neurons, self.units.back(found.at))
        try:
            there = self.landscape.problem(after.as_block(self.problem.block), self.problem.signal.X)
        except NotFiniteError:  # the end of a fall without end
            after, there = before, self.problem
        block = after.as_block(self.problem.block)
        verdict = self.landscape.classify(block, self.problem.signal.X)
        reason = found.reason
        if reason:
            verdict = _blamed(verdict, self.neurons[found.broken], reason)
        elif verdict.kind == "not stationary":
            reason = _LETS_GO if found.on_kink.any() else _ROUNDED
        return NearbyStationaryPoint(
            block=block.cast(self.block.W.dtype),
            loss=float(there.loss),
            distance=float(np.linalg.norm(after.flat - before.flat)),
            loss_gap=_gap(self.problem, there),
            genuine=not found.reason,
            verdict=verdict,
            reason=reason,
            zeroed=torch.as_tensor(self.neurons[~found.choice.kept], device=self.block.W.device),
            kink_count=int(found.on_kink.sum()),
            kink_tol=tol,
        )

    def nothing_near(self, found: list[Found], usual: Found, here: Verdict, tol: float) -> NearbyStationaryPoint:
        """What is said where no stationary point is near: why the usual stratum has none, or that one is far."""
        if self.landscape.decay.any:  # a descent to the other end of its way is a point, and not near
            usual = min((f for f in found if not f.reason), key=lambda f: f.rank, default=usual)
        point = self.point(usual, tol)
        if usual.reason == NO_MINIMUM and here.kind == "not stationary":
            return replace(point, verdict=replace(here, reason=NO_MINIMUM))
        far = point.verdict.kind in _STATIONARY and usual.score > FLOAT64.near
        return replace(point, reason=_FAR) if far else point

    def on_held_kinks(self, nearest: NearbyStationaryPoint, found: list[Found], reach: Reach) -> NearbyStationaryPoint:
        """The point of the same kind on the kinks that several neurons are beside, if its loss is no higher."""
        held = reach.held
        for other in found:
            elsewhere = other.on_kink & (reach.own != 0) & ~held
            if other.reason or elsewhere.any() or not other.on_kink[held].any():
                continue
            point = self.point(other, nearest.kink_tol)
            same = point.verdict.kind == nearest.verdict.kind
            if same and point.loss <= nearest.loss * (1 + FLOAT64.settled):
                return point
        return nearest


def _start(block: ShallowBlock, problem: Problem, landscape: _Landscape, neurons: Index) -> _Start:
    """The search for a block."""
    at = weights_of(block).only(neurons)
    X = _array(problem.signal.X)
    targets = _array(landscape.targets(problem))
    given = landscape.decay
    if given.any:
        units = decayed_units(X, targets, len(neurons), given.W, given.H)
        decay = units.decay(_array(given.by_column(problem.block)), given.H, given.output_bias)
    else:
        units = own_units(X, targets, at)
        decay = no_decay(X.shape[1])
    term: Term = HalfSquares(targets / units.y)
    if isinstance(problem, LossProblem):
        samples, outputs = problem.outputs.shape
        term = LossTerm(problem.output_loss, (samples, outputs), units.y)
    search = Search(X / units.x, term, decay, units.into(at), block.slopes, block.output_bias is not None)
    return _Start(block, problem, landscape, neurons, units, search)


def _gap(here: Problem, there: Problem) -> float:
    """How much lower the loss is there, as a difference of outputs."""
    if isinstance(here, LossProblem):
        fall = -float(here.output_loss.change(here.outputs, there.outputs - here.outputs))
        return fall if here.decay is None else fall + float(here.decay.cost(here.block) - here.decay.cost(there.block))
    gap = (here.outputs - there.outputs) * (here.signal.G + there.signal.G)
    return here.factor / 2 * float(gap.sum())


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
