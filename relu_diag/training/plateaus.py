"""Plateaus of training with their verdicts and forecasts, and the events that callbacks receive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.figures import png_of, story_figure
from relu_diag.functional import EscapeForecast, Gap, Verdict
from relu_diag.functional.assumptions import Assumptions
from relu_diag.functional.tables import html_table, summary_of
from relu_diag.training.callback import CallbackOfBoth
from relu_diag.training.examination import Examination
from relu_diag.training.judge import UNSETTLED, VERDICT_CODES, escape_count, why_unsettled

EventKind = Literal["start", "update", "end", "slide"]
# Number of forecasts whose disagreement makes the band of the last one.
_COMPARED = 3
# Fields of a plateau that are numbers and strings.
_PLAIN = ("start", "end", "loss", "seen", "ended_by", "no_forecast", "fact", "block")
# Words of a timeline, by how a plateau ended.
_ENDS = {
    "escape": "ends",
    "growth": "ends by growth",
    "rise": "ends, the loss is higher",
    "not finite": "ends, the loss is not finite",
}


@dataclass(frozen=True, slots=True, eq=False)
class PlateauForecast:
    """A forecast of the end of a plateau.

    Attributes:
        step: Gradient steps done when it was made.
        steps: Steps from then until the loss has dropped; inf if it never does.
        low: Earliest step at which the plateau ends, by the disagreement of the last three forecasts; with a single
            forecast, its end.
        high: Latest such step.
        gain: Growth rate of the neurons that end the plateau, per unit of time.
        neurons: These neurons, long, shape ``(n,)``.

    Example:
        >>> import torch
        >>> print(PlateauForecast(step=10, steps=90.0, low=95.0, high=105.0, gain=5.0, neurons=torch.tensor([0])))
        escape at step 100 (made at step 10, 95 to 105)
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

    @classmethod
    def from_escape(cls, escape: EscapeForecast, step: int, before: tuple[PlateauForecast, ...]) -> PlateauForecast:
        """A forecast with the band that the earlier ones give it.

        Args:
            escape: The escape, forecast from ``step`` on.
            step: Gradient steps done.
            before: The earlier forecasts of the same plateau, oldest first.

        Returns:
            The forecast. Its band is symmetric and contains the ends that the last three forecasts name.
        """
        end = step + escape.steps
        band = 0.0
        if math.isfinite(end):
            band = max((abs(other.end - end) for other in before[1 - _COMPARED :]), default=0.0)
        return cls(step, escape.steps, end - band, end + band, escape.gain, escape.neurons)

    def summary(self) -> str:
        """The forecast as a table.

        Returns:
            Text, one fact a line.
        """
        rows = [
            ("end of the plateau", f"step {self.end:,.0f}"),
            ("between", f"steps {self.low:,.0f} and {self.high:,.0f}"),
            ("made at", f"step {self.step:,}"),
            ("growth rate", f"{self.gain:.3g}"),
            ("growing neurons", str(len(self.neurons))),
        ]
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def __str__(self) -> str:
        if not math.isfinite(self.end):
            return f"no escape at the learning rates to come (made at step {self.step:,})"
        band = f", {self.low:,.0f} to {self.high:,.0f}" if self.low < self.high else ""
        return f"escape at step {self.end:,.0f} (made at step {self.step:,}{band})"


@dataclass(frozen=True, slots=True, eq=False)
class Plateau:
    """A stretch of training on which the loss stands still.

    Attributes:
        start: Its first step.
        end: Step at which the loss was lower by the fraction asked for; None while it lasts.
        loss: Its loss.
        verdict: The last verdict on the stationary point nearby that was settled, or else the last one.
        forecast: The last forecast of its end; None if the last examination made none.
        seen: Step at which it was noticed.
        ended_by: "escape": the loss fell; "growth": a callback widened the block; "rise": the loss rose; "not finite":
            it became NaN or infinite; "" while the plateau lasts.
        no_forecast: Why there is no forecast; empty if there is one.
        forecasts: All forecasts, oldest first.
        fact: What keeps the loss where it is, whatever the verdict, with a cure (`Examination.fact`); may be empty.
        block: The block that the verdict is of, by its first layer; empty where there is one.

    Example:
        >>> import torch
        >>> verdict = Verdict("saddle", torch.tensor([0]), None, Assumptions({}))
        >>> print(Plateau(9, None, 0.038, verdict, forecast=None, no_forecast="nothing grows"))
        since step 9, loss 0.038: saddle; no forecast: nothing grows
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
    fact: str = ""
    block: str = ""

    @property
    def neurons(self) -> Tensor:
        """The neurons that will end it, if that is forecast, or else those that the verdict names."""
        return self.forecast.neurons if self.forecast else self.verdict.neurons

    def __str__(self) -> str:
        where = f"steps {self.start:,} to {self.end:,}" if self.end is not None else f"since step {self.start:,}"
        return f"{where}, loss {self.loss:.6g}: {self.verdict.kind}" + (f"; {self.outlook}" if self.outlook else "")

    def summary(self) -> str:
        """The plateau as a table.

        Returns:
            Text, one fact a line.
        """
        rows = [
            ("plateau", self.verdict.kind),
            ("loss", f"{self.loss:.6g}"),
            ("from step", f"{self.start:,}"),
            ("to step", "it lasts" if self.end is None else f"{self.end:,}"),
            ("ended by", self.ended_by),
            ("forecast", self.outlook),
            ("because", self.verdict.reason),
            ("what holds it", self.fact),
        ]
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def _repr_png_(self) -> bytes:
        last = self.end if self.end is not None else max(self.seen, self.start)
        return png_of(story_figure([self.start, last], [self.loss, self.loss], [self]))

    @property
    def outlook(self) -> str:
        """The forecast of its end, or the reason why there is none; may be empty."""
        return str(self.forecast) if self.forecast else self.no_forecast and f"no forecast: {self.no_forecast}"

    def short(self, step: int) -> str:
        """The plateau in the few words of a progress bar.

        Args:
            step: Gradient steps done.

        Returns:
            Text such as "saddle, escape in ~41k steps".
        """
        if self.forecast is None:
            return self.verdict.kind
        left = self.forecast.end - step
        if not math.isfinite(left):
            return f"{self.verdict.kind}, no escape at this learning rate"
        when = f"in ~{_compact(left)} steps" if left >= 0 else f"overdue by ~{_compact(-left)} steps"
        return f"{self.verdict.kind}, escape {when}"

    def scalars(self) -> dict[str, float]:
        """The plateau as numbers to log.

        Returns:
            ``verdict``, an integer; at a stationary point ``escape``, the number of escape neurons; with a forecast
            ``escape_step``, ``escape_low`` and ``escape_high``, steps.
        """
        scalars: dict[str, float] = {"verdict": VERDICT_CODES[self.verdict.kind], "loss": self.loss}
        escape = escape_count(self.verdict)
        if escape is not None:
            scalars["escape"] = escape
        if self.forecast is not None:
            forecast = self.forecast
            scalars |= {"escape_step": forecast.end, "escape_low": forecast.low, "escape_high": forecast.high}
        return scalars

    def story(self) -> list[str]:
        """The plateau as lines of a timeline.

        Returns:
            When it began, and when it ended or is forecast to end.
        """
        begins = f"step {self.start:,} plateau begins, loss {self.loss:.4g}: {self.verdict.kind}"
        if self.end is None:
            return [f"{begins}; {self.outlook}" if self.outlook else begins]
        first = self.forecasts[0] if self.forecasts else None
        how = _ENDS[self.ended_by]
        if first is not None:
            return [begins, f"step {self.end:,} plateau {how} (forecast {first.end:,.0f} made at step {first.step:,})"]
        return [begins, f"step {self.end:,} plateau {how} (no forecast: {self.no_forecast})"]

    @property
    def words(self) -> str:
        """The plateau in a line of the terminal: since when, its loss, its forecast, or what holds it."""
        begun = f"since {self.start:,}, loss {self.loss:.4g}" + (f"; {self.block}" if self.block else "")
        if self.forecast is None:
            why = why_unsettled(self.verdict, self.fact)
            return f"{begun}{':' if self.block else ';'} {why}" if why else begun
        never = not math.isfinite(self.forecast.end)
        return f"{begun}, {'no end ahead' if never else f'ends at ~{self.forecast.end:,.0f}'}"

    @property
    def ending(self) -> str:
        """How it ended, in a line of the terminal, and the first forecast of it."""
        forecast = f", forecast {self.forecasts[0].end:,.0f}" if self.forecasts else ""
        return f"plateau {_ENDS[self.ended_by]}{forecast}"

    def state_dict(self) -> dict[str, Any]:
        """The plateau for a checkpoint, without the direction of its verdict, which is as large as the block.

        Returns:
            Plain numbers, strings and tensors.
        """
        verdict = {name: getattr(self.verdict, name) for name in Verdict.__dataclass_fields__ if name != "direction"}
        own = {name: getattr(self, name) for name in _PLAIN}
        verdict["assumptions"] = dict(self.verdict.assumptions)
        return own | {"verdict": verdict, "forecasts": [asdict(one) for one in self.forecasts]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Plateau:
        """The plateau of a checkpoint.

        Args:
            state: Result of `state_dict`.

        Returns:
            The plateau.
        """
        forecasts = tuple(PlateauForecast(**one) for one in state["forecasts"])
        assumptions = Assumptions(state["verdict"]["assumptions"])
        verdict = Verdict(direction=None, **(state["verdict"] | {"assumptions": assumptions}))
        forecast = forecasts[-1] if forecasts and not state["no_forecast"] else None
        own = {name: state.get(name, "") for name in _PLAIN}
        return cls(**own, verdict=verdict, forecast=forecast, forecasts=forecasts)

    def judged_again(self, examination: Examination, loss: float | None, named: bool = False) -> Plateau:
        """The plateau after another examination. An undecided verdict does not replace a decided one.

        Args:
            examination: The examination.
            loss: Loss of the plateau where it is flattest; None if unknown.
            named: Whether the block is to be named, as one of several.

        Returns:
            The plateau with the new verdict and forecast.
        """
        kept = examination.verdict.kind in UNSETTLED and self.verdict.kind not in UNSETTLED
        forecasts = self.forecasts
        if examination.forecast is not None:
            forecasts = (*forecasts, PlateauForecast.from_escape(examination.forecast, examination.step, forecasts))
        return replace(
            self,
            loss=self.loss if loss is None else loss,
            verdict=self.verdict if kept else examination.verdict,
            forecast=forecasts[-1] if examination.forecast is not None else None,
            no_forecast=examination.no_forecast,
            forecasts=forecasts,
            fact=examination.fact or examination.held,
            block=(self.block if kept else examination.name) if named else "",
        )


@dataclass(frozen=True, slots=True, eq=False)
class PlateauEvent:
    """An event of a `PlateauMonitor`, sent to every `PlateauListener` of the trainer.

    Attributes:
        kind: "start": a plateau was noticed and judged. "update": it was judged again. "end": it has ended. "slide": it
            was no plateau but a steady slide of the loss, and is no longer in the monitor's list.
        step: Gradient steps done.
        plateau: The plateau.
        block: The ``block`` of the monitor that watches it.
        examinations: The blocks with their data, verdict with its direction, and forecast; the one that says most about
            the loss first. None for "end" and "slide", and where no block was examined.
        gap: How far the first block is from the best of any width; None where decay is no part of the loss.

    Example:
        >>> import torch
        >>> verdict = Verdict("saddle", torch.tensor([0]), None, Assumptions({}))
        >>> event = PlateauEvent("start", 100, Plateau(9, None, 0.038, verdict, None), block=None)
        >>> event.kind, event.plateau.start, event.examination
        ('start', 9, None)
    """

    kind: EventKind
    step: int
    plateau: Plateau
    block: str | Sequence[str] | None
    examinations: tuple[Examination, ...] = ()
    gap: Gap | None = None

    @property
    def examination(self) -> Examination | None:
        """The block that says most about the loss, or None."""
        return next(iter(self.examinations), None)


class PlateauListener(CallbackOfBoth):
    """A callback that acts on plateaus: it receives the events of every `PlateauMonitor` of its trainer.

    Example:
        >>> class Tell(PlateauListener):
        ...     def on_plateau(self, trainer, pl_module, event):
        ...         print(event.kind, event.plateau)
        >>> Tell().marks
        []
    """

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Its actions, for the figure of the loss.

        Returns:
            Pairs of a gradient step and a word for the action.
        """
        return []

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        """Called when a plateau begins, is judged again, or ends, after a step and before the next.

        Args:
            trainer: The trainer.
            pl_module: Its module, which may be changed here.
            event: The event.
        """


def listeners(trainer: Trainer) -> list[PlateauListener]:
    """The callbacks of a trainer that act on plateaus.

    Args:
        trainer: The trainer.

    Returns:
        Its listeners, in their order.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu", callbacks=[PlateauListener()])
        >>> len(listeners(trainer))
        1
    """
    return [callback for callback in trainer.callbacks if isinstance(callback, PlateauListener)]  # type: ignore[attr-defined]


def marks_of(trainer: Trainer) -> list[tuple[int, str]]:
    """What the listeners of a trainer did.

    Args:
        trainer: The trainer.

    Returns:
        Pairs of a gradient step and a word for the action.

    Example:
        >>> marks_of(Trainer(barebones=True, accelerator="cpu", callbacks=[PlateauListener()]))
        []
    """
    return [mark for callback in listeners(trainer) for mark in callback.marks]


def _compact(count: float) -> str:
    """A number of steps in two digits: 7, 41k, 2.3M."""
    rounded = float(f"{count:.2g}")
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= unit:
            return f"{rounded / unit:g}{name}"
    return f"{rounded:g}"
