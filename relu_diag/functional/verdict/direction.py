"""A direction along which the loss was evaluated and seen to fall: what a verdict shows for itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relu_diag.functional.block import ShallowBlock


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A direction in the space of weights, and the fall of the loss seen along it.

    Attributes:
        dW: Direction of the input weights, shape ``(I, d)``.
        dH: Direction of the output weights, shape ``(J, I)``.
        step: The loss was evaluated at ``(W + step dW, H + step dH)``, and at points on the way, where it is no higher.
        loss_change: What it was lower by, < 0.
        db: Direction of the output bias, shape ``(J,)``; None where the bias stays as it is.

    Example:
        >>> import torch
        >>> print(Direction(dW=torch.ones(1, 2), dH=torch.zeros(1, 1), step=0.5, loss_change=-0.1))
        loss change -0.1 at step 0.5
    """

    dW: Tensor
    dH: Tensor
    step: float
    loss_change: float
    db: Tensor | None = None

    @property
    def moved(self) -> Tensor:
        """Which neurons it moves, bool, shape ``(I,)``."""
        return self.dW.any(dim=1) | self.dH.any(dim=0)

    def applied_to(self, block: ShallowBlock, step: float | None = None) -> ShallowBlock:
        """The block a step along the direction.

        Args:
            block: The block; its dtype and device stay.
            step: How far; None: where the loss was evaluated.

        Returns:
            The block there.

        Example:
            >>> import torch
            >>> block = ShallowBlock(W=torch.ones(1, 2), H=torch.ones(1, 1))
            >>> direction = Direction(dW=torch.eye(1, 2), dH=torch.zeros(1, 1), step=0.5, loss_change=-1.0)
            >>> direction.applied_to(block).W, direction.applied_to(block, step=2.0).W
            (tensor([[1.5000, 1.0000]]), tensor([[3., 1.]]))
        """
        far = self.step if step is None else step
        bias = block.output_bias
        if bias is not None and self.db is not None:
            bias = bias + (far * self.db).to(bias)
        W = block.W + (far * self.dW).to(block.W)
        H = block.H + (far * self.dH).to(block.H)
        return ShallowBlock(W, H, block.slopes, bias)

    def __str__(self) -> str:
        return f"loss change {self.loss_change:.3g} at step {self.step:.3g}"
