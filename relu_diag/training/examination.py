"""A verdict and a forecast for a block in training, from one full pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import MeanMetric

from relu_diag.capture import BlockLocation
from relu_diag.functional import (
    EscapeForecast,
    NearbyStationaryPoint,
    NotFiniteError,
    ShallowBlock,
    Verdict,
    forecast_escape,
)
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.local import states_from_sums
from relu_diag.metrics import BlockMetric
from relu_diag.training.judge import Judge, SquaredData
from relu_diag.training.look import Look
from relu_diag.training.pace import NoForecast, check_unclipped, largest_weight_decay, schedule_of

MINIMA = ("local minimum", "global minimum")
_DECAYED = "the optimizer decays the weights: the theorem is about the loss alone"


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """A block in training, judged.

    Attributes:
        step: Gradient steps done.
        look: How it was looked at.
        location: Where the block is in its module.
        block: Its parameters.
        loss: Mean loss over all data.
        verdict: What stationary point is near; "undecided" with the reason where nothing can be said.
        nearby: That point; None where the loss is not the squared error of the block's output.
        data: All data; None likewise.
        forecast: When the loss will have dropped by the fraction asked for, counted from ``step``; None where that is
            not forecast.
        no_forecast: Why there is no forecast.
        dead: Whether every neuron is dead, so that no step changes the function but by the output bias.
    """

    step: int
    look: Look
    location: BlockLocation
    block: ShallowBlock
    loss: float
    verdict: Verdict
    nearby: NearbyStationaryPoint | None
    data: SquaredData | None
    forecast: EscapeForecast | None
    no_forecast: str
    dead: bool


def examine(trainer: Trainer, module: LightningModule, look: Look, drop: float) -> Examination | None:
    """One full pass, the verdict and the forecast.

    Args:
        trainer: The trainer.
        module: Its module.
        look: How to look at the block.
        drop: Fraction of the loss whose loss is an escape.

    Returns:
        What was found; None where the weights or the loss are not finite, on any rank.
    """
    # Validation, where early stopping is at home, runs in inference mode: nothing has a gradient there.
    with torch.inference_mode(False):
        return _examine(trainer, module, look, drop)


def _examine(trainer: Trainer, module: LightningModule, look: Look, drop: float) -> Examination | None:
    passed = _pass(trainer, module, look)
    if not trainer.strategy.reduce_boolean_decision(passed is not None):
        return None
    assert passed is not None
    block, metric, mean, judge = passed
    data = judge.judge(block, look.sampled)
    dead = bool(states_from_sums(block, metric.sums(), scale=1.0).dead.all())
    verdict = _verdict(trainer, module, look.location, judge)
    forecast, reason = None, judge.reason
    if data is not None:
        try:
            forecast = _forecast(trainer, module, look.location, (verdict, block, data), drop)
        except NoForecast as why:
            reason = str(why)
    return Examination(
        step=trainer.global_step,
        look=look,
        location=look.location,
        block=block,
        loss=float(mean.compute()),
        verdict=verdict,
        nearby=judge.nearby,
        data=data,
        forecast=forecast,
        no_forecast=reason,
        dead=dead,
    )


def _pass(
    trainer: Trainer, module: LightningModule, look: Look
) -> tuple[ShallowBlock, BlockMetric, MeanMetric, Judge] | None:
    try:
        block, judge = look.parameters(module), Judge()
        (outputs, neurons), inputs = block.H.shape, block.W.shape[1]
        metric = BlockMetric(neurons, inputs, outputs, reduction="mean").to(block.W.device)
        mean = MeanMetric().to(block.W.device)
        for signal, loss, batch in look.signals(trainer, module):
            metric.update(block, signal)
            mean.update(loss, weight=len(signal.X))
            judge.collect(signal, loss, batch)
    except NotFiniteError:
        return None
    return block, metric, mean, judge


def _verdict(trainer: Trainer, module: LightningModule, location: BlockLocation, judge: Judge) -> Verdict:
    if judge.nearby is None:
        nobody = torch.empty(0, dtype=torch.long)
        return Verdict("undecided", nobody, None, Assumptions({"squared loss": "broken"}), reason=judge.reason)
    decayed = bool(largest_weight_decay(trainer, module, location))
    # The judge has compared the loss with the squared error: only the optimizer can add to it.
    assumptions = judge.nearby.verdict.assumptions | {"no regulariser": checked(not decayed)}
    verdict = replace(judge.nearby.verdict, assumptions=assumptions)
    if not decayed or verdict.kind == "not stationary":
        return verdict
    return replace(verdict, kind="undecided", direction=None, assumptions=assumptions, theorem="", reason=_DECAYED)


def _forecast(
    trainer: Trainer,
    module: LightningModule,
    location: BlockLocation,
    judged: tuple[Verdict, ShallowBlock, SquaredData],
    drop: float,
) -> EscapeForecast:
    """The forecast in steps of the optimizer.

    Raises:
        NoForecast: If there is none.
    """
    verdict, block, data = judged
    if verdict.kind in MINIMA:
        raise NoForecast(f"a {verdict.kind} has no escape")
    schedule = schedule_of(trainer, module, location)
    found = forecast_escape(block, data.X, data.Y, 0.0, drop, data.reduction)
    if found is None:
        raise NoForecast("nothing grows")
    check_unclipped(trainer, block, data, found)
    # Weight decay takes as much off every growth rate, and turns no neuron.
    rate, growth = found.gain - largest_weight_decay(trainer, module, location), found.gain * found.time
    if rate <= 0:
        raise NoForecast("the weight decay is stronger than every growth")
    return replace(found, steps=schedule.steps_until(growth, found.gain), time=growth / rate)
