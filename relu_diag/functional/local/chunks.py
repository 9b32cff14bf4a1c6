"""The samples of a signal, piece by piece: the one place that decides which of them are on a kink."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit, chunk_rows
from relu_diag.functional.local._lengths import lengths
from relu_diag.functional.tolerances import kink_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some consecutive samples of a signal, with everything the sums over samples need.

    Samples with ``x_k = 0`` are left out: no weight can move them off ``z = 0``. Entries on the kink are exactly zero.
    ``C`` and ``Z`` may be the signal's own and are not to be written to; the next chunk overwrites those that are not.

    Attributes:
        X: Inputs, shape ``(n, d)``.
        G: Loss gradient at the output, shape ``(n, J)``.
        C: Loss gradient at ``rho(Z)``, shape ``(n, I)``.
        Z: Pre-activations, set to zero on the kink, shape ``(n, I)``.
        kinks: Row and neuron of the pairs on the kink, long, shape ``(M, 2)``.
        beside: Pre-activations of these pairs as they were, shape ``(M,)``.
        length: Lengths ``||x_k||``, shape ``(n,)``.
        w_length: Lengths ``||w_i||``, float64, shape ``(I,)``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[2.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 3.0], [0.0, 0.0]]), G=torch.ones(2, 1))
        >>> chunk = next(chunks(block, signal))  # x = 0 is left out, the other sample is on the kink
        >>> chunk.C.tolist(), chunk.kinks.tolist(), chunk.length.tolist()
        ([[2.0]], [[0, 0]], [3.0])
    """

    X: Tensor
    G: Tensor
    C: Tensor
    Z: Tensor
    kinks: Tensor
    beside: Tensor
    length: Tensor
    w_length: Tensor


def chunks(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None) -> Iterator[Chunk]:
    """The signal in pieces small enough that nothing of size ``N x I`` is ever made, in float32 at least.

    Args:
        block: The network.
        signal: Its signal.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Yields:
        Consecutive samples, at least one, with ``C`` and ``Z`` filled in.

    Example:
        >>> block = ShallowBlock(W=torch.eye(2), H=torch.ones(1, 2))
        >>> [len(chunk.X) for chunk in chunks(block, BlockSignal(torch.ones(5, 2), torch.ones(5, 1)))]
        [5]
    """
    check_fit(block, signal)
    wide = torch.promote_types(block.W.dtype, torch.float32)
    W = block.W.detach().to(wide)
    H = block.H.detach().to(wide)
    w_length = lengths(W)
    reach = kink_tolerance(kink_tol, block.W.dtype) * w_length
    rows = chunk_rows(block)
    # One piece of memory for all chunks: fresh pages cost more than the arithmetic on them.
    memory = torch.empty(3, min(rows, len(signal.X)), len(W), dtype=wide, device=W.device)
    for start in range(0, len(signal.X), rows):
        here: slice | Tensor = slice(start, start + rows)
        X = signal.X[here].detach().to(wide)
        length = X.norm(dim=1)
        if not bool(length.all()):
            moving = X.any(dim=1).nonzero().squeeze(1)
            if not len(moving):
                continue
            here = moving + start
            X = X[moving]
            length = length[moving]
        distance, for_Z, for_C = memory[:, : len(X)]
        G = signal.G[here].detach().to(wide)
        C = _given_or_product(signal.C, here, G, H, for_C)
        Z = _given_or_product(signal.Z, here, X, W.T, for_Z)
        kinks = _find_kinks(torch.abs(Z, out=distance), reach, length)
        beside = Z[kinks.unbind(1)]
        if len(kinks):
            Z = Z if Z is for_Z else for_Z.copy_(Z)
            Z[kinks.unbind(1)] = 0.0
        yield Chunk(X, G, C, Z, kinks, beside, length, w_length)


def _given_or_product(given: Tensor | None, here: slice | Tensor, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Rows of a matrix that is given, or a product where it is not, ``(n, I)``."""
    if given is None:
        return torch.mm(left, right, out=out)
    return given.detach()[here].to(out.dtype)


def _find_kinks(distance: Tensor, reach: Tensor, length: Tensor) -> Tensor:
    """Row and neuron of the pairs within reach of the kink, long ``(M, 2)``."""
    # Almost no neuron has a sample on its kink: one reduction finds the columns worth a closer look.
    columns = (distance.amin(dim=0) <= reach * length.max()).nonzero().squeeze(1)
    kinks = (distance[:, columns] <= reach[columns] * length[:, None]).nonzero()
    kinks[:, 1] = columns[kinks[:, 1]]
    return kinks
