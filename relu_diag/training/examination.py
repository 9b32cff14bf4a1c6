"""Examine a block in training: one pass over the data, a verdict and a forecast."""

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
from relu_diag.functional.local import states_from_sums
from relu_diag.metrics import BlockMetric
from relu_diag.training.judge import judge, verdict_in_training
from relu_diag.training.look import Look
from relu_diag.training.pace import NoForecast, check_unclipped, largest_weight_decay, schedule_of
from relu_diag.training.rows import KeptRows, SquaredData

MINIMA = ("local minimum", "global minimum")


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """A block in training with a verdict and a forecast.

    Attributes:
        step: Gradient steps done.
        look: The look that read its signals.
        location: The place of the block in its module.
        block: Its parameters.
        loss: Mean loss over all data looked at.
        verdict: Verdict on the stationary point nearby; "undecided", with the reason, if none can be given.
        nearby: That point; None if the loss is not the squared error of the block's output.
        data: The data looked at; None if the loss is not the squared error.
        forecast: When the loss will have dropped by the fraction asked for, counted from ``step``; None without a
            forecast.
        no_forecast: Why there is no forecast; empty if there is one.
        dead: Whether every neuron is dead, so that a step can change the function only by the output bias.
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
    """Look at a block once, judge it, and forecast its escape. A collective: every rank must call it.

    Args:
        trainer: The trainer.
        module: Its module.
        look: The look that reads the block's signals.
        drop: Fraction by which the loss falls in an escape.

    Returns:
        The examination; None if the weights or the loss are not finite on any rank.
    """
    # Early stopping calls this during validation, in inference mode, in which nothing has a gradient.
    with torch.inference_mode(False):
        sums = _pass(trainer, module, look)
        if not trainer.strategy.reduce_boolean_decision(sums is not None):
            return None
        assert sums is not None
        return _judged(trainer, module, look, sums, drop)


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """The sums of one pass over the data, not yet reduced over the ranks."""

    block: ShallowBlock
    metric: BlockMetric
    loss: MeanMetric
    rows: KeptRows


def _pass(trainer: Trainer, module: LightningModule, look: Look) -> _Pass | None:
    """One pass over this rank's data; None if something is not finite."""
    try:
        block = look.parameters(module)
        outputs, neurons = block.H.shape
        metric = BlockMetric(neurons, block.W.shape[1], outputs, reduction="mean").to(block.W.device)
        mean = MeanMetric().to(block.W.device)
        rows = KeptRows()
        for one in look.signals(trainer, module):
            metric.update(block, one.signal)
            mean.update(one.loss, weight=len(one.signal.X))
            rows.keep(look.sighting(module, block, one), float(one.loss), one.batch)
        if not look.sampled:
            rows.end_epoch()
    except NotFiniteError:
        return None
    return _Pass(block, metric, mean, rows)


def _judged(trainer: Trainer, module: LightningModule, look: Look, sums: _Pass, drop: float) -> Examination:
    """The examination that follows from the sums of a pass."""
    data = sums.rows.data()
    nearby = None if data is None else judge(sums.block, data)
    decayed = largest_weight_decay(trainer, module, look.location) > 0
    verdict = verdict_in_training(nearby, sums.rows.reason, decayed)
    forecast = None
    no_forecast = sums.rows.reason
    if verdict.kind in MINIMA:
        no_forecast = f"a {verdict.kind} has no escape"
    elif data is not None:
        try:
            forecast = _forecast(trainer, module, look.location, sums.block, data, drop)
        except NoForecast as reason:
            no_forecast = str(reason)
    return Examination(
        step=trainer.global_step,
        look=look,
        location=look.location,
        block=sums.block,
        loss=float(sums.loss.compute()),
        verdict=verdict,
        nearby=nearby,
        data=data,
        forecast=forecast,
        no_forecast=no_forecast,
        dead=bool(states_from_sums(sums.block, sums.metric.sums(), scale=1.0).dead.all()),
    )


def _forecast(
    trainer: Trainer,
    module: LightningModule,
    location: BlockLocation,
    block: ShallowBlock,
    data: SquaredData,
    drop: float,
) -> EscapeForecast:
    """The forecast in steps of the optimizer.

    Raises:
        NoForecast: If there is none.
    """
    schedule = schedule_of(trainer, module, location)
    forecast = forecast_escape(block, data.X, data.Y, 0.0, drop, data.reduction)
    if forecast is None:
        raise NoForecast("nothing grows")
    if forecast.reached < forecast.drop:
        raise NoForecast(str(forecast))
    forecast = replace(forecast, gain=data.scale * forecast.gain, time=forecast.time / data.scale)
    check_unclipped(trainer, block, data, forecast)
    # Weight decay lowers every growth rate by the same amount, and turns no neuron.
    rate = forecast.gain - largest_weight_decay(trainer, module, location)
    growth = forecast.gain * forecast.time
    if rate <= 0:
        raise NoForecast("the weight decay is stronger than every growth")
    return replace(forecast, steps=schedule.steps_until(growth, forecast.gain), time=growth / rate)
