"""Move off a saddle along the direction that proves it, to the lowest loss that was evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from relu_diag.functional import Direction, ShallowBlock
from relu_diag.training.rows import TrainingData

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


def lowest_along(block: ShallowBlock, direction: Direction, data: TrainingData) -> ShallowBlock | None:
    """The point of lowest loss along a direction, among its own step and halvings of it.

    Args:
        block: The block at the saddle.
        direction: The direction of its verdict.
        data: All data of its squared loss.

    Returns:
        The block at that point; None if no point is lower than the block itself.
    """
    points = [direction.applied_to(block, direction.step / 2**k) for k in range(_HALVINGS)]
    lowest = min(points, key=data.loss_of)
    return lowest if data.loss_of(lowest) < data.loss_of(block) else None
