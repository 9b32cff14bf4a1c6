"""Input weights among which neurons are placed.

Uphill from a sample is towards neurons that are active on much of the data; few steps find what few samples share. But
a sample is a sum of several things, of which a network may have all but one, and uphill are all of them: the mean of
the samples whose loss gradients are like its own is along the one that is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics import ExtremalDirections, climbed_directions, extremal_directions
from relu_diag.functional.local import radial_directions
from relu_diag.functional.tolerances import FLOAT64


def placement_candidates(
    X: Tensor, G: Tensor, slopes: tuple[float, float], price: float, room: int
) -> ExtremalDirections:
    """Directions in which neurons gain.

    Args:
        X: Inputs, shape ``(N, d)``.
        G: Loss gradients, shape ``(N, J)``.
        slopes: ``(s-, s+)`` of the activation.
        price: Loss per unit of mean activation of one neuron.
        room: Number of neurons to be placed.

    Returns:
        Directions, output weights and gains, in no order.
    """
    heavy = _heaviest(X, G, max(BUDGETS.starts_for_one * room, BUDGETS.starts_alike))
    biased = _is_biased(X)
    found = [_shared(X, G, slopes, heavy, price, biased)]
    # What is active on much of the data is not worth a price, if a bias can keep it from that.
    if not price or not biased:
        starts = _likened(X, heavy[: max(room, BUDGETS.placement_starts)], biased)
        climbed = starts
        for steps in BUDGETS.placement_climbs:
            found.append(climbed_directions(X, G, slopes, climbed, price, steps))
            climbed = found[-1].v
        if X.numel() <= BUDGETS.listed_numbers and not price:
            found.append(extremal_directions(X, G, slopes, starts))
    v = torch.cat([one.v.to(X) for one in found])
    o = torch.cat([one.o.to(X) for one in found])
    gain = torch.cat([one.gain.to(X) for one in found])
    return ExtremalDirections(v, gain, o, exhaustive=False)


def _heaviest(X: Tensor, G: Tensor, count: int) -> Tensor:
    """The samples that weigh most, a little at random, long, shape ``(n,)``."""
    weight = X.norm(dim=1) * G.norm(dim=1)
    draw = torch.Generator().manual_seed(len(X))
    chance = torch.rand(len(X), generator=draw, dtype=torch.float64).to(X)
    # The largest of these are a sample without replacement, by the squares of the weights.
    key = torch.where(weight > 0, chance.log() / weight.square(), -torch.inf)
    return key.argsort(descending=True)[: min(count, int((weight > 0).sum()))]


def _is_biased(X: Tensor) -> bool:
    """Whether the last input is constant."""
    return X.shape[1] > 1 and bool((X[:, -1] == X[0, -1]).all())


def _likened(X: Tensor, samples: Tensor, biased: bool) -> Tensor:
    """Input weights of neurons that are active where a sample is like a certain one, shape ``(n, d)``."""
    starts = X[samples]
    if biased:
        # Active where a sample is at least so much like this one.
        starts[:, -1] = -FLOAT64.likeness * starts[:, :-1].square().sum(dim=1) / X[0, -1]
    return starts


def _shared(
    X: Tensor, G: Tensor, slopes: tuple[float, float], starts: Tensor, price: float, biased: bool
) -> ExtremalDirections:
    """What samples share that feel the loss as one of the ``starts (n,)`` does, where a neuron gains by it."""
    side = 1.0 if abs(slopes[1]) >= abs(slopes[0]) else -1.0
    parts = torch.split(starts, max(1, BUDGETS.numbers_alike // len(X)))
    v = torch.cat([_means_of_alike(X, G, part, price, biased) for part in parts]) * side
    A = rho(X @ v.T, slopes)
    D = A.T @ G
    gain = D.norm(dim=1) - price * A.abs().mean(dim=0)
    kept = gain > 0
    return ExtremalDirections(v[kept], gain[kept], -radial_directions(D[kept]), exhaustive=False)


def _means_of_alike(X: Tensor, G: Tensor, starts: Tensor, price: float, biased: bool) -> Tensor:
    """Unit directions ``(n, d)`` for a ReLU: from samples like each start, then from those where it is active."""
    own = X[:, :-1] if biased else X
    worth = _worth(G, -radial_directions(G[starts]), price)
    weight = worth.clamp(min=0) * (own[starts] @ own.T).clamp(min=0)
    v = radial_directions(weight @ own)
    bias = _surest_bias(v @ own.T, worth, biased)
    A = (v @ own.T + bias).clamp(min=0)
    worth = _worth(G, -radial_directions(A @ G), price)
    v = radial_directions(((A > 0) * worth) @ own)
    bias = _surest_bias(v @ own.T, worth, biased)
    return radial_directions(torch.cat([v, bias / X[0, -1]], dim=1)) if biased else v


def _worth(G: Tensor, o: Tensor, price: float) -> Tensor:
    """How much the loss falls per unit of activation on each sample, less the price, ``(n, N)``."""
    return -(o @ G.T) - price / len(G)


def _surest_bias(Z: Tensor, worth: Tensor, biased: bool) -> Tensor:
    """For inputs ``Z (n, N)`` to neurons, the bias with the largest merit that is no accident, ``(n, 1)``."""
    if not biased:
        return Z.new_zeros(len(Z), 1)
    Z, order = Z.topk(min(Z.shape[1], BUDGETS.samples_alike))
    worth = worth.gather(1, order)
    # Active down to one sample and not to the next: sums over those that are, for every such bias.
    bias = -torch.cat([Z[:, 1:], Z[:, -1:]], dim=1)
    gain = (worth * Z).cumsum(dim=1) + bias * worth.cumsum(dim=1)
    noise = _square_sums(Z, worth.square(), bias).sqrt()
    size = _square_sums(Z, torch.ones_like(Z), bias).sqrt()
    merit = (gain - FLOAT64.sure * noise) / size.clamp(min=torch.finfo(Z.dtype).tiny)
    # Of one sample alone nothing is known.
    merit[:, 0] = -torch.inf
    return bias.gather(1, merit.argmax(dim=1, keepdim=True))


def _square_sums(Z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sums of ``weight (Z + bias)^2`` over the samples up to each, ``(n, m)``."""
    total = (weight * Z.square()).cumsum(dim=1) + 2 * bias * (weight * Z).cumsum(dim=1)
    return (total + bias.square() * weight.cumsum(dim=1)).clamp(min=0)
