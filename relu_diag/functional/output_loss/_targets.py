"""Targets, weights and constants of losses: what they may be, and how those of several batches become one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relu_diag.functional._checks import check_matrix, check_values, is_number
from relu_diag.functional.tolerances import FLOAT64


def as_targets(name: str, value: Tensor) -> Tensor:
    """Targets as a finite floating-point matrix ``(N, J)``; a vector is one output."""
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        value = value.to(torch.get_default_dtype())
    if isinstance(value, Tensor) and value.ndim == 1:
        value = value[:, None]
    check_matrix(name, value)
    return value.detach()


def as_weights(name: str, value: Tensor, targets: Tensor, by_output: bool) -> Tensor:
    """Weights as ``(N, 1)`` or ``(N, J)``; a vector has one number per sample, or per output where `by_output`.

    Raises:
        ValueError: If there are more or fewer, or one is negative.
    """
    if isinstance(value, Tensor) and not value.is_floating_point():
        value = value.to(targets.dtype)
    check_values(name, value)
    check_not_negative(name, value)
    samples, outputs = targets.shape
    shape = tuple(value.shape)
    if by_output and outputs > 1 and shape == (outputs,):
        return value.detach().expand(samples, outputs)
    if shape == (samples,):
        return value.detach()[:, None]
    if shape in {(samples, 1), (samples, outputs)}:
        return value.detach()
    if by_output and shape in {(), (1,), (1, outputs)}:
        return value.detach().expand(samples, outputs)
    raise ValueError(
        f"`{name}` needs one number per sample, shape ({samples},), or per number, ({samples}, {outputs}); got {shape}."
    )


def check_not_negative(name: str, value: Tensor) -> None:
    """Refuse negative weights: the loss would not be convex.

    Raises:
        ValueError: If there is one.
    """
    if bool((value < 0).any()):
        raise ValueError(f"`{name}` must not be negative. Write a loss with such weights as an OutputLoss.")


def check_constants(reduction: str, known: tuple[str, ...], factor: float) -> None:
    """Refuse unknown reductions and factors.

    Raises:
        ValueError: If there is one.
    """
    if reduction not in known:
        raise ValueError(f"`reduction` must be one of {list(known)}; got {reduction!r}.")
    if not (is_number(factor) and math.isfinite(factor) and factor >= 0):
        raise ValueError(f"`factor` must be finite and not negative; got {factor!r}.")


def check_outputs(outputs: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse outputs that the targets do not fit.

    Raises:
        ValueError: If the shapes differ.
    """
    if tuple(outputs.shape) != shape:
        raise ValueError(f"`outputs` needs one row per sample and the targets' columns, {shape}; got "
                         f"{tuple(outputs.shape)}.")  # fmt: skip


def one_over_whole(value: float, tol: float = 4 * FLOAT64.eps) -> float:
    """One over a whole number, as of a mean, where rounding allows: the same in any order of the samples."""
    if not value or not math.isfinite(1 / value):
        return value
    whole = round(1 / value)
    return 1 / whole if whole and abs(whole * value - 1) <= tol else value


def joined_weights(parts: list[Tensor | None], scales: list[float], targets: list[Tensor]) -> Tensor | None:
    """One weight a row, or a number, of losses with different scales; None where all are one."""
    if all(part is None for part in parts) and all(scale == 1 for scale in scales):
        return None
    rows = [
        scale * (own.new_ones(len(own), 1) if part is None else part)
        for part, scale, own in zip(parts, scales, targets, strict=True)
    ]
    columns = max(row.shape[1] for row in rows)
    return torch.cat([row.expand(-1, columns) for row in rows])


def check_same(name: str, values: list[Any]) -> None:
    """Refuse to join losses whose constants differ.

    Raises:
        ValueError: If they do.
    """
    first = values[0]
    for value in values[1:]:
        if isinstance(first, Tensor) and isinstance(value, Tensor):
            same = torch.equal(first, value)
        else:
            same = first is value or (not isinstance(value, Tensor) and first == value)
        if not same:
            raise ValueError(f"losses with different `{name}` cannot be joined; got {first!r} and {value!r}.")
