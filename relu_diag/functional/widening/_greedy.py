"""Greedy choice of several features that explain a gradient together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class GreedyChoice:
    """Features in the order of their choice.

    Attributes:
        index: Their columns, shape ``(n,)``.
        explained: Square of what each explains of the gradient beyond those before, shape ``(n,)``.
    """

    index: Tensor
    explained: Tensor


def greedy_choice(A: Tensor, G: Tensor, count: int) -> GreedyChoice:
    """The features that one after the other explain most of what is left of a gradient.

    Args:
        A: Features, shape ``(N, M)``.
        G: Gradient, shape ``(N, J)``.
        count: Number of features at most.

    Returns:
        The choice; less than ``count`` where no other feature explains anything.
    """
    size = A.norm(dim=0)
    free = size > 0
    A = A / torch.where(free, size, 1.0)
    index = []
    explained = []
    felt = A.T @ G
    left = free.to(A)
    for _ in range(min(count, A.shape[1])):
        merit = torch.where(
            free & (left > FLOAT64.novel), felt.square().sum(dim=1) / left.clamp(min=FLOAT64.novel), 0.0
        )
        best = int(merit.argmax())
        if not float(merit[best]) > 0:
            break
        index.append(best)
        explained.append(float(merit[best]))
        free[best] = False
        new = A[:, best] / A[:, best].norm()
        along = A.T @ new
        # What is left of the features, and of what they feel, beside the chosen ones.
        A.addr_(new, along, alpha=-1.0)
        felt.addr_(along, new @ G, alpha=-1.0)
        left -= along.square()
    return GreedyChoice(torch.tensor(index, dtype=torch.long, device=A.device), torch.tensor(explained))


def filled(index: Tensor, count: int, pool: int) -> Tensor:
    """As many of a pool as there should be: those chosen, and the first of the others where no other explains anything.

    Args:
        index: The chosen, shape ``(n,)``.
        count: How many there should be.
        pool: How many there are to choose from.

    Returns:
        Indices, shape ``(max(n, count),)``.
    """
    others = torch.ones(pool, dtype=torch.bool, device=index.device)
    others[index] = False
    return torch.cat([index, others.nonzero()[: max(count - len(index), 0), 0]])
