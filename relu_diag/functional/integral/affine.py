"""A network with scalar input and an affine target on an interval; leaky units as ReLU, the invariant of the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional._checks import check_slopes
from relu_diag.functional.integral._network import check_network, check_one_number
from relu_diag.functional.integral.function import Function1d, evaluate
from relu_diag.functional.integral.interval import Interval, IntervalTarget, check_interval, interval_l2_loss
from relu_diag.functional.tolerances import FLOAT64

_PROBES = 33
_EXACT = 2  # nodes per piece: the squared error of an affine target is a quadratic


@dataclass(frozen=True, slots=True, eq=False)
class AffineProblem:
    """A ReLU network with scalar input and the target ``slope x + intercept`` on an interval.

    Attributes:
        w: Input weights, float64, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        c: Output bias, shape ``()``.
        slope: Of the target.
        intercept: Of the target.
        interval: ``(A, B)``.
        slopes: ``(s-, s+)`` of the activation.

    Raises:
        TypeError: If a parameter is no floating-point tensor, or the target is no pair of numbers.
        ValueError: If shapes do not fit, a number is not finite, or the interval is empty.

    Example:
        >>> one = torch.ones(1)
        >>> problem = AffineProblem(one, 0 * one, one, torch.tensor(0.0), slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> problem.loss(problem.neurons, problem.c)
        tensor(0., dtype=torch.float64)
    """

    w: Tensor
    b: Tensor
    h: Tensor
    c: Tensor
    slope: float
    intercept: float
    interval: Interval
    slopes: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_network(self.w, self.b, self.h)
        check_one_number(self.c)
        check_interval(self.interval)
        check_slopes(self.slopes)
        for name, value in (("slope", self.slope), ("intercept", self.intercept)):
            if not isinstance(value, int | float):
                raise TypeError(
                    f"`{name}` must be a number of the affine target slope x + intercept; got {type(value).__name__}. "
                    "affine_coefficients(target, interval) reads both off a function, if it is affine."
                )
            if not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite; got {value!r}.")
        for name in ("w", "b", "h"):
            object.__setattr__(self, name, getattr(self, name).detach().double())
        object.__setattr__(self, "c", torch.as_tensor(self.c, device=self.w.device).detach().double().reshape(()))

    @property
    def target(self) -> IntervalTarget:
        """The target, with as many nodes as its integrals need."""
        return IntervalTarget(lambda x: self.slope * x + self.intercept, order=_EXACT, cells=1)

    def loss(self, neurons: Tensor, c: Tensor) -> Tensor:
        """The integral loss of other parameters.

        Args:
            neurons: Rows ``w``, ``b`` and ``h``, shape ``(3, I)``.
            c: Output bias, shape ``()``.

        Returns:
            Scalar.
        """
        w, b, h = neurons
        return interval_l2_loss(w, b, h, c, self.target, self.interval, self.slopes)

    @property
    def neurons(self) -> Tensor:
        """Rows ``w``, ``b`` and ``h``, shape ``(3, I)``."""
        return torch.stack([self.w, self.b, self.h])

    @property
    def terms(self) -> float:
        """The size of what is added up to the error: it is no more accurate than its terms."""
        A, B = self.interval
        far = max(abs(A), abs(B))
        z = torch.stack([self.w * A + self.b, self.w * B + self.b])
        # What is 0 on the whole interval adds nothing.
        silent = ((z < 0).all(0) & (self.slopes[0] == 0)) | ((z > 0).all(0) & (self.slopes[1] == 0))
        sizes = torch.where(silent, 0.0, self.w.abs() * far + self.b.abs()) * max(map(abs, self.slopes))
        return float(self.h.abs() @ sizes) + abs(float(self.c)) + abs(self.intercept) + abs(self.slope) * far


def affine_coefficients(target: Function1d, interval: Interval) -> tuple[float, float]:
    """Slope and intercept of a target that is affine on the interval.

    Args:
        target: Vectorised function.
        interval: ``(A, B)``.

    Returns:
        Slope and intercept.

    Raises:
        ValueError: If it is not affine.

    Example:
        >>> affine_coefficients(lambda x: 2 * x - 1, (0.0, 4.0))
        (2.0, -1.0)
    """
    A, B = check_interval(interval)
    x = torch.linspace(A, B, _PROBES, dtype=torch.float64)
    values = evaluate("target", target, x)
    slope = float(values[-1] - values[0]) / (B - A)
    intercept = float(values[0]) - slope * A
    miss = float((values - values[0] - slope * (x - A)).abs().max())
    # A target written for float32 is affine to float32's rounding.
    if miss > FLOAT64.affine * float(values.abs().max()):
        raise ValueError(f"`target` is not affine on [{A:g}, {B:g}]: it is off its chord by up to {miss:.3g}.")
    return slope, intercept


def leaky_as_relu(w: Tensor, b: Tensor, h: Tensor, slopes: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU neurons, twice as many, that compute the same function: ``rho(z) = s+ max(z, 0) - s- max(-z, 0)``.

    Source: Cheridito et al., section 5.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        slopes: ``(s-, s+)``.

    Returns:
        ``w``, ``b`` and ``h``, shape ``(2 I,)``.

    Example:
        >>> one = torch.ones(1)
        >>> leaky_as_relu(one, 0 * one, one, slopes=(0.5, 1.0))
        (tensor([ 1., -1.]), tensor([0., -0.]), tensor([ 1.0000, -0.5000]))
    """
    check_slopes(slopes)
    s_minus, s_plus = slopes
    return torch.cat([w, -w]), torch.cat([b, -b]), torch.cat([s_plus * h, -s_minus * h])


def invariant(w: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """``w^2 + b^2 - h^2``, conserved by gradient flow: a neuron that starts above 0 never degenerates.

    Source: Cheridito et al., section 4.3.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.

    Returns:
        One number per neuron, shape ``(I,)``.

    Example:
        >>> invariant(torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([5.0]))
        tensor([0.])
    """
    return w.square() + b.square() - h.square()
