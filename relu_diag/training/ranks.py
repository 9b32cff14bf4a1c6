"""What the processes of a run agree on: a collective that not all of them enter stops the run for ever."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import torch

from relu_diag.training.careful import Careful

Value = TypeVar("Value")


def of_all_ranks(value: Value) -> Sequence[Value]:
    """The value of every rank. A collective: every rank must call it.

    Args:
        value: This rank's, which can be pickled.

    Returns:
        One value a rank, in their order.

    Example:
        >>> of_all_ranks("alone")
        ['alone']
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[Value] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


class Later:
    """A context in which an exception waits, while this rank goes on with what all ranks do together.

    Example:
        >>> later = Later()
        >>> with later:
        ...     1 / 0
        >>> of_all_ranks("here"), later.failed
        (['here'], True)
        >>> later.settle()
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether an exception waits."""
        return self._error is not None

    def __enter__(self) -> Later:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._error = self._error or error
        return True

    def settle(self) -> None:
        """Raise the exception that waits, if there is one: no collective of this task is left."""
        if self._error is not None:
            raise self._error


def agree(careful: Careful, known: Mapping[str, Hashable]) -> list[str]:
    """What all ranks know, the same way. A collective: every rank must call it, those that are off too.

    Args:
        careful: It is off after the call where that of any rank is.
        known: What this rank knows, by name, and what must be the same on all ranks.

    Returns:
        The names, in one order on all ranks; none where one of them is off.

    Example:
        >>> agree(Careful("Monitor"), {"net.0": (6, 3)})
        ['net.0']
    """
    everyone = of_all_ranks((careful.off, dict(known)))
    off = next((reason for reason, _ in everyone if reason), "")
    if off and not careful.off:
        careful.switch_off(f"on another process, {off}")
    if off:
        return []
    first = everyone[0][1]
    return [name for name, what in first.items() if all(theirs.get(name) == what for _, theirs in everyone)]
