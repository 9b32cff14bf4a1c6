"""What each neuron of a network with scalar input does on an interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.integral._network import check_network
from relu_diag.functional.integral.interval import Interval, check_interval
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import kink_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class NeuronTypes:
    """Types of ReLU neurons on ``[A, B]``, with ``I_j = {x in [A, B]: w_j x + b_j >= 0}``. Types overlap.

    Attributes:
        inactive: ``I_j`` is empty, bool, shape ``(I,)``.
        semi_inactive: ``I_j`` is one point, an end of the interval.
        semi_active: ``w_j = 0 < b_j``.
        active: ``w_j != 0`` and positive somewhere.
        type_1_active: ``w_j != 0`` and nowhere negative.
        type_2_active: Positive on a part of ``(A, B)`` and negative on another.
        degenerate: ``w_j = b_j = 0``.
        flat: ``h_j = 0``.
        breakpoint: ``-b_j / w_j``, nan where ``w_j = 0``.

    Example:
        >>> types = neuron_types(torch.ones(1), torch.tensor([-0.25]), torch.ones(1), interval=(0.0, 1.0))
        >>> types.type_2_active.item(), types.breakpoint.item()
        (True, 0.25)
    """

    inactive: Tensor
    semi_inactive: Tensor
    semi_active: Tensor
    active: Tensor
    type_1_active: Tensor
    type_2_active: Tensor
    degenerate: Tensor
    flat: Tensor
    breakpoint: Tensor

    def __str__(self) -> str:
        names = ("inactive", "semi_inactive", "semi_active", "type_1_active", "type_2_active", "degenerate", "flat")
        counts = [(int(getattr(self, name).sum()), name.replace("_", "-")) for name in names]
        return f"{counted(len(self.flat), 'neuron')}: " + ", ".join(
            f"{count} {name}" for count, name in counts if count
        )


def neuron_types(w: Tensor, b: Tensor, h: Tensor, interval: Interval, tol: float | None = None) -> NeuronTypes:
    """The type of every neuron.

    Source: Cheridito et al., Definition 4.1.

    Args:
        w: Input weights, shape ``(I,)``.
        b: Hidden biases, shape ``(I,)``.
        h: Output weights, shape ``(I,)``.
        interval: ``(A, B)``.
        tol: A value at an end counts as 0 where it is below ``tol (|w| max(|A|, |B|) + |b|)``; None: 1e-10 in float64,
            1e-6 in float32. Zero weights are zero exactly.

    Returns:
        Types.

    Example:
        >>> w, b, h = torch.tensor([[1.0, 1.0, 0.0], [-2.0, -0.5, 1.0], [1.0, 1.0, 0.0]])
        >>> print(neuron_types(w, b, h, (0.0, 1.0)))
        3 neurons: 1 inactive, 1 semi-active, 1 type-2-active, 1 flat
    """
    check_network(w, b, h)
    A, B = check_interval(interval)
    tol = kink_tolerance(tol, w.dtype)
    w, b, h = (value.detach().double() for value in (w, b, h))
    sloped = w != 0
    reach = tol * (w.abs() * max(abs(A), abs(B)) + b.abs())
    ends = torch.stack([w * A + b, w * B + b])
    ends = torch.where(sloped & (ends.abs() <= reach), 0.0, ends)
    low, high = ends.amin(0), ends.amax(0)
    return NeuronTypes(
        inactive=high < 0,
        semi_inactive=sloped & (high == 0),
        semi_active=~sloped & (b > 0),
        active=sloped & (high > 0),
        type_1_active=sloped & (low >= 0),
        type_2_active=(low < 0) & (high > 0),
        degenerate=~sloped & (b == 0),
        flat=h == 0,
        breakpoint=torch.where(sloped, -b / torch.where(sloped, w, 1.0), torch.nan),
    )
