"""How small neurons move and grow while the residuals stand still: each for itself, linearly between its kinks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._height import Pieces, pieces
from relu_diag.functional.dynamics._kinked_motion import KinkedMotion
from relu_diag.functional.dynamics.extremal import ExtremalDirections, extremal_directions
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """Exponential growth of some neurons until the loss has dropped.

    Attributes:
        time: Time of gradient flow until then.
        gain: Growth rate of both weights, less the weight decay.
        amplitude: The growing part of ``sum_i ||w_i|| ||h_i||`` now.
        neurons: The neurons that drop it most, long, shape ``(n,)``.
        moved: All neurons that have moved by then, long, shape ``(m,)``.
        W: Their input weights then, shape ``(m, d)``.
        H: Their output weights then, shape ``(J, m)``.
        arrived: Whether nothing was on its way any more, so that the growth is exponential from now on.
        dropped: The drop that those of the neurons that had arrived had made already.
        signal: The loss gradients that were held fixed.
        extremal: The extremal directions where that is; None for a group that comes apart.
    """

    time: float
    gain: float
    amplitude: float
    neurons: Tensor
    moved: Tensor
    W: Tensor
    H: Tensor
    arrived: bool
    dropped: float
    signal: BlockSignal
    extremal: ExtremalDirections | None

    def extremal_for(self, signal: BlockSignal) -> ExtremalDirections | None:
        """The extremal directions, if they are those of other loss gradients as well."""
        moved = vector_norm(signal.G - self.signal.G)
        return self.extremal if float(moved) <= FLOAT64.unmoved * float(vector_norm(signal.G)) else None


def growth_time(gain: float, amplitude: float, target: float, slowing: float) -> float:
    """The time of gradient flow until a growth reaches a drop of the loss, 0 where it has.

    The drop is ``gain amplitude exp(2 (gain - slowing) t)``.
    """
    return max(0.0, math.log(target / (gain * amplitude)) / (2 * (gain - slowing)))


def small_growth(
    block: ShallowBlock,
    signal: BlockSignal,
    small: Tensor,
    target: float,
    loud: float,
    slowing: float,
    strides: int,
    extremal: ExtremalDirections | None = None,
) -> Growth | None:
    """The growth of small neurons until together they have lowered the loss by a given amount.

    Neurons are followed until they have arrived at an extremal direction; from there on growth is exponential.

    Args:
        block: The network, float64.
        signal: Inputs and loss gradients, held fixed.
        small: The neurons, bool, shape ``(I,)``.
        target: The drop of the loss.
        loud: Largest growth rate that counts as zero.
        slowing: What weight decay takes from each growth rate.
        strides: Strides in which they are followed; without any, what is on its way counts as it is.
        extremal: The extremal directions, if they are known.

    Returns:
        The growth of the neurons of the extremal direction that has then contributed most; None where nothing grows.
    """
    # Plain descent never moves a neuron that has every sample on its kink and the slope 0 there.
    stuck = ~block.W.any(dim=1) & (block.slopes[0] == 0)
    neurons = (small & ~stuck).nonzero().squeeze(1)
    if not len(neurons):
        return None
    W, H = block.W[neurons], block.H[:, neurons]
    if extremal is None:
        extremal = _heard(block, signal, neurons, max(loud, slowing))
    if not len(extremal.gain):
        return None
    few = len(signal.X) <= BUDGETS.few_samples
    journey = (_Kinked if few else _Dense)(signal, block.slopes, W, H)
    ends = _travel(journey, extremal, target, strides)
    if not bool(ends.log_drop.isfinite().any()):
        return None
    rate = 2 * (extremal.gain[ends.toward] - slowing)
    time = _time_until(rate, ends.log_drop, math.log(target))
    drop = (ends.log_drop + rate * time).exp()
    winner = int(torch.zeros_like(extremal.gain).index_add_(0, ends.toward, drop).argmax())
    # Not those that contribute no more than rounding.
    members = (ends.toward == winner) & (drop > FLOAT64.gain * drop.sum())
    gain = float(extremal.gain[winner])
    amplitude = float(ends.log_drop[members].exp().sum()) / gain
    W, H = ends.weights(extremal, time)
    return Growth(
        time=time,
        gain=gain - slowing,
        amplitude=amplitude,
        neurons=neurons[members],
        moved=neurons,
        W=W,
        H=H,
        arrived=ends.strides == 0,
        dropped=float(ends.log_drop[members & ends.arrived].exp().sum()),
        signal=signal,
        extremal=extremal,
    )


def _heard(block: ShallowBlock, signal: BlockSignal, neurons: Tensor, loud: float) -> ExtremalDirections:
    """The extremal directions that draw harder than a converged slope does."""
    W, H = block.W[neurons], block.H[:, neurons]
    starts = W[(W.norm(dim=1) * H.norm(dim=0)).argsort(descending=True)[: BUDGETS.starts]]
    extremal = extremal_directions(signal.X, signal.G, block.slopes, starts)
    heard = extremal.gain > loud
    return replace(extremal, v=extremal.v[heard], gain=extremal.gain[heard], o=extremal.o[heard])


@dataclass(frozen=True, slots=True, eq=False)
class _Ends:
    """How far neurons have come: the direction each goes to, shape ``(n,)``, and where and when it was seen last.

    ``log_drop`` is the logarithm of the drop its growth along that direction started from at time 0, -inf for a neuron
    that does not arrive; ``arrived`` those that have; ``strides`` how many it took, or would take at least.
    """

    toward: Tensor
    log_drop: Tensor
    arrived: Tensor
    W: Tensor
    H: Tensor
    time: Tensor
    strides: int

    def weights(self, extremal: ExtremalDirections, time: float) -> tuple[Tensor, Tensor]:
        """Input and output weights at a time; of what has arrived the part that grows."""
        v, o = extremal.v[self.toward], extremal.o[self.toward]
        size = ((self.W * v).sum(1) + (self.H.T * o).sum(1)) / 2
        size = size * (extremal.gain[self.toward] * (time - self.time)).exp()
        there = self.arrived[:, None]
        return torch.where(there, size[:, None] * v, self.W), torch.where(there, size[:, None] * o, self.H.T).T


def _travel(journey: _Kinked | _Dense, extremal: ExtremalDirections, target: float, strides: int) -> _Ends:
    """The neurons on their way until all have arrived or together they have lowered the loss by a target."""
    W, H = journey.weights()
    count, time, fastest = len(W), 0.0, float(extremal.gain.max())
    ends = _Ends(
        toward=torch.zeros(count, dtype=torch.long, device=W.device),
        log_drop=W.new_full((count,), -math.inf),
        arrived=torch.zeros(count, dtype=torch.bool, device=W.device),
        W=W.clone(),
        H=H.clone(),
        time=W.new_zeros(count),
        strides=0,
    )
    travelling = torch.arange(count, device=W.device)
    sizes = _length(W, H)
    for stride in range(max(1, strides)):
        W, H = journey.weights()
        dW, dH = journey.velocity()
        nearest, arrived, amplitude = _match(W, H, extremal)
        arrived &= journey.inside(extremal.v[nearest])
        gain = extremal.gain[nearest]
        # Whoever is still on the way counts with what it lowers the loss by at this moment.
        drop = torch.where(arrived, gain * amplitude, (dH * H).sum(0).clamp(min=0))
        ends.toward[travelling], ends.log_drop[travelling] = nearest, drop.log() - 2 * gain * time
        ends.arrived[travelling] = arrived
        ends.time[travelling] = time
        ends.W[travelling], ends.H[:, travelling] = W, H
        # What has shrunk to the rounding of what it was goes where rounding takes it.
        lost = _length(W, H) <= FLOAT64.cancelled * sizes[travelling]
        ends.log_drop[travelling[lost]] = -math.inf
        ends.arrived[travelling[lost]] = False
        going = ~arrived & ~lost & (_length(dW, dH) > 0)
        total = (ends.log_drop + 2 * extremal.gain[ends.toward] * time).exp().sum()
        if not bool(going.any()) or float(total) >= target:
            return replace(ends, strides=stride)
        if not strides:
            # What shrinks for now may turn, and counts with as good as nothing.
            ends.log_drop[going] = ends.log_drop[going].clamp(min=math.log(FLOAT64.standstill))
            return replace(ends, strides=1)
        travelling = travelling[going]
        time += journey.advance(going, fastest)
    # What has not arrived by now goes elsewhere.
    ends.log_drop[travelling] = -math.inf
    return replace(ends, strides=strides)


def _match(W: Tensor, H: Tensor, extremal: ExtremalDirections) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest extremal direction, whether both weights have arrived there, and the amplitude of their growing part.

    Of ``(w, h)`` the part along ``(v, o)`` grows and that along ``(v, -o)`` shrinks at the same rate.
    """
    along, nearest = (W @ extremal.v.T).max(dim=1)
    across = (H.T * extremal.o[nearest]).sum(1)
    arrived = (along > FLOAT64.arrived * vector_norm(W, dim=1)) & (across > FLOAT64.arrived * vector_norm(H, dim=0))
    return nearest, arrived, ((along + across) / 2).square()


class _Kinked:
    """Neurons that meet their kinks one by one."""

    def __init__(self, signal: BlockSignal, slopes: tuple[float, float], W: Tensor, H: Tensor) -> None:
        self.like = W
        self.motion = KinkedMotion.of(signal.X.cpu().numpy(), signal.G.cpu().numpy(), slopes)
        self.movers = self.motion.start(W.cpu().numpy(), H.T.cpu().numpy())

    def weights(self) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(self.movers.W).to(self.like), torch.as_tensor(self.movers.H.T).to(self.like)

    def velocity(self) -> tuple[Tensor, Tensor]:
        dW, dH = self.motion.velocity(self.movers, self.movers.W, self.movers.H)
        return torch.as_tensor(dW).to(self.like), torch.as_tensor(dH.T).to(self.like)

    def inside(self, V: Tensor) -> Tensor:
        """Whether each direction ``(n, d)`` is on the sides that the neuron is on, or on their boundary."""
        across = V @ torch.as_tensor(self.motion.normals).to(V).T
        sides = torch.as_tensor(self.movers.sides).to(V)
        inside: Tensor = (across * sides >= -FLOAT64.same_side).all(dim=1)
        return inside

    def advance(self, going: Tensor, fastest: float) -> float:
        """Leave the others behind and move on for a while; the time."""
        self.movers = self.movers.some(going.cpu().numpy())
        step = self.motion.stride(self.movers, fastest)
        self.movers = self.motion.advance(self.movers, step)
        return step


class _Dense:
    """Neurons with so many kinks that steps may cross some of them late."""

    def __init__(self, signal: BlockSignal, slopes: tuple[float, float], W: Tensor, H: Tensor) -> None:
        self.samples: Pieces = pieces(signal, len(W))
        self.slopes, self.W, self.H = slopes, W, H

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.W, self.H

    def velocity(self) -> tuple[Tensor, Tensor]:
        return _velocity(self.samples, self.slopes, self.W, self.W, self.H)

    def inside(self, V: Tensor) -> Tensor:
        """Where kinks are dense, every direction nearby is in reach, bool, shape ``(n,)``."""
        return torch.ones(len(V), dtype=torch.bool, device=V.device)

    def advance(self, going: Tensor, fastest: float) -> float:
        """Leave the others behind and move on for a while; the time.

        While no kink is crossed the motion is ``exp(t K)`` with a symmetric ``K`` whose eigenvalues come in pairs; for
        one output they are ``+-rate`` and 0, and three terms are exact.
        """
        self.W, self.H = self.W[going], self.H[:, going]
        dW, dH = self.velocity()
        dW2, dH2 = _velocity(self.samples, self.slopes, self.W, dW, dH)
        rate = _length(dW2, dH2) / _length(dW, dH)
        # Input weights far shorter than the output weights turn fast, and meet kinks on the way.
        turning = torch.minimum(vector_norm(dW, dim=1) / vector_norm(self.W, dim=1), BUDGETS.fastest_turn * rate)
        step = FLOAT64.dense_stride / float(torch.maximum(rate, turning).max())
        first = (rate * step).sinh() / rate
        second = ((rate * step).cosh() - 1) / rate.square()
        self.W = self.W + first[:, None] * dW + second[:, None] * dW2
        self.H = self.H + first * dH + second * dH2
        return step


def _velocity(samples: Pieces, slopes: tuple[float, float], at: Tensor, W: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """``-M^T h`` and ``-M w`` with the slopes that the input weights ``at`` give; at 0 torch's, ``s-``."""
    dW, dH = torch.zeros_like(W), torch.zeros_like(H)
    for X, G in samples:
        slope = torch.where(X @ at.T > 0, slopes[1], slopes[0])
        dW -= (slope * (G @ H)).T @ X
        dH -= G.T @ (slope * (X @ W.T))
    return dW, dH


def _length(W: Tensor, H: Tensor) -> Tensor:
    """Lengths of weights ``(n, d)`` and ``(J, n)`` together, shape ``(n,)``."""
    return torch.hypot(vector_norm(W, dim=1), vector_norm(H, dim=0))


def _time_until(rate: Tensor, log_drop: Tensor, log_target: float) -> float:
    """The time at which drops ``exp(log_drop + rate t)`` add up to the target, 0 where they already do."""
    time = float(((log_target - log_drop) / rate).min())
    # The sum is at the target no later than its first term is. Its logarithm is convex: Newton's steps stay above.
    for _ in range(BUDGETS.newton):
        term = log_drop + rate * time
        excess = float(term.logsumexp(0)) - log_target
        time -= excess / float((term.softmax(0) * rate).sum())
    return max(0.0, time)
