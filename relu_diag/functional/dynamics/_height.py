"""What ascents climb: how strongly a neuron is felt, less what its activity costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunk_rows, rho

Pieces = list[tuple[Tensor, Tensor]]


def pieces(signal: BlockSignal, neurons: int) -> Pieces:
    """The samples in pieces small enough that their activations for some neurons fit into memory.

    Args:
        signal: Inputs and loss gradients.
        neurons: Number of neurons at once.

    Returns:
        Inputs and loss gradients, piece by piece.
    """
    W = signal.X.new_empty(neurons, signal.X.shape[1], device="meta")
    rows = chunk_rows(ShallowBlock(W, W[:, :1].T))
    return list(zip(torch.split(signal.X, rows), torch.split(signal.G, rows), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Height:
    """``||D(v)||``, or ``||D(v)|| - P(v)`` with ``P`` the price of being active: one more output, of known sign.

    Attributes:
        signal: Inputs and loss gradients, float64; where activity has a price, its last column is what each unit of
            ``rho`` costs on a sample.
        slopes: ``(s-, s+)``.
        priced: Whether there is that column.
    """

    signal: BlockSignal
    slopes: tuple[float, float]
    priced: bool

    @classmethod
    def over(cls, signal: BlockSignal, slopes: tuple[float, float], price: float) -> Height:
        """The height over some samples.

        Args:
            signal: Inputs and loss gradients, float64.
            slopes: ``(s-, s+)``, one of them zero where there is a price.
            price: Loss per unit of mean activation.

        Returns:
            The height.
        """
        if not price:
            return cls(signal, slopes, priced=False)
        # rho has the sign of s+ above, and the other one of s- below.
        sign = 1.0 if slopes[1] > 0 or slopes[0] < 0 else -1.0
        cost = signal.G.new_full((len(signal.G), 1), sign * price / len(signal.G))
        return cls(BlockSignal(signal.X, torch.cat([signal.G, cost], dim=1)), slopes, priced=True)

    def pull(self, V: Tensor) -> Tensor:
        """The derivatives of the loss per unit of output weight of neurons, and what their activity costs.

        Args:
            V: Input weights, shape ``(n, d)``.

        Returns:
            ``D(v)``, with ``P(v)`` as last column where there is a price, shape ``(n, J)`` or ``(n, J + 1)``.
        """
        total = V.new_zeros(len(V), self.signal.G.shape[1])
        for X, G in pieces(self.signal, max(len(V), 1)):
            total += rho(V @ X.T, self.slopes) @ G
        return total

    def outputs(self, D: Tensor) -> Tensor:
        """What outputs feel, without the price.

        Args:
            D: Result of `pull`.

        Returns:
            ``D(v)``, shape ``(n, J)``.
        """
        return D[..., :-1] if self.priced else D

    def of(self, D: Tensor) -> Tensor:
        """The height.

        Args:
            D: Result of `pull`.

        Returns:
            Heights, shape ``(n,)``.
        """
        length: Tensor = self.outputs(D).norm(dim=-1)
        return length - D[..., -1] if self.priced else length

    def lead(self, D: Tensor) -> Tensor:
        """The derivative of the height by what `pull` returns, the outputs' part zero where nothing is felt.

        Args:
            D: Result of `pull`.

        Returns:
            Derivatives, shape of ``D``.
        """
        felt = self.outputs(D)
        length = felt.norm(dim=-1, keepdim=True)
        o = torch.where(length > 0, felt / length, 0.0)
        return torch.cat([o, -torch.ones_like(length)], dim=-1) if self.priced else o
