"""What is to be done to a block at a revival: which neurons are placed anew, and which hand their weights over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relu_diag.functional.widening import Placement


@dataclass(frozen=True, slots=True, eq=False)
class NewPlaces:
    """What is to be done to a block, the same on all ranks.

    Attributes:
        placement: The neurons and their new weights.
        merged: Neurons that hand their output weights over, long, shape ``(n,)``.
        into: Neurons that get them, long, shape ``(n,)``.
        counts: Numbers of neurons found: dead, dormant, duplicate.
        in_vain: Neurons for which no place was found, bool, shape ``(I,)``; None where none was looked for.

    Example:
        >>> import torch
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
    in_vain: Tensor | None = None

    def better_than(self, other: NewPlaces | None) -> bool:
        """Whether the loss falls by more than with another choice, or by as much with more neurons."""
        if other is None:
            return True
        mine, theirs = self.placement, other.placement
        return mine.drop > theirs.drop or (mine.drop == theirs.drop and len(mine.units) > len(theirs.units))
