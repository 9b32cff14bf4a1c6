"""Small dense algebra in numpy that all rooms share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from relu_diag.functional.tolerances import FLOAT64

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]


def row_space(X: Array) -> Array:
    """An orthonormal basis of the span of the rows ``(m, d)``, shape ``(rank, d)``."""
    if len(X) < 2:
        return unit_rows(X[np.linalg.norm(X, axis=1) > 0])
    _, singular, rows = np.linalg.svd(X, full_matrices=False)
    return np.asarray(rows[singular > FLOAT64.rank * singular[0]])


def unit_rows(V: Array) -> Array:
    """Rows ``(..., d)`` scaled to length 1, zero rows as they are."""
    norm = np.linalg.norm(V, axis=-1, keepdims=True)
    return np.asarray(V / np.where(norm > 0, norm, 1.0))


def rounded_key(V: Array) -> bytes:
    """A key for an array, the same where all numbers differ by rounding, unless that crosses a cut of the digits."""
    return (V.round(12) + 0.0).tobytes()


def classes(V: Array, apart: float, opposite: bool = False) -> tuple[Index, Index]:
    """The representative of every class of rows ``(n, d)`` closer than a distance, and the class of each row.

    The same classes whatever the order of the rows; with `opposite` a row and its negative are one.
    """
    count = len(V)
    if count < 2:
        return np.arange(count), np.arange(count)
    # Close rows are close in any projection: one sort leaves only short runs to compare pair by pair.
    along = V @ np.random.default_rng(0).standard_normal(V.shape[1])
    key = np.abs(along) if opposite else along
    order = key.argsort(kind="stable")
    gaps = np.diff(key[order]) > 10 * apart * math.sqrt(V.shape[1])
    chosen = order.copy()
    if not gaps.all():
        for run in np.split(np.arange(count), np.flatnonzero(gaps) + 1):
            _name_by_first(V[order[run]], order[run], chosen[run[0] : run[-1] + 1], apart, opposite)
    label = np.empty(count, dtype=np.intp)
    label[order] = chosen
    first, inverse = np.unique(label, return_inverse=True)
    return first, inverse


def _name_by_first(rows: Array, names: Index, chosen: Index, apart: float, opposite: bool) -> None:
    """Overwrite the choices of some rows: each is the name of the first row that it is close to."""
    rest = np.arange(len(rows))
    while len(rest) > 1:
        one = rows[rest[0]]
        sign = np.where(rows[rest] @ one < 0, -1.0, 1.0)[:, None] if opposite else 1.0
        same = np.linalg.norm(rows[rest] - sign * one, axis=1) <= apart
        same[0] = True
        chosen[rest[same]] = names[rest[0]]
        rest = rest[~same]
