"""Losses of numbers and counts: squared, absolute and Huber's error, and Poisson's negative log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relu_diag.functional._checks import is_number
from relu_diag.functional.output_loss._elementwise import Elementwise, slack, within
from relu_diag.functional.output_loss.loss import Loss


@dataclass(frozen=True, slots=True, eq=False)
class SquaredError(Elementwise):
    """The squared error, ``(yhat - y)^2``; torch's `mse_loss`.

    Attributes:
        Y: Targets, shape ``(N, J)``, or ``(N,)`` for one output.
        reduction: "mean" (over samples and outputs; where there are weights over their sum, as in torch), "sum", or
            "half_sum" (one half of the sum).
        weight: Weights of the samples, shape ``(N,)``, or of single numbers, ``(N, J)``, not negative; None: 1.
        factor: What the loss is multiplied by.

    Example:
        >>> loss = SquaredError(torch.zeros(2, 1))
        >>> outputs = torch.tensor([[1.0], [3.0]])
        >>> loss(outputs), loss.gradient(outputs).tolist(), loss.rows([1])(outputs[1:])
        (tensor(5.), [[1.0], [3.0]], tensor(4.5000))
    """

    Y: Tensor
    reduction: str = "mean"
    weight: Tensor | None = None
    factor: float = 1.0
    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum", "half_sum")
    divides_by_weights: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its name."""
        return "squared error"

    def _value(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return (outputs - Y).square()

    def _slope(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return 2 * (outputs - Y)

    def _curvature(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return torch.full_like(outputs, 2.0)

    def _change(self, outputs: Tensor, Y: Tensor, step: Tensor) -> Tensor:
        return step * (2 * (outputs - Y) + step)

    def _conjugate(self, slope: Tensor, Y: Tensor) -> Tensor:
        return slope * Y + slope.square() / 4

    def _recession(self, direction: Tensor, Y: Tensor) -> Tensor:
        return torch.where(direction == 0, 0.0, torch.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Huber(Elementwise):
    """Half the squared error up to a distance ``delta``, linear beyond; torch's `huber_loss`.

    Torch's `smooth_l1_loss` with ``beta`` is ``1 / beta`` times the one with ``delta = beta``.

    Attributes:
        Y: Targets, shape ``(N, J)``, or ``(N,)`` for one output.
        delta: Distance from which on it is linear, > 0.
        reduction: "mean" or "sum".
        weight: Weights of the samples, shape ``(N,)``, or of single numbers, ``(N, J)``, not negative; None: 1.
        factor: What the loss is multiplied by.

    Raises:
        ValueError: If ``delta`` is not positive.

    Example:
        >>> loss = Huber(torch.zeros(2, 1), reduction="sum")
        >>> loss(torch.tensor([[1.0], [3.0]])), loss.gradient(torch.tensor([[1.0], [3.0]])).tolist()
        (tensor(3.), [[1.0], [1.0]])
    """

    Y: Tensor
    delta: float = 1.0
    reduction: str = "mean"
    weight: Tensor | None = None
    factor: float = 1.0
    constants: ClassVar[tuple[str, ...]] = ("delta",)

    def __post_init__(self) -> None:
        if not (is_number(self.delta) and self.delta > 0):
            raise ValueError(f"`delta` must be positive; got {self.delta!r}.")
        Elementwise.__post_init__(self)

    @property
    def name(self) -> str:
        """Its name."""
        return "Huber loss"

    def _value(self, outputs: Tensor, Y: Tensor) -> Tensor:
        size = (outputs - Y).abs()
        return torch.where(size <= self.delta, size.square() / 2, self.delta * (size - self.delta / 2))

    def _slope(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return (outputs - Y).clamp(-self.delta, self.delta)

    def _curvature(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return ((outputs - Y).abs() <= self.delta).to(outputs)

    def _change(self, outputs: Tensor, Y: Tensor, step: Tensor) -> Tensor:
        before = outputs - Y
        after = before + step
        near, far = (value.clamp(-self.delta, self.delta) for value in (before, after))
        # The loss is n^2 / 2 + n (r - n), with n the clamped residual r; differences of equal parts are not formed.
        inside = (before == near) & (after == far)
        bent = (far - near) * (far + near) / 2 + far * (after - far) - near * (before - near)
        return torch.where(inside, step * (before + after) / 2, torch.where(near == far, near * step, bent))

    def _conjugate(self, slope: Tensor, Y: Tensor) -> Tensor:
        value = slope * Y + slope.square() / 2
        return within(slope.abs() <= self.delta * (1 + slack(slope)), value)

    def _recession(self, direction: Tensor, Y: Tensor) -> Tensor:
        return self.delta * direction.abs()


@dataclass(frozen=True, slots=True, eq=False)
class AbsoluteError(Elementwise):
    """The absolute error, ``|yhat - y|``; torch's `l1_loss`. It has a kink where a target is met.

    Attributes:
        Y: Targets, shape ``(N, J)``, or ``(N,)`` for one output.
        reduction: "mean" (where there are weights over their sum, as in torch) or "sum".
        weight: Weights of the samples, shape ``(N,)``, or of single numbers, ``(N, J)``, not negative; None: 1.
        factor: What the loss is multiplied by.

    Example:
        >>> loss = AbsoluteError(torch.zeros(2, 1))
        >>> loss(torch.tensor([[1.0], [-3.0]])), loss.gradient(torch.tensor([[1.0], [-3.0]])).tolist(), loss.smooth
        (tensor(2.), [[0.5], [-0.5]], False)
    """

    Y: Tensor
    reduction: str = "mean"
    weight: Tensor | None = None
    factor: float = 1.0
    divides_by_weights: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its name."""
        return "absolute error"

    @property
    def smooth(self) -> bool:
        """False."""
        return False

    def slopes_within(self, outputs: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes on both sides of every output, at a distance ``(N,)``; both of shape ``(N, J)``."""
        return self.gradient(outputs - reach[:, None]), self.gradient(outputs + reach[:, None])

    def _value(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return (outputs - Y).abs()

    def _slope(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return (outputs - Y).sign()

    def _curvature(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return torch.zeros_like(outputs)

    def _change(self, outputs: Tensor, Y: Tensor, step: Tensor) -> Tensor:
        before = outputs - Y
        after = before + step
        return torch.where(before * after > 0, before.sign() * step, after.abs() - before.abs())

    def _conjugate(self, slope: Tensor, Y: Tensor) -> Tensor:
        return within(slope.abs() <= 1 + slack(slope), slope * Y)

    def _recession(self, direction: Tensor, Y: Tensor) -> Tensor:
        return direction.abs()


@dataclass(frozen=True, slots=True, eq=False)
class Poisson(Elementwise):
    """The negative log-likelihood of counts whose log-rate is the output, ``exp(yhat) - y yhat``; torch's default.

    Attributes:
        Y: Counts, shape ``(N, J)``, or ``(N,)`` for one output.
        reduction: "mean" or "sum".
        weight: Weights of the samples, shape ``(N,)``, or of single numbers, ``(N, J)``, not negative; None: 1.
        factor: What the loss is multiplied by.

    Example:
        >>> loss = Poisson(torch.ones(1, 1))
        >>> loss(torch.zeros(1, 1)), loss.gradient(torch.zeros(1, 1)).tolist()  # a rate of 1 is the best
        (tensor(1.), [[0.0]])
    """

    Y: Tensor
    reduction: str = "mean"
    weight: Tensor | None = None
    factor: float = 1.0
    of_numbers: ClassVar[bool] = False

    @property
    def attained(self) -> bool:
        """False: of a count of zero it is not."""
        return False

    @property
    def name(self) -> str:
        """Its name."""
        return "Poisson loss"

    def _value(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return outputs.exp() - Y * outputs

    def _slope(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return outputs.exp() - Y

    def _curvature(self, outputs: Tensor, Y: Tensor) -> Tensor:
        return outputs.exp()

    def _change(self, outputs: Tensor, Y: Tensor, step: Tensor) -> Tensor:
        rate = outputs.exp()
        return rate * (step.expm1() - step) + (rate - Y) * step

    def _conjugate(self, slope: Tensor, Y: Tensor) -> Tensor:
        rate = slope + Y
        inside = rate >= -slack(slope) * (slope.abs() + Y.abs())
        rate = rate.clamp(min=0)
        return within(inside, torch.xlogy(rate, rate) - rate)

    def _recession(self, direction: Tensor, Y: Tensor) -> Tensor:
        return torch.where(direction > 0, torch.inf, -Y * direction)


def as_loss(Y_or_loss: Tensor | Loss, reduction: str = "mean") -> Loss:
    """Targets or a loss, as a loss.

    Args:
        Y_or_loss: Targets of a squared error, shape ``(N, J)``, or a loss.
        reduction: Of the squared error: "mean", "sum" or "half_sum"; a loss has its own.

    Returns:
        The loss.

    Raises:
        TypeError: If it is neither.

    Example:
        >>> as_loss(torch.zeros(2, 1), "half_sum")(torch.ones(2, 1))
        tensor(1.)
    """
    if isinstance(Y_or_loss, Loss):
        return Y_or_loss
    if isinstance(Y_or_loss, Tensor):
        return SquaredError(Y_or_loss, reduction)
    raise TypeError(
        f"expected targets as a tensor, or a loss of the outputs; got {type(Y_or_loss).__name__}. A function of the "
        "outputs becomes one as OutputLoss(function, convex=...)."
    )
