"""Shared by all figures: colours, axis limits, and the conversion from tensors to arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Okabe and Ito's palette, which people with any common colour vision can tell apart; black is for dead neurons.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLACK = "#000000"
GREY = "#8C8C8C"
SHADE = "#DDDDDD"
# Margin on each side of the data, as a fraction of their range.
_MARGIN = 0.15


def limits_of(values: Tensor) -> tuple[float, float]:
    """The range of the data with a margin on both sides.

    Args:
        values: Values, any shape.

    Returns:
        Lower and upper limit.
    """
    low = float(values.min())
    high = float(values.max())
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def to_numpy(values: Tensor) -> NDArray[np.float64]:
    """The values as a float64 array on the CPU.

    Args:
        values: Tensor of any dtype, on any device.

    Returns:
        Array.
    """
    return values.detach().double().cpu().numpy()
