"""Which slopes of a neuron count as none when it is asked for ways at no first-order cost."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.verdict._rounding import ResidualRounding
from relu_diag.functional.verdict._weight import seen_by
from relu_diag.functional.verdict.stationarity import Stationarity


def flat_within(
    block: ShallowBlock,
    signal: BlockSignal,
    found: Stationarity,
    index: Tensor,
    kink_tol: float,
    rounding: ResidualRounding | None,
) -> Tensor:
    """The largest slope of some neurons that counts as none, up or down, shape ``(n,)``.

    That is the tolerance, or a slope downwards that counted as none, or what rounding of the residuals makes of it.
    """
    # Where a slope downwards counts as none, one upwards does.
    flat = (found.tol * found.scale - found.slope.clamp(max=0.0))[index]
    if rounding is None:
        return flat
    h_norm = block.H.norm(dim=0)[index]
    rounded = (h_norm * rounding.most_pull > flat).nonzero().squeeze(1)
    if len(rounded):
        hidden = seen_by(block, signal, kink_tol, index[rounded], rounding.usable).pull
        flat[rounded] = torch.maximum(flat[rounded], h_norm[rounded] * hidden)
    return flat
