"""Weights that do not depend on how rounding went: of a few digits, and beside every sample's kink."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.functional import ShallowBlock
from relu_diag.functional.tolerances import tolerances

# How far a new neuron is turned off a kink, in widths of a kink.
_TURN = 100.0
# Binary digits of a new neuron's weights: the loss at its best weights does not feel the others.
_DIGITS = 12
# Binary digits of the weights for which neurons are chosen in float64: rounding in training does not reach them.
_STEADY_DIGITS = 36


def steady(block: ShallowBlock) -> ShallowBlock:
    """The block in fewer digits, so that rounding in training does not change what is chosen for it.

    Args:
        block: The block.

    Returns:
        It, as it is where its digits are few.
    """
    if block.W.dtype != torch.float64:
        return block
    bias = block.output_bias
    return replace(
        block,
        W=_rounded_together(block.W),
        H=_rounded_together(block.H),
        output_bias=None if bias is None else _rounded_together(bias),
    )


def with_own_digits(wider: ShallowBlock, block: ShallowBlock, unit: int | None) -> ShallowBlock:
    """A block widened from a `steady` one, with the old neurons as they were, but for one that was replicated.

    Args:
        wider: The wider block, the old neurons first.
        block: The block as it was.
        unit: The neuron that was replicated, or None.

    Returns:
        The wider block.
    """
    W = wider.W.clone()
    H = wider.H.clone()
    same = [old for old in range(len(block.W)) if old != unit]
    W[same] = block.W[same]
    H[:, same] = block.H[:, same]
    return replace(block, W=W, H=H)


def settled(block: ShallowBlock, units: int, X: Tensor, drop_digits: bool) -> ShallowBlock:
    """The block with its last neurons where they do not depend on rounding: of a few digits, and beside every sample.

    A search ends within its own accuracy of the best weights, and on a kink rounding would decide which gradient comes
    next: in another order of the samples, or on another number of processes, another one.

    Args:
        block: The block.
        units: Number of new neurons, the last ones.
        X: Inputs, shape ``(N, d)``.
        drop_digits: Whether to drop digits.

    Returns:
        The block.
    """
    W = block.W.clone()
    H = block.H.clone()
    new = slice(len(W) - units, len(W))
    if drop_digits:
        W[new] = _rounded(W[new])
        H[:, new] = _rounded(H[:, new].T).T
    kink = tolerances(W.dtype).kink
    rows = X.to(W)
    reach = kink * rows.norm(dim=1, keepdim=True) * W[new].norm(dim=1)
    on_a_kink = (((rows @ W[new].T).abs() <= reach) & (reach > 0)).any(dim=0)
    generator = torch.Generator().manual_seed(0)
    for unit in on_a_kink.nonzero()[:, 0] + new.start:
        turn = torch.randn(W.shape[1], generator=generator, dtype=torch.float64).to(W)
        W[unit] += _TURN * kink * W[unit].norm() * turn
    return replace(block, W=W, H=H)


def _rounded(values: Tensor, digits: int = _DIGITS) -> Tensor:
    """Rows of values ``(n, d)`` to so many binary digits of the largest one of each."""
    largest = values.abs().amax(dim=1, keepdim=True)
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - digits)
    return (values / unit).round() * unit


def _rounded_together(values: Tensor) -> Tensor:
    """Values of any shape to the digits of what is steady in the largest of them."""
    return _rounded(values.reshape(1, -1), _STEADY_DIGITS).view_as(values)
