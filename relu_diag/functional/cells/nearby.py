"""The stationary point a training iterate is near: put on the kinks it oscillates around, its small neurons to zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array, Index, Mask
from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.cells._fit import HalfSquares
from relu_diag.functional.cells._solver import relative_gradient, settle
from relu_diag.functional.cells._stratum import Stratum, Weights, signs, stratum_of, weights_of
from relu_diag.functional.local import neuron_states
from relu_diag.functional.problem import squared_problem
from relu_diag.functional.tolerances import (
    BUDGETS,
    FLOAT64,
    derivative_tolerance,
    kink_tolerance,
    training_kink_tolerance,
)
from relu_diag.functional.verdict import Verdict, classify, is_zero

_NOWHERE = "no stationary point with these signs"
_LETS_GO = f"{_NOWHERE}: the loss falls where samples leave their kinks"
_ROUNDED = "stationary up to rounding only: of the residual nothing else is left"


@dataclass(frozen=True, slots=True, eq=False)
class NearbyStationaryPoint:
    """The stationary point of a stratum near given parameters, and what it is.

    The stratum is a choice, made by ``kink_tol`` and ``small``: which samples are on the kink of which neuron, from
    which side the others are seen, which neurons are zero. Parameters beside a kink may be near one point on it and
    near another next to it; ``distance`` and ``loss_gap`` say how near.

    Attributes:
        block: The network there, of the same width and order, dead neurons as they were; where the point is not
            genuine, the network where the search ended.
        loss: Its loss.
        distance: Distance between the two vectors of parameters.
        loss_gap: Loss of the given parameters minus ``loss``.
        genuine: Whether there is such a point: the search converged, every neuron has the signs of the stratum, and
            none is gone. Where not, there is no stationary point of the stratum nearby.
        verdict: What the point is in the whole landscape; "undecided" where it is not genuine, and "not stationary"
            where the loss falls when samples leave their kinks: then, too, the stratum has no stationary point here.
        reason: What is missing to a stationary point of the stratum, empty where nothing is.
        zeroed: Small living neurons put to zero, long, shape ``(n,)``.
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
            f"{len(self.zeroed)} neurons put to zero, {self.kink_count} kinks within {self.kink_tol:.3g}"
            + (f"; {self.reason}" if self.reason else "")
        )


def nearby_stationary_point(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    small: float = 0.01,
) -> NearbyStationaryPoint:
    """The stationary point of the squared loss that parameters in training are near, with its verdict.

    Samples within ``kink_tol`` are put on the kink, small living neurons to zero; dead ones stay. The rest is smooth:
    with one output a least squares in ``R_i = h_i w_i``, solved nearest to the present ones and split so that
    ``||w_i||^2 - h_i^2`` stays; with several, damped Newton steps to a zero of the gradient. Small living neurons that
    nothing pulls at the point stay, too: they are part of it, and put to zero they would make a saddle of a minimum.

    Source: Wu et al., sections 4.1.1 and 4.2; Liu, equations 10 to 18.

    Args:
        block: The network in training.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        kink_tol: A sample is put on the kink where ``|z_ki| <= kink_tol ||w_i|| ||x_k||``; None: 0.01 for a few
            samples, ``1 / (16 N sqrt(d - 1))`` for many, so that one neuron in twenty is that close by accident.
        small: Largest contribution of a small group of neurons, as a fraction of the target scale.

    Returns:
        The point. Where there is none, it says so.

    Example:
        >>> X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> iterate = ShallowBlock(W=torch.tensor([[0.9, -0.9], [1e-3, 2e-3]]), H=torch.tensor([[1.0, -1e-3]]))
        >>> print(nearby_stationary_point(iterate, X, Y))  # the second neuron is about to grow
        saddle at distance 0.0809, loss 0.5 (gap 0.005); 1 neurons put to zero, 0 kinks within 0.01
    """
    problem = squared_problem(block, X, Y, reduction)
    if is_zero(problem, derivative_tolerance(None, None, block.W.dtype)):
        nobody = torch.empty(0, dtype=torch.long, device=block.W.device)
        here = classify(block, X, Y, reduction)
        return NearbyStationaryPoint(block, here.loss, 0.0, 0.0, True, here, "", nobody, 0, 0.0)
    X, Y = problem.signal.X, Y.detach().double()
    tol = training_kink_tolerance(*X.shape) if kink_tol is None else kink_tolerance(kink_tol, block.W.dtype)
    search = _Search(problem.block, _array(X), HalfSquares(_array(Y)), tol)
    states = neuron_states(problem.block, X, Y, small=small)
    small_living = np.flatnonzero(_array(states.small_living))
    found = search.with_idle(search.among(np.flatnonzero(_array(~states.dead & ~states.small_living))), small_living)
    zeroed = torch.as_tensor(np.setdiff1d(small_living, found.neurons), device=X.device)
    point = _moved(problem.block, found, zeroed)
    there = squared_problem(point, X, Y, reduction)
    verdict = _verdict(classify(point, X, Y, reduction), found)
    gap = (problem.outputs - there.outputs) * (problem.signal.G + there.signal.G)
    return NearbyStationaryPoint(
        block=point.cast(block.W.dtype),
        loss=float(there.loss),
        distance=float(np.linalg.norm(weights_of(point).flat - weights_of(problem.block).flat)),
        loss_gap=problem.factor / 2 * float(gap.sum()),
        genuine=not found.reason,
        verdict=verdict,
        reason=found.reason
        or ((_LETS_GO if found.kink_count else _ROUNDED) if verdict.kind == "not stationary" else ""),
        zeroed=zeroed,
        kink_count=found.kink_count,
        kink_tol=tol,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Where the search in one stratum ended.

    Attributes:
        neurons: The neurons that may move; the others are dead or put to zero.
        at: Their weights.
        kink_count: Number of pairs (sample, neuron) put on the kink.
        reason: Why this is no stationary point of the stratum, or empty.
        broken: The neurons to blame.
    """

    neurons: Index
    at: Weights
    kink_count: int
    reason: str
    broken: Index


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Where a search starts, in float64 on the CPU.

    Attributes:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        term: Half the squared error of the outputs.
        tol: Distance within which a sample is put on the kink.
    """

    block: ShallowBlock
    X: Array
    term: HalfSquares
    tol: float

    def among(self, neurons: Index) -> _Found:
        """The stationary point of the stratum of some neurons, the others being silent."""
        start = self._some(neurons)
        if len(self.X) * len(neurons) > BUDGETS.signs:
            reason = f"the signs of {len(neurons)} neurons on {len(self.X)} samples are too many to keep"
            return _Found(neurons, start, 0, reason, neurons)
        stratum = self._stratum(start)
        at = settle(stratum, self.term, start)
        reason, broken = _missing(stratum, self.term, start, at)
        return _Found(neurons, at, int(stratum.on_kink.sum()), reason, neurons[broken])

    def with_idle(self, found: _Found, small_living: Index) -> _Found:
        """The same with the small living neurons that nothing pulls there, which then need not be zero."""
        candidates = small_living[_array(self.block.W).any(axis=1)[small_living]]
        if found.reason or not len(candidates) or len(self.X) * len(candidates) > BUDGETS.signs:
            return found
        residual = self.term.gradient(self._stratum(self._some(found.neurons)).outputs(found.at))
        idle = candidates[self._at_rest(self._some(candidates), residual)]
        kept = self.among(np.sort(np.concatenate([found.neurons, idle]))) if len(idle) else found
        return found if kept.reason else kept

    def _at_rest(self, some: Weights, residual: Array) -> Mask:
        """Which of some neurons feel nothing off their kinks, and on their kinks no descent to either side."""
        s_minus, s_plus = self.block.slopes
        error, target, length = (np.linalg.norm(value, axis=1) for value in (residual, self.term.Y, self.X))
        silence = max(abs(s_minus), abs(s_plus)) * float((FLOAT64.settled * error + FLOAT64.residual * target) @ length)
        stratum, c = self._stratum(some), residual @ some.H
        rise = np.minimum(s_plus * c, -s_minus * c) * length[:, None]
        kinks_hold = (rise >= -silence * np.linalg.norm(some.H, axis=0)) | (stratum.sign != 0)
        pull = np.max([np.linalg.norm(stratum.gradient(column[:, None]), axis=1) for column in residual.T], axis=0)
        return np.asarray((pull <= silence) & kinks_hold.all(axis=0))

    def _some(self, neurons: Index) -> Weights:
        return weights_of(self.block).only(neurons)

    def _stratum(self, start: Weights) -> Stratum:
        sign = signs(self.X, start.W, self.tol)
        return stratum_of(self.X, sign, self.block.slopes, self.block.output_bias is not None)


def _missing(stratum: Stratum, term: HalfSquares, start: Weights, at: Weights) -> tuple[str, Index]:
    """What keeps weights from being a stationary point of their stratum, and which neurons are to blame."""
    vanishing = (start.amplitude > 0) & (at.amplitude <= FLOAT64.settled * start.amplitude)
    if vanishing.any():
        return f"{_NOWHERE} nearby: {int(vanishing.sum())} neurons would vanish", np.flatnonzero(vanishing)
    slope = relative_gradient(stratum, term, at, start)
    if slope > FLOAT64.settled:
        return f"{_NOWHERE} found: relative gradient {slope:.2g} where the search ended", np.arange(len(vanishing))
    crossing = ~stratum.holds(at.W).all(axis=0)
    if crossing.any():
        turning = f"{int(crossing.sum())} neurons would turn across the kink of a sample"
        return f"{_NOWHERE} nearby: {turning}", np.flatnonzero(crossing)
    return "", np.empty(0, dtype=np.intp)


def _verdict(verdict: Verdict, found: _Found) -> Verdict:
    """Nothing is claimed of a point that is not in its stratum."""
    if not found.reason:
        return verdict
    broken = torch.as_tensor(found.broken, device=verdict.neurons.device)
    return replace(verdict, kind="undecided", neurons=broken, direction=None, theorem="", reason=found.reason)


def _moved(block: ShallowBlock, found: _Found, zeroed: Tensor) -> ShallowBlock:
    """The whole network, with the neurons of the stratum where the search ended."""
    start = weights_of(block)
    away = zeroed.cpu().numpy()
    start.W[away], start.H[:, away] = 0.0, 0.0
    return start.replaced(found.neurons, found.at).as_block(block)


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
