"""The loss of the outputs as a search in a stratum sees it: in units of its own, as numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from relu_diag.functional._arrays import Array
from relu_diag.functional.output_loss import Loss, OutputLoss


@dataclass(frozen=True, slots=True, eq=False)
class HalfSquares:
    """Half the squared error of the outputs.

    Attributes:
        Y: Targets, shape ``(N, J)``.
    """

    Y: Array

    @property
    def size(self) -> float:
        """Norm of a gradient that is large."""
        return float(np.linalg.norm(self.Y))

    @property
    def sizes(self) -> Array:
        """What the gradient of each sample is made of, shape ``(N,)``."""
        return np.asarray(np.linalg.norm(self.Y, axis=1))

    @property
    def excess_of_zero(self) -> float:
        """`excess` of outputs of zero."""
        return self.size**2

    def excess(self, outputs: Array) -> float:
        """How far twice the loss is above the least that any outputs have."""
        return float(np.square(self.gradient(outputs)).sum())

    def gradient(self, outputs: Array) -> Array:
        """Gradient at the outputs, shape ``(N, J)``."""
        return outputs - self.Y

    def curvature(self, outputs: Array, change: Array) -> Array:
        """Change of that gradient when the outputs change, to first order, shape ``(N, J)``."""
        del outputs  # the gradient is linear
        return change

    def curved(self, outputs: Array) -> Array:
        """The same for the outputs of each sample by themselves, shape ``(N, J, J)``."""
        samples, count = outputs.shape
        return np.broadcast_to(np.eye(count), (samples, count, count))

    def falls_for_ever(self, change: Array) -> bool:
        """Whether the loss falls for ever along a change of the outputs."""
        del change
        return False


class LossTerm:
    """Any loss of the outputs.

    Args:
        loss: The loss.
        shape: Shape of the outputs, ``(N, J)``.
        unit: What outputs are measured in.
    """

    def __init__(self, loss: Loss, shape: tuple[int, int], unit: float) -> None:
        self.convex = loss.convex
        self._loss = loss.to("cpu").double()
        self._unit = unit
        self._zero = np.zeros(shape)
        self._bent: tuple[Array, Array] | None = None

    @cached_property
    def size(self) -> float:
        """Norm of the gradient at outputs of zero."""
        return float(np.linalg.norm(self.sizes))

    @cached_property
    def sizes(self) -> Array:
        """The same of each sample, shape ``(N,)``."""
        return np.asarray(np.linalg.norm(self.gradient(self._zero), axis=1))

    @cached_property
    def excess_of_zero(self) -> float:
        """`excess` of outputs of zero."""
        return self.excess(self._zero)

    def excess(self, outputs: Array) -> float:
        """How far twice the loss is above the least that any outputs have, or above zero where that is not known."""
        return 2 * (float(self._loss(self._torch(outputs))) - self._least)

    def gradient(self, outputs: Array) -> Array:
        """Gradient at the outputs, shape ``(N, J)``."""
        return np.asarray(self._unit * self._loss.gradient(self._torch(outputs)).numpy())

    def curvature(self, outputs: Array, change: Array) -> Array:
        """Change of that gradient when the outputs change, to first order, shape ``(N, J)``."""
        if isinstance(self._loss, OutputLoss):
            product = self._loss.curvature(self._torch(outputs), self._torch(change))
            return np.asarray(self._unit * product.numpy())
        return np.asarray((self._of_rows(outputs) @ change[:, :, None])[:, :, 0])

    def curved(self, outputs: Array) -> Array | Callable[[Array], Array]:
        """The same for the outputs of each sample, shape ``(N, J, J)``; as a function where samples are not apart."""
        return partial(self.curvature, outputs) if isinstance(self._loss, OutputLoss) else self._of_rows(outputs)

    def _of_rows(self, outputs: Array) -> Array:
        """The curvature in the outputs of each sample, kept for the next question at the same outputs."""
        if self._bent is None or self._bent[0] is not outputs:
            self._bent = outputs, self._curvature_of_rows(outputs)
        return self._bent[1]

    def _curvature_of_rows(self, outputs: Array) -> Array:
        """The curvature in the outputs of each sample, shape ``(N, J, J)``: a search asks for many products with it."""
        at = self._torch(outputs)
        axes = torch.eye(outputs.shape[1], dtype=torch.float64)
        products = [self._loss.curvature(at, axis.expand_as(at)) for axis in axes]
        return np.asarray(self._unit**2 * torch.stack(products, dim=2).numpy())

    def falls_for_ever(self, change: Array) -> bool:
        """Whether the loss falls for ever along a change of the outputs."""
        return bool(change.any()) and bool((self._loss.recession(self._torch(change)) <= 0).all())

    @cached_property
    def _least(self) -> float:
        try:
            return -float(self._loss.conjugate(self._torch(self._zero)))
        except NotImplementedError:
            return 0.0

    def _torch(self, outputs: Array) -> torch.Tensor:
        return torch.from_numpy(self._unit * outputs)


Term = HalfSquares | LossTerm
