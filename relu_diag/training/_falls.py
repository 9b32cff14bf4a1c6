"""By how much wider blocks lower the loss of a block in training, on the rows by which neurons are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from relu_diag.functional import ShallowBlock, WeightDecay
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.widening import Network
from relu_diag.training._sample import weights_behind
from relu_diag.training._training_data import Chain, TrainingData

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Last(Generic[Key, Value]):
    """Remembers the last value that was computed, and the object of which it is."""

    def __init__(self) -> None:
        self._known: tuple[Key, Value] | None = None

    def of(self, key: Key, compute: Callable[[Key], Value]) -> Value:
        """The value of an object."""
        if self._known is None or self._known[0] is not key:
            self._known = key, compute(key)
        return self._known[1]


@dataclass(frozen=True, slots=True, eq=False)
class Falls:
    """Measures falls from a block on rows in their order, weight decay being part of what falls.

    Attributes:
        block: The block before.
        data: The rows.
        decay: Weight decay that is a part of the loss.
        outputs: Outputs of the block, float64, shape ``(N, J)``.
    """

    block: ShallowBlock
    data: TrainingData
    decay: WeightDecay
    outputs: Tensor
    _last_change: _Last[ShallowBlock, Tensor] = field(default_factory=_Last)
    _last_fall: _Last[Tensor, float] = field(default_factory=_Last)

    @classmethod
    def of(cls, block: ShallowBlock, data: TrainingData, decay: WeightDecay) -> Falls:
        """The falls from a block.

        Args:
            block: The block.
            data: The rows.
            decay: Weight decay that is a part of the loss.

        Returns:
            Them, the outputs computed once.
        """
        with torch.no_grad():
            outputs = chunked_outputs(block, data.X).double()
        return cls(block, data, decay, outputs)

    @property
    def chain(self) -> Chain:
        """The network that the block is in, or is."""
        data = self.data
        return data.chain or Chain(("",), Network.of([self.block]), data)

    def __call__(self, wider: ShallowBlock) -> float:
        """By how much a wider block lowers the loss, decay included."""
        rise = float(self.decay.cost(wider.double())) - float(self.decay.cost(self.block.double()))
        return self.of_loss(self.change(wider)) - rise

    def of_loss(self, change: Tensor) -> float:
        """By how much the loss alone falls with a change of the outputs ``(N, J)``."""
        return self._last_fall.of(change, self._fall)

    def _fall(self, change: Tensor) -> float:
        """The same, computed."""
        loss, outputs = self.data.loss, self.outputs
        # A difference of losses would cancel. Through large layers float64 takes as long as steps of training.
        if len(outputs) * weights_behind(loss) > BUDGETS.products_behind:
            return 0.0 - float(loss.change(outputs.to(self.data.X), change.to(self.data.X)))
        return 0.0 - float(loss.double().change(outputs, change))

    def to_first_order(self, change: Tensor) -> float:
        """The same, to first order."""
        gradient = self.data.loss.gradient(self.outputs.to(self.data.X))
        return 0.0 - float((gradient * change).sum())

    def change(self, wider: ShallowBlock) -> Tensor:
        """By what a wider block changes the outputs, float64, shape ``(N, J)``."""
        return self._last_change.of(wider, self._changed)

    def _changed(self, wider: ShallowBlock) -> Tensor:
        """The same, computed."""
        old = self.block
        width = len(old.W)
        X = self.data.X
        with torch.no_grad():
            same = torch.equal(wider.W[:width], old.W) and torch.equal(wider.H[:, :width], old.H)
            if len(wider.W) == width or not same:
                return chunked_outputs(wider.double(), X) - chunked_outputs(old.double(), X)
            # The old neurons are as they were.
            added = ShallowBlock(wider.W[width:], wider.H[:, width:], wider.slopes)
            return chunked_outputs(added.double(), X)
