"""Lengths of weights, also where their squares underflow."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths(W: Tensor) -> Tensor:
    """Lengths of the rows of a matrix ``(n, d)``, float64 ``(n,)``, also where their squares underflow in float32."""
    return _corrected(W.norm(dim=1).double(), W)


def column_lengths(H: Tensor) -> Tensor:
    """The same of the columns ``(n, d)``, float64 ``(d,)``."""
    # Several times as fast as norm(dim=0).
    return _corrected(H.square().sum(0).sqrt().double(), H.T)


def _corrected(length: Tensor, W: Tensor) -> Tensor:
    """Lengths ``(n,)``, those of small rows ``(n, d)`` once more in float64."""
    small = length < torch.finfo(W.dtype).tiny ** 0.4
    if bool(small.any()):
        length[small] = W[small].double().norm(dim=1)
    return length
