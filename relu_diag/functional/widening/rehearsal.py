"""Where training leads from several networks: all of them trained on copies, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relu_diag.functional.block import ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import slopes_at
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64


def rehearsed_losses(blocks: Sequence[ShallowBlock], X: Tensor, loss: Loss, rate: float) -> list[float]:
    """The losses of networks after some steps of Adam with all their weights, for small networks on few samples.

    A network that is lower at once may lead to a higher minimum: only training tells.

    Args:
        blocks: Networks of the same inputs and outputs, one at least.
        X: Inputs, shape ``(N, d)``.
        loss: The loss of their outputs, a sum over samples.
        rate: The rate of Adam.

    Returns:
        Loss of each; the networks stay as they are.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> dead, alive = (ShallowBlock(sign * X[:1], X[:1, :1]) for sign in (-1.0, 1.0))
        >>> after = rehearsed_losses([dead, alive], X, SquaredError(3 * X[:, :1]), rate=0.01)
        >>> [round(one, 3) for one in after]
        [4.5, 0.0]
    """
    X = X.double()
    count = len(X)
    slopes = blocks[0].slopes
    # Of all networks together, one after the other: the rows of one are those of its samples.
    everywhere = loss.double().rows(torch.arange(count).repeat(len(blocks)).to(X.device))
    # A neuron without any weights has no gradient: narrower networks train as they do without it.
    W = pad_sequence([block.W.detach().double() for block in blocks], batch_first=True)
    H = pad_sequence([block.H.detach().double().T for block in blocks], batch_first=True).mT.contiguous()
    bias = _biases(blocks)
    state = [_Moments(weights) for weights in (W, H, bias)]
    trained = [True, True, blocks[0].output_bias is not None]
    for step in range(1, BUDGETS.rehearsal_steps + 1):
        Z = X @ W.mT
        A = rho(Z, slopes)
        outputs = A @ H.mT + bias
        E = everywhere.gradient(outputs.flatten(0, 1)).view_as(outputs)
        gradients = [((E @ H) * slopes_at(Z, slopes)).mT @ X, E.mT @ A, E.sum(dim=1, keepdim=True)]
        for moments, gradient, own in zip(state, gradients, trained, strict=True):
            if own:
                moments.step(gradient, rate, step)
    outputs = rho(X @ W.mT, slopes) @ H.mT + bias
    return [float(loss.double()(one)) for one in outputs]


def _biases(blocks: Sequence[ShallowBlock]) -> Tensor:
    """Output biases, zero where there are none, shape ``(K, 1, J)``."""
    zero = blocks[0].H.new_zeros(len(blocks[0].H))
    own = [zero if block.output_bias is None else block.output_bias.detach() for block in blocks]
    return torch.stack(own).double()[:, None]


class _Moments:
    """Weights of any shape, changed in place by Adam's steps."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)

    def step(self, gradient: Tensor, rate: float, number: int) -> None:
        """Take a step, counted from 1."""
        mean, square = BUDGETS.rehearsal_memory
        self.mean.lerp_(gradient, 1 - mean)
        self.square.lerp_(gradient.square(), 1 - square)
        size = (self.square / (1 - square**number)).sqrt_().add_(FLOAT64.eps)
        self.weights.addcdiv_(self.mean, size, value=-rate / (1 - mean**number))
