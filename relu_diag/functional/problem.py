"""The loss of a block on its data: what it can be evaluated with at other parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from relu_diag.functional._checks import check_matrix
from relu_diag.functional.block import (
    BlockSignal,
    Reduction,
    ShallowBlock,
    check_targets,
    chunked_outputs,
    residual_factor,
)
from relu_diag.functional.output_loss import Loss, SquaredError
from relu_diag.functional.tolerances import FLOAT64, kink_tolerance
from relu_diag.functional.weight_decay import WeightDecay


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
        return _in_range(self.block, self.signal)

    def reachable(self) -> SquaredProblem:
        """The loss without the samples ``x_k = 0``, whose part no weight changes; the same where an output bias does.

        Returns:
            The problem, itself where there is no such sample or no other.

        Example:
            >>> import torch
            >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
            >>> problem = squared_problem(block, torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), "half_sum")
            >>> float(problem.loss), float(problem.reachable().loss)
            (1.0, 0.5)
        """
        reached = self.signal.X.any(dim=1)
        if self.block.output_bias is not None or bool(reached.all()) or not bool(reached.any()):
            return self
        signal = BlockSignal(self.signal.X[reached], self.signal.G[reached])
        return replace(self, signal=signal, outputs=self.outputs[reached])


@dataclass(frozen=True, slots=True, eq=False)
class LossProblem:
    """Any loss of the outputs of a block on its data, in float64.

    Attributes:
        block: The network.
        signal: Inputs, and the gradient of the loss as ``G``.
        outputs: Outputs of the block, shape ``(N, J)``.
        output_loss: The loss.
        kink_tol: Relative distance that counts as on the kink.
        decay: Weight decay, which is part of the loss; None: none.

    Example:
        >>> import torch
        >>> from relu_diag.functional import Huber
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> problem = loss_problem(block, torch.ones(2, 1), Huber(torch.tensor([[3.0], [0.0]]), reduction="sum"))
        >>> problem.signal.G.tolist(), float(problem.loss), problem.in_range
        ([[-1.0], [1.0]], 2.0, True)
    """

    block: ShallowBlock
    signal: BlockSignal
    outputs: Tensor
    output_loss: Loss
    kink_tol: float
    decay: WeightDecay | None = None

    @property
    def factor(self) -> float:
        """1: the gradient is that of the loss itself."""
        return 1.0

    @property
    def loss(self) -> Tensor:
        """The loss, its decay included, shape ``()``."""
        loss = self.output_loss(self.outputs)
        return loss if self.decay is None else loss + self.decay.cost(self.block)

    @property
    def loss_signal(self) -> BlockSignal:
        """The signal, whose ``G`` is the gradient of the loss."""
        return self.signal

    @property
    def in_range(self) -> bool:
        """Whether the squares of its derivatives are numbers of float64, neither overflowing nor vanishing."""
        return _in_range(self.block, self.signal)


Problem = SquaredProblem | LossProblem


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


def loss_problem(block: ShallowBlock, X: Tensor, loss: Loss, kink_tol: float | None = None) -> Problem:
    """A loss of the outputs, ready for evaluations in float64; a squared error without weights as just that.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        loss: The loss.
        kink_tol: Relative distance that counts as on the kink; None: by the block's dtype before.

    Returns:
        The problem.

    Raises:
        ValueError: If the loss is of another number of samples.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> float(loss_problem(block, torch.ones(2, 1), SquaredError(torch.zeros(2, 1)).scaled(3.0)).loss)
        3.0
    """
    if loss.samples not in {None, len(X)}:
        raise ValueError(f"the loss is of {loss.samples} samples, `X` has {len(X)}: pass the inputs it was made for.")
    loss = loss.to(block.W.device)
    if isinstance(loss, SquaredError) and loss.weight is None:
        problem = squared_problem(block, X, loss.Y.to(X.dtype), "sum", kink_tol)
        return replace(problem, factor=2 * loss.scale)
    return decayed_problem(block, X, loss, None, kink_tol)


def decayed_problem(
    block: ShallowBlock, X: Tensor, loss: Loss, decay: WeightDecay | None, kink_tol: float | None = None
) -> LossProblem:
    """A loss of the outputs with weight decay, ready for evaluations in float64.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        loss: The loss.
        decay: Its weight decay; None: none.
        kink_tol: Relative distance that counts as on the kink; None: by the block's dtype before.

    Returns:
        The problem.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> loss = SquaredError(torch.zeros(2, 1))
        >>> float(decayed_problem(block, torch.ones(2, 1), loss, WeightDecay(W=1.0, H=1.0)).loss)
        2.0
    """
    check_matrix("X", X)
    tolerance = kink_tolerance(kink_tol, block.W.dtype)
    block, X, loss = block.double(), X.detach().double(), loss.double()
    outputs = chunked_outputs(block, X)
    return LossProblem(block, BlockSignal(X, loss.gradient(outputs)), outputs, loss, tolerance, decay)


def _in_range(block: ShallowBlock, signal: BlockSignal) -> bool:
    """Whether squares of derivatives, and sums of them, are numbers of float64."""
    largest = (value.abs().max() for value in (signal.X, block.W, block.H, signal.G))
    x, w, h, g = (math.log10(float(value)) if value != 0 else 0.0 for value in largest)
    return all(abs(power) < FLOAT64.decades for power in (x, w, h, g, g + x, g + x + w, g + x + h))
