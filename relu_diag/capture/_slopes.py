"""The slopes of an activation without a name, off the numbers of a step."""

from __future__ import annotations

from torch import Tensor

from relu_diag.capture.find import _fit_slopes

# Rows whose numbers show the slopes of an activation that has no name.
ROWS = 256


def first_rows(X: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """Pre-activations of a few rows, computed again, shape ``(n, I)``."""
    Z = X[:ROWS] @ W.mT.to(X)
    return Z if bias is None else Z + bias.to(Z)


def slopes_seen(Z: Tensor, A: Tensor | None) -> tuple[float, float] | None:
    """The slopes of an activation without a name, off its numbers; two of the same where it is not ReLU-like.

    None where the numbers do not tell: pre-activations of one sign only.
    """
    if A is None or not bool((Z > 0).any()) or not bool((Z < 0).any()):
        return None
    return _fit_slopes(Z, A[:ROWS]) or (1.0, 1.0)
