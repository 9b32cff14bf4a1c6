"""Where training leads from several networks: all of them trained on copies, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening.network import Network


def rehearsed_losses(networks: Sequence[ShallowBlock | Network], X: Tensor, loss: Loss, rate: float) -> list[float]:
    """The losses of networks after some steps of Adam with all their weights, for small networks on few samples.

    A network that is lower at once may lead to a higher minimum: only training tells.

    Args:
        networks: Networks of the same inputs, outputs and number of layers, one at least.
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
    together = _Together([one if isinstance(one, Network) else Network.of([one]) for one in networks])
    # Of all networks together, one after the other: the rows of one are those of its samples.
    everywhere = loss.rows(torch.arange(len(rows)).repeat(len(networks)))
    everywhere = everywhere.prepared(_below(together.outputs(rows)))
    with np.errstate(all="ignore"):  # one may leave all numbers
        for step in range(1, BUDGETS.rehearsal_steps + 1):
            outputs = together.outputs(rows)
            together.follow(_by_columns(everywhere.gradient(_below(outputs)).numpy(), len(networks)))
            together.trained.step(rate, step)
        outputs = together.outputs(rows)
    return [float(loss(torch.from_numpy(one.T))) for one in outputs]


class _Together:
    """Networks of as many layers side by side, with weights ``(K, J, I)`` and biases ``(K, J, 1)`` of all of them.

    A neuron without any weights has no gradient: narrower networks train as they do without it.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        layers = list(zip(*(network.layers for network in networks), strict=True))
        self._slopes = [some[0].slopes for some in layers]
        weights = [_padded([network.W for network in networks]), *(_padded([one.H for one in some]) for some in layers)]
        # By places of the layers that have some: the constant for the first one's is among the inputs.
        biases = {
            place: _padded([one.bias[:, None] for one in some if one.bias is not None])
            for place, some in enumerate(layers, start=1)
            if some[0].bias is not None
        }
        self.trained = _Trained([*weights, *biases.values()])
        count = len(weights)
        self._weights = self.trained.weights[:count]
        self._biases = dict(zip(biases, self.trained.weights[count:], strict=True))
        self._of_weights = self.trained.gradients[:count]
        self._of_biases = dict(zip(biases, self.trained.gradients[count:], strict=True))

    def outputs(self, rows: Array) -> Array:
        """Outputs ``(K, J, N)`` on rows ``(N, d)``; what gradients need is kept."""
        self._read = [rows.T]
        self._kinks: list[Array] = []
        Z = self._weights[0] @ rows.T
        for place, slopes in enumerate(self._slopes, start=1):
            self._kinks.append(np.where(Z > 0, slopes[1], slopes[0]))
            self._read.append(Z * self._kinks[-1])
            Z = self._weights[place] @ self._read[-1]
            if place in self._biases:
                Z = Z + self._biases[place]
        return Z

    def follow(self, E: Array) -> None:
        """Put the gradients in their place, by those of the outputs ``(K, J, N)``."""
        for place in reversed(range(len(self._weights))):
            np.matmul(E, self._read[place].swapaxes(-1, -2), out=self._of_weights[place])
            if place in self._of_biases:
                E.sum(axis=2, keepdims=True, out=self._of_biases[place])
            if place:
                E = (self._weights[place].swapaxes(1, 2) @ E) * self._kinks[place - 1]


def _padded(parts: Sequence[Tensor]) -> Array:
    """Matrices in the corners of larger ones, shape ``(K, rows, columns)``."""
    shape = [max(part.shape[axis] for part in parts) for axis in (0, 1)]
    found = np.zeros((len(parts), *shape))
    for place, part in zip(found, parts, strict=True):
        place[: part.shape[0], : part.shape[1]] = part.detach().double().cpu().numpy()
    return found


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
