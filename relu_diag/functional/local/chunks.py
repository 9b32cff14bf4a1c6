"""The samples of a signal, piece by piece: the one place that decides which of them are on a kink."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit, chunk_rows
from relu_diag.functional.tolerances import kink_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some consecutive samples of a signal, with everything the sums over samples need.

    Samples with ``x_k = 0`` are left out: no weight can move them off ``z = 0``. Entries on the kink are exactly zero.
    ``Z`` may be overwritten, and the next chunk overwrites it.

    Attributes:
        X: Inputs, shape ``(n, d)``.
        G: Loss gradient at the output, shape ``(n, J)``.
        C: Loss gradient at ``rho(Z)``, shape ``(n, I)``.
        Z: Pre-activations, set to zero on the kink, shape ``(n, I)``.
        kinks: Row and neuron of the pairs on the kink, long, shape ``(M, 2)``.
    """

    X: Tensor
    G: Tensor
    C: Tensor
    Z: Tensor
    kinks: Tensor


def chunks(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None) -> Iterator[Chunk]:
    """The signal in pieces small enough that nothing of size ``N x I`` is ever made, in float32 at least.

    Args:
        block: The network.
        signal: Its signal.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Yields:
        Consecutive samples, at least one, with ``C`` and ``Z`` filled in.
    """
    check_fit(block, signal)
    tol = kink_tolerance(kink_tol, block.W.dtype)
    wide = torch.promote_types(block.W.dtype, torch.float32)
    W, H = block.W.detach().to(wide), block.H.detach().to(wide)
    w_norm = W.norm(dim=1).double()
    # In float32 the squares of weights near 1e-25 underflow.
    small = w_norm < torch.finfo(wide).tiny ** 0.4
    w_norm[small] = W[small].double().norm(dim=1)
    reach = tol * w_norm
    rows = chunk_rows(block)
    # One piece of memory for all chunks: fresh pages cost more than the arithmetic on them.
    memory = torch.empty(min(rows, len(signal.X)), len(W), dtype=wide, device=W.device)
    for start in range(0, len(signal.X), rows):
        part = slice(start, start + rows)
        X, G = signal.X[part].detach().to(wide), signal.G[part].detach().to(wide)
        C = G @ H if signal.C is None else signal.C[part].detach().to(wide)
        Z = X @ W.T if signal.Z is None else signal.Z[part].detach().to(wide)
        x_norm = X.norm(dim=1)
        if not bool(x_norm.all()):
            moving = X.any(dim=1)
            if not bool(moving.any()):
                continue
            X, G, C, Z, x_norm = (value[moving] for value in (X, G, C, Z, x_norm))
        distance = torch.abs(Z, out=memory[: len(Z)])
        kinks = _find_kinks(distance, reach, x_norm)
        Z = memory[: len(Z)].copy_(Z)
        Z[kinks.unbind(1)] = 0.0
        yield Chunk(X, G, C, Z, kinks)


def _find_kinks(distance: Tensor, reach: Tensor, x_norm: Tensor) -> Tensor:
    # Almost no neuron has a sample on its kink: one reduction finds the columns worth a closer look.
    columns = (distance.amin(dim=0) <= reach * x_norm.max()).nonzero().squeeze(1)
    kinks = (distance[:, columns] <= reach[columns] * x_norm[:, None]).nonzero()
    kinks[:, 1] = columns[kinks[:, 1]]
    return kinks
