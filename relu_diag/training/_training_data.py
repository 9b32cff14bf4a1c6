"""What a block is trained on, as a verdict needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.widening import Network


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """What a block is trained on.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        loss: The loss of its outputs.
        complete: Whether these are all samples of an epoch.
        chain: The blocks that follow one another up to the loss, this one among them; None where it stands alone.
        place: Which of them it is, from 0.

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
    chain: Chain | None = None
    place: int = 0

    def loss_of(self, block: ShallowBlock) -> float:
        """The training loss of a block on the data, computed in float64.

        Args:
            block: The block.

        Returns:
            Loss.
        """
        return float(self.loss.double()(chunked_outputs(block.double(), self.X)))


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Blocks that follow one another up to the loss.

    Attributes:
        names: Their names.
        network: The network that they make.
        data: Its inputs, and the loss of its outputs.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> network = Network.of([ShallowBlock(torch.eye(2), torch.ones(1, 2))])
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)))
        >>> Chain(("net.0",), network, data).names
        ('net.0',)
    """

    names: tuple[str, ...]
    network: Network
    data: TrainingData


@dataclass(frozen=True, slots=True, eq=False)
class RowsOfStep:
    """Rows of a step.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        loss: The loss of its outputs; None where it is not known.
        step: Number of the step; None where that is of no use.
        chosen: Which rows of the step they are, long; None: all.
        factor: The factor of the loss.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> rows = RowsOfStep(torch.eye(2), SquaredError(torch.ones(2, 1)), step=0, chosen=None)
        >>> rows.scaled(3.0).factor
        3.0
    """

    X: Tensor
    loss: Loss | None
    step: int | None
    chosen: Tensor | None
    factor: float = 1.0

    def scaled(self, factor: float) -> RowsOfStep:
        """The rows with their loss times a factor.

        Args:
            factor: The factor.

        Returns:
            The rows.
        """
        loss = None if self.loss is None else self.loss.scaled(factor)
        return replace(self, loss=loss, factor=self.factor * factor)
