"""A loss that only its user knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss._targets import check_constants, check_outputs
from relu_diag.functional.output_loss.loss import Loss
from relu_diag.functional.tolerances import tolerances


@dataclass(frozen=True, slots=True, eq=False)
class OutputLoss(Loss):
    """A differentiable function of the outputs as a loss, its derivatives by autograd.

    Attributes:
        function: Takes the outputs, shape ``(N, J)``, and returns a scalar.
        convex: Whether it is a convex function of them; it is taken at its word.
        smooth: Whether it has a gradient everywhere, and near every point a bounded curvature.
        samples: Number of samples; None: any.
        name: What messages call it.
        factor: What it is multiplied by.

    Raises:
        TypeError: If the function cannot be called.

    Example:
        >>> loss = OutputLoss(lambda outputs: outputs.cosh().sum(), convex=True)
        >>> loss(torch.zeros(1, 2)), loss.curvature(torch.zeros(1, 2), torch.ones(1, 2)).tolist()
        (tensor(2.), [[1.0, 1.0]])
    """

    function: Callable[[Tensor], Tensor]
    convex: bool = False
    smooth: bool = True
    samples: int | None = None
    name: str = "loss"
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"`function` must take the outputs; got {type(self.function).__name__}.")
        check_constants("sum", ("sum",), self.factor)

    def __call__(self, outputs: Tensor) -> Tensor:
        """The loss, shape ``()``.

        Raises:
            ValueError: If the function returns no scalar.
        """
        if self.samples is not None:
            check_outputs(outputs, (self.samples, outputs.shape[-1]))
        value = self.function(outputs)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError("`function` must return a tensor with one number, the loss. Reduce it: loss.mean().")
        return self.factor * value.reshape(())

    def gradient(self, outputs: Tensor) -> Tensor:
        """The gradient, shape ``(N, J)``."""
        return self._gradient(outputs, graph=False)[0]

    def curvature(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """The product of the Hessian with a direction, shape ``(N, J)``."""
        gradient, at = self._gradient(outputs, graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(outputs)
        (product,) = torch.autograd.grad(gradient, at, direction, allow_unused=True, materialize_grads=True)
        return product.detach()

    def change(self, outputs: Tensor, step: Tensor) -> Tensor:
        """What the loss changes by, shape ``()``: of a small step the mean slope, by Gauss and Legendre."""
        with torch.no_grad():
            before, after = self(outputs), self(outputs + step)
        if bool((after - before).abs() > math.sqrt(tolerances(outputs.dtype).eps) * before.abs()):
            return after - before
        nodes, weights = np.polynomial.legendre.leggauss(BUDGETS.nodes_of_change)
        slopes = [(self.gradient(outputs + (1 + node) / 2 * step) * step).sum() for node in nodes.tolist()]
        mean: Tensor = torch.stack(slopes) @ torch.as_tensor(weights / 2).to(outputs)
        return mean

    def conjugate(self, G: Tensor) -> NoReturn:
        """Nothing is known of it.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"nothing is known of the conjugate of {self.name!r}: bounds need one of the losses that have their own "
            "class, such as CrossEntropy."
        )

    def recession(self, direction: Tensor) -> Tensor:
        """Infinite: nothing is known, shape ``(N,)``."""
        return torch.full_like(direction[:, 0], torch.inf)

    def double(self) -> OutputLoss:
        """Itself: the function takes outputs of any dtype."""
        return self

    def to(self, device: torch.device | str) -> OutputLoss:
        """Itself: what the function holds is its own affair."""
        return self

    def scaled(self, factor: float) -> OutputLoss:
        """A multiple of the loss."""
        return replace(self, factor=self.factor * factor)

    def rows(self, index: Any) -> NoReturn:
        """Not known as a sum over samples.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self.name!r} is not known as a sum over samples: its rows cannot be taken apart.")

    def joined_with(self, others: list[Any], weights: list[float]) -> OutputLoss:
        """Only one by itself can be joined.

        Raises:
            NotImplementedError: If there are others.
        """
        if others:
            raise NotImplementedError(f"{self.name!r} is not known as a sum over samples: it cannot be joined.")
        return self.scaled(weights[0])

    def _gradient(self, outputs: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """The gradient, and the leaf it was taken at."""
        with torch.enable_grad():
            at = outputs.detach().clone().requires_grad_()
            value = self(at)
            if not value.requires_grad:
                return torch.zeros_like(outputs), at
            (gradient,) = torch.autograd.grad(value, at, create_graph=graph, allow_unused=True, materialize_grads=True)
        return gradient, at
