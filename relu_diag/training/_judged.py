"""Judge a block in training by its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from relu_diag.capture import BlockLocation
from relu_diag.functional import (
    EscapeForecast,
    NearbyStationaryPoint,
    ShallowBlock,
    Verdict,
    WeightDecay,
    forecast_escape,
)
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.training._data import SAME
from relu_diag.training._dead import nothing_moves
from relu_diag.training._trained_as import trained_as
from relu_diag.training._training_data import TrainingData
from relu_diag.training.agreement import agreement_words
from relu_diag.training.descent import Descent, descent_of
from relu_diag.training.examination import Examination
from relu_diag.training.judge import (
    MINIMA,
    SEARCHED_AT_ONCE,
    UNSETTLED,
    Training,
    judge,
    search_size,
    verdict_in_training,
)
from relu_diag.training.pace import (
    NoForecast,
    check_unclipped,
    gradient_share,
    is_plain_descent,
    schedule_of,
    why_still,
)
from relu_diag.training.penalty import decaying, largest_weight_decay, penalty_of
from relu_diag.training.rows import KeptRows

_NOT_ALONE = "the layers below the block are trained too, and move its inputs: its own growth says little of when"
_DRIFT = "the weights that may compute its inputs have changed by {:.1%} since its rows began to be kept"
_UNASKED = "no verdict was asked for"
_NOT_CONVEX = "the loss is not known to be convex in the outputs"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A block to be judged.

    Its name, place, weights and parameters, whether only it is trained, whether every neuron is dead, its rows, the
    fraction by which the loss falls in an escape, how far what computes its inputs has changed since its rows were
    kept, whether to try how far descent lowers the loss, and in words whether its slopes vanish.
    """

    trainer: Trainer
    module: LightningModule
    name: str
    location: BlockLocation | None
    block: ShallowBlock
    parameters: tuple[nn.Parameter, ...]
    alone: bool
    dead: bool
    rows: KeptRows
    drop: float
    drift: float = 0.0
    thorough: bool = True
    first_order: str = ""

    def judged(self, data: TrainingData | None, loss: float) -> Examination:
        """The examination of the block by its data; the loss is that of the last step seen. No rank waits for it."""
        decay = decaying(self.trainer, self.parameters)
        penalty = penalty_of(self.trainer, self.location) if decay and self.location is not None else None
        nearby, descent = self._nearby(data, penalty)
        training = trained_as(self.trainer, self.parameters, self.block, data, penalty, self.alone, self.drop)
        verdict, descent = self._verdict(nearby, data, training, descent)
        drift = "" if data is None or self.drift < SAME else _DRIFT.format(self.drift)
        if drift:
            verdict = replace(verdict, reason=f"{verdict.reason}; {drift}" if verdict.reason else drift)
        forecast, no_forecast = self._forecast(data, verdict)
        return Examination(
            step=self.trainer.global_step,
            name=self.name,
            location=self.location,
            block=self.block,
            loss=_loss_now(self.block, None if penalty is not None else nearby, data, loss),
            verdict=verdict,
            nearby=nearby,
            data=data,
            forecast=forecast,
            no_forecast=no_forecast,
            dead=self.dead,
            parameters=self.parameters,
            signals=self.rows.signals(),
            descent=descent,
            fact=self._fact(data, descent),
            drift=drift,
            held="" if descent is None or self.dead else descent.holds(self.drop),
        )

    def unjudged(self, data: TrainingData | None, loss: float) -> Examination:
        """The block and its data without a verdict, which takes as long as many steps."""
        return Examination(
            step=self.trainer.global_step,
            name=self.name,
            location=self.location,
            block=self.block,
            loss=loss,
            verdict=verdict_in_training(None, _UNASKED),
            nearby=None,
            data=data,
            forecast=None,
            no_forecast=self.rows.reason,
            dead=self.dead,
            parameters=self.parameters,
            signals=self.rows.signals(),
        )

    def _nearby(
        self, data: TrainingData | None, penalty: WeightDecay | None
    ) -> tuple[NearbyStationaryPoint | None, Descent | None]:
        """The point nearby, and the descent where it was measured first.

        What falls by more than the drop at once, and ever slower, is near no point: a search, which takes seconds,
        would only say so.
        """
        if data is None:
            return None, None
        descent = self._descent(data) if search_size(self.block, data) > SEARCHED_AT_ONCE else None
        falls = descent is not None and descent.slows and descent.fall > self.drop
        return None if falls else judge(self.block, data, penalty), descent

    def _verdict(
        self,
        nearby: NearbyStationaryPoint | None,
        data: TrainingData | None,
        training: Training,
        descent: Descent | None,
    ) -> tuple[Verdict, Descent | None]:
        """The verdict, and how far the loss could fall at once."""
        stands = self.first_order or agreement_words(self.block, self.rows.signals())
        unknown = filter(None, [stands, self.rows.reason or _NOT_CONVEX])
        verdict = verdict_in_training(nearby, "; ".join(unknown), training)
        if verdict.kind in MINIMA:
            descent = None
        elif descent is None and data is not None:
            descent = self._descent(data)
        if nearby is None or nearby.verdict.kind in UNSETTLED:
            verdict = _with_descent(verdict, descent, self.drop)
        # Seen to fall, and not searched around.
        if nearby is None and data is not None and verdict.kind == "not stationary":
            verdict = replace(verdict, assumptions=Assumptions({"full data set": checked(data.complete)}))
        return verdict, descent

    def _descent(self, data: TrainingData) -> Descent | None:
        """How far the loss could fall at once; None where not the block alone is trained."""
        if not (self.alone and self.thorough):
            return None
        whole = self.rows.one_batch and data.complete
        return descent_of(self.trainer, self.module, self.location, self.block, data, whole)

    def _fact(self, data: TrainingData | None, descent: Descent | None) -> str:
        """What is known of the block whatever its verdict, in words."""
        if self.dead:
            return nothing_moves(self.block, self.name, data)
        held = {id(parameter) for parameter in self.module.parameters()}
        is_here = any(id(parameter) in held for parameter in self.parameters)  # and was not replaced
        still = why_still(self.trainer, self.parameters) if is_here else ""
        if still:
            falls = f"; {descent}" if descent is not None and descent.fall > self.drop else ""
            return f"{self.name or 'the block'} stands still: {still}{falls}"
        return "" if descent is None or not descent.overshoots else descent.holds(self.drop)

    def _forecast(self, data: TrainingData | None, verdict: Verdict) -> tuple[EscapeForecast | None, str]:
        """The forecast, or why there is none."""
        if verdict.kind in MINIMA:
            return None, f"a {verdict.kind} has no escape"
        if data is None:
            return None, self.rows.reason
        if not self.alone:
            return None, _NOT_ALONE
        try:
            return self._escape(data), ""
        except NoForecast as reason:
            return None, str(reason)

    def _escape(self, data: TrainingData) -> EscapeForecast:
        """The forecast in steps of the optimizer.

        Raises:
            NoForecast: If there is none.
        """
        trainer = self.trainer
        schedule = schedule_of(trainer, self.module, self.parameters)
        if not data.loss.convex:
            raise NoForecast(_NOT_CONVEX)
        plain = is_plain_descent(trainer) and gradient_share(trainer) == 1
        lr = float(trainer.optimizers[0].param_groups[0]["lr"]) if plain else 0.0
        forecast = forecast_escape(self.block, data.X, data.loss, lr, self.drop)
        if forecast is None:
            raise NoForecast("nothing grows")
        if forecast.reached < forecast.drop:
            raise NoForecast(str(forecast))
        if plain and lr > 0:
            return forecast
        check_unclipped(trainer, self.block, data, forecast)
        # Weight decay lowers every growth rate by the same amount, and turns no neuron.
        rate = forecast.gain - largest_weight_decay(trainer, self.parameters)
        growth = forecast.gain * forecast.time
        if rate <= 0:
            raise NoForecast("the weight decay is stronger than every growth")
        steps = schedule.steps_until(growth, gradient_share(trainer) * forecast.gain)
        return replace(forecast, steps=steps, time=growth / rate)


def _with_descent(verdict: Verdict, descent: Descent | None, drop: float) -> Verdict:
    """A verdict that leaves open where the run is, with how far its loss was seen to fall."""
    if descent is None or verdict.kind != "undecided":
        return verdict
    if descent.fall > drop:
        return replace(verdict, kind="not stationary", reason=f"{descent}")
    return replace(verdict, reason=f"{verdict.reason}; {descent}")


def _loss_now(
    block: ShallowBlock, nearby: NearbyStationaryPoint | None, data: TrainingData | None, seen: float
) -> float:
    """The loss over all data, or that of the last step seen where it is not known."""
    if nearby is not None:
        return nearby.loss + nearby.loss_gap
    return seen if data is None else data.loss_of(block)
