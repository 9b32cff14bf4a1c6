"""The steepest tangential descent of every neuron: all at once where that is enough, one by one where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local._group_descents import group_descents
from relu_diag.functional.local._vertices import descend_at_vertices
from relu_diag.functional.local.directions import radial_directions, tangential_part
from relu_diag.functional.local.kink_groups import KinkGroup, kink_groups
from relu_diag.functional.local.sums import NeuronSums


@dataclass(frozen=True, slots=True, eq=False)
class Descents:
    """Steepest tangential descents, per neuron.

    Attributes:
        slope: Smallest one-sided derivative over tangential unit vectors and zero, shape ``(n,)``.
        direction: Unit tangential direction that attains it, zero where the slope is, shape ``(n, d)``.
        exact: Whether the slope is proven to be the minimum, bool, shape ``(n,)``.
        radial: Derivative along the weights themselves, shape ``(n,)``.
    """

    slope: Tensor
    direction: Tensor
    exact: Tensor
    radial: Tensor

    def overwrite(self, at: Tensor, slope: Tensor | float, direction: Tensor | float, exact: Tensor | bool) -> None:
        """Take the results of some neurons, long or bool ``(I,)``."""
        self.slope[at] = slope
        self.direction[at] = direction
        self.exact[at] = exact


def steepest_descents(block: ShallowBlock, sums: NeuronSums) -> Descents:
    """Those of a block, from sums over all samples with smooth parts in float64."""
    descents = _smooth_descents(block.W.detach(), sums.smooth)
    if not len(sums.kinks.c) and not bool(sums.lost.any()):
        return descents
    U = radial_directions(block.W.detach().double())
    left = _descend_at_vertices(block, U, sums, descents)
    if bool(left.any()):
        _descend_in_groups(kink_groups(block, sums.smooth, sums.kinks.chosen(left)), U, descents)
    # Without all its kink samples nothing is known of a neuron but that standing still gives zero.
    descents.overwrite(sums.lost > 0, 0.0, 0.0, exact=False)
    return descents


def _smooth_descents(W: Tensor, smooth: Tensor) -> Descents:
    """Without kinks the steepest descent is against the tangential part of the gradient ``(I, d)``."""
    descents = Descents(
        slope=torch.empty_like(smooth[:, 0]),
        direction=torch.empty_like(smooth),
        exact=torch.ones_like(smooth[:, 0], dtype=torch.bool),
        radial=torch.empty_like(smooth[:, 0]),
    )
    for some, radial, tangential, slope in _split(W, smooth):
        descents.radial[some] = radial
        torch.mul(tangential, torch.where(slope > 0, -1 / slope, 0.0)[:, None], out=descents.direction[some])
        descents.slope[some] = torch.where(slope > 0, -slope, 0.0)
    return descents


def smooth_slopes(W: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
    """Without kinks: derivative along the weights, and steepest tangential slope, both ``(I,)``."""
    parts = [(radial, 0.0 - slope) for _, radial, _, slope in _split(W, smooth)]
    radial, slope = (torch.cat(values) for values in zip(*parts, strict=True))
    return radial, slope


def _split(W: Tensor, smooth: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Neurons, radial part ``(n,)``, tangential part ``(n, d)`` and its length, as many at once as the cache holds."""
    rows = max(1, BUDGETS.cached // smooth.shape[1])
    for start in range(0, len(W), rows):
        some = slice(start, start + rows)
        g = smooth[some]
        U = radial_directions(W[some].to(g))
        tangential = tangential_part(U, g)
        yield some, torch.linalg.vecdot(g, U), tangential, tangential.norm(dim=1)


def _descend_at_vertices(block: ShallowBlock, U: Tensor, sums: NeuronSums, descents: Descents) -> Tensor:
    """Overwrite the neurons with few kinks that a vertex settles; which of those with kinks are left, bool ``(I,)``."""
    order = sums.kinks.neuron.argsort(stable=True)
    count = torch.bincount(sums.kinks.neuron, minlength=len(U))
    first = count.cumsum(0) - count
    left = count > 0
    for size in sorted(set(count[left & (count <= BUDGETS.vertex_kinks)].tolist())):
        at = (count == size).nonzero().squeeze(1)
        pairs = order[first[at, None] + torch.arange(size, device=order.device)]
        slope, direction, proven = descend_at_vertices(
            g=tangential_part(U[at], sums.smooth[at]),
            q=(block.slopes[1] - block.slopes[0]) / 2 * sums.kinks.c[pairs],
            X=tangential_part(U[at, None], sums.kinks.X[pairs]),
        )
        at = at[proven]
        descents.overwrite(at, slope[proven], direction[proven], exact=True)
        left[at] = False
    return left


def _descend_in_groups(groups: list[KinkGroup], U: Tensor, descents: Descents) -> None:
    """Overwrite the neurons of some groups."""
    for group, found in zip(groups, group_descents(groups), strict=True):
        at = torch.as_tensor(group.neurons, device=U.device)
        # The direction of a slope that is all rounding may be radial.
        direction = tangential_part(U[at], torch.from_numpy(found.direction).to(U))
        length = direction.norm(dim=1)
        kept = length > 0.5
        slope = torch.where(kept, torch.from_numpy(found.slope).to(U), 0.0)
        direction = torch.where(kept[:, None], direction / length[:, None], 0.0)
        descents.overwrite(at, slope, direction, torch.from_numpy(found.exact).to(U.device))
