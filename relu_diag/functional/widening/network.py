"""A network of several layers as blocks that follow one another: each can be taken out, changed, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock, rho
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.widening.later_layers import LaterLayer, LossThroughLayers


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network whose blocks follow one another: the output weights of one are the input weights of the next.

    Attributes:
        W: Input weights of the first block, its bias as last column where the inputs have a constant one, ``(I, d)``.
        layers: Activations and the layers that read them, in their order, one for each block.

    Example:
        >>> first = ShallowBlock(torch.eye(2), torch.ones(3, 2), output_bias=torch.zeros(3))
        >>> second = ShallowBlock(torch.cat([first.H, torch.zeros(3, 1)], dim=1), torch.ones(1, 3))
        >>> network = Network.of([first, second])
        >>> network(torch.eye(2)).tolist(), network.block(1).W.shape
        ([[3.0], [3.0]], torch.Size([3, 3]))
    """

    W: Tensor
    layers: tuple[LaterLayer, ...]

    @classmethod
    def of(cls, blocks: Sequence[ShallowBlock]) -> Network:
        """The network of some blocks.

        Args:
            blocks: Blocks that follow one another, one at least.

        Returns:
            The network, float32 at least.
        """
        first = blocks[0]
        W = first.W.to(torch.promote_types(first.W.dtype, torch.float32))
        return cls(W, tuple(LaterLayer.of(block) for block in blocks))

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    def __call__(self, X: Tensor) -> Tensor:
        """Outputs.

        Args:
            X: Inputs of any dtype, shape ``(N, d)``.

        Returns:
            Shape ``(N, J)``.
        """
        return self.block(len(self) - 1)(self.inputs(X)[-1])

    def block(self, place: int) -> ShallowBlock:
        """One of the blocks.

        Args:
            place: Which, from 0.

        Returns:
            The block.
        """
        layer = self.layers[place]
        W = self.W
        if place:
            before = self.layers[place - 1]
            W = before.H if before.bias is None else torch.cat([before.H, before.bias[:, None]], dim=1)
        return ShallowBlock(W, layer.H, layer.slopes, layer.bias)

    def inputs(self, X: Tensor) -> list[Tensor]:
        """The inputs of every block.

        Args:
            X: Inputs of the network, of any dtype, shape ``(N, d)``.

        Returns:
            They, and the activations of each block but the last, with a constant last column where a bias reads them,
            in the dtype of the network.
        """
        found = [X.to(self.W)]
        for place in range(len(self) - 1):
            block = self.block(place)
            A = rho(found[-1] @ block.W.T, block.slopes)
            found.append(A if block.output_bias is None else torch.cat([A, A.new_ones(len(A), 1)], dim=1))
        return found

    def loss_behind(self, place: int, end: Loss) -> Loss:
        """The loss as a function of the outputs of one of the blocks.

        Args:
            place: Which, from 0.
            end: The loss of the outputs of the network.

        Returns:
            The loss.
        """
        behind = self.layers[place + 1 :]
        return LossThroughLayers(end, behind) if behind else end

    def with_block(self, place: int, block: ShallowBlock) -> Network:
        """The network with a block changed, those beside it by the weights that they share.

        Args:
            place: Which, from 0.
            block: What comes in its place, of any number of neurons.

        Returns:
            The network.
        """
        layers = list(self.layers)
        layers[place] = LaterLayer.of(block)
        if not place:
            return Network(block.W, tuple(layers))
        before = layers[place - 1]
        bias = None if before.bias is None else block.W[:, -1]
        layers[place - 1] = replace(before, H=block.W if bias is None else block.W[:, :-1], bias=bias)
        return Network(self.W, tuple(layers))
