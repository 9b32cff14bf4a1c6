"""The ways off its kinks that a neuron can take at no first-order cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relu_diag.functional._arrays import Array, Index, row_space
from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks, fan_rays, merge_collinear, one_sided
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._flat import flat_within
from relu_diag.functional.verdict._output_parts import output_parts
from relu_diag.functional.verdict._rounding import ResidualRounding
from relu_diag.functional.verdict.escape import EscapeNeurons
from relu_diag.functional.verdict.stationarity import Stationarity

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class FlatRays:
    """Directions on which a sample leaves its kink and the loss has slope zero.

    Attributes:
        blocked: Per neuron with samples on kinks an orthonormal basis of their span, where it may not move freely.
        neuron: Neuron of every ray, shape ``(P,)``.
        rays: Unit directions, shape ``(P, d)``.
        together: Whether two rays bound one cone of the kinks, so that a neuron may take both, shape ``(P, P)``.
    """

    blocked: dict[int, Array]
    neuron: NDArray[np.intp]
    rays: Array
    together: Mask


def flat_rays(
    block: ShallowBlock,
    signal: BlockSignal,
    found: Stationarity,
    escape: EscapeNeurons,
    kink_tol: float,
    rounding: ResidualRounding,
) -> FlatRays:
    """Those at a stationary point: all of them, or up to a budget the ones that pull most of every neuron.

    Of a neuron with too many kinks, and of one that is zero altogether, the one it escapes along.

    Args:
        block: The network.
        signal: Its signal.
        found: Its stationarity.
        escape: Its escape neurons.
        kink_tol: Relative distance that counts as on the kink.
        rounding: What the residuals may be wrong by: slopes that are no more are zero.

    Returns:
        Rays.
    """
    b = (block.slopes[1] - block.slopes[0]) / 2
    smooth = found.geometry.smooth.cpu().numpy()
    every_neuron = torch.arange(len(block.W), device=block.W.device)
    flat = flat_within(block, signal, found, every_neuron, kink_tol, rounding).cpu().numpy()
    direction, escapes = escape.direction.cpu().numpy(), escape.mask.cpu().numpy()
    zero = ~block.W.any(dim=1).cpu().numpy()
    kinks = _kinks(block, signal, kink_tol, silent=~block.H.any(dim=0))
    blocked: dict[int, Array] = {}
    neuron: list[int] = []
    rays = [np.empty((0, block.W.shape[1]))]
    hyperplanes: dict[int, Array] = {}
    for i in sorted({*kinks, *np.flatnonzero(escapes & zero).tolist()}, key=lambda i: not escapes[i]):
        own, X = direction[i, None] * escapes[i], np.empty_like(rays[0])
        if i in kinks:
            c, samples = kinks[i]
            X = merge_collinear(np.ones(len(samples)), samples)[1]
            if not zero[i]:
                blocked[i] = row_space(X)
            fan = fan_rays(X) if len(neuron) < BUDGETS.rays_weighed else np.empty_like(rays[0])
            if fan is not None:
                own = fan[one_sided(fan, smooth[i], b * c, samples) <= flat[i]]
        neuron += [i] * len(own)
        rays.append(own)
        hyperplanes[i] = X
    of = np.array(neuron, dtype=np.intp)
    every = np.concatenate(rays)
    pull = _pulls(block, signal, of, every, kink_tol)
    # Nothing comes of the rays of a neuron without output weights that no output feels.
    silent = ~block.H.any(dim=0).cpu().numpy()
    heard = (~silent[of] | (pull > (found.tol * found.pull_scale).cpu().numpy()[of])).nonzero()[0]
    chosen = heard[_loudest_of_each(of[heard], pull[heard], escapes[of[heard]])]
    of = of[chosen]
    every = every[chosen]
    sides = [hyperplanes[i] @ ray for i, ray in zip(of.tolist(), every, strict=True)]
    return FlatRays(blocked, of, every, _together(of.tolist(), sides))


def _pulls(block: ShallowBlock, signal: BlockSignal, neuron: Index, rays: Array, kink_tol: float) -> Array:
    """What the outputs feel along rays, ``||D||``, shape ``(P,)``."""
    if not len(neuron):
        return np.empty(0)
    index, of = np.unique(neuron, return_inverse=True)
    some = replace(block, W=block.W[index], H=block.H[:, index])
    parts, owner, kinks, _, X = (part.cpu().numpy() for part in output_parts(some, signal, kink_tol))
    b = (block.slopes[1] - block.slopes[0]) / 2
    D = np.einsum("pjd,pd->pj", parts[of], rays)
    for i in range(len(index)):
        D[of == i] += b * np.abs(rays[of == i] @ X[owner == i].T) @ kinks[owner == i]
    return np.asarray(np.linalg.norm(D, axis=1))


def _loudest_of_each(neuron: Index, pull: Array, escapes: Mask) -> Index:
    """Numbers of rays, as many as a budget: the strongest of every escape neuron, then the second, and so on.

    So the rays and their order are the same whatever the order of neurons and samples.
    """
    order = np.lexsort((-pull, neuron))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(neuron[order], neuron[order])
    return np.lexsort((-pull, rank, ~escapes))[: BUDGETS.flat_rays]


def _kinks(block: ShallowBlock, signal: BlockSignal, kink_tol: float, silent: Tensor) -> dict[int, tuple[Array, Array]]:
    """Loss gradients and inputs of the samples on the kinks of every neuron that is not zero altogether."""
    asked = block.W.any(dim=1) | ~silent
    pairs = [np.empty((0, 2 + block.W.shape[1]))]
    for chunk in chunks(block, signal, kink_tol):
        row, neuron = chunk.kinks[asked[chunk.kinks[:, 1]]].unbind(1)
        pairs.append(torch.column_stack([neuron.double(), chunk.C[row, neuron], chunk.X[row]]).cpu().numpy())
    found = np.concatenate(pairs)
    found = found[found[:, 0].argsort(kind="stable")]
    index, first = np.unique(found[:, 0], return_index=True)
    parts = np.split(found, first[1:]) if len(found) else []
    return {int(i): (own[:, 1], own[:, 2:]) for i, own in zip(index, parts, strict=True)}


def _together(neuron: list[int], sides: list[Array]) -> Mask:
    """Rays of different neurons, and rays of one that see no sample from different sides."""
    return np.array([
        [i != j or bool((a * b >= -FLOAT64.same_side).all()) for j, b in zip(neuron, sides, strict=False)]
        for i, a in zip(neuron, sides, strict=False)
    ]).reshape(len(neuron), len(neuron))
