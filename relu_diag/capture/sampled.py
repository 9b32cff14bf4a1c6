"""Sums over sampled steps of training, whose weights move: gradients of all rows, the rest of some rows of each step.

Autograd has the two large products of a step, and the extremes of all rows say which neurons are silent. What remains
are means and their spread, for which some rows do. These are copied in the step, and worked on together at a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.capture.sighting import Sighting
from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.functional.local import NeuronSums, RunningSums
from relu_diag.functional.tolerances import kink_tolerance

# Numbers in the rows of a step that are copied, and rows that are copied at least.
_NUMBERS = 2**15
_FEWEST = 32
# Steps that wait for a report, and numbers in the rows of all of them.
_STEPS = 32
_WAITING = 2**22


def samples_cheaply(seen: Sighting) -> bool:
    """Whether a step has what its sums can be sampled from.

    Args:
        seen: The block in the step.

    Returns:
        Whether autograd has computed all gradients, and the extremes of all rows are at hand where only some are taken.

    Example:
        >>> from relu_diag.capture import riding
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> with riding(net) as ride:
        ...     loss = net(torch.eye(3)).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> samples_cheaply(seen)
        True
    """
    passed = seen.ridden.applications
    if any(one.gradients is None for one in passed):
        return False
    return seen.count <= _rows(seen) or all(one.extremes_known for one in passed)


class SampledSums:
    """Adds up sampled steps of one block.

    Example:
        >>> from relu_diag.capture import riding
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> sampled = SampledSums()
        >>> for _ in range(2):
        ...     with riding(net) as ride:
        ...         loss = net(torch.eye(3)).square().mean()
        ...         ride.board(loss)
        ...         loss.backward()
        ...         (seen,) = ride.end()
        ...     sampled.add(seen)
        >>> sampled.sums(seen.block).samples.item()
        6
    """

    def __init__(self) -> None:
        # Its memory serves one window after the other: fresh pages cost more than the arithmetic on them.
        self._steps: _Steps | None = None
        self._total: NeuronSums | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the sums were asked for."""
        return self._total is None and (self._steps is None or not self._steps.count)

    def add(self, seen: Sighting) -> None:
        """Add a step. The loss whose signal it is is the mean over its rows, and the sums are those of the sum.

        Args:
            seen: The block in the step, of the shape of the first one.
        """
        shape = _shape(seen)
        if self._steps is not None and (self._steps.full or self._steps.shape != shape):
            self._work(seen.block)
        if self._steps is None or self._steps.shape != shape:
            self._steps = _Steps(seen, shape)
        self._steps.add(seen)

    @property
    def takes_glimpses(self) -> bool:
        """Whether silent neurons are found by the extremes of all rows of a step, which a glance shows as well."""
        return self._steps is not None and bool(self._steps.lows)

    def add_extremes(self, lows: Sequence[Tensor], highs: Sequence[Tensor]) -> None:
        """Add extremes of pre-activations in further steps.

        Args:
            lows: Least ones of every neuron, shapes ``(I,)``.
            highs: Largest ones.
        """
        assert self._steps is not None
        self._steps.lows.extend(lows)
        self._steps.highs.extend(highs)

    def sums(self, block: ShallowBlock) -> NeuronSums:
        """What was added since the last call. Kinks are counted among the rows that were copied.

        Args:
            block: The weights of the last step.

        Returns:
            The sums.

        Raises:
            ValueError: If nothing was added.
        """
        self._work(block)
        total, self._total = self._total, None
        if total is None:
            raise ValueError("Nothing was added: there are no sums without a step.")
        return total

    def clear(self) -> None:
        """Forget what was added."""
        self._total = None
        if self._steps is not None:
            self._steps.clear()

    def _work(self, block: ShallowBlock) -> None:
        """Add up the steps that wait."""
        if self._steps is None or not self._steps.count:
            return
        sums = self._steps.sums(block)
        self._steps.clear()
        self._total = sums if self._total is None else self._total + sums


class _Steps:
    """Steps of one number of rows: copies of some rows of each, and what all their rows have in common."""

    def __init__(self, seen: Sighting, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.rows = min(_rows(seen), seen.count)
        numbers = self.rows * (seen.inputs + 2 * seen.neurons + seen.outputs)
        self.room = min(max(_WAITING // numbers, 1), _STEPS)
        weights = seen.ridden.weights
        self.by_W = torch.zeros_like(weights.W)
        self.by_bias = self.by_W.new_zeros(len(self.by_W))
        self.by_heads = [torch.zeros_like(head) for head in weights.heads]
        self.copies = seen.ridden.room(self.room * self.rows)
        self.parts = [self.copies.part(step * self.rows, (step + 1) * self.rows) for step in range(self.room)]
        self.clear()

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self.count = 0
        self.by_activations = False
        for total in (self.by_W, self.by_bias, *self.by_heads):
            total.zero_()
        # Extremes of the steps, put together at a report.
        self.lows: list[Tensor] = []
        self.highs: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether there is no room for one more of them."""
        return self.count == self.room

    def add(self, seen: Sighting) -> None:
        """Add a step."""
        seen.ridden.copy_rows(self.parts[self.count])
        self.count += 1
        for one in seen.ridden.applications:
            known = one.gradients
            assert known is not None
            # One call for all of them: in the middle of a training step each costs as much as the adding.
            totals = [self.by_W, self.by_bias, *self.by_heads]
            torch._foreach_add_(totals, [known.W, known.bias, *known.heads], alpha=one.factor)
            if self.rows < seen.count:
                low, high = one.extremes()
                self.lows.append(low)
                self.highs.append(high)
                self.by_activations |= one.by_activations

    def sums(self, block: ShallowBlock) -> NeuronSums:
        """The sums, at the last weights of the block."""
        count = self.shape[0]
        each = count / self.rows
        rows = self.copies.part(0, self.count * self.rows)
        X = rows.X
        by_W = self.by_W
        if block.W.shape[1] > by_W.shape[1]:
            X = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
            by_W = torch.cat([by_W, self.by_bias[:, None]], dim=1)
        gradients = by_W / each, torch.cat(self.by_heads) / each
        running = RunningSums()
        running.add(block, BlockSignal(X, rows.G, rows.C, rows.Z), weight=count * each, gradients=gradients)
        sums = running.sums()
        if self.lows:
            z_min, z_max = self._extremes(block, X, sums)
            sums = replace(sums, z_min=z_min, z_max=z_max)
        return replace(
            sums,
            activation=sums.activation * each,
            squares=sums.squares / each,
            samples=torch.tensor(self.count * count, device=X.device),
        )

    def _extremes(self, block: ShallowBlock, X: Tensor, sums: NeuronSums) -> tuple[Tensor, Tensor]:
        """Least and largest pre-activation of all rows, 0 on the kink, inputs ``x = 0`` left out, shapes ``(I,)``."""
        reach = kink_tolerance(None, block.W.dtype) * block.W.norm(dim=1) * X.norm(dim=1).max()
        extremes = torch.stack(self.lows).amin(0), torch.stack(self.highs).amax(0)
        low, high = (torch.where(one.abs() <= reach, 0.0, one).double() for one in extremes)
        # Without a bias a row may be zero, which is on no kink; an activation of 0 is that of all that is below it.
        unbiased = X.shape[1] == self.by_W.shape[1]
        high = torch.where((high == 0) & (unbiased or self.by_activations), sums.z_max, high.maximum(sums.z_max))
        low = torch.where((low == 0) & (unbiased and not self.by_activations), sums.z_min, low.minimum(sums.z_min))
        return low, high


def _shape(seen: Sighting) -> tuple[int, ...]:
    """Numbers of rows, inputs and neurons, and of outputs of each reader."""
    heads = [len(head) for head in seen.ridden.weights.heads]
    return seen.count, seen.inputs, seen.neurons, *heads


def _rows(seen: Sighting) -> int:
    """How many rows of a step are copied."""
    return max(_NUMBERS // (seen.inputs + seen.neurons), _FEWEST)
