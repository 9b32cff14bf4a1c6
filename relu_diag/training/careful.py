"""Our own code around a user's run: its failures are told, and never end the run."""

from __future__ import annotations

from types import TracebackType

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn


class Careful:
    """A context in which an exception is one warning, after which its owner is off.

    Args:
        owner: Name of the callback.

    Attributes:
        off: The error that switched it off; empty while it is on.

    Example:
        >>> import warnings
        >>> careful = Careful("Monitor")
        >>> with warnings.catch_warnings(), careful:
        ...     warnings.simplefilter("ignore")
        ...     1 / 0
        >>> careful.off
        'ZeroDivisionError: division by zero'
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.off = ""

    def __enter__(self) -> Careful:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        # A refusal says what to do; of an error of ours the type belongs to the report.
        refused = isinstance(error, MisconfigurationException)
        self.switch_off(str(error) if refused else f"{type(error).__name__}: {error}")
        return True

    def switch_off(self, reason: str) -> None:
        """Switch the owner off, with a warning, unless it is off.

        Args:
            reason: Why.
        """
        if self.off:
            return
        self.off = reason
        rank_zero_warn(f"{self.owner} is off for the rest of the run, which goes on without it: {reason}")
