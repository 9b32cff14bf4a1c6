"""Where training leads from several networks: all of them trained on copies, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.budgets import BUDGETS
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
    # Numbers are so few that what counts is how long it takes to call a function: NumPy's take half as long.
    rows = X.double().cpu().numpy()
    loss = loss.double().to("cpu")
    # Of all networks together, one after the other: the rows of one are those of its samples.
    everywhere = loss.rows(torch.arange(len(rows)).repeat(len(blocks)))
    everywhere = everywhere.prepared(torch.zeros(len(rows) * len(blocks), len(blocks[0].H), dtype=torch.float64))
    trained = _Trained(_parts(blocks))
    with np.errstate(all="ignore"):  # one may leave all numbers
        for step in range(1, BUDGETS.rehearsal_steps + 1):
            outputs, A, S = _outputs(trained.weights, rows, blocks[0].slopes)
            E = _by_columns(everywhere.gradient(_below(outputs)).numpy(), len(blocks))
            H = trained.weights[1]
            of_W, of_H, *of_bias = trained.gradients
            np.matmul((H.swapaxes(1, 2) @ E) * S, rows, out=of_W)
            np.matmul(E, A.swapaxes(1, 2), out=of_H)
            for own in of_bias:
                E.sum(axis=2, keepdims=True, out=own)
            trained.step(rate, step)
        outputs, _, _ = _outputs(trained.weights, rows, blocks[0].slopes)
    return [float(loss(torch.from_numpy(one.T))) for one in outputs]


def _parts(blocks: Sequence[ShallowBlock]) -> list[Array]:
    """Weights ``(K, I, d)``, ``(K, J, I)`` and, where there are some, biases ``(K, J, 1)`` of all networks."""
    # A neuron without any weights has no gradient: narrower networks train as they do without it.
    W = pad_sequence([block.W.detach() for block in blocks], batch_first=True)
    H = pad_sequence([block.H.detach().T for block in blocks], batch_first=True).mT
    biases = [block.output_bias.detach() for block in blocks if block.output_bias is not None]
    found = [W, H, torch.stack(biases)[:, :, None]] if biases else [W, H]
    return [part.double().cpu().numpy() for part in found]


def _outputs(weights: Sequence[Array], rows: Array, slopes: tuple[float, float]) -> tuple[Array, Array, Array]:
    """Outputs ``(K, J, N)``, activations and slopes ``(K, I, N)`` of networks of such weights on rows ``(N, d)``."""
    W, H, *bias = weights
    Z = W @ rows.T
    S = np.where(Z > 0, slopes[1], slopes[0])
    A = Z * S
    return sum(bias, H @ A), A, S


def _below(outputs: Array) -> Tensor:
    """Outputs ``(K, J, N)`` of networks one below the other, ``(K N, J)``."""
    return torch.from_numpy(outputs.swapaxes(1, 2).reshape(-1, outputs.shape[1]))


def _by_columns(G: Array, networks: int) -> Array:
    """Gradients ``(K N, J)`` as ``(K, J, N)``."""
    return G.reshape(networks, -1, G.shape[1]).swapaxes(1, 2)


class _Trained:
    """Weights of several shapes, in one piece of memory, that are changed in place by Adam's steps."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self._all = np.concatenate([part.ravel() for part in parts])
        self._gradient = np.zeros_like(self._all)
        self._mean = np.zeros_like(self._all)
        self._square = np.zeros_like(self._all)
        self.weights = self._split(self._all, parts)
        self.gradients = self._split(self._gradient, parts)

    @staticmethod
    def _split(numbers: Array, parts: Sequence[Array]) -> list[Array]:
        """Parts of all numbers, in their shapes."""
        ends = np.cumsum([part.size for part in parts])
        return [some.reshape(part.shape) for some, part in zip(np.split(numbers, ends[:-1]), parts, strict=True)]

    def step(self, rate: float, number: int) -> None:
        """Take a step by the gradients, counted from 1."""
        mean, square = BUDGETS.rehearsal_memory
        gradient = self._gradient
        self._mean += (1 - mean) * (gradient - self._mean)
        self._square += (1 - square) * (gradient * gradient - self._square)
        size = np.sqrt(self._square / (1 - square**number)) + FLOAT64.eps
        self._all -= rate / (1 - mean**number) * self._mean / size
