"""Small dense algebra in numpy that all rooms share."""

from __future__ import annotations

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
    """Rows ``(n, d)`` scaled to length 1, zero rows as they are."""
    norm = np.linalg.norm(V, axis=1, keepdims=True)
    return np.asarray(V / np.where(norm > 0, norm, 1.0))
