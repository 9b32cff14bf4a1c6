"""Which neurons of a block are placed anew, and where, by the rows that were kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional import BlockSignal, ShallowBlock, rho
from relu_diag.functional.block import chunk_rows, chunked_outputs
from relu_diag.functional.widening import Placement, merge_units, place_units
from relu_diag.training._idle_neurons import IdleNeurons
from relu_diag.training._kept_for_revival import KeptRows
from relu_diag.training.new_places import NewPlaces

# A change of the outputs over their size that is none, where no loss is known to evaluate it.
_UNSEEN = 1e-3
# How often the number of dormant neurons to place anew is halved.
_TRIES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A block, rows to place neurons by, those that do nothing, its outputs ``(N, J)``, and whether rows are all."""

    block: ShallowBlock
    rows: KeptRows
    states: IdleNeurons
    outputs: Tensor
    everything: bool

    def best(self) -> NewPlaces:
        """The best of what may be done: silent neurons placed anew, and as many dormant ones as are worth it."""
        silent, dormant = self.states.silent, self.states.dormant
        # Where there is more to gain than by neurons that do nothing at all.
        found = self._searched(torch.cat([silent, dormant]))
        sizes = dict.fromkeys(len(silent) + len(dormant) // 2**halving for halving in range(_TRIES))
        best = self._best_of(found, [*sizes, len(silent)])
        if best is None and len(silent) and len(dormant):
            best = self._best_of(self._searched(silent), [len(silent)])
        return best or nothing_new(self.block, self.states)

    def _searched(self, units: Tensor) -> Placement:
        """Where some neurons gain most, duplicates among them having handed their output weights over."""
        states = self.states
        without = merge_units(self.block, states.duplicate, states.repeated)
        H = without.H.clone()
        H[:, units] = 0.0
        gone = torch.cat([units[~torch.isin(units, states.dead)], torch.unique(states.repeated)])
        rest = self.outputs + self._change(replace(without, H=H), gone)
        signal = BlockSignal(self.rows.X, self.rows.G)
        return place_units(without, units, signal, self.rows.loss, self.rows.price, self.everything, rest)

    def _best_of(self, found: Placement, sizes: list[int]) -> NewPlaces | None:
        """The best of a placement's first neurons, so many or so many; None where none of them may be placed."""
        best = None
        for size in dict.fromkeys(min(size, len(found.units)) for size in sizes):
            one = self._evaluated(found.first(size)) if size else None
            if one is not None and one.better_than(best):
                best = one
        return best

    def _evaluated(self, placement: Placement) -> NewPlaces | None:
        """A placement whose drop is evaluated, where it lowers the loss or leaves the function; else None."""
        rows, states = self.rows, self.states
        gone = torch.isin(states.duplicate, placement.units)
        duplicate, into = states.duplicate[gone], states.repeated[gone]
        moved = torch.cat([placement.units, torch.unique(into)])
        after = placement.applied_to(merge_units(self.block, duplicate, into))
        change = self._change(after, moved)
        drop = 0.0
        if rows.loss is None:
            small = float(change.norm()) <= _UNSEEN * float(self.outputs.norm())
            allowed = small or not bool(change.any())
        else:
            costs = rows.price * (_activity(_part(after, moved), rows.X) - _activity(_part(self.block, moved), rows.X))
            drop = -float(rows.loss.change(self.outputs, change)) - costs
            allowed = drop > 0
        if not allowed:
            return None
        placement = replace(placement, drop=drop, function_change=float(change.abs().max()))
        return NewPlaces(placement, duplicate, into, states.counts)

    def _change(self, after: ShallowBlock, moved: Tensor) -> Tensor:
        """What outputs change by where some neurons have other weights, ``(N, J)``."""
        X = self.rows.X
        if not len(moved):
            return torch.zeros_like(self.outputs)
        return chunked_outputs(_part(after, moved), X) - chunked_outputs(_part(self.block, moved), X)


def nothing_new(block: ShallowBlock, states: IdleNeurons) -> NewPlaces:
    """Nobody is placed anew."""
    nobody = states.dead[:0]
    none = Placement(nobody, block.W[nobody], block.H[:, nobody], block.W[nobody, 0], drop=0.0, function_change=0.0)
    return NewPlaces(none, nobody, nobody, states.counts)


def _part(block: ShallowBlock, units: Tensor) -> ShallowBlock:
    """What some neurons add to the outputs."""
    return ShallowBlock(block.W[units], block.H[:, units], block.slopes)


def _activity(block: ShallowBlock, X: Tensor) -> float:
    """The mean activation of all neurons together."""
    return sum(
        float(rho(part @ block.W.T, block.slopes).abs().sum()) for part in torch.split(X, chunk_rows(block))
    ) / len(X)
