"""Arguments of callbacks: what they must be, with the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException

_Function = TypeVar("_Function", bound=Callable[..., Any])


def check_count(name: str, value: object) -> int:
    """A positive whole number.

    Args:
        name: Name of the argument.
        value: What was given.

    Returns:
        The number.

    Raises:
        MisconfigurationException: If it is none.

    Example:
        >>> check_count("every_n_steps", 10)
        10
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MisconfigurationException(f"`{name}` must be a positive whole number; got {value!r}.")
    return value


def check_fraction(name: str, value: object) -> float:
    """A number between 0 and 1, neither of them.

    Args:
        name: Name of the argument.
        value: What was given.

    Returns:
        The number.

    Raises:
        MisconfigurationException: If it is none.

    Example:
        >>> check_fraction("drop", 0.01)
        0.01
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise MisconfigurationException(f"`{name}` must be in (0, 1), a fraction; got {value!r}.")
    return float(value)


def check_block(value: object, one: bool = False) -> None:
    """Names of blocks: None, a name or pattern, or several.

    Args:
        value: What was given.
        one: Whether it is one name at most.

    Raises:
        MisconfigurationException: If it is something else.

    Example:
        >>> check_block(["net.0", "encoder.*"])
    """
    names = value if isinstance(value, list | tuple | set) and not one else [value]
    if value is not None and not all(isinstance(name, str) for name in names):
        what = (
            "the name of a block's first layer" if one else "the name of a block's first layer, a pattern, or several"
        )
        raise MisconfigurationException(f"`block` must be {what}; got {value!r}.")


def check_flag(name: str, value: object) -> bool:
    """True or False.

    Args:
        name: Name of the argument.
        value: What was given.

    Returns:
        It.

    Raises:
        MisconfigurationException: If it is neither.

    Example:
        >>> check_flag("exact", True)
        True
    """
    if not isinstance(value, bool):
        raise MisconfigurationException(f"`{name}` must be True or False; got {value!r}.")
    return value


def check_callable(name: str, value: _Function | None) -> _Function | None:
    """A function, or None.

    Args:
        name: Name of the argument.
        value: What was given.

    Returns:
        It.

    Raises:
        MisconfigurationException: If it is neither.

    Example:
        >>> check_callable("loss", print)
        <built-in function print>
    """
    if value is not None and not callable(value):
        raise MisconfigurationException(f"`{name}` must be a function; got {value!r}.")
    return value


def check_iterable(name: str, value: Iterable[Any] | None) -> Iterable[Any] | None:
    """Something that can be gone through again and again, or None.

    Args:
        name: Name of the argument.
        value: What was given.

    Returns:
        It.

    Raises:
        MisconfigurationException: If it is neither.

    Example:
        >>> check_iterable("dataloader", [1, 2])
        [1, 2]
    """
    if value is not None and not isinstance(value, Iterable):
        raise MisconfigurationException(f"`{name}` must be a DataLoader or another iterable of batches; got {value!r}.")
    return value
