"""The one place that gives verdicts in training."""

from __future__ import annotations

from dataclasses import replace

import torch

from relu_diag.functional import NearbyStationaryPoint, ShallowBlock, Verdict, nearby_stationary_point
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.training.rows import TrainingData

# One integer for each kind, for loggers; it rises with how final the verdict is.
VERDICT_CODES = {
    "undecided": 0,
    "not stationary": 1,
    "saddle": 2,
    "type-2 candidate": 3,
    "local minimum": 4,
    "global minimum": 5,
}
_DECAYED = "the optimizer decays the weights: the theorem is about the loss alone"


def judge(block: ShallowBlock, data: TrainingData) -> NearbyStationaryPoint | None:
    """Find the stationary point near a block in training.

    Args:
        block: The block.
        data: What it is trained on.

    Returns:
        The point; its verdict says whether these are all data.
    """
    squared = data.squared(block)
    if squared is None:
        return None
    nearby = nearby_stationary_point(block, squared.X, squared.Y)
    assumptions = nearby.verdict.assumptions | {"full data set": checked(data.complete)}
    return replace(nearby, verdict=replace(nearby.verdict, assumptions=assumptions))


def verdict_in_training(nearby: NearbyStationaryPoint | None, reason: str, decayed: bool) -> Verdict:
    """The verdict on a block, for the optimizer in use.

    Args:
        nearby: The stationary point near it; None if there is none.
        reason: Why there is none.
        decayed: Whether the optimizer decays the weights, so that it descends another function than the loss.

    Returns:
        The verdict; "undecided" with the reason if there is none.
    """
    if nearby is None:
        nobody = torch.empty(0, dtype=torch.long)
        return Verdict("undecided", nobody, None, Assumptions({"squared loss": "broken"}), reason=reason)
    # The loss was found to be the squared error alone: only the optimizer can add to it.
    assumptions = nearby.verdict.assumptions | {"no regulariser": checked(not decayed)}
    verdict = replace(nearby.verdict, assumptions=assumptions)
    if not decayed or verdict.kind == "not stationary":
        return verdict
    return replace(verdict, kind="undecided", direction=None, theorem="", reason=_DECAYED)


def escape_count(verdict: Verdict) -> int | None:
    """How many escape neurons a verdict found.

    Args:
        verdict: The verdict.

    Returns:
        Their number, 0 at a minimum; None where the point is not stationary, or nothing was decided.

    Example:
        >>> escape_count(Verdict("local minimum", torch.empty(0, dtype=torch.long), None, Assumptions({})))
        0
    """
    if verdict.kind in {"not stationary", "undecided"}:
        return None
    return len(verdict.neurons)
