"""Directions in which input weights move: along themselves, and across."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.tolerances import FLOAT64


def radial_directions(W: Tensor) -> Tensor:
    """The radial directions ``w_i / ||w_i||``, zero for ``w_i = 0``.

    Args:
        W: Input weights, shape ``(I, d)``.

    Returns:
        Unit vectors or zeros, shape ``(I, d)``.

    Example:
        >>> radial_directions(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor([[0., 1.],
                [0., 0.]])
    """
    norm = torch.linalg.vector_norm(W, dim=1)
    U: Tensor = W / norm[:, None]
    # The squares of small weights underflow.
    small = norm < torch.finfo(W.dtype).tiny ** 0.4
    if bool(small.any()):
        largest = W[small].abs().amax(dim=1, keepdim=True)
        scaled = torch.where(largest > 0, W[small] / largest, 0.0)
        U[small] = torch.where(largest > 0, scaled / scaled.norm(dim=1, keepdim=True), 0.0)
    return U


def tangential_part(U: Tensor, V: Tensor) -> Tensor:
    """What is left of vectors without their radial part; everything where ``w_i = 0``.

    Args:
        U: Radial directions, shape ``(..., d)``, as `V` or broadcast to it.
        V: Vectors, shape ``(..., d)``.

    Returns:
        Tangential vectors, shape of ``V``; exactly zero where ``V`` is radial up to rounding.

    Example:
        >>> tangential_part(U=torch.tensor([[1.0, 0.0]]), V=torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
    """
    left = torch.addcmul(V, torch.einsum("...d,...d->...", V, U)[..., None], U, value=-1)
    # What is left of a nearly radial vector is rounding in part; a second time makes it tangential.
    again = left.norm(dim=-1) < FLOAT64.radial * V.norm(dim=-1)
    if bool(again.any()):
        rest = left[again]
        along = U.expand_as(V)[again]
        tangential = rest - (rest * along).sum(1, keepdim=True) * along
        # Where the rest was nearly radial once more, all of it was rounding, and so is what is left of it.
        rounding = tangential.norm(dim=1) < FLOAT64.radial * rest.norm(dim=1)
        left[again] = tangential.masked_fill(rounding[:, None], 0.0)
    return left
