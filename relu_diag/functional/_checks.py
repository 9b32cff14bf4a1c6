"""What every tensor must be before anything is computed from it; errors say what to do."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from relu_diag.functional.errors import NotFiniteError


def check_matrix(name: str, value: Tensor) -> None:
    """Refuse what is not a finite floating-point matrix.

    Args:
        name: Name of the argument, for the message.
        value: The argument.

    Raises:
        ValueError: If it has not two dimensions, or no entry.
    """
    check_values(name, value)
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(
            f"`{name}` must be a matrix with at least one row and column; got {tuple(value.shape)}. "
            "A vector v becomes one as v[:, None]."
        )


def check_values(name: str, value: Tensor) -> None:
    """Refuse what is not a tensor of finite floating-point numbers.

    Args:
        name: Name of the argument, for the message.
        value: The argument.

    Raises:
        TypeError: If it is no tensor, or not floating point.
        NotFiniteError: If a value is not finite.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(value).__name__}. Use torch.as_tensor.")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point; got {value.dtype}. Convert it with {name}.float().")
    # A finite sum proves finite entries with one read; only a sum that is not needs the closer look.
    if value.device.type == "meta" or math.isfinite(value.detach().sum()):
        return
    if not bool(torch.isfinite(value).all()):
        raise NotFiniteError(
            f"`{name}` has NaN or infinite entries: the training diverged, or the data needs cleaning."
        )


def check_together(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors that cannot be multiplied.

    Args:
        name: Name of the argument, for the message.
        value: The argument.
        other_name: Name of the tensor it must fit.
        other: That tensor.

    Raises:
        ValueError: If their devices or dtypes differ.
    """
    if value.device != other.device:
        raise ValueError(
            f"`{name}` is on {value.device}, `{other_name}` on {other.device}: "
            f"move one, {name}.to({str(other.device)!r})."
        )
    if value.dtype != other.dtype:
        raise ValueError(
            f"`{name}` is {value.dtype}, `{other_name}` is {other.dtype}: convert one, {name}.to({other.dtype})."
        )


def is_number(value: object) -> bool:
    """Whether an argument is one real number: a string or a list is refused by its name, not by an operator's error.

    Args:
        value: The argument.

    Returns:
        True for numbers, infinite ones and tensors of one element among them.
    """
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def is_count(value: object, least: int = 1) -> bool:
    """Whether an argument is a whole number, large enough.

    Args:
        value: The argument.
        least: The smallest one allowed.

    Returns:
        True for such numbers, not for True and False.
    """
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def check_slopes(slopes: tuple[float, float]) -> None:
    """Refuse slopes that make no kink.

    Args:
        slopes: ``(s-, s+)``.

    Raises:
        TypeError: If they are not a pair of numbers.
        ValueError: If one is not finite, or they are equal.
    """
    if not (isinstance(slopes, tuple) and len(slopes) == 2 and all(isinstance(s, int | float) for s in slopes)):
        raise TypeError(f"`slopes` must be a pair of numbers (s-, s+); got {slopes!r}.")
    if not all(math.isfinite(s) for s in slopes):
        raise ValueError(f"`slopes` must be finite; got {slopes!r}.")
    if slopes[0] == slopes[1]:
        raise ValueError(f"`slopes` must differ; with {slopes!r} the block is linear and has no kink.")
