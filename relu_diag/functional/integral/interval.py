"""The exact integral loss of a network with scalar input, by sorted breakpoints and prefix sums.

``N(x) = c + sum_j h_j rho(w_j x + b_j)`` on ``[A, B]``. Between neighbouring breakpoints ``t_j = -b_j / w_j`` it is
affine; at ``t_j``, from left to right, its slope jumps by ``(s+ - s-) h_j |w_j|``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from relu_diag.functional._checks import check_slopes
from relu_diag.functional.integral._network import check_network, check_one_number
from relu_diag.functional.integral._pieces import PieceRule, integrate_pieces
from relu_diag.functional.integral.function import Function1d

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class IntervalTarget:
    """A target on an interval, and how it is integrated.

    A piece between two breakpoints gets ``order`` Gauss-Legendre nodes, exact for polynomials up to degree
    ``order - 1`` from two nodes on. ``cells`` equal cells cut the pieces further, so that a smooth target is met to
    rounding also where the network has few breakpoints: 8 nodes in 32 cells resolve 20 oscillations.

    Attributes:
        function: Vectorised: nodes ``(n,)``, float64, to values ``(n,)``. It is never differentiated.
        breakpoints: Points where the target jumps or bends.
        density: Vectorised weight under the integral; None: 1.
        order: Gauss-Legendre nodes per piece.
        cells: Equal cells the interval is cut into.

    Raises:
        TypeError: If the target or the density cannot be called.
        ValueError: If a breakpoint is not finite, or ``order`` or ``cells`` is not a positive number.

    Example:
        >>> IntervalTarget(torch.sign, breakpoints=(0.0,)).order
        8
    """

    function: Function1d
    breakpoints: tuple[float, ...] = ()
    density: Function1d | None = None
    order: int = 8
    cells: int = 32

    def __post_init__(self) -> None:
        for name, value in (("function", self.function), ("density", self.density)):
            if not (callable(value) or (name == "density" and value is None)):
                raise TypeError(f"`{name}` must be a function of a tensor of nodes; got {type(value).__name__}.")
        object.__setattr__(self, "breakpoints", tuple(float(t) for t in self.breakpoints))
        if not all(math.isfinite(t) for t in self.breakpoints):
            raise ValueError(f"`breakpoints` must be finite; got {self.breakpoints!r}.")
        for name, count in (("order", self.order), ("cells", self.cells)):
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1; got {count!r}.")


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """A network with scalar input as a piecewise affine function on an interval.

    Attributes:
        edges: Sorted, from ``A`` to ``B``; pieces of length zero occur. Shape ``(K + 1,)``.
        value: Value of each piece's affine function at ``origin``, shape ``(K,)``.
        slope: Its slope, shape ``(K,)``.
        origin: Midpoint of the interval.

    Example:
        >>> hat = network_pieces(torch.tensor([1.0]), torch.tensor([-0.5]), torch.tensor([2.0]), 0.0, (0.0, 1.0))
        >>> hat.value.tolist(), hat.origin
        ([0.0, 0.0], 0.5)
    """

    edges: Tensor
    value: Tensor
    slope: Tensor
    origin: float


def interval_l2_loss(
    w: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor | float,
    target: Function1d | IntervalTarget,
    interval: Interval,
    slopes: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """The integral of ``(N(x) - f(x))^2`` over the interval, exact, in ``O(I log I)`` and ``O(I)`` memory.

    Gradients are exact, and so are second derivatives wherever they exist: the breakpoints stay attached. Everything
    is computed in float64 on the parameters' device. What does not fit or is not finite is refused; only a GPU's values
    are not read, so that the host never waits: there a NaN shows in the loss.

    Source: Cheridito et al., equation 3.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        c: Output bias, a number or a tensor with one element.
        target: Vectorised target; an `IntervalTarget` where it has breakpoints, a weight, or wants another order.
        interval: ``(A, B)``.
        slopes: ``(s-, s+)``.

    Returns:
        Scalar, in the dtype of ``w`` (float32 at least).

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> interval_l2_loss(one, 0 * one, one, 0.0, torch.zeros_like, (-1.0, 3.0))  # the integral of max(x, 0)^2
        tensor(9., dtype=torch.float64)
    """
    given = target if isinstance(target, IntervalTarget) else IntervalTarget(target)
    check_slopes(slopes)
    check_network(w, b, h)
    check_one_number(c)
    cuts = _cuts(given.cells, given.breakpoints, check_interval(interval), w.device)
    pieces = network_pieces(w, b, h, c, interval, slopes, cuts)
    rule = PieceRule(given.function, given.density, given.order, pieces.origin)
    loss = integrate_pieces(pieces.edges, pieces.value, pieces.slope, rule)
    return loss.to(torch.promote_types(w.dtype, torch.float32))


def network_pieces(
    w: Tensor,
    b: Tensor,
    h: Tensor,
    c: Tensor | float,
    interval: Interval,
    slopes: tuple[float, float] = (0.0, 1.0),
    cuts: Tensor | None = None,
) -> Pieces:
    """The affine pieces of a network with scalar input.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        c: Output bias.
        interval: ``(A, B)``.
        slopes: ``(s-, s+)``.
        cuts: Further edges inside the interval, shape ``(M,)``; None: none.

    Returns:
        Pieces in float64, attached to the parameters.

    Example:
        >>> hat = network_pieces(torch.tensor([1.0]), torch.tensor([-0.5]), torch.tensor([2.0]), 0.0, (0.0, 1.0))
        >>> hat.edges.tolist(), hat.slope.tolist()
        ([0.0, 0.5, 1.0], [0.0, 2.0])
    """
    A, B = interval
    s_minus, s_plus = slopes
    w, b, h = (value.double() for value in (w, b, h))
    # A layer's bias is a vector of one number: in float32 it would pull down to float32 what it is added to.
    c = c.double().reshape(()) if isinstance(c, Tensor) else c
    middle = (A + B) / 2
    at_A = w * A + b
    at_B = w * B + b
    crosses = ((at_A < 0) & (at_B > 0)) | ((at_A > 0) & (at_B < 0))
    # A breakpoint outside, or none at all, becomes an edge at A without a kink: no shape depends on the values.
    t = torch.where(crosses, -b / torch.where(crosses, w, 1.0), A).clamp(A, B)
    kink = torch.where(crosses, (s_plus - s_minus) * h * w.abs(), 0.0)
    first, last = t.new_full((1,), A), t.new_full((1,), B)
    extra = first[:0] if cuts is None else cuts
    edges, order = torch.cat([t, extra]).sort()
    padding = torch.zeros_like(extra)
    jump_slope = torch.cat([kink, padding])[order].cumsum(0)
    jump_value = torch.cat([-kink * (t - middle), padding])[order].cumsum(0)
    upper = (at_A > 0) | ((at_A == 0) & (at_B > 0))
    left = torch.where(upper, s_plus * h, s_minus * h)
    slope = (left * w).sum()
    value = (left * (w * middle + b)).sum() + c
    return Pieces(
        torch.cat([first, edges, last]),
        torch.cat([value.reshape(1), value + jump_value]),
        torch.cat([slope.reshape(1), slope + jump_slope]),
        middle,
    )


def check_interval(interval: Interval) -> Interval:
    """Refuse what is no interval.

    Args:
        interval: ``(A, B)``.

    Returns:
        The interval.

    Raises:
        ValueError: If it has not two finite ends with ``A < B``.

    Example:
        >>> check_interval((0, 1))
        (0.0, 1.0)
    """
    if len(interval) != 2 or not all(math.isfinite(end) for end in interval) or not interval[0] < interval[1]:
        raise ValueError(f"`interval` must be (A, B) with finite A < B; got {interval!r}.")
    return float(interval[0]), float(interval[1])


@lru_cache(maxsize=64)
def _cuts(cells: int, breakpoints: Sequence[float], interval: Interval, device: torch.device) -> Tensor:
    """The edges that no parameter moves, kept on the device."""
    A, B = interval
    uniform = torch.linspace(A, B, cells + 1, dtype=torch.float64)[1:-1]
    inside = torch.tensor([t for t in breakpoints if A < t < B], dtype=torch.float64)
    return torch.cat([uniform, inside]).to(device)
