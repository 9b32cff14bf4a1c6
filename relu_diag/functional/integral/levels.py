"""The critical levels of the integral loss against an affine target, and what they guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional._checks import check_slopes
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.integral.interval import Interval, check_interval


def critical_levels(slope: float, interval: Interval, width: int) -> Tensor:
    """The values the loss can take at critical points that are no global minimum.

    ``L_n = slope^2 (B - A)^3 / (12 (n + 1)^4)`` for ``n = 0, 2, 4, ... <= width``; at level ``n`` the network zigzags
    around the target with ``n`` kinks. Leaky units have other levels: a point that is critical for them need not be
    critical for the ReLU network of twice the width, which has more directions to go.

    Source: Cheridito et al., Proposition 4.5.

    Args:
        slope: Slope of the affine target.
        interval: ``(A, B)``.
        width: Number of ReLU neurons.

    Returns:
        Losses, entry ``k`` for ``n = 2 k``, float64, shape ``(width // 2 + 1,)``.

    Raises:
        ValueError: If the width is not positive, or the slope not finite.

    Example:
        >>> 1 / critical_levels(1.0, (0.0, 1.0), width=2)
        tensor([ 12.0000, 972.0000], dtype=torch.float64)
    """
    A, B = check_interval(interval)
    if width < 1:
        raise ValueError(f"`width` must be at least 1; got {width!r}.")
    if not math.isfinite(slope):
        raise ValueError(f"`slope` must be finite; got {slope!r}.")
    n = torch.arange(0, width + 1, 2, dtype=torch.float64)
    return slope**2 * (B - A) ** 3 / (12 * (n + 1) ** 4)


@dataclass(frozen=True, slots=True)
class CriticalLevel:
    """The critical level next to a loss, by ratio.

    Attributes:
        n: Kinks of the zigzag.
        loss: Loss of the level.
        ratio: The given loss over it.

    Example:
        >>> print(CriticalLevel(n=2, loss=0.001, ratio=0.5))
        level n = 2 at loss 0.001, 0.5 times that
    """

    n: int
    loss: float
    ratio: float

    def __str__(self) -> str:
        return f"level n = {self.n} at loss {self.loss:.4g}, {self.ratio:.4g} times that"


def nearest_level(loss: float, slope: float, interval: Interval, width: int) -> CriticalLevel:
    """The critical level next to a loss.

    Args:
        loss: A loss >= 0.
        slope: Slope of the affine target, not 0.
        interval: ``(A, B)``.
        width: Number of ReLU neurons.

    Returns:
        The level.

    Raises:
        ValueError: If the loss is negative or NaN, or the slope is 0: then there is no level but 0.

    Example:
        >>> print(nearest_level(1e-3, 1.0, (0.0, 1.0), width=6))
        level n = 2 at loss 0.001029, 0.972 times that
    """
    if not loss >= 0:
        raise ValueError(f"`loss` must be at least 0; got {loss!r}.")
    if slope == 0:
        raise ValueError("`slope` is 0: a constant target has no critical level above 0.")
    levels = critical_levels(slope, interval, width)
    # A loss of 0 is next to the lowest level.
    k = int((levels.log() - math.log(max(loss, torch.finfo(levels.dtype).tiny))).abs().argmin())
    return CriticalLevel(2 * k, float(levels[k]), loss / float(levels[k]))


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Below which limit of the loss a convergent gradient descent can only have reached a global minimum.

    Attributes:
        threshold: The loss.
        statement: What holds below it.
        assumptions: What the statement assumes; only the target can be checked here.
        theorem: Its source.

    Example:
        >>> convergence_threshold(1.0, (0.0, 1.0), width=3).assumptions.assumed
        ('the exact gradient of the integral loss', 'the steps converge')
    """

    threshold: float
    statement: str
    assumptions: Assumptions
    theorem: str

    def __str__(self) -> str:
        return f"below {self.threshold:.4g} {self.statement} ({self.theorem})"


def convergence_threshold(
    slope: float, interval: Interval, width: int, slopes: tuple[float, float] = (0.0, 1.0)
) -> Guarantee:
    """The loss below which the limit of gradient descent is a global minimum.

    For an even number of ReLU neurons it is level ``width - 2``: the networks of the lowest level spend every neuron on
    a kink of their own, so they are strict saddles, which almost no start leads to. For an odd number a spare neuron
    may be degenerate there, and only the lowest level itself is left, ``width - 1``; below it there is no other
    critical point at all. Leaky units have no other local minima whatever the loss, as long as no neuron degenerates.

    Source: Cheridito et al., Theorem 1.2, Propositions 4.5 and 4.8, Corollary 5.5.

    Args:
        slope: Slope of the affine target.
        interval: ``(A, B)``.
        width: Number of neurons.
        slopes: ``(s-, s+)``: ReLU, or leaky with ``0 < s- < s+``.

    Returns:
        The guarantee.

    Example:
        >>> print(convergence_threshold(1.0, (0.0, 1.0), width=4))
        below 0.001029 almost every start ends in a global minimum (Cheridito et al., Theorem 1.2)
    """
    levels = critical_levels(slope, interval, width)
    common = Assumptions({
        "the target is affine and not constant": checked(slope != 0),
        "the exact gradient of the integral loss": "assumed",
        "the steps converge": "assumed",
    })
    almost = common | {"the start is drawn from a density": "assumed", "almost every learning rate": "assumed"}
    ends = "almost every start ends in a global minimum"
    if _leakiness(slopes) > 0:
        leaky = almost | {
            "no neuron degenerates in the limit": "assumed",
            "the negative slope is small enough": "assumed",
        }
        return Guarantee(math.inf, ends, leaky, "Cheridito et al., Corollary 5.5")
    if width % 2:
        statement = "the limit is a global minimum (the width is odd, so Theorem 1.2 does not apply)"
        return Guarantee(float(levels[-1]), statement, common, "Cheridito et al., Proposition 4.5")
    return Guarantee(float(levels[-2]), ends, almost, "Cheridito et al., Theorem 1.2")


def _leakiness(slopes: tuple[float, float]) -> float:
    """The ratio ``s- / s+`` of ReLU (0) or leaky units, in [0, 1).

    Raises:
        ValueError: If it is not.
    """
    check_slopes(slopes)
    ratio = slopes[0] / slopes[1] if slopes[1] else math.inf
    if not 0 <= ratio < 1:
        raise ValueError(f"`slopes` must be those of ReLU or leaky units, 0 <= s- / s+ < 1; got {slopes!r}.")
    return ratio
