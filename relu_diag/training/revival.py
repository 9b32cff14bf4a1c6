"""Which neurons of a block in training do nothing, and where they would gain most: from rows of ridden steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relu_diag.capture import LiveBlock, Sighting
from relu_diag.functional import BlockSignal, ShallowBlock, rho
from relu_diag.functional.block import chunk_rows, chunked_outputs
from relu_diag.functional.local import repeated_neurons
from relu_diag.functional.output_loss import Loss, joined, recognise
from relu_diag.functional.widening import Placement, merge_units, output_length, place_units
from relu_diag.training._data import tensors_of
from relu_diag.training._seen_for_revival import active_neurons, obstacle_to_revival, price_of_activity
from relu_diag.training.recipe import Recipe

# A change of the outputs over their size that is none, where no loss is known to evaluate it.
_UNSEEN = 1e-3
# Pairs of neurons times inputs up to which a CPU looks for duplicates.
_PAIRS_ON_CPU = 2**36
# Rows by which it is first seen whether there is anything to do.
_FIRST = 256
# Share of a layer from which on dormant neurons alone are worth a search: they live, and may learn by themselves.
_WORTH = 0.05
# Attempts to recognise a loss in a row.
_ATTEMPTS = 3
# How often the number of dormant neurons to place anew is halved.
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Revival:
    """Neurons of a block that were placed anew.

    Attributes:
        step: Gradient steps done.
        block: Name of the block's first layer.
        width: Number of neurons.
        dead: How many were silent since the last revival.
        dormant: How many were nearly silent.
        duplicate: How many repeated another one.
        revived: How many were placed anew.
        gain: Rate at which the loss falls with their amplitudes, together.
        drop: Drop of the loss as evaluated on rows kept; 0 where the function stayed.
        function_change: Largest change of an output on the rows.

    Example:
        >>> print(Revival(9, "encoder", 64, 3, 1, 0, revived=4, gain=0.2, drop=0.0, function_change=0.0))
        step 9 encoder: 3 dead, 1 dormant, 0 duplicate of 64; 4 placed anew, gain 0.2, drop 0
    """

    step: int
    block: str
    width: int
    dead: int
    dormant: int
    duplicate: int
    revived: int
    gain: float
    drop: float
    function_change: float

    def __str__(self) -> str:
        found = f"{self.dead} dead, {self.dormant} dormant, {self.duplicate} duplicate of {self.width}"
        done = f"{self.revived} placed anew, gain {self.gain:.3g}, drop {self.drop:.3g}"
        return f"step {self.step:,} {self.block}: {found}; {done}"


@dataclass(frozen=True, slots=True, eq=False)
class NewPlaces:
    """What is to be done to a block, the same on all ranks.

    Attributes:
        placement: The neurons and their new weights.
        merged: Neurons that hand their output weights over, long, shape ``(n,)``.
        into: Neurons that get them, long, shape ``(n,)``.
        counts: Numbers of neurons found: dead, dormant, duplicate.

    Example:
        >>> nobody = torch.empty(0, dtype=torch.long)
        >>> gain = torch.ones(1)
        >>> place = Placement(torch.tensor([2]), torch.ones(1, 3), torch.zeros(1, 1), gain, 0.5, function_change=0.0)
        >>> new = NewPlaces(place, merged=nobody, into=nobody, counts=(1, 0, 0))
        >>> new.better_than(None)
        True
    """

    placement: Placement
    merged: Tensor
    into: Tensor
    counts: tuple[int, int, int]

    def better_than(self, other: NewPlaces | None) -> bool:
        """Whether the loss falls by more than with another choice, or by as much with more neurons."""
        if other is None:
            return True
        mine, theirs = self.placement, other.placement
        return mine.drop > theirs.drop or (mine.drop == theirs.drop and len(mine.units) > len(theirs.units))

    def cpu(self) -> NewPlaces:
        """The same in the memory of the CPU, to be sent to other processes."""
        one = self.placement
        placement = replace(one, units=one.units.cpu(), W=one.W.cpu(), H=one.H.cpu(), gain=one.gain.cpu())
        return NewPlaces(placement, self.merged.cpu(), self.into.cpu(), self.counts)


class BlockRevival:
    """Keeps what is known of a block between two revivals.

    Args:
        hidden: Name of its first layer.
        samples: Number of rows to keep.
        dormant: A neuron counts as dormant up to so many times the mean activation of the layer.

    Attributes:
        live: Its parameters; None before the first step that was ridden.
        alive: Neurons that had a gradient since the last revival, bool, shape ``(I,)``.
        reason: Why it cannot be revived, empty where it can.
        rows_a_step: Rows of the last step that was ridden.
        everything: Whether the last two had the same rows: a batch is the whole data set.
        idle: Whether the first rows of a window have shown nobody to place anew, so that no more are needed.

    Example:
        >>> BlockRevival("encoder", samples=100, dormant=0.0).steps_needed
        100
    """

    def __init__(self, hidden: str, samples: int, dormant: float) -> None:
        self.hidden = hidden
        self.samples = samples
        self.dormant = dormant
        self.live: LiveBlock | None = None
        self.alive: Tensor | None = None
        self.reason = ""
        self.rows_a_step = 1
        self.everything = False
        self.idle = False
        self._gradients_tell = True
        self._recipe: Recipe | None = None
        # Attempts in a row to recognise the loss that have failed.
        self._unrecognised = 0
        self._steps: list[_Step] = []

    @property
    def steps_needed(self) -> int:
        """Number of steps to ride for the rows of a revival."""
        return 2 if self.everything else -(-self.samples // self.rows_a_step)

    @property
    def rows(self) -> int:
        """Number of rows kept."""
        return sum(len(step.X) for step in self._steps)

    def note_gradients(self, scaled: bool) -> None:
        """Note which neurons have a gradient in this step: those that were active in it.

        Args:
            scaled: Whether the loss is scaled, so that gradients may have overflowed.
        """
        if self.live is None or self.live.hidden_bias is None or not self._gradients_tell:
            return
        gradient = self.live.hidden_bias.grad
        if gradient is None:
            return
        if scaled:
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        if self.alive is None:
            self.alive = gradient != 0
            return
        if len(self.alive) != len(gradient):
            self.alive = self.alive_of(len(gradient))
        # Every step: one operation, in place.
        self.alive.logical_or_(gradient)

    def alive_of(self, width: int) -> Tensor:
        """Neurons that had a gradient since the last revival; those that were added since count among them.

        Args:
            width: Number of neurons of now.

        Returns:
            bool, shape ``(width,)``.
        """
        known = torch.zeros(width, dtype=torch.bool) if self.alive is None else self.alive
        return known if len(known) == width else torch.cat([known, known.new_ones(width - len(known))])

    def keep(self, seen: Sighting, batch: Any) -> None:
        """Keep rows of a step that was ridden.

        Args:
            seen: The block, as the step saw it.
            batch: Its batch, among whose tensors the targets may be.
        """
        self.reason = obstacle_to_revival(seen)
        if self.reason:
            return
        self.live = seen.live
        self.rows_a_step = len(seen.signal.X)
        active = active_neurons(seen)
        self._compare(active)
        self.alive = active if self.alive is None else self.alive_of(len(active)) | active
        if self._steps and not _alike(self._steps[-1], seen):  # a layer before or behind was widened
            self.begin_again()
            self._recipe = None
            self.alive = active
        self.everything = bool(self._steps) and _same(self._steps[-1].X, seen.signal.X)
        if self.everything:  # a batch that is the whole data set
            self._steps.clear()
        room = self.samples - self.rows
        if room < 1:
            return
        if not self._steps:
            self.idle = bool(self.alive.all()) and _States.of_rows(seen, self.alive, self.dormant).little_to_do
        loss, price = (None, 0.0) if self.idle else (self._loss(seen, batch), price_of_activity(seen))
        step = _Step(seen.signal.X, seen.signal.G, loss, price)
        self._steps.append(step if len(step.X) <= room else step.first(room))

    def _loss(self, seen: Sighting, batch: Any) -> Loss | None:
        """The loss of a step, where it is one of the block's outputs that is known."""
        # Steps are joined, and one whose loss is not known hides that of all of them.
        if seen.dropout or any(step.loss is None for step in self._steps):
            return None
        outputs = chunked_outputs(seen.block, seen.signal.X)
        leaves = tensors_of(batch)
        loss = None if self._recipe is None else self._recipe.loss_with_gradient(leaves, outputs, seen.signal.G)
        if loss is None and self._unrecognised < _ATTEMPTS:
            loss = recognise(outputs, seen.signal.G, leaves).loss
            # Of an inner block it never is, and to see that takes as long as many steps.
            self._unrecognised = 0 if loss is not None else self._unrecognised + 1
            if loss is not None:
                self._recipe = Recipe.of(seen.signal.X, loss, leaves, len(outputs))
        return loss

    def find(self, alive: Tensor) -> NewPlaces | None:
        """The neurons that do nothing, and where they gain most.

        Args:
            alive: Neurons that were active on some rank since the last revival, bool, shape ``(I,)``.

        Returns:
            What to do; None where nothing was seen.
        """
        if self.live is None or not self._steps:
            return None
        rows = _together(self._steps)
        block = self.live()
        states = _States.of(block, rows.X, alive.to(block.W.device), self.dormant)
        silent = torch.cat([states.dead, states.duplicate])
        if self.idle or states.little_to_do:
            return _nothing(block, states)
        # Where there is more to gain than by neurons that do nothing at all.
        found = _searched(block, rows, states, torch.cat([silent, states.dormant]), self.everything)
        sizes = dict.fromkeys(len(silent) + len(states.dormant) // 2**halving for halving in range(_TRIES))
        best = _best_of(block, rows, states, found, [*sizes, len(silent)])
        if best is None and len(silent) and len(states.dormant):
            best = _best_of(block, rows, states, _searched(block, rows, states, silent, self.everything), [len(silent)])
        if best is not None:
            return best
        return _nothing(block, states)

    def forget_rows(self) -> None:
        """Keep no rows that are long past when it is time."""
        self._steps.clear()
        self.idle = False

    def begin_again(self) -> None:
        """Forget the rows and the activity: another window begins."""
        self.forget_rows()
        self.alive = None

    def _compare(self, active: Tensor) -> None:
        """Whether gradients say what was seen: a penalty on the weights gives one to silent neurons as well."""
        bias = None if self.live is None else self.live.hidden_bias
        if bias is None or bias.grad is None or bool(active.all()):
            return
        if bool((bias.grad[~active] != 0).all()):
            self._gradients_tell = False
            self.alive = None


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Rows of one step or several: inputs ``(N, d)``, gradients ``(N, J)``, their loss, and the price of activity."""

    X: Tensor
    G: Tensor
    loss: Loss | None
    price: float

    def first(self, count: int) -> _Step:
        """The first rows, as if they were all."""
        weight = len(self.X) / count
        index = torch.arange(count, device=self.X.device)
        loss = None if self.loss is None else self.loss.rows(index).scaled(weight)
        return _Step(self.X[:count], weight * self.G[:count], loss, self.price)


def _alike(step: _Step, seen: Sighting) -> bool:
    """Whether rows have as many inputs and outputs as those of a step."""
    return (step.X.shape[1], step.G.shape[1]) == (seen.inputs, seen.outputs)


def _same(X: Tensor, other: Tensor) -> bool:
    return X.shape == other.shape and torch.equal(X, other)


def _together(steps: list[_Step]) -> _Step:
    """The mean over several steps as one."""
    share = [len(step.X) / sum(len(step.X) for step in steps) for step in steps]
    X = torch.cat([step.X for step in steps])
    G = torch.cat([weight * step.G for weight, step in zip(share, steps, strict=True)])
    losses = [step.loss for step in steps]
    loss = None
    if all(one is not None for one in losses):
        try:
            loss = joined([one for one in losses if one is not None], share)
        except ValueError:  # of different kinds
            loss = None
    price = sum(weight * step.price for weight, step in zip(share, steps, strict=True))
    return _Step(X, G, loss, price)


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    """Neurons that do nothing, long: dead; dormant, the least first; and such as repeat another, with that one."""

    dead: Tensor
    dormant: Tensor
    duplicate: Tensor
    repeated: Tensor
    width: int

    @classmethod
    def of(cls, block: ShallowBlock, X: Tensor, alive: Tensor, tau: float) -> _States:
        """The states on some rows, for neurons known to be alive besides."""
        active = torch.zeros_like(alive)
        activation = torch.zeros(len(alive), dtype=torch.float64, device=alive.device)
        for part in torch.split(X, chunk_rows(block)):
            A = rho(part @ block.W.T, block.slopes)
            active |= (A != 0).any(dim=0)
            activation += A.abs().sum(dim=0)
        dead = ~alive & ~active
        # A neuron that was active in other rows than these is rare, and not small.
        small = active & (activation <= tau * activation.mean())
        into = torch.full_like(alive, -1, dtype=torch.long)
        affordable = block.W.is_cuda or len(alive) ** 2 * X.shape[1] <= _PAIRS_ON_CPU
        # Where all output weights are kept at one length, none can take over another's.
        if affordable and output_length(block) is None:
            into = repeated_neurons(block, active & ~small)
        duplicate = (into >= 0).nonzero().squeeze(1)
        dormant = small.nonzero().squeeze(1)
        dormant = dormant[activation[dormant].argsort(stable=True)]
        return cls(dead.nonzero().squeeze(1), dormant, duplicate, into[duplicate], len(alive))

    @classmethod
    def of_rows(cls, seen: Sighting, alive: Tensor, tau: float) -> _States:
        """The states on the first rows of a step."""
        return cls.of(seen.block, seen.signal.X[:_FIRST], alive, tau)

    @property
    def little_to_do(self) -> bool:
        """Whether nobody is silent, and few are dormant: not worth a search."""
        silent = len(self.dead) + len(self.duplicate)
        return silent == 0 and len(self.dormant) < _WORTH * self.width

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of each kind."""
        return len(self.dead), len(self.dormant), len(self.duplicate)


def _nothing(block: ShallowBlock, states: _States) -> NewPlaces:
    """Nobody is placed anew."""
    nobody = states.dead[:0]
    none = Placement(nobody, block.W[nobody], block.H[:, nobody], block.W[nobody, 0], drop=0.0, function_change=0.0)
    return NewPlaces(none, nobody, nobody, states.counts)


def _searched(block: ShallowBlock, rows: _Step, states: _States, units: Tensor, everything: bool) -> Placement:
    """Where some neurons gain most, duplicates among them having handed their output weights over."""
    without = merge_units(block, states.duplicate, states.repeated)
    return place_units(without, units, BlockSignal(rows.X, rows.G), rows.loss, rows.price, everything)


def _best_of(block: ShallowBlock, rows: _Step, states: _States, found: Placement, sizes: list[int]) -> NewPlaces | None:
    """The best of a placement's first neurons, so many or so many; None where none of them may be placed."""
    best = None
    for size in dict.fromkeys(min(size, len(found.units)) for size in sizes):
        one = _evaluated(block, rows, states, found.first(size)) if size else None
        if one is not None and one.better_than(best):
            best = one
    return best


def _evaluated(block: ShallowBlock, rows: _Step, states: _States, placement: Placement) -> NewPlaces | None:
    """A placement whose drop is evaluated, where it lowers the loss or leaves the function; else None."""
    duplicate, into = states.duplicate, states.repeated
    gone = torch.isin(duplicate, placement.units)
    duplicate, into = duplicate[gone], into[gone]
    moved = torch.cat([placement.units, torch.unique(into)])
    old = _part(block, moved)
    new = _part(placement.applied_to(merge_units(block, duplicate, into)), moved)
    outputs = chunked_outputs(block, rows.X)
    change = chunked_outputs(new, rows.X) - chunked_outputs(old, rows.X)
    drop = 0.0
    if rows.loss is None:
        small = float(change.norm()) <= _UNSEEN * float(outputs.norm())
        allowed = small or not bool(change.any())
    else:
        costs = rows.price * (_activity(new, rows.X) - _activity(old, rows.X))
        drop = -float(rows.loss.change(outputs, change)) - costs
        allowed = drop > 0
    if not allowed:
        return None
    placement = replace(placement, drop=drop, function_change=float(change.abs().max()))
    return NewPlaces(placement, duplicate, into, states.counts)


def _part(block: ShallowBlock, units: Tensor) -> ShallowBlock:
    """What some neurons add to the outputs."""
    return ShallowBlock(block.W[units], block.H[:, units], block.slopes)


def _activity(block: ShallowBlock, X: Tensor) -> float:
    """The mean activation of all neurons together."""
    return sum(
        float(rho(part @ block.W.T, block.slopes).abs().sum()) for part in torch.split(X, chunk_rows(block))
    ) / len(X)
