"""Draw the story of a run: its loss, the plateaus with their verdicts and forecasts, and what callbacks did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from relu_diag.figures.canvas import Canvas
from relu_diag.figures.labels import Label, place_labels, place_marks
from relu_diag.figures.palette import BLACK, DARK, verdict_style

# Sizes that are readable at 340 pixels, and the height that every plateau beyond the first few adds, inches.
_WIDTH = 4.8
_HEIGHT = 2.5
_TAIL_HEIGHT = 1.1
_ROOMY = 5
_HEIGHT_PER_PLATEAU = 0.15
_FONT = 9.0
# Ratio of the largest to the smallest loss from which the whole run gets a panel of its own.
_LOG_FROM_RATIO = 100.0
# The same from which that panel is logarithmic: ticks of less than a decade have no room.
_DECADE = 10.0
# Margins around the plateaus: of the steps, and of the losses below and above, as fractions of their ranges.
_STEPS_AROUND = 0.08
_LOSS_BELOW = 0.35
_LOSS_ABOVE = 0.3
# A line through noise as well as over a thin curve.
_LEVEL: dict[str, Any] = {"linewidth": 3.5, "alpha": 0.8, "solid_capstyle": "butt", "zorder": 3}
# An open forecast is drawn up to this many times the steps done.
_AHEAD = 1.5


class StoryVerdict(Protocol):
    """What the story tells of a verdict."""

    @property
    def kind(self) -> str:
        """The kind of stationary point."""


class StoryForecast(Protocol):
    """What the story tells of a forecast: steps at which it was made, that it names, and between which it is sure."""

    @property
    def step(self) -> float:
        """Step at which it was made."""

    @property
    def end(self) -> float:
        """Step that it names; inf: never."""

    @property
    def low(self) -> float:
        """Earliest step."""

    @property
    def high(self) -> float:
        """Latest step."""


class StoryPlateau(Protocol):
    """What the story tells of a plateau; `relu_diag.training.Plateau` is one."""

    @property
    def start(self) -> float:
        """First step."""

    @property
    def end(self) -> float | None:
        """Last step; None while it lasts."""

    @property
    def loss(self) -> float:
        """Its loss."""

    @property
    def verdict(self) -> StoryVerdict:
        """What it is near."""

    @property
    def forecasts(self) -> Sequence[StoryForecast]:
        """Forecasts of its end, oldest first."""


def plateau_words(plateau: StoryPlateau) -> str:
    """A plateau in two words: its verdict and its loss.

    Args:
        plateau: The plateau.

    Returns:
        Text such as "saddle 0.0381".

    Example:
        >>> from types import SimpleNamespace as Record
        >>> plateau_words(Record(verdict=Record(kind="saddle"), loss=0.03812))
        'saddle 0.0381'
    """
    return f"{plateau.verdict.kind} {plateau.loss:.3g}"


def told_forecast(plateau: StoryPlateau) -> StoryForecast | None:
    """The forecast that is told of a plateau: while it lasts the last one, later the last of its first half.

    A forecast made just before the end proves nothing.

    Args:
        plateau: The plateau.

    Returns:
        The forecast; None if none was made, or none that names a step.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> early, late = Record(step=20, end=99.0), Record(step=90, end=100.0)
        >>> told_forecast(Record(start=0, end=100, forecasts=[early, late])) is early
        True
    """
    finite = [one for one in plateau.forecasts if math.isfinite(one.end)]
    if not finite or plateau.end is None:
        return finite[-1] if finite else None
    middle = (plateau.start + plateau.end) / 2
    return [finite[0], *(one for one in finite if one.step <= middle)][-1]


def forecast_error(plateau: StoryPlateau) -> float | None:
    """By how much the forecast that is told missed the end, as a fraction of the steps it looked ahead.

    Args:
        plateau: The plateau.

    Returns:
        The error, negative if the end came later; None while the plateau lasts, and without a forecast.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> forecast_error(Record(start=0, end=120, forecasts=[Record(step=20, end=121.0)]))
        0.01
    """
    forecast = told_forecast(plateau)
    if forecast is None or plateau.end is None or plateau.end <= forecast.step:
        return None
    return (forecast.end - plateau.end) / (plateau.end - forecast.step)


def percent(fraction: float) -> str:
    """A fraction in percent, with its sign unless it rounds to zero.

    Args:
        fraction: The fraction.

    Returns:
        Text such as "+0.2 %".

    Example:
        >>> percent(0.002), percent(-1e-9)
        ('+0.2 %', '0.0 %')
    """
    rounded = round(100 * fraction, 1)
    return f"{rounded:+.1f} %" if rounded else "0.0 %"


def story_figure(
    steps: Sequence[float],
    losses: Sequence[float],
    plateaus: Sequence[StoryPlateau],
    marks: Sequence[tuple[float, str]] = (),
    ax: Axes | None = None,
) -> Figure:
    """The loss over its plateaus on a linear axis, and below it the whole run on a logarithmic one where that differs.

    Each plateau is a band with its verdict and loss. The forecast of its end (`told_forecast`) is a tick with its
    interval, and once the plateau has ended with its error. Dashed lines are what callbacks did: growths, moves.

    Args:
        steps: Gradient steps done at each loss, rising.
        losses: The losses; those that are not finite are left out.
        plateaus: The plateaus, oldest first.
        marks: Steps at which a callback acted, with a word for what it did.
        ax: Axes in whose place the story is drawn; None: a new figure, readable at 340 pixels.

    Returns:
        Figure.

    Raises:
        ValueError: If there is no finite loss, or not one for each step.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> saddle = Record(start=0, end=50, loss=1.0, verdict=Record(kind="saddle"), forecasts=[])
        >>> figure = story_figure([0, 50, 60], [1.0, 1.0, 0.5], [saddle])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['saddle 1']
    """
    if len(steps) != len(losses):
        raise ValueError(f"`losses` needs one loss for each step: {len(steps)} steps, {len(losses)} losses.")
    curve = _curve(steps, losses)
    if not len(curve):
        raise ValueError("`losses` holds no finite loss: there is nothing to draw.")
    shown = _Window.of(curve, plateaus)
    main_height = _HEIGHT + _HEIGHT_PER_PLATEAU * max(0, len(plateaus) - _ROOMY)
    heights = (main_height, _TAIL_HEIGHT) if shown.hides(curve) else (main_height,)
    canvas = Canvas.at(ax, (_WIDTH, sum(heights)), heights)
    main = canvas.axes[0]
    for panel in canvas.axes:
        _draw(panel, curve, plateaus, marks)
    for panel in canvas.axes[1:]:
        _finish_tail(panel, curve)
    main.set(xlim=shown.steps, ylim=shown.losses, ylabel="loss")
    worded = [plateau for plateau in plateaus if math.isfinite(plateau.loss)]
    ticks = [_draw_forecast(main, plateau) for plateau in worded if told_forecast(plateau) is not None]
    inside = [(step, word) for step, word in marks if shown.steps[0] <= step <= shown.steps[1]]
    place_marks(main, inside, _FONT - 1)
    place_labels(main, _labels(main, worded), curve, ticks)
    return canvas.figure


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of a run that the linear panel shows."""

    steps: tuple[float, float]
    losses: tuple[float, float]

    @classmethod
    def of(cls, curve: NDArray[np.float64], plateaus: Sequence[StoryPlateau]) -> _Window:
        """The window around all plateaus; without any, around the whole curve of shape ``(T, 2)``."""
        first, last = curve[0, 0], curve[-1, 0]
        levels = [plateau.loss for plateau in plateaus if math.isfinite(plateau.loss)]
        if not levels:
            return cls(_around(first, last), _loss_limits(curve[:, 1]))
        start = min(plateau.start for plateau in plateaus)
        end = max(_end(plateau, last) for plateau in plateaus)
        margin = _STEPS_AROUND * max(end - start, 1.0)
        inside = [curve[(curve[:, 0] >= one.start) & (curve[:, 0] <= _end(one, last)), 1] for one in plateaus]
        # Most of the noise on a plateau, but not its spikes.
        noise = [np.quantile(losses, (0.1, 0.9)) for losses in inside if len(losses)]
        return cls((start - margin / 4, end + margin), _loss_limits(np.concatenate([levels, *noise])))

    def hides(self, curve: NDArray[np.float64]) -> bool:
        """Whether a curve of shape ``(T, 2)`` goes on outside the window, or falls by orders of magnitude inside."""
        before, after = curve[0, 0] < self.steps[0], curve[-1, 0] > self.steps[1]
        losses = curve[:, 1]
        wide = losses.min() > 0 and losses.max() > _LOG_FROM_RATIO * losses.min()
        return bool(before or after or wide)


def _curve(steps: Sequence[float], losses: Sequence[float]) -> NDArray[np.float64]:
    """Steps and finite losses, shape ``(T, 2)``."""
    curve = np.column_stack([np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)])
    finite = np.isfinite(curve).all(axis=1)
    return np.asarray(curve[finite])


def _end(plateau: StoryPlateau, last: float) -> float:
    """The end of a plateau; while it lasts the last step, or that of its forecast if it is not far off."""
    if plateau.end is not None:
        return plateau.end
    forecast = told_forecast(plateau)
    return last if forecast is None else max(last, min(forecast.high, _AHEAD * last))


def _around(low: float, high: float) -> tuple[float, float]:
    """A range of steps with a margin on the right."""
    return low, high + _STEPS_AROUND * max(high - low, 1.0)


def _loss_limits(losses: NDArray[np.float64]) -> tuple[float, float]:
    """Limits of a linear axis that shows these losses, with room for words above and below."""
    low, high = float(losses.min()), float(losses.max())
    span = max(high - low, 0.02 * abs(high)) or 1.0
    return low - _LOSS_BELOW * span, high + _LOSS_ABOVE * span


def _draw(
    ax: Axes, curve: NDArray[np.float64], plateaus: Sequence[StoryPlateau], marks: Sequence[tuple[float, str]]
) -> None:
    """Draw the bands, the marks and the curve of shape ``(T, 2)`` into a panel."""
    for plateau in plateaus:
        style = verdict_style(plateau.verdict.kind)
        end = curve[-1, 0] if plateau.end is None else plateau.end
        hatch: dict[str, Any] = {"hatch": style.hatch, "edgecolor": "white"} if style.hatch else {}
        ax.axvspan(plateau.start, end, facecolor=style.tint, linewidth=0, zorder=0, **hatch)
        ax.plot([plateau.start, end], [plateau.loss] * 2, color=style.color, **_LEVEL)
    for step, _ in marks:
        ax.axvline(step, color=BLACK, linestyle="--", linewidth=0.8)
    ax.plot(curve[:, 0], curve[:, 1], color=BLACK, linewidth=1.1, label="loss")
    ax.set_xlabel("step", fontsize=_FONT)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(labelsize=_FONT - 1)
    ax.yaxis.label.set_fontsize(_FONT)


def _finish_tail(ax: Axes, curve: NDArray[np.float64]) -> None:
    """Give the panel of the whole run its axes; a loss that is nowhere positive, or falls little, stays linear."""
    ax.set(xlim=(curve[0, 0], max(curve[-1, 0], curve[0, 0] + 1)), ylabel="whole run")
    positive = curve[curve[:, 1] > 0, 1]
    if len(positive) and positive.max() > _DECADE * positive.min():
        ax.set_yscale("log", nonpositive="mask")


def _draw_forecast(ax: Axes, plateau: StoryPlateau) -> tuple[float, float]:
    """Draw the tick of a forecast with its interval; return its place."""
    forecast = told_forecast(plateau)
    assert forecast is not None
    sides = [[max(0.0, forecast.end - forecast.low)], [max(0.0, forecast.high - forecast.end)]]
    style: dict[str, Any] = {
        "fmt": "|",
        "color": BLACK,
        "markersize": 11,
        "markeredgewidth": 1.6,
        "capsize": 2.5,
        "elinewidth": 1,
    }
    ax.errorbar([forecast.end], [plateau.loss], xerr=sides, zorder=4, label="forecast", **style)
    return forecast.end, plateau.loss


def _labels(ax: Axes, plateaus: Sequence[StoryPlateau]) -> list[Label]:
    """The words of all plateaus, then those of their forecasts, the first of which says what they are."""
    labels = []
    for plateau in plateaus:
        point = (plateau.start, plateau.loss)
        labels.append(Label(plateau_words(plateau), point, "left", above=True, size=_FONT, color=BLACK))
    named = "forecast "
    for plateau in plateaus:
        forecast = told_forecast(plateau)
        if forecast is not None:
            point = (min(forecast.end, ax.get_xlim()[1]), plateau.loss)
            error = forecast_error(plateau)
            text = named + _forecast_words(forecast, error)
            labels.append(Label(text, point, "right", above=False, size=_FONT - 1.5, color=DARK))
            named = ""
    return labels


def _forecast_words(forecast: StoryForecast, error: float | None) -> str:
    """The error of a forecast, or the step that it names while nobody knows."""
    if error is None:
        return f"to end at {EngFormatter(places=1, sep='')(forecast.end)}"
    return percent(error)
