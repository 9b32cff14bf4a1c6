"""Where ascents of ``||D(v)||`` start: in every kind of sector where a neuron can gain."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64


def main_starts(signal: BlockSignal) -> Tensor:
    """The samples that weigh most, either sign, and the directions in which each is alone, as far as there are any.

    Args:
        signal: Inputs that span the space, by falling weight, and loss gradients.

    Returns:
        Directions, any length, shape ``(n, d)``.
    """
    strongest = signal.X[: BUDGETS.starts]
    return torch.cat([strongest, -strongest, _sides(signal.X)[: BUDGETS.starts]])


def other_starts(signal: BlockSignal) -> Tensor:
    """Directions that choose a side for every sample, as far as least squares go.

    Each sample against the others, all samples that an output wants raised against those it wants lowered, and random
    choices.

    Args:
        signal: Inputs that span the space, by falling weight, and loss gradients.

    Returns:
        Directions, any length, shape ``(n, d)``.
    """
    X, G = signal.X, signal.G
    sides = _sides(X)
    against = 2 * sides[: BUDGETS.starts] - sides.sum(dim=0)
    # Every output, and their strongest combinations.
    outputs = torch.cat([G, G @ torch.linalg.svd(G, full_matrices=False)[2].T], dim=1).T
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(BUDGETS.starts, len(X), generator=draw, dtype=torch.float64).to(X)
    wanted = torch.cat([outputs.sign(), mixed.sign()]) @ sides
    felt = torch.cat([outputs.clamp(min=0), outputs.clamp(max=0), outputs]) @ X
    half = torch.cat([against, wanted, felt])
    return torch.cat([half, -half])


def _sides(X: Tensor) -> Tensor:
    """Directions with ``v_k . x_k = 1`` and ``v_k . x_l = 0`` for the others, or nearest to it, shape ``(N, d)``."""
    inverse: Tensor = torch.linalg.pinv(X, rtol=FLOAT64.rank)
    return inverse.T
