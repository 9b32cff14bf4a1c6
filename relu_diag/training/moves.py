"""Move off a saddle along the direction that proves it, to the lowest loss that was evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from relu_diag.functional import Direction, ShallowBlock, WeightDecay
from relu_diag.training._training_data import TrainingData

# How often the step of the verdict is halved in search of the lowest loss.
_HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Escape:
    """A move off a saddle.

    Attributes:
        step: Gradient steps done.
        plateau: First step of the plateau.
        before: Loss before the move.
        after: Loss after it, lower.
        forecast: Step at which the plateau was forecast to end by itself, or None.
        end: Step at which it ended; None until then.

    Example:
        >>> print(Escape(step=120, plateau=30, before=0.5, after=0.49, forecast=200.0, end=130))
        step 120 moved off a saddle: loss 0.5 to 0.49, 70 steps before the forecast
    """

    step: int
    plateau: int
    before: float
    after: float
    forecast: float | None
    end: int | None = None

    @property
    def saved(self) -> float | None:
        """Steps saved against the forecast; None without a forecast, and until the plateau has ended."""
        return None if self.forecast is None or self.end is None else self.forecast - self.end

    def __str__(self) -> str:
        gain = "" if self.saved is None else f", {self.saved:,.0f} steps before the forecast"
        return f"step {self.step:,} moved off a saddle: loss {self.before:.6g} to {self.after:.6g}{gain}"


def trained_loss(block: ShallowBlock, data: TrainingData, penalty: WeightDecay | None) -> float:
    """The loss that is trained: that of the data, and the weight decay that is part of it.

    Args:
        block: The block.
        data: What it is trained on.
        penalty: Weight decay; None: none is part of the loss.

    Returns:
        The loss.

    Example:
        >>> import torch
        >>> from relu_diag import functional as F
        >>> data = TrainingData(torch.eye(2).double(), F.SquaredError(torch.ones(2, 1).double()))
        >>> block = ShallowBlock(torch.ones(1, 2).double(), torch.ones(1, 1).double())
        >>> trained_loss(block, data, None), trained_loss(block, data, WeightDecay(0.1, 0.1))
        (0.0, 0.15000000000000002)
    """
    return data.loss_of(block) + (0.0 if penalty is None else float(penalty.cost(block)))


def lowest_along(
    block: ShallowBlock, direction: Direction, data: TrainingData, penalty: WeightDecay | None = None
) -> ShallowBlock | None:
    """The point of lowest loss along a direction, among its own step and halvings of it.

    Args:
        block: The block at the saddle.
        direction: The direction of its verdict.
        data: All data of its loss.
        penalty: Weight decay that is part of the loss; None: none is.

    Returns:
        The block at that point; None if no point is lower than the block itself.

    Example:
        >>> import torch
        >>> from relu_diag import functional as F
        >>> data = TrainingData(torch.eye(2).double(), F.SquaredError(torch.ones(2, 1).double()))
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> lower = lowest_along(origin, F.classify(origin, data.X, data.loss).direction, data)
        >>> data.loss_of(lower) < data.loss_of(origin)
        True
    """
    points = [direction.applied_to(block, direction.step / 2**k) for k in range(_HALVINGS)]
    losses = [trained_loss(point, data, penalty) for point in points]
    lowest = min(losses)
    return points[losses.index(lowest)] if lowest < trained_loss(block, data, penalty) else None
