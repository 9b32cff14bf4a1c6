"""The gradient of the integral loss, made differentiable where neurons touch the interval in one end; strictness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.affine import AffineProblem
from relu_diag.functional.neuron_types import neuron_types

Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Strictness:
    """Whether a saddle is strict for gradient descent.

    Attributes:
        eigenvalue: The smallest eigenvalue of the generalised Jacobian.
        direction: Its unit eigenvector, in the order ``w, b, h, c``, shape ``(3 I + 1,)``.
        asymmetry: Largest difference between the Jacobian and its transpose.
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


def generalised_gradient(problem: AffineProblem, sides: Sides | None = None) -> Tensor:
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
    return _modified_gradient(_parameters(problem), problem, sides or semi_inactive_sides(problem))


def generalised_jacobian(problem: AffineProblem, sides: Sides | None = None) -> Tensor:
    """The Jacobian of ``G^J``, the Hessian of the loss where ``J`` is empty and the Hessian exists.

    Source: Cheridito et al., Lemma 4.3.

    Args:
        problem: A ReLU network and its target.
        sides: As in `generalised_gradient`.

    Returns:
        Shape ``(3 I + 1, 3 I + 1)``.
    """
    chosen = sides or semi_inactive_sides(problem)
    jacobian: Tensor = torch.func.jacrev(lambda theta: _modified_gradient(theta, problem, chosen))(_parameters(problem))
    return jacobian


def strictness(problem: AffineProblem, sides: Sides | None = None) -> Strictness:
    """The smallest eigenvalue of the generalised Jacobian; negative means that gradient descent leaves.

    Source: Cheridito et al., Lemma 4.6.

    Args:
        problem: A ReLU network and its target, at a critical point.
        sides: As in `generalised_gradient`.

    Returns:
        Eigenvalue and direction.
    """
    jacobian = generalised_jacobian(problem, sides)
    values, vectors = torch.linalg.eigh((jacobian + jacobian.T) / 2)
    return Strictness(float(values[0]), vectors[:, 0], float((jacobian - jacobian.T).abs().max()))


def semi_inactive_sides(problem: AffineProblem) -> Sides:
    """The semi-inactive neurons that touch the right end, and those that touch the left one.

    Args:
        problem: A ReLU network.

    Returns:
        ``(J+, J-)``, bool masks, shape ``(I,)``.
    """
    touching = neuron_types(problem.w, problem.b, problem.h, problem.interval).semi_inactive
    return touching & (problem.w > 0), touching & (problem.w < 0)


def _parameters(problem: AffineProblem) -> Tensor:
    if problem.slopes != (0.0, 1.0):
        raise ValueError(f"`problem` must have ReLU units; got slopes {problem.slopes!r}. Map it with leaky_as_relu.")
    return torch.cat([problem.w, problem.b, problem.h, problem.c.reshape(1)])


def _modified_gradient(theta: Tensor, problem: AffineProblem, sides: Sides) -> Tensor:
    (w, b, h), c = theta[:-1].reshape(3, -1), theta[-1]
    (A, B), middle = problem.interval, sum(problem.interval) / 2
    # From the midpoint, where the powers of x are smallest.
    value = b + w * middle
    low, high = _limits(w, value, problem, sides)
    ends = torch.stack([
        torch.cat([low, low.new_tensor([A - middle])]),
        torch.cat([high, high.new_tensor([B - middle])]),
    ])
    shift = c - problem.intercept - problem.slope * middle
    zeroth, first = (_error_moment(power, ends, (w, value, h), (shift, problem.slope)) for power in (0, 1))
    smooth = (w != 0) | (b != 0) | (h == 0)
    own0, own1 = zeroth[:-1] * smooth, first[:-1] * smooth
    return 2 * torch.cat([h * (own1 + middle * own0), h * own0, w * own1 + value * own0, zeroth[-1:]])


def _limits(w: Tensor, value: Tensor, problem: AffineProblem, sides: Sides) -> tuple[Tensor, Tensor]:
    """Ends of the intervals of integration, from the midpoint."""
    half = (problem.interval[1] - problem.interval[0]) / 2
    types = neuron_types(problem.w, problem.b, problem.h, problem.interval)
    plus, minus = (side & (w != 0) for side in sides)
    t = -value / torch.where(w != 0, w, 1.0)
    crossing = types.type_2_active & ~plus & ~minus
    silent = (types.inactive | types.semi_inactive) & ~plus & ~minus
    low = torch.where(plus | (crossing & (w > 0)), t, -half)
    high = torch.where(minus | (crossing & (w < 0)), t, torch.where(silent, -half, half))
    return low, high


def _error_moment(
    power: int, ends: Tensor, neurons: tuple[Tensor, Tensor, Tensor], error: tuple[Tensor, float]
) -> Tensor:
    """The integrals of ``x^power (N - f)`` between each pair of ends, where ``N`` goes on beyond the interval."""
    (w, value, h), (shift, slope) = neurons, error
    x, t = ends[..., None], -value / torch.where(w != 0, w, 1.0)
    # A neuron contributes from its breakpoint on, where its own antiderivative starts.
    reached = torch.where(w > 0, torch.maximum(x, t), torch.where(w < 0, torch.minimum(x, t), x))
    own = w * reached ** (power + 2) / (power + 2) + value * reached ** (power + 1) / (power + 1)
    on = (w != 0) | (value > 0)
    total = (
        (h * on * own).sum(-1) + shift * ends ** (power + 1) / (power + 1) - slope * ends ** (power + 2) / (power + 2)
    )
    return total[1] - total[0]
