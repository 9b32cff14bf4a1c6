"""Losses that are a sum over samples and outputs of a function of one output and one target."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from relu_diag.functional.output_loss._targets import (
    as_targets,
    as_weights,
    check_constants,
    check_outputs,
    check_same,
    joined_weights,
    one_over_whole,
)
from relu_diag.functional.output_loss.loss import Loss
from relu_diag.functional.tolerances import tolerances


class Elementwise(Loss):
    """``factor * sum weight_kj f(yhat_kj, y_kj)`` over the divisor of a reduction, ``f`` convex in ``yhat``.

    A subclass is a dataclass with the fields below, and gives ``f`` with its derivatives and conjugate.
    """

    __slots__ = ()
    Y: Tensor
    reduction: str
    weight: Tensor | None
    factor: float
    # Names of fields that must be the same in losses that are joined.
    constants: ClassVar[tuple[str, ...]] = ()
    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum")
    # Whether torch divides a weighted mean by the sum of the weights, and takes a vector of weights as one per output.
    divides_by_weights: ClassVar[bool] = False
    weight_by_output: ClassVar[bool] = False
    # Whether outputs are compared with targets in units of their own, and are no logits.
    of_numbers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_constants(self.reduction, self.reductions, self.factor)
        object.__setattr__(self, "Y", as_targets("Y", self.Y))
        if self.weight is not None:
            object.__setattr__(self, "weight", as_weights("weight", self.weight, self.Y, self.weight_by_output))

    def __call__(self, outputs: Tensor) -> Tensor:
        """The loss, shape ``()``."""
        Y = self._targets(outputs)
        return (self._coefficients(outputs) * self._value(outputs, Y)).sum()

    def gradient(self, outputs: Tensor) -> Tensor:
        """The gradient, shape ``(N, J)``."""
        Y = self._targets(outputs)
        return self._coefficients(outputs) * self._slope(outputs, Y)

    def curvature(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """The product of the Hessian with a direction, shape ``(N, J)``."""
        Y = self._targets(outputs)
        return self._coefficients(outputs) * self._curvature(outputs, Y) * direction

    def change(self, outputs: Tensor, step: Tensor) -> Tensor:
        """What the loss changes by, shape ``()``."""
        Y = self._targets(outputs)
        return (self._coefficients(outputs) * self._change(outputs, Y, step)).sum()

    def conjugate(self, G: Tensor) -> Tensor:
        """The Fenchel conjugate, shape ``()``."""
        Y = self._targets(G)
        coefficient = self._coefficients(G).expand_as(G)
        present = coefficient > 0
        own = self._conjugate(torch.where(present, G / torch.where(present, coefficient, 1.0), 0.0), Y)
        absent = torch.where(G == 0, 0.0, torch.inf).to(G)
        return torch.where(present, coefficient * own, absent).sum()

    def recession(self, direction: Tensor) -> Tensor:
        """The slope far out in a direction, by samples, shape ``(N,)``."""
        Y = self._targets(direction)
        coefficients = self._coefficients(direction).expand_as(direction)
        slope = self._recession(direction, Y)
        return torch.where(coefficients > 0, coefficients * slope, 0.0).sum(1)

    @property
    def convex(self) -> bool:
        """True: weights are not negative."""
        return True

    @property
    def smooth(self) -> bool:
        """Whether ``f`` has a gradient everywhere."""
        return True

    @property
    def output_scale(self) -> float:
        """That of the targets, 1 where all of them are zero or for logits."""
        return float(self.Y.double().square().mean().sqrt()) or 1.0 if self.of_numbers else 1.0

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.Y)

    def double(self) -> Self:
        """The loss in float64."""
        return self._changed(lambda part: part.double())

    def to(self, device: torch.device | str) -> Self:
        """The loss on a device."""
        return self._changed(lambda part: part.to(device))

    def scaled(self, factor: float) -> Self:
        """A multiple of the loss."""
        return replace(self, factor=self.factor * factor)  # type: ignore[type-var]

    def rows(self, index: Any) -> Self:
        """The part of some samples."""
        weight = None if self.weight is None else self.weight[index]
        return replace(self, Y=self.Y[index], weight=weight, reduction="sum", factor=self.scale)  # type: ignore[type-var]

    def joined_with(self, others: list[Self], weights: list[float]) -> Self:
        """The loss of all rows."""
        losses = [self, *others]
        for name in self.constants:
            check_same(name, [getattr(loss, name) for loss in losses])
        scales = [one_over_whole(weight * loss.scale) for weight, loss in zip(weights, losses, strict=True)]
        factor = max(scales) or 1.0
        targets = [loss.Y for loss in losses]
        weight = joined_weights([loss.weight for loss in losses], [scale / factor for scale in scales], targets)
        return replace(self, Y=torch.cat(targets), weight=weight, reduction="sum", factor=factor)  # type: ignore[type-var]

    def _changed(self, change: Any) -> Self:
        tensors = {name: getattr(self, name) for name in ("Y", "weight", *self.constants)}
        changed = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var]

    def _targets(self, outputs: Tensor) -> Tensor:
        check_outputs(outputs, tuple(self.Y.shape))
        return self.Y.to(outputs)

    @property
    def scale(self) -> float:
        """The factor over the divisor of the reduction: what multiplies the sum of weighted values."""
        if self.reduction == "sum":
            return self.factor
        if self.reduction == "half_sum":
            return self.factor / 2
        if self.weight is not None and self.divides_by_weights:
            total = float(self.weight.double().sum()) * self.Y.shape[1] / self.weight.shape[1]
            return self.factor / total if total > 0 else 0.0
        return self.factor / self.Y.numel()

    def _coefficients(self, like: Tensor) -> Tensor:
        """What multiplies ``f``, broadcast to ``(N, J)``."""
        scale = like.new_full((1, 1), self.scale)
        return scale if self.weight is None else scale * self.weight.to(like)

    @abstractmethod
    def _value(self, outputs: Tensor, Y: Tensor) -> Tensor:
        """``f``, shape ``(N, J)``."""

    @abstractmethod
    def _slope(self, outputs: Tensor, Y: Tensor) -> Tensor:
        """Its derivative by the output."""

    @abstractmethod
    def _curvature(self, outputs: Tensor, Y: Tensor) -> Tensor:
        """Its second derivative."""

    @abstractmethod
    def _change(self, outputs: Tensor, Y: Tensor, step: Tensor) -> Tensor:
        """What it changes by."""

    @abstractmethod
    def _conjugate(self, slope: Tensor, Y: Tensor) -> Tensor:
        """Its conjugate."""

    @abstractmethod
    def _recession(self, direction: Tensor, Y: Tensor) -> Tensor:
        """Its slope far out in a direction."""


def slack(like: Tensor) -> float:
    """Rounding of a slope over its size, within which it still lies in the domain of a conjugate."""
    known = tolerances(like.dtype)
    return known.roundings * known.eps


def within(inside: Tensor, value: Tensor) -> Tensor:
    """Values of a conjugate, infinite outside its domain."""
    return torch.where(inside, value, torch.inf)
