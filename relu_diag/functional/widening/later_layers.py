"""The loss of a hidden block inside a deeper network: a function of its outputs, through the layers behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import slopes_at
from relu_diag.functional.output_loss import Loss, LossAt, LossByPoint


@dataclass(frozen=True, slots=True, eq=False)
class LaterLayer:
    """An activation and the layer that reads it: ``Z -> H rho(Z) + bias``.

    Attributes:
        H: Weights, shape ``(J, I)``.
        slopes: ``(s-, s+)`` of the activation.
        bias: Bias, shape ``(J,)``, or None.

    Example:
        >>> layer = LaterLayer(torch.tensor([[2.0, 1.0]]), (0.0, 1.0), None)
        >>> layer(torch.tensor([[3.0, -1.0]]))
        tensor([[6.]])
    """

    H: Tensor
    slopes: tuple[float, float]
    bias: Tensor | None

    @classmethod
    def of(cls, block: ShallowBlock) -> LaterLayer:
        """The activation and the output layer of a block, float32 at least.

        Args:
            block: The block.

        Returns:
            The layer.
        """
        own = block.cast(torch.promote_types(block.H.dtype, torch.float32))
        return cls(own.H, own.slopes, own.output_bias)

    def __call__(self, Z: Tensor) -> Tensor:
        """Outputs of the layer.

        Args:
            Z: Pre-activations, shape ``(N, I)``.

        Returns:
            Shape ``(N, J)``.
        """
        out = rho(Z, self.slopes) @ self.H.T
        return out if self.bias is None else out + self.bias

    def to(self, target: torch.dtype | torch.device | str) -> LaterLayer:
        """The layer in another dtype or on another device.

        Args:
            target: Which.

        Returns:
            The layer.
        """
        return replace(self, H=self.H.to(target), bias=None if self.bias is None else self.bias.to(target))


@dataclass(frozen=True, slots=True, eq=False)
class LossThroughLayers(LossByPoint):
    """A loss at the end of a network as a function of the outputs of a block inside it.

    Its curvature is the Gauss-Newton part, that of the loss at the end: it is never negative where that is convex, and
    between kinks of the layers it is all.

    Attributes:
        end: The loss of the outputs of the last layer.
        layers: The layers behind the block, in their order.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> layer = LaterLayer(torch.tensor([[2.0]]), (0.0, 1.0), None)
        >>> loss = LossThroughLayers(SquaredError(torch.tensor([[1.0], [1.0]])), (layer,))
        >>> outputs = torch.tensor([[1.0], [2.0]])
        >>> loss(outputs), loss.gradient(outputs).tolist()
        (tensor(5.), [[2.0], [6.0]])
    """

    end: Loss
    layers: tuple[LaterLayer, ...]

    @property
    def weights(self) -> int:
        """Number of weights of the layers."""
        return sum(layer.H.numel() for layer in self.layers)

    def at(self, outputs: Tensor) -> _LossThroughLayersAt:
        """The loss at some outputs: they pass through the layers once."""
        return _LossThroughLayersAt(self, outputs)

    def at_the_end(self, outputs: Tensor) -> Tensor:
        """The outputs of the last layer, shape ``(N, K)``."""
        return self._through(outputs)[-1]

    def of_the_end(self, end: Tensor) -> Tensor:
        """The loss by the outputs of the last layer, shape ``()``."""
        return self.end(end)

    def prepared(self, like: Tensor) -> LossThroughLayers:
        """The loss with that at the end prepared."""
        return replace(self, end=self.end.prepared(like.new_empty(len(like), len(self.layers[-1].H))))

    def change(self, outputs: Tensor, step: Tensor) -> Tensor:
        """What the loss changes by, shape ``()``."""
        Z = self._through(outputs)
        for at, layer in zip(Z, self.layers, strict=False):
            moved = at + step
            # On one side of the kink a difference of activations would cancel.
            across = rho(moved, layer.slopes) - rho(at, layer.slopes)
            beside = slopes_at(at, layer.slopes) * step
            step = torch.where(moved.sign() * at.sign() > 0, beside, across) @ layer.H.T
        return self.end.change(Z[-1], step)

    def conjugate(self, G: Tensor) -> NoReturn:
        """Nothing is known of it.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("nothing is known of the conjugate of a loss through other layers.")

    def recession(self, direction: Tensor) -> Tensor:
        """Infinite: nothing is known, shape ``(N,)``."""
        return torch.full_like(direction[:, 0], torch.inf)

    @property
    def convex(self) -> bool:
        """Not known."""
        return False

    @property
    def smooth(self) -> bool:
        """Not at the kinks of the layers."""
        return False

    @property
    def attained(self) -> bool:
        """That of the loss at the end."""
        return self.end.attained

    @property
    def samples(self) -> int | None:
        """Number of samples."""
        return self.end.samples

    @property
    def name(self) -> str:
        """Its name."""
        return f"{self.end.name} through {len(self.layers)} further layers"

    def double(self) -> LossThroughLayers:
        """The loss in float64."""
        return LossThroughLayers(self.end.double(), tuple(layer.to(torch.float64) for layer in self.layers))

    def to(self, device: torch.device | str) -> LossThroughLayers:
        """The loss on another device."""
        return LossThroughLayers(self.end.to(device), tuple(layer.to(device) for layer in self.layers))

    def scaled(self, factor: float) -> LossThroughLayers:
        """A multiple of the loss."""
        return replace(self, end=self.end.scaled(factor))

    def rows(self, index: Any) -> LossThroughLayers:
        """The part of the loss that some samples make."""
        return replace(self, end=self.end.rows(index))

    def joined_with(self, others: list[Any], weights: list[float]) -> LossThroughLayers:
        """See `joined`: all through the same layers, which are not compared."""
        return replace(self, end=self.end.joined_with([other.end for other in others], weights))

    def _through(self, outputs: Tensor) -> list[Tensor]:
        """The outputs of the block, and of each layer behind it."""
        Z = [outputs]
        for layer in self.layers:
            Z.append(layer(Z[-1]))
        return Z


class _LossThroughLayersAt(LossAt):
    """A loss at the end of a network at some outputs of a block inside it."""

    loss: LossThroughLayers

    def __init__(self, loss: LossThroughLayers, outputs: Tensor) -> None:
        super().__init__(loss, outputs)
        Z = loss._through(outputs)
        self._end = loss.end.at(Z[-1])
        self._slopes = [slopes_at(at, layer.slopes) for at, layer in zip(Z, loss.layers, strict=False)]
        self._derivatives: Tensor | None = None

    def value(self) -> Tensor:
        """The loss, shape ``()``."""
        return self._end.value()

    def gradient(self) -> Tensor:
        """The gradient, shape ``(N, J)``."""
        return self._back(self._end.gradient())

    def curvature(self, direction: Tensor) -> Tensor:
        """The product of the Gauss-Newton matrix with a direction, shape ``(N, J)``."""
        if self._derivatives is not None:
            moved = (self._derivatives @ direction[:, :, None])[:, :, 0]
            return self._back(self._end.curvature(moved))
        for slopes, layer in zip(self._slopes, self.loss.layers, strict=True):
            direction = (slopes * direction) @ layer.H.T
        return self._back(self._end.curvature(direction))

    @property
    def stands_for_others(self) -> bool:
        """Whether derivatives are written down, and each product elsewhere would pass through large layers."""
        products = len(self.outputs) * self.loss.weights
        return self._derivatives is not None and products > BUDGETS.products_behind

    def prepared(self) -> _LossThroughLayersAt:
        """The same with the derivatives of the network's outputs by those of the block, where they are few."""
        layers = self.loss.layers
        numbers = len(self.outputs) * len(layers[-1].H) * max(len(layer.H.T) for layer in layers)
        # Behind one layer they would be as many as its weights, sample by sample, and nothing gained.
        if len(layers) > 1 and len(layers[-1].H) <= BUDGETS.outputs_behind and numbers <= BUDGETS.numbers_behind:
            derivatives = self._slopes[-1][:, None] * layers[-1].H
            for slopes, layer in zip(self._slopes[-2::-1], layers[-2::-1], strict=True):
                derivatives = slopes[:, None] * (derivatives @ layer.H)
            self._derivatives = derivatives
        return self

    def _back(self, G: Tensor) -> Tensor:
        """A gradient at the end as one at the outputs of the block."""
        if self._derivatives is not None:
            return (G[:, None] @ self._derivatives)[:, 0]
        for slopes, layer in zip(reversed(self._slopes), reversed(self.loss.layers), strict=True):
            G = slopes * (G @ layer.H)
        return G
