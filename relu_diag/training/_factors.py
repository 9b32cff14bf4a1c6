"""What the loss of one step is multiplied by, compared with that of another: it grows with time, or with the batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from relu_diag.training._data import SAME

# Factors of so many steps that only rise, or only fall, do so with time: those of batches have no order.
_ENOUGH = 5


class Factors:
    """Factors of the losses of steps, in the order of the steps.

    Example:
        >>> factors = Factors()
        >>> for factor in (1.0, 1.1, 1.2, 1.3, 1.4):
        ...     factors.note(factor)
        >>> factors.follow_time
        True
    """

    def __init__(self) -> None:
        self._last: list[float] = []

    def note(self, factor: float) -> None:
        """Add the factor of a step.

        Args:
            factor: The factor, in units of that of the first step.
        """
        self._last = [*self._last[-_ENOUGH:], factor]

    @property
    def follow_time(self) -> bool:
        """Whether they rise, or fall, with time."""
        return len(self._last) >= _ENOUGH and in_order(self._last)


def in_order(factors: Sequence[float]) -> bool:
    """Whether factors only rise, or only fall.

    Args:
        factors: The factors.

    Returns:
        Whether they do, by more than their rounding.

    Example:
        >>> in_order([1.0, 2.0, 4.0]), in_order([1.0, 2.0, 2.0])
        (True, False)
    """
    ratios = [after / before for before, after in pairwise(factors)]
    return all(ratio > 1 + SAME for ratio in ratios) or all(ratio < 1 - SAME for ratio in ratios)
