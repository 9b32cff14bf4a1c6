"""The gradient of the integral loss, made differentiable where neurons touch the interval in one end; strictness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.integral.affine import AffineProblem
from relu_diag.functional.integral.neuron_types import neuron_types

_Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Strictness:
    """Whether a saddle is strict for gradient descent.

    Attributes:
        eigenvalue: The smallest eigenvalue of the generalised Jacobian.
        direction: Its unit eigenvector, in the order ``w, b, h, c``, shape ``(3 I + 1,)``.
        asymmetry: Largest difference between the Jacobian and its transpose.

    Example:
        >>> w, b, h = torch.tensor([[1.0, -1.0], [-1 / 3, 2 / 3], [2 / 3, -2 / 3]], dtype=torch.float64)
        >>> saddle = AffineProblem(w, b, h, torch.tensor(0.5), slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> strictness(saddle).escape_factor(lr=0.1) > 1
        True
    """

    eigenvalue: float
    direction: Tensor
    asymmetry: float

    def escape_factor(self, lr: float) -> float:
        """What a step of gradient descent multiplies the distance along `direction` with.

        Args:
            lr: Learning rate.

        Returns:
            ``|1 - lr eigenvalue|``.
        """
        return abs(1 - lr * self.eigenvalue)

    def __str__(self) -> str:
        return f"smallest eigenvalue {self.eigenvalue:.4g}"


def generalised_gradient(problem: AffineProblem, sides: _Sides | None = None) -> Tensor:
    """The generalised gradient ``G^J``: the gradient, over ``[t_j, B]`` for ``j`` in ``J+``, ``[A, t_j]`` in ``J-``.

    Where such a neuron is inactive, the gradient is 0 and ``G^J`` is not; where it touches the interval in its end with
    the right sign of ``w_j``, or is active on part of the interval, they agree. Unlike the gradient, ``G^J`` is
    differentiable there. At coordinates of degenerate neurons with ``h_j != 0``, where there is no gradient, it is 0.

    Source: Cheridito et al., section 4.

    Args:
        problem: A ReLU network and its target.
        sides: ``(J+, J-)``, bool masks ``(I,)``; None: the semi-inactive neurons with ``w_j > 0`` and ``w_j < 0``.

    Returns:
        In the order ``w, b, h, c``, shape ``(3 I + 1,)``.

    Example:
        >>> w, b, h = torch.tensor([[1.0, -1.0], [-1 / 3, 2 / 3], [2 / 3, -2 / 3]], dtype=torch.float64)
        >>> saddle = AffineProblem(w, b, h, torch.tensor(0.5), slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> bool(generalised_gradient(saddle).abs().max() < 1e-15)
        True
    """
    centred = _centred(problem, sides)
    zeroth, first = centred.error_moments
    own0 = zeroth[:-1] * centred.smooth
    own1 = first[:-1] * centred.smooth
    by_w = problem.h * (own1 + centred.middle * own0)
    by_h = problem.w * own1 + centred.value * own0
    return 2 * torch.cat([by_w, problem.h * own0, by_h, zeroth[-1:]])


def generalised_jacobian(problem: AffineProblem, sides: _Sides | None = None) -> Tensor:
    """The Jacobian of ``G^J``, the Hessian of the loss where ``J`` is empty and the Hessian exists.

    Source: Cheridito et al., Lemma 4.3.

    Args:
        problem: A ReLU network and its target.
        sides: As in `generalised_gradient`.

    Returns:
        Shape ``(3 I + 1, 3 I + 1)``.

    Example:
        >>> w, b, h = torch.tensor([[1.0], [-2.0], [0.0]], dtype=torch.float64)  # inactive
        >>> constant = AffineProblem(w, b, h, torch.tensor(0.5), slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> generalised_jacobian(constant).diagonal()
        tensor([0., 0., 0., 2.], dtype=torch.float64)
    """
    centred = _centred(problem, sides)
    width = len(problem.w)
    w, b, h = (torch.arange(width, device=problem.w.device) + k * width for k in range(3))
    jacobian = _products(problem, centred)
    # The output of a neuron, h (w x + value), has second derivatives of its own.
    zeroth, first = (moment[:-1] for moment in centred.error_moments)
    for row, moment in ((w, first), (b, zeroth)):
        jacobian[row, h] += moment
        jacobian[h, row] += moment
    # A limit at the breakpoint moves with it. The output is 0 there, so only the input weights are felt.
    t = centred.breakpoint
    push = centred.push
    for row, column, moved in ((w, w, push * t * t), (w, b, push * t), (b, w, push * t), (b, b, push)):
        jacobian[row, column] -= moved
    jacobian[: 3 * width] *= centred.smooth.repeat(3)[:, None]
    # value = b + w middle
    jacobian[w] += centred.middle * jacobian[b]
    jacobian[:, w] += centred.middle * jacobian[:, b]
    return 2 * jacobian


def strictness(problem: AffineProblem, sides: _Sides | None = None) -> Strictness:
    """The smallest eigenvalue of the generalised Jacobian; negative means that gradient descent leaves.

    Source: Cheridito et al., Lemma 4.6.

    Args:
        problem: A ReLU network and its target, at a critical point.
        sides: As in `generalised_gradient`.

    Returns:
        Eigenvalue and direction.

    Example:
        >>> w, b, h = torch.tensor([[1.0, -1.0], [-1 / 3, 2 / 3], [2 / 3, -2 / 3]], dtype=torch.float64)
        >>> saddle = AffineProblem(w, b, h, torch.tensor(0.5), slope=1.0, intercept=0.0, interval=(0.0, 1.0))
        >>> print(strictness(saddle))
        smallest eigenvalue -0.02669
    """
    jacobian = generalised_jacobian(problem, sides)
    values, vectors = torch.linalg.eigh((jacobian + jacobian.T) / 2)
    return Strictness(float(values[0]), vectors[:, 0], float((jacobian - jacobian.T).abs().max()))


@dataclass(frozen=True, slots=True, eq=False)
class _Centred:
    """Integrals over the intervals of ``G^J``, with ``x`` from the midpoint, where its powers are smallest.

    The last row is the whole interval, the last column the constant: a unit that is always 1.

    Attributes:
        middle: Midpoint.
        value: ``w x + b`` there, shape ``(I,)``.
        breakpoint: From there, shape ``(I,)``.
        moments: Integrals of 1, ``x`` and ``x^2`` over what is active of each interval, shape ``(3, I + 1, I + 1)``.
        error_moments: Integrals of the error and of the error times ``x``, shape ``(2, I + 1)``.
        push: ``h / w`` times the error at a limit that is the breakpoint, minus that at a lower one, shape ``(I,)``.
        smooth: Where the gradient exists, shape ``(I,)``.
    """

    middle: float
    value: Tensor
    breakpoint: Tensor
    moments: Tensor
    error_moments: Tensor
    push: Tensor
    smooth: Tensor


def _centred(problem: AffineProblem, sides: _Sides | None) -> _Centred:
    """The integrals over the intervals that the sides ask for.

    Raises:
        ValueError: If the units are no ReLU units.
    """
    if problem.slopes != (0.0, 1.0):
        raise ValueError(f"`problem` must have ReLU units; got slopes {problem.slopes!r}. Map it with leaky_as_relu.")
    w, b, h = problem.neurons
    A, B = problem.interval
    middle, half = (A + B) / 2, (B - A) / 2
    value = b + w * middle
    divisor = torch.where(w != 0, w, 1.0)
    t = -value / divisor
    shift = problem.c - problem.intercept - problem.slope * middle
    ends, moving = _limits(problem, sides or _semi_inactive_sides(problem), t)
    ends = torch.cat([ends, ends.new_tensor([[-half], [half]])], dim=1)
    by_unit = torch.cat([w, w.new_zeros(1)])
    at_middle = torch.cat([value, w.new_ones(1)])
    moments = torch.stack([_active_moment(power, ends, by_unit, at_middle) for power in range(3)])
    by_x = torch.cat([h * w, w.new_tensor([-problem.slope])])
    constant = torch.cat([h * value, shift.reshape(1)])
    error_moments = moments[1:] @ by_x + moments[:-1] @ constant
    error = torch.relu(torch.outer(t, w) + value) @ h + shift - problem.slope * t
    smooth = (w != 0) | (b != 0) | (h == 0)
    return _Centred(middle, value, t, moments, error_moments, moving * h / divisor * error, smooth)


def _semi_inactive_sides(problem: AffineProblem) -> _Sides:
    """The semi-inactive neurons that touch the right end, and those that touch the left one, bool ``(I,)``."""
    touching = neuron_types(problem.w, problem.b, problem.h, problem.interval).semi_inactive
    return touching & (problem.w > 0), touching & (problem.w < 0)


def _limits(problem: AffineProblem, sides: _Sides, t: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the intervals of integration, shape ``(2, I)``; which is the breakpoint: 1 the upper, -1 the lower."""
    w = problem.w
    half = w.new_tensor((problem.interval[1] - problem.interval[0]) / 2)
    types = neuron_types(problem.w, problem.b, problem.h, problem.interval)
    plus, minus = (side & (w != 0) for side in sides)
    crossing = types.type_2_active & ~plus & ~minus
    silent = (types.inactive | types.semi_inactive) & ~plus & ~minus
    lower = plus | (crossing & (w > 0))
    upper = minus | (crossing & (w < 0))
    ends = torch.stack([torch.where(lower, t, -half), torch.where(upper, t, torch.where(silent, -half, half))])
    return ends, upper.to(w) - lower.to(w)


def _active_moment(power: int, ends: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """The integral of ``x^power`` over what each unit is active of each interval; units go on beyond ``[A, B]``."""
    x = ends[..., None]
    t = -value / torch.where(w != 0, w, 1.0)
    # A unit contributes from its breakpoint on.
    reached = torch.where(w > 0, torch.maximum(x, t), torch.where(w < 0, torch.minimum(x, t), x))
    total = ((w != 0) | (value > 0)) * reached ** (power + 1) / (power + 1)
    return total[1] - total[0]


def _products(problem: AffineProblem, centred: _Centred) -> Tensor:
    """Integrals of products of the derivatives of the output with respect to ``w``, ``value``, ``h`` and ``c``."""
    w, h = problem.w, problem.h
    none = torch.zeros_like(w)
    constant = torch.cat([none, h, centred.value, w.new_ones(1)])
    by_x = torch.cat([h, none, w, w.new_zeros(1)])
    unit = torch.arange(len(w), device=w.device).repeat(3)
    unit = torch.cat([unit, unit.new_tensor([len(w)])])
    zeroth, first, second = (moment[unit][:, unit] for moment in centred.moments)
    mixed = torch.outer(constant, by_x) + torch.outer(by_x, constant)
    out: Tensor = torch.outer(constant, constant) * zeroth + mixed * first + torch.outer(by_x, by_x) * second
    return out
