"""Input weights among which neurons are placed.

Uphill from a sample is towards neurons that are active on much of the data; few steps find what few samples share. But
a sample is a sum of several things, of which a network may have all but one, and uphill are all of them: the mean of
the samples whose loss gradients are like its own is along the one that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics import ExtremalDirections, climbed_directions, extremal_directions
from relu_diag.functional.local import radial_directions
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._pools import has_constant


def placement_candidates(
    X: Tensor, G: Tensor, slopes: tuple[float, float], price: float, room: int
) -> tuple[ExtremalDirections, Tensor]:
    """Directions in which neurons gain, and how much they promise to lower the loss.

    Args:
        X: Inputs, shape ``(N, d)``.
        G: Loss gradients, shape ``(N, J)``.
        slopes: ``(s-, s+)`` of the activation.
        price: Loss per unit of mean activation of one neuron.
        room: Number of neurons to be placed.

    Returns:
        Directions, output weights and gains, in no order, and the `promise` of each, shape ``(n,)``.
    """
    heavy = _heaviest(X, G, max(BUDGETS.starts_for_one * room, BUDGETS.starts_alike))
    biased = X.shape[1] > 1 and has_constant(X)
    alike = _Alike(X, G, price, biased, max(room, BUDGETS.starts_alike))
    shared, promised = _shared(X, G, slopes, alike, heavy)
    found = [shared]
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
    others = slice(len(shared.v), None)
    promised = torch.cat([promised, promise(gain[others], rho(X @ v[others].T, slopes))])
    return ExtremalDirections(v, gain, o, exhaustive=False), promised


def promise(gain: Tensor, A: Tensor) -> Tensor:
    """What orders neurons ``(n,)``: at its best amplitude one lowers the loss by its square, over the curvature."""
    size: Tensor = A.norm(dim=0).clamp(min=torch.finfo(A.dtype).tiny)
    return gain / size


def _heaviest(X: Tensor, G: Tensor, count: int) -> Tensor:
    """The samples that weigh most, a little at random, long, shape ``(n,)``."""
    weight = X.norm(dim=1) * G.norm(dim=1)
    draw = torch.Generator().manual_seed(len(X))
    chance = torch.rand(len(X), generator=draw, dtype=torch.float64).to(X)
    # The largest of these are a sample without replacement, by the squares of the weights.
    key = torch.where(weight > 0, chance.log() / weight.square(), -torch.inf)
    return key.argsort(descending=True)[: min(count, int((weight > 0).sum()))]


def _likened(X: Tensor, samples: Tensor, biased: bool) -> Tensor:
    """Input weights of neurons that are active where a sample is like a certain one, shape ``(n, d)``."""
    starts = X[samples]
    if biased:
        # Active where a sample is at least so much like this one.
        starts[:, -1] = -FLOAT64.likeness * starts[:, :-1].square().sum(dim=1) / X[0, -1]
    return starts


def _shared(
    X: Tensor, G: Tensor, slopes: tuple[float, float], alike: _Alike, starts: Tensor
) -> tuple[ExtremalDirections, Tensor]:
    """What samples share that feel the loss as one of the ``starts (n,)`` does, where a neuron gains, and promises."""
    side = 1.0 if abs(slopes[1]) >= abs(slopes[0]) else -1.0
    found = []
    for part in alike.directions(starts):
        v = part * side
        A = rho(X @ v.T, slopes)
        D = A.T @ G
        gain = D.norm(dim=1) - alike.price * A.abs().mean(dim=0)
        kept = gain > 0
        found.append((v[kept], gain[kept], -radial_directions(D[kept]), promise(gain, A)[kept]))
    v, gain, o, promised = (torch.cat(one) for one in zip(*found, strict=True))
    return ExtremalDirections(v, gain, o, exhaustive=False), promised


class _Alike:
    """Looks for what samples share that feel the loss alike.

    Takes inputs ``X (N, d)``, loss gradients ``G (N, J)``, the price of activity, whether the last input is constant,
    and for how many things at most.
    """

    def __init__(self, X: Tensor, G: Tensor, price: float, biased: bool, room: int) -> None:
        self.price = price
        self._own = X[:, :-1] if biased else X
        self._constant = float(X[0, -1]) if biased else 0.0
        self._G = G
        self._room = room

    def directions(self, starts: Tensor) -> Iterator[Tensor]:
        """Unit directions for a ReLU, part by part ``(n, d)``, of different things, those shared by most."""
        found = [self._means_of_alike(part) for part in self._parts(starts)]
        v, o, merit = (torch.cat(one) for one in zip(*found, strict=True))
        order = merit.argsort(descending=True, stable=True)
        if len(order) > self._room:
            order = order[different_first(v[order], o[order])][: self._room]
        return (self._active(v[part], o[part]) for part in self._parts(order))

    def _parts(self, some: Tensor) -> tuple[Tensor, ...]:
        """Parts of some samples or directions, of few enough activations."""
        return torch.split(some, max(1, BUDGETS.numbers_alike // len(self._own)))

    def _means_of_alike(self, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means of the samples like each start: inputs ``(n, d)`` and outputs ``(n, J)``, unit, and their merit."""
        own = self._own
        weight = self._worth(-radial_directions(self._G[starts])).clamp_(min=0)
        weight *= (own[starts] @ own.T).clamp_(min=0)
        v = weight @ own
        o = -(weight @ self._G)
        merit = v.norm(dim=1) * o.norm(dim=1) / weight.square().sum(dim=1).clamp(min=torch.finfo(v.dtype).tiny)
        return radial_directions(v), radial_directions(o), merit

    def _active(self, v: Tensor, o: Tensor) -> Tensor:
        """Unit directions ``(n, d)`` from the samples on which neurons along others are active."""
        own = self._own
        Z = v @ own.T
        A = (Z + self._surest_bias(Z, self._worth(o))).clamp_(min=0)
        worth = self._worth(-radial_directions(A @ self._G))
        v = radial_directions(((A > 0) * worth) @ own)
        if not self._constant:
            return v
        bias = self._surest_bias(v @ own.T, worth)
        return radial_directions(torch.cat([v, bias / self._constant], dim=1))

    def _worth(self, o: Tensor) -> Tensor:
        """How much the loss falls per unit of activation on each sample, less the price, ``(n, N)``."""
        return (o @ self._G.T).neg_().sub_(self.price / len(self._G))

    def _surest_bias(self, Z: Tensor, worth: Tensor) -> Tensor:
        """For inputs ``Z (n, N)`` to neurons, the bias that lowers the loss most, ``(n, 1)``."""
        return _surest_bias(Z, worth) if self._constant else Z.new_zeros(len(Z), 1)


def different_first(v: Tensor, o: Tensor) -> Tensor:
    """Neurons, the best first, in this order but for those like one before, which come last, long ``(n,)``."""
    first = first_of_alike((v @ v.T) * (o @ o.T) > FLOAT64.overlap)
    return torch.cat([first.nonzero(), (~first).nonzero()]).squeeze(1)


def first_of_alike(alike: Tensor) -> Tensor:
    """Which are like none of these before them, bool ``(n,)``, by a table of which are alike, bool ``(n, n)``."""
    table = alike.cpu()
    first = torch.ones(len(table), dtype=torch.bool)
    for i in range(len(table)):
        if first[i]:
            first[i + 1 :] &= ~table[i, i + 1 :]
    return first.to(alike.device)


def _surest_bias(Z: Tensor, worth: Tensor) -> Tensor:
    """For inputs ``Z (n, N)`` to neurons, the bias with the largest merit that is no accident, ``(n, 1)``."""
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
