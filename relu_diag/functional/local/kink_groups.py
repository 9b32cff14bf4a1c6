"""Neurons that see the same kinks: the fan of the directions is theirs together, and is looked at once.

Neurons with ``w = 0`` see every sample, and neurons along one direction see the same samples. What differs between them
are the coefficients; where these are multiples of each other, as with one output, even the answer is the same.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array, Index, rounded_key, row_space
from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local.directions import radial_directions, tangential_part
from relu_diag.functional.local.fan import hyperplanes
from relu_diag.functional.local.kink_samples import KinkSamples
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class KinkGroup:
    """Neurons whose kinks lie on the same hyperplanes.

    The loss of neuron ``i`` changes along a tangential ``v`` at the rate ``g_i . v + sum_k q_ik |x_k . v|``.

    Attributes:
        neurons: The neurons, rising, shape ``(n,)``.
        g: Their smooth parts, tangential, shape ``(n, d)``.
        q: Their coefficients on the hyperplanes, shape ``(n, m)``.
        X: Unit normals of the hyperplanes, tangential, shape ``(m, d)``.
        basis: Orthonormal basis of the span of the normals, shape ``(rank, d)``.

    Example:
        >>> kinks = KinkSamples(torch.tensor([0, 1]), X=torch.ones(2, 1).double(), c=torch.tensor([1.0, -4.0]).double())
        >>> block = ShallowBlock(W=torch.zeros(2, 1), H=torch.ones(1, 2))
        >>> group, = kink_groups(block, smooth=torch.tensor([[0.5], [0.0]]), kinks=kinks)
        >>> group.neurons.tolist(), group.q.tolist(), group.lowest(np.array([[1.0], [-1.0]])).tolist()
        ([0, 1], [[0.5], [-2.0]], [0.0, -2.0])
    """

    neurons: Index
    g: Array
    q: Array
    X: Array
    basis: Array

    def lowest(self, rays: Array) -> Array:
        """The smallest rate of the loss along some directions.

        Args:
            rays: Unit directions, shape ``(r, d)``.

        Returns:
            Rates, infinite where there is no direction, shape ``(n,)``.
        """
        reach = np.abs(self.X @ rays.T)
        rows = max(1, BUDGETS.chunk // max(len(rays), 1))
        parts = [slice(start, start + rows) for start in range(0, len(self.neurons), rows)]
        along = [self.g[part] @ rays.T + self.q[part] @ reach for part in parts]
        return np.concatenate([rates.min(axis=1, initial=np.inf) for rates in along])


def kink_groups(block: ShallowBlock, smooth: Tensor, kinks: KinkSamples) -> list[KinkGroup]:
    """All neurons with kink samples, those that see the same kinks together.

    Args:
        block: The network.
        smooth: Smooth parts of the derivative, as `NeuronSums.smooth`, shape ``(I, d)``.
        kinks: Kink samples, all of a neuron or none.

    Returns:
        Groups, by their first neuron.

    Example:
        >>> kinks = KinkSamples(torch.tensor([0, 1]), X=torch.ones(2, 2).double(), c=torch.ones(2).double())
        >>> block = ShallowBlock(W=torch.tensor([[0.0, 0.0], [1.0, -1.0]]), H=torch.ones(1, 2))
        >>> [group.neurons.tolist() for group in kink_groups(block, torch.zeros(2, 2), kinks)]
        [[0], [1]]
    """
    order = kinks.neuron.argsort(stable=True)
    X = kinks.X[order].cpu().numpy()
    q = (block.slopes[1] - block.slopes[0]) / 2 * kinks.c[order].cpu().numpy()
    neuron, first = np.unique(kinks.neuron[order].cpu().numpy(), return_index=True)
    rows = dict(zip(neuron.tolist(), np.split(np.arange(len(X)), first[1:]), strict=False))
    U = radial_directions(block.W.detach()[torch.from_numpy(neuron)].double())
    lines = _lines(U.cpu().numpy())
    place = {i: at for at, i in enumerate(rows)}
    alike = defaultdict(list)
    for i, line in zip(rows, lines, strict=True):
        alike[line, X[rows[i]].tobytes()].append(i)
    groups = []
    for members in alike.values():
        at = np.array(members)
        u = U[place[members[0]], None]
        g = tangential_part(u, smooth[at].double()).cpu().numpy()
        normals = tangential_part(u, torch.from_numpy(X[rows[at[0]]]).to(u)).cpu().numpy()
        groups.append(_group(at, g, np.stack([q[rows[i]] for i in members]), normals))
    return groups


def _group(neurons: Index, g: Array, q: Array, X: Array) -> KinkGroup:
    """A group, from coefficients ``(n, M)`` on kink inputs ``(M, d)``; hyperplanes that nobody feels are left out."""
    planes = hyperplanes(X)
    terms = np.abs(q * planes.length).max(axis=1, initial=0.0)
    q = planes.merged(q.T).T
    felt = (np.abs(q) > FLOAT64.cancelled * terms[:, None]).any(axis=0)
    return KinkGroup(neurons, g, q[:, felt], planes.X[felt], row_space(planes.X[felt]))


def _lines(U: Array) -> list[bytes]:
    """A name for the line of each unit vector or zero ``(n, d)``, the same for either sign."""
    largest = U[np.arange(len(U)), np.abs(U).argmax(axis=1)]
    oriented = U * np.where(largest < 0, -1.0, 1.0)[:, None]
    return [rounded_key(row) for row in oriented]
