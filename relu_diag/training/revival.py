"""Which neurons of a block in training do nothing, and where they would gain most: from rows of ridden steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relu_diag.capture import LiveBlock, Sighting
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.output_loss import (
    AbsoluteError,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    Poisson,
    SquaredError,
    recognise,
)
from relu_diag.training._data import tensors_of
from relu_diag.training._idle_neurons import Activity, IdleNeurons
from relu_diag.training._kept_for_revival import RevivalRows, together
from relu_diag.training._plain import from_plain, to_plain
from relu_diag.training._scene import Scene, nothing_new
from relu_diag.training._seen_for_revival import (
    active_neurons,
    obstacle_to_revival,
    outputs_on_rows,
    price_of_activity,
)
from relu_diag.training.new_places import NewPlaces
from relu_diag.training.recipe import Recipe, factor_between

# Rows by which it is seen whether a loss that is known goes on.
_CHECKED = 16
# Neurons that find a place, over those that find none, below which looking was in vain.
_FEW = 0.1
# Rows that are kept where nobody says how many, at least and at most.
_FEW_ROWS = 2**11
_ROWS = 2**13
# Between those, one of so many steps is ridden, and one of so many where few neurons are dead, up to a share of all:
# a revival then takes less than three of a hundred steps.
_STEPS_FOR_ONE = 32
_STEPS_FOR_ONE_OF_FEW = 64
_FEW_DEAD = 0.05
# Rows in the last part of a window from which on a neuron that is silent there counts as dead, whatever it was before.
_MANY_ROWS = 2**14
# Attempts to recognise a loss in a row before the next ones wait.
_ATTEMPTS = 3
# What a checkpoint does not hold: arguments, and parameters of the module.
_NOT_KEPT = {"hidden", "dormant", "live", "_samples", "_every_n_steps"}


@dataclass(frozen=True, slots=True)
class Revival:
    """Neurons of a block that were placed anew.

    Attributes:
        step: Gradient steps done.
        block: Name of the block's first layer.
        width: Number of neurons.
        dead: How many were silent since the last revival, or, where that is long ago, in the last quarter since.
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


class BlockRevival:
    """Keeps what is known of a block between two revivals.

    Args:
        hidden: Name of its first layer.
        samples: Number of rows to keep; None: 2,048 to 8,192, as many as one of 32 steps brings, half of them
            where few neurons are dead.
        dormant: A neuron counts as dormant up to so many times the mean activation of the layer.
        every_n_steps: Steps between two revivals.

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

    def __init__(self, hidden: str, samples: int | None, dormant: float, every_n_steps: int = 1) -> None:
        self.hidden = hidden
        self._samples = samples
        self._every_n_steps = every_n_steps
        self.dormant = dormant
        self.live: LiveBlock | None = None
        self.alive: Tensor | None = None
        self.reason = ""
        self.rows_a_step = 1
        self.everything = False
        self.idle = False
        self._few_dead = False
        self._gradients_tell = True
        self._recipe: Recipe | None = None
        self._recognition = _Pause(_ATTEMPTS)
        self._search = _Pause(1)
        # Neurons for which the last search found no place, bool, shape (I,).
        self._in_vain: Tensor | None = None
        self._steps: list[RevivalRows] = []
        self._is_taken_up = False

    @property
    def samples(self) -> int:
        """Number of rows to keep."""
        if self._samples is not None:
            return self._samples
        share = _STEPS_FOR_ONE_OF_FEW if self._few_dead else _STEPS_FOR_ONE
        affordable = self.rows_a_step * self._every_n_steps // share
        return min(max(affordable, _FEW_ROWS), _ROWS)

    @property
    def steps_needed(self) -> int:
        """Number of steps to ride for the rows of a revival."""
        return 2 if self.everything else -(-self.samples // self.rows_a_step)

    @property
    def rows(self) -> int:
        """Number of rows kept."""
        return sum(len(step.X) for step in self._steps)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the block, so that a run goes on as if it had not been stopped.

        Returns:
            Plain numbers and tensors; nothing where a loss is none that is known.
        """
        own = {name: value for name, value in vars(self).items() if name not in _NOT_KEPT}
        try:
            return dict(to_plain(own, _KINDS))
        except TypeError:
            return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        for name, value in from_plain(state, _KINDS).items():
            setattr(self, name, value)
        self._is_taken_up = bool(state)

    def show(self, seen: Sighting) -> bool:
        """Take up the parameters after a checkpoint, and which neurons were active in the step that shows them.

        Args:
            seen: The block, as the step saw it.

        Returns:
            Whether it is the first step after a checkpoint.
        """
        if self.live is not None or not self._is_taken_up or seen.live is None:
            return False
        device = seen.signal.X.device
        for name, value in from_plain(self.state_dict(), _KINDS, device).items():
            setattr(self, name, value)
        self.live = seen.live
        bias = seen.live.hidden_bias
        if bias is not None and bias.grad is not None and self._gradients_tell:
            self.note_gradients(scaled=True)
        else:
            self._note_active(active_neurons(seen))
        return True

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

    def note_last_part(self, steps: int) -> None:
        """Note that the last part of a window begins: what dies in a long one is found at its end, not at the next.

        Args:
            steps: Steps of the last part.
        """
        if self.rows_a_step * steps >= _MANY_ROWS:
            self.alive = None

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
        self._note_activity(seen)
        if self._steps and not self._steps[-1].are_like(seen):  # a layer before or behind was widened
            self.begin_again()
            self._recipe = None
            self.alive = active_neurons(seen)
        self.everything = bool(self._steps) and self._steps[-1].are_those_of(seen)
        if self.everything:  # a batch that is the whole data set
            self._steps.clear()
        if not self._steps and not self.everything:
            self.idle = self._has_little_to_do(seen)
            self._few_dead = self.alive is not None and int((~self.alive).sum()) <= _FEW_DEAD * len(self.alive)
        room = self.samples - self.rows
        if room < 1:
            return
        loss = None if self.idle else self._loss(seen, batch)
        price = self._price(seen)
        step = RevivalRows(seen.signal.X, seen.signal.G, loss, price)
        self._steps.append(step if len(step.X) <= room else step.first(room))

    def _note_activity(self, seen: Sighting) -> None:
        """Note which neurons are active in a step, where their gradients do not say so."""
        if self._steps and self._gradients_tell and seen.live is not None and seen.live.hidden_bias is not None:
            return
        active = active_neurons(seen)
        self._compare(active)
        self._note_active(active)

    def _note_active(self, active: Tensor) -> None:
        """Add neurons ``(I,)`` to those that were active since the last revival."""
        self.alive = active if self.alive is None else self.alive_of(len(active)) | active

    def _has_little_to_do(self, seen: Sighting) -> bool:
        """Whether the first rows of a window show nobody to place anew."""
        assert self.alive is not None
        known = self._in_vain
        waits = self._search.lasts and known is not None and len(known) == len(self.alive)
        if not waits and not bool(self.alive.all()):
            return False
        states = IdleNeurons.of(seen.block, Activity.of_first_rows(seen), self.alive, self.dormant)
        return states.little_to_do or (waits and known is not None and states.few_besides(known))

    def _price(self, seen: Sighting) -> float:
        """The price of activity, read once for a window."""
        if self.idle:
            return 0.0
        return self._steps[0].price if self._steps else price_of_activity(seen)

    def _loss(self, seen: Sighting, batch: Any) -> Loss | None:
        """The loss of a step, where it is one of the block's outputs that is known."""
        # Steps are joined, and one whose loss is not known hides that of all of them.
        if seen.dropout or any(step.loss is None for step in self._steps):
            return None
        leaves = tensors_of(batch)
        loss = self._known_loss(seen, leaves)
        if loss is not None:
            return loss
        if self._recognition.lasts:
            self._recognition.pass_by()
            return None
        outputs = chunked_outputs(seen.block, seen.signal.X)
        loss = recognise(outputs, seen.signal.G, leaves).loss
        # Of an inner block it never is, and to see that takes as long as many steps; but losses may change.
        self._recognition.note(loss is not None)
        if loss is not None:
            self._recipe = Recipe.of(seen.signal.X, loss, leaves, len(outputs))
        return loss

    def _known_loss(self, seen: Sighting, leaves: list[Tensor]) -> Loss | None:
        """The loss of the steps before with the targets of this one, where a few rows, or all of them, show it is."""
        count = len(seen.signal.X)
        loss = None if self._recipe is None else self._recipe.loss_of(leaves, count)
        if loss is None:
            return None
        some = torch.arange(0, count, max(1, count // _CHECKED), device=seen.signal.X.device)
        for index in (some, slice(None)):
            here = loss if isinstance(index, slice) else loss.rows(index)
            factor = factor_between(here, outputs_on_rows(seen, index), seen.signal.G[index])
            if factor > 0:
                return loss.scaled(factor)
        return None

    def find(self, alive: Tensor) -> NewPlaces | None:
        """The neurons that do nothing, and where they gain most.

        Args:
            alive: Neurons that were active on some rank since the last revival, bool, shape ``(I,)``.

        Returns:
            What to do; None where nothing was seen.
        """
        if self.live is None or not self._steps:
            return None
        rows = together(self._steps)
        block = self.live()
        activity = Activity.of(block, rows.X)
        states = IdleNeurons.of(block, activity, alive.to(block.W.device), self.dormant)
        if self.idle or states.little_to_do:
            return nothing_new(block, states)
        best = Scene(block, rows, states, activity.outputs, self.everything).best()
        return replace(best, in_vain=states.without(best.placement.units))

    def note(self, found: NewPlaces | None) -> None:
        """Note what a revival came to: neurons for which no place was found wait, longer and longer, for others.

        Args:
            found: Result of `find`, on whichever process.
        """
        if found is None or found.in_vain is None:
            self._search.pass_by()
            return
        self._in_vain = None if self.alive is None else found.in_vain.to(self.alive.device)
        self._search.note(worth=len(found.placement.units) >= _FEW * int(found.in_vain.sum()))

    def look_anew(self) -> None:
        """After a jump of the loss: what was in vain may not be any more."""
        self._search = _Pause(1)
        self.begin_again()

    def forget_rows(self) -> None:
        """Keep no rows that are long past when it is time."""
        self._steps.clear()
        self.idle = False
        self._few_dead = False

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


class _Pause:
    """Gaps in which something is not tried, after so many times in vain, and twice as long each time."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._failures = 0
        self._left = 0

    @property
    def lasts(self) -> bool:
        """Whether a gap is not over."""
        return self._left > 0

    def pass_by(self) -> None:
        """Let one part of a gap go by."""
        self._left = max(0, self._left - 1)

    def note(self, worth: bool) -> None:
        """Begin the next gap, none where it was worth it."""
        self._failures = 0 if worth else self._failures + 1
        self._left = 2 ** (self._failures - self._patience) if self._failures >= self._patience else 0


# What the state of a block is made of.
_KINDS = (
    RevivalRows,
    Recipe,
    _Pause,
    AbsoluteError,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Poisson,
    SquaredError,
)
