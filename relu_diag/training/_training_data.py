"""What a block is trained on, as a verdict needs it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.output_loss import Loss


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """What a block is trained on.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        loss: The loss of its outputs.
        complete: Whether these are all samples of an epoch.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)), complete=True)
        >>> data.loss_of(ShallowBlock(torch.ones(1, 2), torch.ones(1, 1)))
        0.0
    """

    X: Tensor
    loss: Loss
    complete: bool = False

    def loss_of(self, block: ShallowBlock) -> float:
        """The training loss of a block on the data, computed in float64.

        Args:
            block: The block.

        Returns:
            Loss.
        """
        return float(self.loss.double()(chunked_outputs(block.double(), self.X)))
