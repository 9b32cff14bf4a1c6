"""The squared loss of a block on its data: what the loss can be evaluated with at other parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from relu_diag.functional.block import (
    BlockSignal,
    Reduction,
    ShallowBlock,
    check_targets,
    chunked_outputs,
    residual_factor,
)
from relu_diag.functional.tolerances import FLOAT64, kink_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class SquaredProblem:
    """The squared loss of a block on its data, in float64.

    Attributes:
        block: The network.
        signal: Inputs, and residuals ``yhat - y`` as ``G``.
        outputs: Outputs of the block, shape ``(N, J)``.
        factor: The loss is ``factor / 2`` times the sum of the squared residuals.
        kink_tol: Relative distance that counts as on the kink.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> problem = squared_problem(block, torch.ones(2, 1), torch.tensor([[3.0], [0.0]]))
        >>> problem.signal.G.tolist(), float(problem.loss), problem.in_range
        ([[-2.0], [1.0]], 2.5, True)
    """

    block: ShallowBlock
    signal: BlockSignal
    outputs: Tensor
    factor: float
    kink_tol: float

    @property
    def loss(self) -> Tensor:
        """The loss, shape ``()``."""
        return self.factor / 2 * self.signal.G.square().sum()

    @property
    def loss_signal(self) -> BlockSignal:
        """The same signal with the gradient of the loss as ``G``."""
        return replace(self.signal, G=self.factor * self.signal.G)

    @property
    def in_range(self) -> bool:
        """Whether the squares of its loss and derivatives are numbers of float64, neither overflowing nor vanishing."""
        largest = (value.abs().max() for value in (self.signal.X, self.block.W, self.block.H, self.signal.G))
        x, w, h, g = (math.log10(float(value)) if value != 0 else 0.0 for value in largest)
        return all(abs(power) < FLOAT64.decades for power in (x, w, h, g, g + x, g + x + w, g + x + h))


def squared_problem(
    block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean", kink_tol: float | None = None
) -> SquaredProblem:
    """The squared loss of a block, ready for evaluations in float64.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        kink_tol: Relative distance that counts as on the kink; None: by the block's dtype before.

    Returns:
        The problem.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> float(squared_problem(block, torch.ones(2, 1), torch.zeros(2, 1), reduction="half_sum").loss)
        1.0
    """
    check_targets(block, X, Y)
    tolerance = kink_tolerance(kink_tol, block.W.dtype)
    block = block.double()
    X = X.detach().double()
    Y = Y.detach().double()
    outputs = chunked_outputs(block, X)
    return SquaredProblem(block, BlockSignal(X, outputs - Y), outputs, residual_factor(Y, reduction), tolerance)
