"""What the processes of a run agree on: a collective that not all of them enter stops the run for ever."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import torch
from lightning.pytorch import Trainer

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


def of_first_rank(trainer: Trainer, value: Value) -> Value:
    """The value of the first rank, its tensors on the device of this one. A collective: every rank must call it.

    Args:
        trainer: The trainer.
        value: This rank's, which can be pickled.

    Returns:
        That of the first rank.

    Example:
        >>> of_first_rank(Trainer(barebones=True, accelerator="cpu"), "alone")
        'alone'
    """
    if trainer.world_size == 1:
        return value
    held = io.BytesIO()
    if trainer.is_global_zero:
        torch.save(value, held)
    # As bytes: tensors that are pickled come to the device of the first rank on all of them.
    sent = io.BytesIO(trainer.strategy.broadcast(held.getvalue()))
    theirs: Value = torch.load(sent, map_location=trainer.strategy.root_device, weights_only=False)
    return theirs


class Later:
    """A context in which an exception waits, until all ranks know of it: it is then one on all of them.

    Example:
        >>> later = Later()
        >>> with later:
        ...     1 / 0
        >>> later.settle()
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

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
        """Raise the exception that waits, on this rank or another. A collective: every rank must call it.

        Raises:
            FailedElsewhereError: If there is none on this rank.
        """
        error = self._error
        failure = _failure_of_any("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if failure:
            raise FailedElsewhereError(failure)


class FailedElsewhereError(RuntimeError):
    """What failed on another process, so that it is not done on this one either.

    Example:
        >>> raise FailedElsewhereError("on another process, MemoryError: out of memory")
        Traceback (most recent call last):
        relu_diag.training.ranks.FailedElsewhereError: on another process, MemoryError: out of memory
    """


def on_all_ranks(task: Callable[[], Value]) -> Value:
    """Do something that every rank does. A collective: an error on one rank is one on all of them.

    Args:
        task: What to do, without a collective in which another rank would be left waiting.

    Returns:
        What it returns on this rank.

    Example:
        >>> on_all_ranks(lambda: 1)
        1
    """
    later = Later()
    with later:
        value = task()
    later.settle()
    return value


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
    if off_together(careful):
        return []
    everyone = of_all_ranks(dict(known))
    return [name for name, what in everyone[0].items() if all(theirs.get(name) == what for theirs in everyone)]


def off_together(careful: Careful) -> bool:
    """Switch off where any rank is off. A collective: every rank must call it, those that are off too.

    Args:
        careful: It is off after the call where that of any rank is.

    Returns:
        Whether it is off.

    Example:
        >>> off_together(Careful("Monitor"))
        False
    """
    off = _failure_of_any(careful.off)
    if off and not careful.off:
        careful.switch_off(off)
    return bool(off)


def _failure_of_any(own: str) -> str:
    """The reason why this rank has failed, or else another one; empty where none has. A collective."""
    failures = of_all_ranks(own)
    return own or next((f"on another process, {failure}" for failure in failures if failure), "")
