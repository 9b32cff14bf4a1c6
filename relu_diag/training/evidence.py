"""What steps tell of their loss: outputs, gradients at them, and the tensors of the batches, put together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional.output_loss import Loss
from relu_diag.training._data import SAME

# Roundings of the outputs that the loss may be off by.
_ROUNDINGS = 8
# Numbers of a gradient below which further steps may tell more.
_FEW = 32
# Numbers of a gradient that tell that it is none of the known ones, and rows they are of at least.
_NUMBERS = 2**12
_FEW_ROWS = 8
# Steps after which none is waited for any more.
_MOST = 16


class Evidence:
    """Steps whose loss is not known yet. It is a function of the outputs alone, so that their weights may differ.

    Attributes:
        inputs: The inputs of each step, shape ``(N, d)``.

    Example:
        >>> Evidence().few
        True
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._leaves: list[list[Tensor]] = []
        self._losses: list[float | None] = []
        self._rounding = 0.0

    @classmethod
    def of_few(cls, seen: Sighting, leaves: list[Tensor]) -> Evidence:
        """A few rows of a step, which tell that its loss is none of those known, and not which it is.

        Args:
            seen: The block.
            leaves: The tensors of its batch.

        Returns:
            The evidence.
        """
        some = slice(max(_FEW_ROWS, _NUMBERS // seen.outputs))
        few = cls()
        few.inputs.append(seen.signal.X[some])
        few._outputs.append(seen.block(seen.signal.X[some]))
        few._gradients.append(seen.signal.G[some])
        few._leaves.append([leaf[some] if leaf.dim() and len(leaf) == seen.count else leaf for leaf in leaves])
        return few

    def add(self, seen: Sighting, loss: float | None, leaves: list[Tensor]) -> None:
        """Add a step.

        Args:
            seen: The block.
            loss: The loss.
            leaves: The tensors of its batch.
        """
        self.inputs.append(seen.signal.X.clone())
        self._outputs.append(seen.passed)
        self._gradients.append(seen.signal.G.clone())
        self._leaves.append([leaf.detach().clone() for leaf in leaves])
        self._losses.append(loss)
        self._rounding = max(self._rounding, seen.rounding)

    @property
    def few(self) -> bool:
        """Whether further steps may tell more: numbers are few, or all are the same, as of an absolute error."""
        if sum(G.numel() for G in self._gradients) < _FEW:
            return True
        return len(self._gradients) < _MOST and self.one_sided

    @property
    def one_sided(self) -> bool:
        """Whether all numbers of each gradient are the same: all targets are on one side of the outputs."""
        firsts = [G[0, 0] for G in self._gradients]
        return all(bool(one != 0) and bool(G.eq(one).all()) for one, G in zip(firsts, self._gradients, strict=True))

    @property
    def valued(self) -> bool:
        """Whether the loss of some step is known."""
        return any(loss is not None for loss in self._losses)

    @property
    def count(self) -> int:
        """Number of rows of the largest step."""
        return max(len(X) for X in self.inputs)

    def X(self) -> Tensor:
        """The inputs of all steps, shape ``(N, d)``."""
        return _below(self.inputs)

    def outputs(self) -> Tensor:
        """The outputs of all steps, shape ``(N, J)``."""
        return _below(self._outputs)

    def G(self) -> Tensor:
        """The gradients of all steps, shape ``(N, J)``; a step of fewer rows than another counts as its share."""
        if len(self._gradients) == 1:
            return self._gradients[0]
        return torch.cat([G * (len(G) / self.count) for G in self._gradients])

    def leaves(self) -> list[Tensor]:
        """The tensors of the batches, below each other where they fit."""
        if len(self._leaves) == 1:
            return self._leaves[0]
        together = []
        for parts in zip(*self._leaves, strict=False):
            if all(part.dim() and part.shape[1:] == parts[0].shape[1:] for part in parts):
                together.append(torch.cat(parts))
        return together

    def steps(self, loss: Loss) -> Iterator[tuple[Tensor, Loss]]:
        """The steps one by one.

        Args:
            loss: The loss of all of them.

        Yields:
            Inputs and loss of a step.
        """
        if len(self.inputs) == 1:
            yield self.inputs[0], loss
            return
        first = 0
        for X in self.inputs:
            rows = torch.arange(first, first + len(X), device=X.device)
            yield X, loss.rows(rows).scaled(self.count / len(X))
            first += len(X)

    def is_all(self, found: Loss) -> bool:
        """Whether a loss of the outputs is all of the loss of the steps, as far as rounding lets it be told.

        Args:
            found: The loss of all of them.

        Returns:
            Whether the values agree.
        """
        for outputs, loss, (_, own) in zip(self._outputs, self._losses, self.steps(found), strict=True):
            if loss is None:
                continue
            expected = float(own.double()(outputs.double()))
            # The outputs are known to rounding, and with them the loss.
            moved = float((own.gradient(outputs).double().abs() * (1 + outputs.double().abs())).sum()) * self._rounding
            if abs(loss - expected) > SAME * abs(expected) + _ROUNDINGS * moved:
                return False
        return True


def _below(parts: list[Tensor]) -> Tensor:
    """Rows below each other, without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
