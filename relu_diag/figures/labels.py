"""Put words into a panel so that they cover neither each other nor the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from relu_diag.figures.palette import GREY

# Space around words, and half the size of a tick, points.
_GAP = 2.5
_TICK = 6.0
# Cost of words below their point that belong above it, and of moving them aside by their width, in rows.
_OTHER_SIDE = 0.9
_ASIDE = 1.4
# Distance from which words are tied to their point, in their height.
_FAR = 1.5
# Places of words on a ray, as shares of its length, in the order of preference.
_SHARES = (0.8, 0.7, 0.9, 0.6, 0.5, 0.4, 0.3)
# Rows of words above a panel; words that need more are left out.
_MOST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Label:
    """Words beside a point.

    Attributes:
        text: The words.
        point: The point, in data coordinates.
        side: Whether the words begin ("left") or end ("right") at the point.
        above: Whether they are rather above it than below.
        size: Font size, points.
        color: Colour.
    """

    text: str
    point: tuple[float, float]
    side: Literal["left", "right"]
    above: bool
    size: float
    color: str


@dataclass(frozen=True, slots=True)
class Ray:
    """Words that may stand anywhere on a ray from the origin.

    Attributes:
        text: The words.
        end: Its end, in data coordinates.
        color: Colour.
    """

    text: str
    end: NDArray[np.float64]
    color: str


def place_on_rays(ax: Axes, rays: Sequence[Ray]) -> None:
    """Write words on their rays, off the points drawn so far; those for which there is no room are left out.

    Args:
        ax: The panel.
        rays: The words, the most important first.
    """
    figure = ax.get_figure(root=True)
    if figure is None or not rays:
        return
    figure.draw_without_rendering()
    point = figure.dpi / 72
    drawn = [np.asarray(line.get_xydata()) for line in ax.lines]
    marked = [ax.transData.transform(points[0]) for points in drawn if len(points) == 1]
    taken = [Bbox.from_extents(x, y, x, y).padded(_TICK * point) for x, y in marked]
    panel = ax.get_window_extent()
    for ray in rays:
        style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": _GAP}
        text = ax.text(0, 0, ray.text, color=ray.color, bbox=style, ha="center", va="center", zorder=5)
        for share in _SHARES:
            text.set(x=share * ray.end[0], y=share * ray.end[1])
            box = text.get_window_extent().padded(_GAP * point)
            inside = panel.contains(*box.min) and panel.contains(*box.max)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            text.remove()


def place_labels(
    ax: Axes, labels: Sequence[Label], curve: NDArray[np.float64], ticks: Sequence[tuple[float, float]]
) -> None:
    """Write labels into a panel whose limits are set, each as near to its point as there is room.

    A label that had to move far is tied to its point by a line. Where there is no room off the curve, it may cover the
    curve; where there is none off other labels, it is left out.

    Args:
        ax: The panel.
        labels: The labels, the most important first.
        curve: A curve to keep free, shape ``(T, 2)``.
        ticks: Points of marks to keep free.
    """
    figure = ax.get_figure(root=True)
    if figure is None or not labels:
        return
    figure.draw_without_rendering()
    point = figure.dpi / 72
    path = Path(ax.transData.transform(curve)) if len(curve) > 1 else None
    taken = [Bbox.from_extents(x, y, x, y).padded((_TICK - 1) * point) for x, y in map(ax.transData.transform, ticks)]
    for label in labels:
        text = ax.text(*label.point, label.text, fontsize=label.size, color=label.color, zorder=5)
        text.set(in_layout=False, path_effects=[withStroke(linewidth=2.5, foreground="white")])
        size = text.get_window_extent()
        places = _places(ax, label, size.width, size.height, point)
        free = [Bbox(corners) for corners in places[~_overlap(places, taken)]]
        if not free:
            text.remove()
            continue
        box = next((box for box in free if path is None or not _touches(path, box.padded(_GAP * point))), free[0])
        # Words of two labels in one row are more than a space apart.
        taken.append(box.expanded(1 + 2 * label.size * point / box.width, 1))
        _move(text, box)
        _tie(ax, label, box)


def place_marks(ax: Axes, marks: Sequence[tuple[float, str]], size: float) -> None:
    """Write words above a panel, in as many rows as keep them apart.

    Args:
        ax: The panel, whose limits are set.
        marks: Horizontal place of each, and the words.
        size: Font size, points.
    """
    figure = ax.get_figure(root=True)
    if figure is None or not marks:
        return
    figure.draw_without_rendering()
    ends = [-np.inf] * _MOST_ROWS
    gap = _GAP * figure.dpi / 72
    for step, words in sorted(marks):
        text = ax.annotate(
            words,
            xy=(step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, _GAP),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=size,
        )
        box = text.get_window_extent()
        row = next((row for row, end in enumerate(ends) if box.x0 > end + gap), None)
        if row is None:
            text.remove()
            continue
        ends[row] = box.x1
        text.set_position((0, _GAP + 1.2 * size * row))


def place_beside(ax: Axes, rows: Sequence[tuple[float, str]], size: float) -> None:
    """Write words on the right of a panel, each at its height; those that would cover earlier ones are left out.

    Args:
        ax: The panel.
        rows: Height of each in data coordinates, and the words, the most important first.
        size: Font size, points.
    """
    figure = ax.get_figure(root=True)
    if figure is None or not rows:
        return
    figure.draw_without_rendering()
    taken: list[Bbox] = []
    for height, words in rows:
        text = ax.annotate(
            words,
            xy=(1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(_GAP, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
        )
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def _places(ax: Axes, label: Label, width: float, height: float, point: float) -> NDArray[np.float64]:
    """Corners of boxes in the panel for words of a size in pixels, the nearest to their point first, ``(n, 2, 2)``."""
    panel = ax.get_window_extent()
    x, y = ax.transData.transform(label.point)
    gap = _GAP * point
    best = x + gap if label.side == "left" else x - gap - width
    lefts = np.clip(best + np.arange(-4, 5) / 4 * width, panel.x0 + gap, panel.x1 - gap - width)
    rows = np.arange(0, panel.height / (height + gap), 0.5)
    away = _TICK * point + rows * (height + gap)
    bottoms = np.concatenate([y + away, y - away - height])
    costs = np.concatenate([rows + _OTHER_SIDE * (not label.above), rows + _OTHER_SIDE * label.above])
    inside = (bottoms >= panel.y0) & (bottoms + height <= panel.y1)
    left, bottom = (axis.ravel() for axis in np.meshgrid(lefts, bottoms[inside]))
    cost = (_ASIDE * np.abs(lefts - best) / width + costs[inside, None]).ravel()
    corner = np.column_stack([left, bottom])[cost.argsort(kind="stable")]
    size = np.array([width, height])
    return np.stack([corner, corner + size], axis=1)


def _overlap(boxes: NDArray[np.float64], taken: Sequence[Bbox]) -> NDArray[np.bool_]:
    """Which of ``n`` boxes, corners of shape ``(n, 2, 2)``, cover one that is taken."""
    other = np.array([box.get_points() for box in taken]).reshape(-1, 2, 2)
    meet = (boxes[:, None, 0] <= other[:, 1]) & (other[:, 0] <= boxes[:, None, 1])
    return np.asarray(np.any(np.all(meet, axis=2), axis=1))


def _touches(path: Path, box: Bbox) -> bool:
    """Whether a curve passes through a box."""
    return bool(path.intersects_bbox(box, filled=False))


def _move(text: Text, box: Bbox) -> None:
    """Put a text's lower left corner into that of a box in pixels."""
    text.set(ha="left", va="bottom")
    now = text.get_window_extent()
    to_data = text.get_transform().inverted()
    x, y = text.get_transform().transform(text.get_position())
    moved_x, moved_y = to_data.transform((x + box.x0 - now.x0, y + box.y0 - now.y0))
    text.set_position((moved_x, moved_y))


def _tie(ax: Axes, label: Label, box: Bbox) -> None:
    """Draw a line from a box in pixels to the point of its label, if it is far off."""
    point = ax.transData.transform(label.point)
    foot = np.clip(point, box.min, box.max)
    if np.linalg.norm(foot - point) > _FAR * box.height:
        ends = ax.transData.inverted().transform([point, foot])
        ax.plot(*ends.T, color=GREY, linewidth=0.6, zorder=3, label="_tie")
