"""What a plateau of training is, and how other callbacks are told of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from relu_diag.figures import PlateauBand
from relu_diag.functional import EscapeForecast, Verdict
from relu_diag.functional.assumptions import Assumptions
from relu_diag.training.examination import Examination
from relu_diag.training.judge import VERDICT_CODES

_UNSETTLED = {"undecided", "not stationary"}
# Forecasts whose disagreement is the band of the last one.
_COMPARED = 3
_ENDS = {
    "escape": "ends",
    "growth": "ends by growth",
    "rise": "ends, the loss is higher",
    "not finite": "ends, the loss is not finite",
}


@dataclass(frozen=True, slots=True, eq=False)
class PlateauForecast:
    """When a plateau will end, said at some step of it.

    Attributes:
        step: Gradient steps done when it was made.
        steps: Steps from then until the loss has dropped; inf where it never does.
        low: Earliest end, as a step, that the last three forecasts allow; of one forecast its end.
        high: Latest end.
        gain: Growth rate of the neurons that end it.
        neurons: These neurons, long, shape ``(n,)``.
    """

    step: int
    steps: float
    low: float
    high: float
    gain: float
    neurons: Tensor

    @property
    def end(self) -> float:
        """Step at which the loss will have dropped."""
        return self.step + self.steps

    def __str__(self) -> str:
        if not math.isfinite(self.end):
            return f"no escape at the learning rates to come, says step {self.step:,}"
        band = f", {self.low:,.0f} to {self.high:,.0f}" if self.low < self.high else ""
        return f"escape at step {self.end:,.0f} (made at step {self.step:,}{band})"


@dataclass(frozen=True, slots=True, eq=False)
class Plateau:
    """A stretch of training on which the loss stands still.

    Attributes:
        start: Its first step.
        end: The step at which the loss was lower by the fraction asked for, or None while it lasts.
        loss: Its loss.
        verdict: What stationary point the weights are near, as last judged with an answer.
        forecast: The last forecast of its end, or None where none is made.
        seen: The step at which it was noticed.
        ended_by: "escape": the loss fell; "growth": a listener has widened the block; "rise": it rose; "not finite":
            NaN or infinity; "" while it lasts.
        no_forecast: Why no forecast is made, empty where one is.
        forecasts: All forecasts, the first one first.
    """

    start: int
    end: int | None
    loss: float
    verdict: Verdict
    forecast: PlateauForecast | None
    seen: int = 0
    ended_by: str = ""
    no_forecast: str = ""
    forecasts: tuple[PlateauForecast, ...] = ()

    @property
    def neurons(self) -> Tensor:
        """The neurons that matter: those that will end it, else those the verdict names."""
        return self.forecast.neurons if self.forecast else self.verdict.neurons

    def __str__(self) -> str:
        where = f"steps {self.start:,} to {self.end:,}" if self.end is not None else f"since step {self.start:,}"
        return f"{where}, loss {self.loss:.6g}: {self.verdict.kind}" + (f"; {self.outlook}" if self.outlook else "")

    @property
    def outlook(self) -> str:
        """What is said of its end."""
        return str(self.forecast) if self.forecast else self.no_forecast and f"no forecast: {self.no_forecast}"

    def short(self, step: int) -> str:
        """The plateau in the few words of a progress bar.

        Args:
            step: Gradient steps done by now.

        Returns:
            For example "saddle, escape in ~41k steps".
        """
        if self.forecast is None:
            return self.verdict.kind
        left = self.forecast.end - step
        if not math.isfinite(left):
            return f"{self.verdict.kind}, no escape at this learning rate"
        when = f"in ~{compact(left)} steps" if left >= 0 else f"overdue by ~{compact(-left)} steps"
        return f"{self.verdict.kind}, escape {when}"

    def band(self) -> PlateauBand:
        """As it is drawn.

        Returns:
            Its steps, verdict and finite forecasts.
        """
        forecasts = [(one.step, one.end) for one in self.forecasts if math.isfinite(one.end)]
        return PlateauBand(self.start, self.end, self.verdict.kind, forecasts)

    def scalars(self) -> dict[str, float]:
        """The plateau as numbers to log.

        Returns:
            The verdict as an integer; the step of the end that is forecast, with its band.
        """
        scalars: dict[str, float] = {"verdict": VERDICT_CODES[self.verdict.kind]}
        if self.forecast is not None:
            forecast = self.forecast
            scalars |= {"escape_step": forecast.end, "escape_low": forecast.low, "escape_high": forecast.high}
        return scalars

    def story(self) -> list[str]:
        """The plateau as lines of a timeline.

        Returns:
            When it began, and when it ended or what is said of its end.
        """
        begins = f"step {self.start:,} plateau begins, loss {self.loss:.4g}: {self.verdict.kind}"
        if self.end is None:
            return [f"{begins}; {self.outlook}" if self.outlook else begins]
        first = self.forecasts[0] if self.forecasts else None
        how = _ENDS[self.ended_by]
        if first is not None:
            return [begins, f"step {self.end:,} plateau {how} (forecast {first.end:,.0f} made at step {first.step:,})"]
        return [begins, f"step {self.end:,} plateau {how} (no forecast: {self.no_forecast})"]

    def state_dict(self) -> dict[str, Any]:
        """The plateau for a checkpoint, without the direction of its verdict, which is as large as the block.

        Returns:
            Plain numbers, strings and tensors.
        """
        verdict = {name: getattr(self.verdict, name) for name in Verdict.__dataclass_fields__ if name != "direction"}
        own = {name: getattr(self, name) for name in ("start", "end", "loss", "seen", "ended_by", "no_forecast")}
        verdict["assumptions"] = dict(self.verdict.assumptions)
        return own | {"verdict": verdict, "forecasts": [asdict(one) for one in self.forecasts]}


def plateau_from_state(state: dict[str, Any]) -> Plateau:
    """The plateau that a state belongs to.

    Args:
        state: What `Plateau.state_dict` returned.

    Returns:
        The plateau; where it had a forecast, the last of its forecasts is it.
    """
    forecasts = tuple(PlateauForecast(**one) for one in state["forecasts"])
    assumptions = Assumptions(state["verdict"]["assumptions"])
    verdict = Verdict(direction=None, **(state["verdict"] | {"assumptions": assumptions}))
    forecast = forecasts[-1] if forecasts and not state["no_forecast"] else None
    own = {name: state[name] for name in ("start", "end", "loss", "seen", "ended_by", "no_forecast")}
    return Plateau(**own, verdict=verdict, forecast=forecast, forecasts=forecasts)


def next_forecast(found: EscapeForecast, step: int, before: tuple[PlateauForecast, ...]) -> PlateauForecast:
    """A forecast with the band that its disagreement with the last ones gives it.

    Args:
        found: The forecast, from ``step`` on.
        step: Gradient steps done.
        before: The forecasts made before.

    Returns:
        The forecast; its band holds the ends that the last three forecasts name.
    """
    end = step + found.steps
    reach = max((abs(other.end - end) for other in before[1 - _COMPARED :]), default=0.0) if math.isfinite(end) else 0.0
    return PlateauForecast(step, found.steps, end - reach, end + reach, found.gain, found.neurons)


def looked_at_again(plateau: Plateau, found: Examination, loss: float | None, under_way: bool) -> Plateau:
    """A plateau with the verdict and the forecast of another look; an answer is not given up for none.

    Args:
        plateau: The plateau so far.
        found: What the look found.
        loss: Its loss where it is flattest, None if unknown.
        under_way: Whether its end has begun: a forecast of a later end is then that of the escape after it.

    Returns:
        The plateau.
    """
    lost = found.verdict.kind in _UNSETTLED and plateau.verdict.kind not in _UNSETTLED
    forecasts = plateau.forecasts
    if found.forecast is not None:
        new = next_forecast(found.forecast, found.step, forecasts)
        forecasts = forecasts if forecasts and under_way and new.end > forecasts[-1].end else (*forecasts, new)
    return replace(
        plateau,
        loss=plateau.loss if loss is None else loss,
        verdict=plateau.verdict if lost else found.verdict,
        forecast=forecasts[-1] if found.forecast is not None else None,
        no_forecast=found.no_forecast,
        forecasts=forecasts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class PlateauEvent:
    """Something a monitor saw, told to every `PlateauListener` of the trainer.

    Attributes:
        kind: "start": the plateau was noticed and judged. "update": it was judged again. "end": it has ended. "slide":
            it was none, the loss slides steadily; it is no longer in the monitor's list.
        step: Gradient steps done.
        plateau: The plateau.
        block: The monitor's ``block``: which block it watches, None where the module has only one.
        examination: The block, its data, the verdict with its direction, the forecast; None at the end.
    """

    kind: Literal["start", "update", "end", "slide"]
    step: int
    plateau: Plateau
    block: str | None
    examination: Examination | None


class PlateauListener(Callback):
    """A callback that acts on plateaus: it is told of them by every `PlateauMonitor` of the same trainer."""

    @property
    def marks(self) -> list[tuple[int, str]]:
        """What it did, for the figure of the loss.

        Returns:
            Gradient steps, and a few letters for each.
        """
        return []

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        """Called when a plateau begins, is judged again, or ends, after a step and before the next.

        Args:
            trainer: The trainer.
            pl_module: Its module, which may be changed here.
            event: What was seen.
        """


def compact(count: float) -> str:
    """A number of steps in two digits.

    Args:
        count: The number.

    Returns:
        Text.

    Example:
        >>> [compact(count) for count in (7, 41_234, 998, 2_345_678)]
        ['7', '41k', '1k', '2.3M']
    """
    rounded = float(f"{count:.2g}")
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= unit:
            return f"{rounded / unit:g}{name}"
    return f"{rounded:g}"


def listeners(trainer: Trainer) -> list[PlateauListener]:
    """The callbacks of a trainer that act on plateaus.

    Args:
        trainer: The trainer.

    Returns:
        Its listeners, in their order.
    """
    return [callback for callback in trainer.callbacks if isinstance(callback, PlateauListener)]  # type: ignore[attr-defined]
