"""Shared by all figures: where they are drawn, axis limits, and the conversion from tensors to arrays."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec
from numpy.typing import NDArray
from torch import Tensor

# Margin on each side of the data, as a fraction of their range.
_MARGIN = 0.15
# Size of titles, points, and the width of their letters as a fraction of that, rather more than less.
_TITLE_SIZE = 9.0
_LETTER = 0.58
# Pixels per inch of pictures inside other files.
_DPI = 120.0


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a figure is drawn: a figure of its own, or the place of one axes in a figure of the caller's.

    Attributes:
        figure: The whole figure.
        axes: Its panels, row by row. In a caller's figure the first is the axes that was given.
        own: Whether the figure is our own.
    """

    figure: Figure
    axes: list[Axes]
    own: bool

    @classmethod
    def at(
        cls,
        ax: Axes | None,
        size: tuple[float, float],
        height_ratios: Sequence[float] = (1,),
        columns: int = 1,
        sharex: bool = False,
    ) -> Canvas:
        """A grid of panels in the place of an axes, or in a new figure.

        Args:
            ax: The axes whose place the panels take; it becomes the first of them. None: a new figure.
            size: Width and height of a new figure, inches.
            height_ratios: Relative height of each row.
            columns: Number of columns.
            sharex: Whether all panels share the horizontal axis.

        Returns:
            The canvas.
        """
        rows = len(height_ratios)
        if ax is None:
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, height_ratios=height_ratios)
            return cls(figure, axes.flatten().tolist(), own=True)
        root = ax.get_figure(root=True)
        home = ax.get_figure(root=False)
        assert root is not None
        assert home is not None
        if rows * columns == 1:
            return cls(root, [ax], own=False)
        cells = _cells(ax, rows, columns, height_ratios)
        ax.set_subplotspec(cells[0, 0])
        places = [cells[row, column] for row in range(rows) for column in range(columns)][1:]
        others = [home.add_subplot(place, sharex=ax if sharex else None) for place in places]
        return cls(root, [ax, *others], own=False)

    def legend(self, handles: Sequence[Artist] | None = None, columns: int = 2, **options: Any) -> None:
        """Add the legend: below all panels of our own figure, inside the first panel of a caller's.

        Args:
            handles: What it explains; None: everything with a label, once.
            columns: Number of columns.
            options: Other options of matplotlib's legend.
        """
        if handles is None:
            found = [handle for ax in self.axes for handle in ax.get_legend_handles_labels()[0]]
            handles = list({str(handle.get_label()): handle for handle in reversed(found)}.values())[::-1]
        if not handles:
            return
        if self.own:
            below: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False}
            self.figure.legend(handles=handles, **(below | options))
        else:
            inside: dict[str, Any] = {"loc": "best", "fontsize": "x-small"}
            self.axes[0].legend(handles=handles, **(inside | options))


def set_title(ax: Axes, text: str) -> None:
    """Give a panel a small title, in as many lines as it needs.

    Args:
        ax: The panel.
        text: The title.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    points = figure.get_figwidth() * 72 * ax.get_position().width
    title = textwrap.fill(text, max(20, int(points / (_LETTER * _TITLE_SIZE))), break_long_words=False)
    ax.set_title(title, fontsize=_TITLE_SIZE)


def _cells(ax: Axes, rows: int, columns: int, height_ratios: Sequence[float]) -> GridSpec | GridSpecFromSubplotSpec:
    """A grid in the place of an axes, which may have been placed by hand."""
    place = ax.get_subplotspec()
    if place is not None:
        return place.subgridspec(rows, columns, height_ratios=height_ratios)
    box = ax.get_position()
    edges = {"left": box.x0, "right": box.x1, "bottom": box.y0, "top": box.y1}
    return GridSpec(rows, columns, height_ratios=height_ratios, **edges)


def png_of(figure: Figure, dpi: float = _DPI) -> bytes:
    """A figure as the content of a PNG file.

    Args:
        figure: The figure.
        dpi: Pixels per inch.

    Returns:
        Bytes.

    Example:
        >>> png_of(Figure())[1:4]
        b'PNG'
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def limits_of(values: Tensor) -> tuple[float, float]:
    """The range of the data with a margin on both sides.

    Args:
        values: Values, any shape.

    Returns:
        Lower and upper limit.
    """
    low = float(values.min())
    high = float(values.max())
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def to_numpy(values: Tensor) -> NDArray[np.float64]:
    """The values as a float64 array on the CPU.

    Args:
        values: Tensor of any dtype, on any device.

    Returns:
        Array.
    """
    return values.detach().double().cpu().numpy()
