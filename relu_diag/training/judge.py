"""The one place that gives verdicts in training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from relu_diag.functional import (
    NearbyStationaryPoint,
    ShallowBlock,
    Verdict,
    WeightDecay,
    classify,
    nearby_stationary_point,
)
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.block import chunk_rows, chunked_outputs, rho
from relu_diag.functional.verdict import DESCENT
from relu_diag.training._data import SEARCHED
from relu_diag.training._training_data import TrainingData

# One integer for each kind, for loggers; it rises with how final the verdict is.
VERDICT_CODES = {
    "undecided": 0,
    "not stationary": 1,
    "saddle": 2,
    "type-2 candidate": 3,
    "local minimum": 4,
    "global minimum": 5,
}
# Entries of the Jacobian that is searched, up to which it takes so little that nothing else is tried before.
SEARCHED_AT_ONCE = 2**15
# Loss over that of outputs that are zero with which nobody trains on: it is on the way to zero for ever.
_NOTHING = 1e-9
# Slope of an output weight over the sum of its absolute terms beyond which a point is not stationary in any precision.
_FAR = 1e-3
MINIMA = ("local minimum", "global minimum")
_AT = ("saddle", "type-2 candidate", *MINIMA)
# The assumption that the optimizer lowers the loss and does not climb.
LOWERED = "the loss is lowered"
# Verdicts that do not say what the point is, and do not replace one that does.
UNSETTLED = {"undecided", "not stationary"}


@dataclass(frozen=True, slots=True)
class Training:
    """How a block is trained, as far as a verdict depends on it.

    Attributes:
        decay: Name of the optimizer that decays the weights, so that it descends another function than the one judged;
            empty where none does.
        climbs: Name of the optimizer that raises the loss; empty where none does.
        penalised: Whether weight decay is part of the loss that was judged.
        alone: Whether nothing but the block is trained under its loss.
        whole: Whether all of the block is trained.
        drop: Fraction of the loss below which a point is not where the run is.
        unit: Loss of outputs that are zero, against which a loss counts as none.

    Example:
        >>> Training(decay="AdamW").decay
        'AdamW'
    """

    decay: str = ""
    alone: bool = True
    whole: bool = True
    drop: float = 0.01
    unit: float = 0.0
    penalised: bool = False
    climbs: str = ""

    @property
    def apart(self) -> str:
        """What the optimizer does that is no descent of the loss judged, in words; empty where it descends just it."""
        if self.climbs:
            return f"{self.climbs} climbs it (maximize=True)"
        return f"{self.decay} decays the weights" if self.decay else ""


def judge(block: ShallowBlock, data: TrainingData, penalty: WeightDecay | None = None) -> NearbyStationaryPoint | None:
    """Find the stationary point near a block in training.

    Args:
        block: The block.
        data: What it is trained on.
        penalty: Weight decay that is part of the loss; None: none is.

    Returns:
        The point; its verdict says whether these are all data. A network that is too large to search around it is
        judged at its weights. None where the loss is not convex in the outputs.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.eye(2).double(), SquaredError(torch.ones(2, 1).double()), complete=True)
        >>> block = ShallowBlock(1e-6 * torch.ones(1, 2).double(), 1e-6 * torch.ones(1, 1).double())
        >>> judge(block, data).verdict.kind
        'saddle'
    """
    if not data.loss.convex:
        return None
    if search_size(block, data) > SEARCHED:
        nearby = _as_it_is(block, data, penalty or WeightDecay())
    else:
        nearby = nearby_stationary_point(block, data.X, data.loss, weight_decay=penalty or WeightDecay())
    assumptions = nearby.verdict.assumptions | {"full data set": checked(data.complete)}
    return replace(nearby, verdict=replace(nearby.verdict, assumptions=assumptions))


def search_size(block: ShallowBlock, data: TrainingData) -> int:
    """How large the search for the point nearby is.

    Args:
        block: The block.
        data: What it is trained on.

    Returns:
        Entries of the Jacobian of all outputs by all weights.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)))
        >>> search_size(ShallowBlock(torch.ones(3, 2), torch.ones(1, 3)), data)
        18
    """
    neurons, inputs = block.W.shape
    outputs = len(block.H)
    return len(data.X) * outputs * neurons * (inputs + outputs)


def _as_it_is(block: ShallowBlock, data: TrainingData, penalty: WeightDecay) -> NearbyStationaryPoint:
    """A network too large to search around it, judged at its weights: a descent there is no verdict on a run."""
    if _outputs_are_pulled(block, data, penalty):
        nobody = torch.empty(0, dtype=torch.long)
        verdict = Verdict("not stationary", nobody, None, Assumptions({}), reason=DESCENT, loss=data.loss_of(block))
    else:
        verdict = classify(block, data.X, data.loss, weight_decay=penalty)
    found = verdict.kind in _AT
    reason = "" if found else f"the network is too large to search around it; at its weights, {verdict.reason}"
    if not found:
        verdict = replace(verdict, kind="undecided", direction=None, theorem="", reason=reason)
    return NearbyStationaryPoint(
        block=block,
        loss=verdict.loss,
        distance=0.0,
        loss_gap=0.0,
        genuine=found,
        verdict=verdict,
        reason=reason,
        zeroed=torch.empty(0, dtype=torch.long, device=block.W.device),
        kink_count=0,
        kink_tol=0.0,
    )


def _outputs_are_pulled(block: ShallowBlock, data: TrainingData, penalty: WeightDecay) -> bool:
    """Whether an output weight, along which there are no kinks, feels a slope far beyond rounding."""
    G = data.loss.gradient(chunked_outputs(block, data.X))
    slope = penalty.H * block.H
    terms = slope.abs()
    rows = chunk_rows(block)
    for start in range(0, len(G), rows):
        error = G[start : start + rows].to(block.H)
        A = rho(data.X[start : start + rows].to(block.W) @ block.W.mT, block.slopes, inplace=True)
        slope = slope + error.mT @ A
        terms = terms + error.abs().mT @ A.abs()
    return bool((slope.abs() > _FAR * terms).any())


def verdict_in_training(nearby: NearbyStationaryPoint | None, reason: str, training: Training | None = None) -> Verdict:
    """The verdict on where a run is, for the optimizer and the layers in use.

    Args:
        nearby: The stationary point near the block; None if there is none.
        reason: Why there is none.
        training: How the block is trained; None: alone, as a whole, without decay.

    Returns:
        The verdict; "undecided" with the reason if there is none.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.eye(2).double(), SquaredError(torch.ones(2, 1).double()), complete=True)
        >>> block = ShallowBlock(1e-6 * torch.ones(1, 2).double(), 1e-6 * torch.ones(1, 1).double())
        >>> verdict_in_training(judge(block, data), "").kind
        'saddle'
        >>> verdict_in_training(judge(block, data), "", Training(decay="AdamW")).reason
        'of the loss alone a saddle, but AdamW decays the weights'
    """
    if nearby is None:
        nobody = torch.empty(0, dtype=torch.long)
        return Verdict("undecided", nobody, None, Assumptions({"known loss": "broken"}), reason=reason)
    training = training or Training()
    # The loss was found to be one of the outputs alone: only the optimizer can add to it.
    assumptions = nearby.verdict.assumptions | {
        ("no other regulariser" if training.penalised else "no regulariser"): checked(not training.decay),
        LOWERED: checked(not training.climbs),
        "nothing else is trained": checked(training.alone),
        "all of the block is trained": checked(training.whole),
    }
    verdict = replace(nearby.verdict, assumptions=assumptions)
    if verdict.kind == "not stationary" and training.apart:
        return replace(verdict, reason=f"{verdict.reason}; that is the loss alone, and {training.apart}")
    if verdict.kind not in _AT:
        return verdict
    if way := _on_the_way(nearby, training):
        return replace(verdict, kind="not stationary", direction=None, theorem="", reason=way)
    if training.apart:
        reason = f"of the loss alone a {verdict.kind}, but {training.apart}"
    elif verdict.kind in MINIMA and not training.alone:
        reason = f"a {verdict.kind} in this block, but the layers below it are trained too"
    else:
        return verdict
    return replace(verdict, kind="undecided", direction=None, theorem="", reason=reason)


def _on_the_way(nearby: NearbyStationaryPoint, training: Training) -> str:
    """That a point is not where the run is, in words; empty where it is near."""
    now = nearby.loss + nearby.loss_gap
    if nearby.loss_gap <= max(training.drop * abs(now), _NOTHING * training.unit):
        return ""
    below = nearby.loss_gap / abs(now)
    what = "loss with decay" if training.penalised else "loss"
    return f"on the way to a {nearby.verdict.kind} ({what} {nearby.loss:.4g}, {below:.1%} below)"


def why_unsettled(verdict: Verdict, fact: str) -> str:
    """What a line says beside a verdict that settles nothing.

    Args:
        verdict: The verdict.
        fact: What keeps the loss where it is, whatever the verdict; may be empty.

    Returns:
        The fact, or else the reason of the verdict; empty where the verdict settles what the point is.

    Example:
        >>> why_unsettled(verdict_in_training(None, "no targets were found"), fact="")
        'no targets were found'
    """
    return fact or (verdict.reason if verdict.kind in UNSETTLED else "")


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
