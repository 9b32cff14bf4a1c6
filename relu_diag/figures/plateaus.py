"""Draw the loss of a run with its plateaus as bands, and the forecasts of their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter

from relu_diag.figures.canvas import BLACK, GREY, PALETTE

# Ratio of the largest to the smallest loss from which the axis is logarithmic.
_LOG_FROM_RATIO = 100.0


@dataclass(frozen=True, slots=True)
class PlateauBand:
    """A plateau for `plateau_figure`.

    Attributes:
        start: First step.
        end: Last step, or None while it lasts.
        label: The kind of stationary point that it is near.
        forecasts: For each forecast of its end, the step at which it was made and the step that it named.
    """

    start: float
    end: float | None
    label: str
    forecasts: Sequence[tuple[float, float]] = ()


def plateau_figure(
    curve: Sequence[tuple[int, float]], bands: Sequence[PlateauBand], marks: Sequence[tuple[int, str]] = ()
) -> Figure:
    """The loss over the steps with a band for every plateau; below it, if there are any, the forecasts of their ends.

    Args:
        curve: Steps and losses.
        bands: The plateaus.
        marks: Steps at which a callback acted, with a word for what it did.

    Returns:
        Figure.

    Raises:
        ValueError: If there is no loss to draw.

    Example:
        >>> figure = plateau_figure([(0, 1.0), (50, 1.0), (60, 0.5)], [PlateauBand(0, 52, "saddle", [(10, 51.0)])])
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['loss', 'end forecast (step)']
    """
    if not curve:
        raise ValueError("`curve` is empty: there is no loss to draw.")
    forecast = any(band.forecasts for band in bands)
    figure = Figure(figsize=(8.0, 6.0 if forecast else 4.2), layout="constrained")
    heights = (2, 1) if forecast else (1,)
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0].tolist()
    top = axes[0]
    steps, losses = zip(*curve, strict=True)
    top.plot(steps, losses, color=BLACK, linewidth=1.2)
    wide = min(losses) > 0 and max(losses) > _LOG_FROM_RATIO * min(losses)
    top.set(ylabel="loss", yscale="log" if wide else "linear")
    colors = dict(zip(dict.fromkeys(band.label for band in bands), PALETTE * len(bands), strict=False))
    for band in bands:
        _draw(band, colors[band.label], axes, steps[-1])
    for step, text in marks:
        top.axvline(step, color=BLACK, linestyle="--", linewidth=0.8)
        foot = {"xy": (step, 0.03), "xycoords": ("data", "axes fraction"), "ha": "right", "va": "bottom"}
        top.annotate(text, rotation=90, path_effects=[withStroke(linewidth=3, foreground="white")], **foot)
    if forecast:
        axes[1].plot(steps, steps, color=GREY, linestyle=":", linewidth=0.8)
        axes[1].set(ylabel="end forecast (step)")
        axes[1].yaxis.set_major_formatter(EngFormatter(sep=""))
    axes[-1].set(xlabel="step")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    top.margins(x=0)
    keys = [Patch(color=color, alpha=0.25, label=label) for label, color in colors.items()]
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw(band: PlateauBand, color: str, axes: Sequence[Axes], last: float) -> None:
    """Draw one plateau, up to the step `last` if it has not ended, and its forecasts into the second panel."""
    end = last if band.end is None else band.end
    for ax in axes:
        ax.axvspan(band.start, end, color=color, alpha=0.25, linewidth=0)
    if band.forecasts:
        made, ends = zip(*band.forecasts, strict=True)
        axes[1].plot(made, ends, color=color, marker="o", markersize=3, linewidth=0.8)
        if band.end is not None:
            axes[1].plot([band.start, band.end], [band.end, band.end], color=BLACK, linewidth=0.8)
