"""Neurons chosen to be added to a block in training, and the reason why none is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from relu_diag.functional import GrowthProposal, ShallowBlock, Widening


class NoWidening(Exception):
    """The reason why no neuron is added.

    Example:
        >>> raise NoWidening("no new neuron lowers the loss")
        Traceback (most recent call last):
        relu_diag.training.widening_choice.NoWidening: no new neuron lowers the loss
    """


@dataclass(frozen=True, slots=True, eq=False)
class WideningChoice:
    """Neurons to add, one step after the other.

    Attributes:
        parts: One neuron at a time, or several; each is made for the block with the neurons before it.
        verdict: Kind of the widened weights; "undecided" if the loss is not known to be convex in the outputs, or a
            verdict on so many would take long.
        function_change: Largest change of an output on the data.
        predicted_drop: First-order prediction of the drop of the loss.
        measured_drop: Drop of the loss as evaluated; 0 where the function is kept.

    Example:
        >>> WideningChoice((), "", function_change=0.0, predicted_drop=0.0, measured_drop=0.0).units
        0
    """

    parts: tuple[GrowthProposal | Widening, ...]
    verdict: str
    function_change: float
    predicted_drop: float
    measured_drop: float

    @property
    def units(self) -> int:
        """Number of new neurons."""
        return sum(_count(part) for part in self.parts)

    @property
    def embedding(self) -> tuple[str, ...]:
        """What is done, one line for each new neuron."""
        return tuple(line for part in self.parts for line in _lines(part))

    def embed(self, block: ShallowBlock, live: ShallowBlock) -> ShallowBlock:
        """Add the neurons to the live block, or in the same way to an averaged copy of it.

        Args:
            block: The block to widen.
            live: The block for which the choice was made.

        Returns:
            The wider block.
        """
        if block.W.shape == live.W.shape and torch.equal(block.W, live.W) and torch.equal(block.H, live.H):
            return self.parts[-1].new_block
        for part in self.parts:
            block = part.embed(block)
        return block


def _count(part: GrowthProposal | Widening) -> int:
    """Number of neurons of a part."""
    return part.units if isinstance(part, Widening) else 1


def _lines(part: GrowthProposal | Widening) -> list[str]:
    """What a part adds, one line for each of its neurons."""
    if not isinstance(part, Widening):
        return [part.what]
    return part.units * [f"new neuron, {part.kind}{', silent at first' if part.kept else ''}"]
