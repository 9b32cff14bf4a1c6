"""What a statement assumes, each assumption in one of three states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

State = Literal["holds", "broken", "assumed"]
_STATES: tuple[State, ...] = ("holds", "broken", "assumed")


class Assumptions(Mapping[str, State]):
    """The assumptions of a theorem: name to "holds", "broken", or "assumed" where nobody can check it here.

    Args:
        states: Name and state of each assumption.

    Raises:
        ValueError: If a state is not one of the three.

    Example:
        >>> assumptions = Assumptions({"slopes differ": "holds", "full data set": "assumed"})
        >>> assumptions["full data set"], assumptions.broken
        ('assumed', ())
        >>> print(assumptions)
        slopes differ: holds; full data set: assumed
    """

    __slots__ = ("_states",)

    def __init__(self, states: Mapping[str, State]) -> None:
        for name, state in states.items():
            if state not in _STATES:
                raise ValueError(f"an assumption is one of {', '.join(_STATES)}; got {state!r} for {name!r}.")
        self._states = dict(states)

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the assumptions that do not hold: where there is one, the statement says nothing."""
        return self._in("broken")

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of those that only the caller can know of."""
        return self._in("assumed")

    def __getitem__(self, name: str) -> State:
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __or__(self, other: Mapping[str, State]) -> Assumptions:
        return Assumptions({**self._states, **other})

    def __repr__(self) -> str:
        return f"Assumptions({self._states!r})"

    def __str__(self) -> str:
        return "; ".join(f"{name}: {state}" for name, state in self._states.items())

    def _in(self, state: State) -> tuple[str, ...]:
        return tuple(name for name, its in self._states.items() if its == state)


def checked(condition: bool) -> State:
    """The state of an assumption that was checked.

    Args:
        condition: What the check said.

    Returns:
        "holds" or "broken".

    Example:
        >>> checked(2 > 1)
        'holds'
    """
    return "holds" if condition else "broken"
