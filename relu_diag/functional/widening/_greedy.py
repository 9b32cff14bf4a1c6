"""Greedy choice of several features that explain a gradient together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class GreedyChoice:
    """Features in the order of their choice.

    Attributes:
        index: Their columns, shape ``(n,)``.
        explained: Square of what each explains of the gradient beyond those before, float64 on the CPU, shape ``(n,)``.
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
    # By products of the features with each other, and not with samples: those are few, and stay in the cache.
    gram = (A.T @ A).cpu().double().numpy()
    felt = (A.T @ G).cpu().double().numpy()
    size = np.sqrt(gram.diagonal())
    left = (size > 0).astype(float)
    size[size == 0] = 1.0
    gram = gram / size / size[:, None]
    felt = felt / size[:, None]
    if felt.shape[1] > len(felt):
        felt = _as_narrow(felt)
    most = min(count, len(felt))
    chosen = np.zeros((most, len(felt)))
    index: list[int] = []
    explained: list[float] = []
    for place in range(most):
        merit = np.where(left > FLOAT64.novel, np.square(felt).sum(axis=1) / left.clip(FLOAT64.novel), 0.0)
        best = int(merit.argmax())
        if not merit[best] > 0:
            break
        index.append(best)
        explained.append(float(merit[best]))
        root = math.sqrt(left[best])
        # What is left of the features, and of what they feel, beside the chosen ones.
        along = (gram[best] - chosen[:place, best] @ chosen[:place]) / root
        felt -= along[:, None] * (felt[best] / root)
        left -= np.square(along)
        left[best] = 0.0
        chosen[place] = along
    order = torch.tensor(index, dtype=torch.long, device=A.device)
    return GreedyChoice(order, torch.tensor(explained, dtype=torch.float64))


def _as_narrow(felt: Array) -> Array:
    """Vectors ``(M, J)`` as some of the same lengths and angles, ``(M, M)``, to rounding of the longest."""
    products = felt @ felt.T
    size = products.trace()
    if not size > 0:
        return np.zeros_like(products)
    # As much as rounding may take away, so that there is a root.
    np.fill_diagonal(products, products.diagonal() + sum(felt.shape) * FLOAT64.eps * size)
    return np.asarray(np.linalg.cholesky(products), dtype=np.float64)


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
