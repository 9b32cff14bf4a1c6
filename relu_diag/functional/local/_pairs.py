"""Collecting the pairs (neuron, sample) on a kink, chunk by chunk and within bounds.

A neuron with ``w = 0`` has every sample on its kink. Where pairs are many, samples on one line through zero become one,
whose coefficient is their sum; where a neuron has too many lines still, or all pairs together too many numbers, pairs
are counted but not kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local.chunks import Chunk
from relu_diag.functional.local.fan import hyperplanes
from relu_diag.functional.local.kink_samples import KinkSamples


class CollectedPairs:
    """The pairs of all chunks so far: parts that are kept, and how many of each neuron are lost, ``(I,)``."""

    def __init__(self, neurons: int, inputs: int, device: torch.device) -> None:
        none = torch.empty(0, inputs, dtype=torch.float64, device=device)
        self.parts = [KinkSamples(torch.empty(0, dtype=torch.long, device=device), none, none[:, 0])]
        self.lost = torch.zeros(neurons, dtype=torch.long, device=device)
        self._offered = 0

    def add(self, chunk: Chunk, weight: float = 1.0) -> None:
        """Add the pairs of a chunk that have a gradient, times a factor of the loss."""
        row, neuron = chunk.kinks.unbind(1)
        c = weight * chunk.C[row, neuron].double()
        self._offered += len(row)
        if self._offered <= BUDGETS.kinks and self._offered * chunk.X.shape[1] <= BUDGETS.kink_numbers:
            # However they lie, they are not too many.
            felt = c != 0
            self.parts.append(KinkSamples(neuron[felt], chunk.X[row[felt]].double(), c[felt]))
            return
        felt = (c != 0) & (self.lost[neuron] == 0)
        self.lost += torch.bincount(neuron[(c != 0) & ~felt], minlength=len(self.lost))
        row, neuron, c = row[felt], neuron[felt], c[felt]
        inputs = chunk.X.shape[1]
        if _crowded(self._with(neuron), inputs):
            row, neuron, c = _one_a_line(chunk.X, row, neuron, c)
        if _crowded(self._with(neuron), inputs) and len(self._with(neuron)) * inputs <= BUDGETS.kink_numbers:
            pairs, self.lost = keep_pairs([*self.parts, KinkSamples(neuron, chunk.X[row].double(), c)], self.lost)
            self.parts = [pairs]
            return
        keep, self.lost = _room(self._with(neuron), self.lost, inputs)
        if not bool(keep.all()):
            # Chosen before the inputs are gathered: at W = 0 every pair is on the kink.
            self.parts = [part.chosen(keep) for part in self.parts]
            kept = keep[neuron]
            row, neuron, c = row[kept], neuron[kept], c[kept]
        self.parts.append(KinkSamples(neuron, chunk.X[row].double(), c))

    def _with(self, neuron: Tensor) -> Tensor:
        """The neuron of every pair kept, and of some more, ``(M,)``."""
        return torch.cat([*(part.neuron for part in self.parts), neuron])


def keep_pairs(parts: list[KinkSamples], lost: Tensor) -> tuple[KinkSamples, Tensor]:
    """The pairs of several parts that can be kept together, and how many of each neuron are lost, ``(I,)``."""
    pairs = joined(parts)
    inputs = pairs.X.shape[1]
    if _crowded(pairs.neuron, inputs):
        row, neuron, c = _one_a_line(pairs.X, torch.arange(len(pairs.X), device=lost.device), pairs.neuron, pairs.c)
        pairs = KinkSamples(neuron, pairs.X[row], c)
    keep, lost = _room(pairs.neuron, lost, inputs)
    return pairs.chosen(keep), lost


def joined(parts: list[KinkSamples]) -> KinkSamples:
    """All pairs in one."""
    return KinkSamples(
        torch.cat([part.neuron for part in parts]),
        torch.cat([part.X for part in parts]),
        torch.cat([part.c for part in parts]),
    )


def _crowded(neuron: Tensor, inputs: int) -> bool:
    """Whether pairs of these neurons ``(M,)`` are too many."""
    if len(neuron) * inputs > BUDGETS.kink_numbers:
        return True
    return len(neuron) > BUDGETS.kinks and int(torch.bincount(neuron).max()) > BUDGETS.kinks


def _room(neuron: Tensor, lost: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Which neurons keep their pairs, and how many pairs are lost: the most crowded neurons go first."""
    if not bool(lost.any()) and not _crowded(neuron, inputs):
        return lost == 0, lost
    count = torch.bincount(neuron, minlength=len(lost))
    order = count.argsort(stable=True)
    fits = (count[order].cumsum(0) * inputs <= BUDGETS.kink_numbers)[order.argsort()]
    keep = fits & (count <= BUDGETS.kinks) & (lost == 0)
    return keep, lost + torch.where(keep, 0, count)


def _one_a_line(X: Tensor, row: Tensor, neuron: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of one neuron with samples on one line as one, their coefficients added up: row, neuron and c, ``(M,)``."""
    rows, place = torch.unique(row, return_inverse=True)
    planes = hyperplanes(X[rows].double().cpu().numpy())
    if len(planes.X) == len(rows):
        return row, neuron, c
    _, first = np.unique(planes.plane, return_index=True)
    length = torch.from_numpy(planes.length).to(c)
    plane = torch.from_numpy(planes.plane).to(row)[place]
    standing = torch.from_numpy(first).to(row)  # the sample that stands for each line
    pair, at = torch.unique(neuron * len(first) + plane, return_inverse=True)
    plane = pair % len(first)
    total = torch.zeros(len(pair), dtype=c.dtype, device=c.device).index_add_(0, at, c * length[place])
    return rows[standing[plane]], pair // len(first), total / length[standing[plane]]
