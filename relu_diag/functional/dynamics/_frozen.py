"""How small neurons move and grow while the residuals stand still: each for itself, linearly between its kinks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.dynamics._ascent import Pieces, pieces
from relu_diag.functional.dynamics.extremal import ExtremalDirections, extremal_directions

# Neurons whose directions the search for extremal directions starts from besides the samples.
_STARTS = 64
# Progress of the fastest neuron in one step, in units of its growth time; how much faster its direction may turn.
_STRIDE = 0.2
_FASTEST_TURN = 5
_STEPS = 1000
_NEWTON = 20
# A neuron this close to an extremal direction, with both weights, has arrived, as a cosine.
_ARRIVED = math.cos(0.1)


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """Exponential growth of some neurons until the loss has dropped.

    Attributes:
        time: Time of gradient flow until then.
        gain: Growth rate of both weights.
        amplitude: The growing part of ``sum_i ||w_i|| ||h_i||`` now.
        neurons: These neurons, long, shape ``(n,)``.
    """

    time: float
    gain: float
    amplitude: float
    neurons: Tensor


def growth_time(gain: float, amplitude: float, target: float) -> float:
    """The time of gradient flow until ``gain amplitude exp(2 gain t)`` reaches a drop of the loss.

    Args:
        gain: Growth rate of both weights.
        amplitude: Sum of ``||w_i|| ||h_i||`` now.
        target: The drop.

    Returns:
        Time, 0 where the drop is reached.
    """
    return max(0.0, math.log(target / (gain * amplitude)) / (2 * gain))


def small_growth(block: ShallowBlock, signal: BlockSignal, small: Tensor, target: float, loud: float) -> Growth | None:
    """The growth of small neurons until together they have lowered the loss by a given amount.

    Neurons are followed until they have arrived at an extremal direction; from there on growth is exponential.

    Args:
        block: The network, float64.
        signal: Inputs and loss gradients, held fixed.
        small: The neurons, bool, shape ``(I,)``.
        target: The drop of the loss.
        loud: Largest growth rate that counts as zero.

    Returns:
        Time, and the neurons of the extremal direction that has then contributed most; None where nothing grows.
    """
    neurons = small.nonzero().squeeze(1)
    if not len(neurons):
        return None
    W, H = block.W[neurons], block.H[:, neurons]
    starts = W[(W.norm(dim=1) * H.norm(dim=0)).argsort(descending=True)[:_STARTS]]
    extremal = extremal_directions(signal.X, signal.G, block.slopes, starts)
    heard = extremal.gain > loud
    if not bool(heard.any()):
        return None
    extremal = replace(extremal, v=extremal.v[heard], gain=extremal.gain[heard], o=extremal.o[heard])
    toward, log_drop = _arrivals(pieces(signal, len(neurons)), block.slopes, (W, H), extremal, target)
    if not bool(log_drop.isfinite().any()):
        return None
    time = _time_until(2 * extremal.gain[toward], log_drop, math.log(target))
    drop = (log_drop + 2 * extremal.gain[toward] * time).exp()
    winner = int(torch.zeros_like(extremal.gain).index_add_(0, toward, drop).argmax())
    members, gain = (toward == winner) & log_drop.isfinite(), float(extremal.gain[winner])
    return Growth(time, gain, float(log_drop[members].exp().sum()) / gain, neurons[members])


def _arrivals(
    samples: Pieces,
    slopes: tuple[float, float],
    weights: tuple[Tensor, Tensor],
    extremal: ExtremalDirections,
    target: float,
) -> tuple[Tensor, Tensor]:
    """Which extremal direction each neuron goes to, and the logarithm of the drop its growth along it starts from."""
    (W, H), time = weights, 0.0
    travelling = torch.arange(len(W), device=W.device)
    toward, log_drop = torch.zeros_like(travelling), W.new_full((len(W),), -math.inf)
    for _ in range(_STEPS):
        velocity = _velocity(samples, slopes, W, (W, H))
        nearest, arrived, amplitude = _match(W, H, extremal)
        gain = extremal.gain[nearest]
        # Whoever is still on the way counts with what it lowers the loss by at this moment.
        drop = torch.where(arrived, gain * amplitude, (velocity[1] * H).sum(0).clamp(min=0))
        toward[travelling], log_drop[travelling] = nearest, drop.log() - 2 * gain * time
        going = (~arrived & (_length(velocity) > 0)).nonzero().squeeze(1)
        total = (log_drop + 2 * extremal.gain[toward] * time).exp().sum()
        if not len(going) or float(total) >= target:
            break
        if len(going) < len(travelling):
            travelling, W, H = travelling[going], W[going], H[:, going]
            velocity = (velocity[0][going], velocity[1][:, going])
        W, H, step = _advance(samples, slopes, (W, H), velocity)
        time += step
    return toward, log_drop


def _match(W: Tensor, H: Tensor, extremal: ExtremalDirections) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest extremal direction, whether both weights have arrived there, and the amplitude of their growing part.

    Of ``(w, h)`` the part along ``(v, o)`` grows and that along ``(v, -o)`` shrinks at the same rate.
    """
    along, nearest = (W @ extremal.v.T).max(dim=1)
    across = (H.T * extremal.o[nearest]).sum(1)
    arrived = (along > _ARRIVED * vector_norm(W, dim=1)) & (across > _ARRIVED * vector_norm(H, dim=0))
    return nearest, arrived, ((along + across) / 2).square()


def _advance(
    samples: Pieces, slopes: tuple[float, float], weights: tuple[Tensor, Tensor], velocity: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, float]:
    """The weights a short time later, and that time.

    While no kink is crossed the motion is ``exp(t K)`` with a symmetric ``K`` whose eigenvalues come in pairs; for one
    output they are ``+-rate`` and 0, and three terms are exact.
    """
    change = _velocity(samples, slopes, weights[0], velocity)
    rate = _length(change) / _length(velocity)
    # Input weights far shorter than the output weights turn fast, and meet kinks on the way.
    turning = torch.minimum(vector_norm(velocity[0], dim=1) / vector_norm(weights[0], dim=1), _FASTEST_TURN * rate)
    step = _STRIDE / float(torch.maximum(rate, turning).max())
    first, second = (rate * step).sinh() / rate, ((rate * step).cosh() - 1) / rate.square()
    W = weights[0] + first[:, None] * velocity[0] + second[:, None] * change[0]
    return W, weights[1] + first * velocity[1] + second * change[1], step


def _velocity(
    samples: Pieces, slopes: tuple[float, float], at: Tensor, weights: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """``-M^T h`` and ``-M w`` with the slopes that the input weights ``at`` give; at 0 torch's, ``s-``."""
    W, H = weights
    dW, dH = torch.zeros_like(W), torch.zeros_like(H)
    for X, G in samples:
        slope = torch.where(X @ at.T > 0, slopes[1], slopes[0])
        dW -= (slope * (G @ H)).T @ X
        dH -= G.T @ (slope * (X @ W.T))
    return dW, dH


def _length(weights: tuple[Tensor, Tensor]) -> Tensor:
    return torch.hypot(vector_norm(weights[0], dim=1), vector_norm(weights[1], dim=0))


def _time_until(rate: Tensor, log_drop: Tensor, log_target: float) -> float:
    """The time at which drops ``exp(log_drop + rate t)`` add up to the target, 0 where they already do."""
    time = float(((log_target - log_drop) / rate).min())
    # The sum is at the target no later than its first term is. Its logarithm is convex: Newton's steps stay above.
    for _ in range(_NEWTON):
        term = log_drop + rate * time
        excess = float(term.logsumexp(0)) - log_target
        time -= excess / float((term.softmax(0) * rate).sum())
    return max(0.0, time)
