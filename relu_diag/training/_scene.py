"""Which neurons of a block are placed anew, and where, by the rows that were kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.widening import Placement, merge_units, place_units
from relu_diag.training._idle_neurons import Activity, IdleNeurons
from relu_diag.training._kept_for_revival import RevivalRows
from relu_diag.training.new_places import NewPlaces

# A change of the outputs over their size that is none.
_UNSEEN = 1e-3
# How often the number of dormant neurons to place anew is halved.
_TRIES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A block, rows to place neurons by, those that do nothing, its outputs ``(N, J)``, and whether rows are all."""

    block: ShallowBlock
    rows: RevivalRows
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
        duplicate, into = self.states.duplicate, self.states.repeated
        without = merge_units(self.block, duplicate, into) if len(duplicate) else self.block
        loud = units[~torch.isin(units, self.states.dead)]
        rest = self.outputs - self._outputs_of(_part(self.block, loud)) + self._handed_over(duplicate, into)
        signal = BlockSignal(self.rows.X, self.rows.G)
        rows = self.rows
        return place_units(without, units, signal, rows.loss, rows.price, self.everything, rest, fill=True)

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
        new = Activity.of(ShallowBlock(placement.W, placement.H, self.block.slopes), rows.X)
        change = new.outputs + self._handed_over(duplicate, into)
        activity = float(new.total.sum()) / len(rows.X)
        old = _part(self.block, placement.units[~torch.isin(placement.units, states.dead)])
        if old is not None:
            was = Activity.of(old, rows.X)
            change = change - was.outputs
            activity -= float(was.total.sum()) / len(rows.X)
        drop = 0.0
        if rows.loss is not None:
            drop = -float(rows.loss.change(self.outputs, change)) - rows.price * activity
        small = not bool(change.any()) or float(change.norm()) <= _UNSEEN * float(self.outputs.norm())
        if not (drop > 0 or small):
            return None
        placement = replace(placement, drop=drop, function_change=float(change.abs().max()))
        return NewPlaces(placement, duplicate, into, states.counts)

    def _outputs_of(self, some: ShallowBlock | None) -> Tensor:
        """What some neurons add to the outputs, ``(N, J)``."""
        return torch.zeros_like(self.outputs) if some is None else chunked_outputs(some, self.rows.X)

    def _handed_over(self, duplicate: Tensor, into: Tensor) -> Tensor:
        """What is added to the outputs by those that get the output weights of duplicates, ``(N, J)``."""
        if not len(duplicate):
            return torch.zeros_like(self.outputs)
        W, H = self.block.W, self.block.H
        share = W[duplicate].norm(dim=1) / W[into].norm(dim=1)
        return self._outputs_of(ShallowBlock(W[into], H[:, duplicate] * share, self.block.slopes))


def nothing_new(block: ShallowBlock, states: IdleNeurons) -> NewPlaces:
    """Nobody is placed anew."""
    nobody = states.dead[:0]
    none = Placement(nobody, block.W[nobody], block.H[:, nobody], block.W[nobody, 0], drop=0.0, function_change=0.0)
    return NewPlaces(none, nobody, nobody, states.counts)


def _part(block: ShallowBlock, units: Tensor) -> ShallowBlock | None:
    """Some neurons alone; None where there is none."""
    return ShallowBlock(block.W[units], block.H[:, units], block.slopes) if len(units) else None
