"""The length of output weights that somebody keeps at one, as those of a dictionary."""

from __future__ import annotations

from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.tolerances import FLOAT64


def output_length(block: ShallowBlock) -> float | None:
    """The length of the output weights, where somebody keeps all of them at one.

    Args:
        block: The block.

    Returns:
        Length; None where they differ.

    Example:
        >>> import torch
        >>> output_length(ShallowBlock(W=torch.ones(2, 1), H=torch.tensor([[1.0, -1.0]])))
        1.0
    """
    length = block.H.detach().norm(dim=0)
    even = len(length) > 1 and bool((length - length[0]).abs().max() <= FLOAT64.even_lengths * length[0])
    return float(length[0]) if even and bool(length[0] > 0) else None
