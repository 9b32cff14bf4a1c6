"""Steepest descents of many neurons at once, where the sign of every kink settles itself.

Over the unit ball ``min_v g . v + sum_k q_k |x_k . v|`` is minus the length of ``g + sum_k l_k q_k x_k``: longest over
the signs ``l_k`` of the kinks with ``q_k < 0``, shortest over ``|l_k| <= 1`` of the others. Where a few kinks are weak
against ``g`` the shortest is at a vertex, ``l_k = +-1``, and the conditions of convex optimisation prove it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.tolerances import FLOAT64

# Of the squares below, over the square of the lengths in them.
_ROUNDING = 64 * FLOAT64.eps


def descend_at_vertices(g: Tensor, q: Tensor, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The minima of ``g . v + sum_k q_k |x_k . v|`` over the unit ball, of the neurons where a vertex attains them.

    Args:
        g: Smooth parts, shape ``(n, d)``.
        q: Kink coefficients, any sign, shape ``(n, m)``.
        X: Kink inputs, shape ``(n, m, d)``.

    Returns:
        Slopes ``(n,)``, unit directions ``(n, d)``, and whether they are proven to be the minimum, bool ``(n,)``.

    Example:
        >>> slope, direction, proven = descend_at_vertices(
        ...     g=torch.tensor([[3.0, 0.0]]), q=torch.tensor([[-1.0]]), X=torch.tensor([[[0.0, 4.0]]])
        ... )
        >>> slope.item(), proven.item()
        (-5.0, True)
    """
    columns = q[:, :, None] * X
    signs = torch.cartesian_prod(*[q.new_tensor([-1.0, 1.0])] * q.shape[1]).reshape(-1, q.shape[1])
    along = torch.einsum("nmd,nd->nm", columns, g)
    seen = along[:, None] + signs @ (columns @ columns.mT)  # of a vertex's vector on each column
    square = g.square().sum(1)[:, None] + ((along[:, None] + seen) * signs).sum(2)
    concave = q < 0
    shortest = ((seen * signs <= 0) | concave[:, None]).all(2)
    # Vertices that agree on the concave kinks form one convex problem; none of these may beat the best proven one.
    digits = 2.0 ** torch.arange(q.shape[1], dtype=q.dtype, device=q.device)
    problem = (((signs > 0) & concave[:, None]).to(q.dtype) @ digits).long()
    least = torch.full_like(square, torch.inf).scatter_reduce(1, problem, square, "amin")
    bound = torch.where(least.isinf(), -torch.inf, least).amax(1)
    best, at = torch.where(shortest, square, -torch.inf).max(1)
    descent = 0.0 - g - torch.einsum("nm,nmd->nd", signs[at], columns)
    length = descent.norm(dim=1)
    direction = descent / length.clamp(min=torch.finfo(g.dtype).tiny)[:, None]
    scale = g.norm(dim=1) + columns.norm(dim=2).sum(1)
    # Shorter vectors are left to an arithmetic without squares.
    proven = (best >= bound - _ROUNDING * scale.square()) & (length > FLOAT64.short * scale)
    return -length, direction, proven
