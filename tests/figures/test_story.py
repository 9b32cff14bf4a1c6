"""The story of a run: what is drawn is what happened, and every word can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Polyline
from support.drawn import overprinted, rendered, words_of

from relu_diag.figures import story_figure
from relu_diag.figures.palette import VERDICT_STYLES
from relu_diag.figures.story import forecast_error, told_forecast


@dataclass
class Forecast:
    step: float
    end: float
    low: float
    high: float


@dataclass
class Kind:
    kind: str


@dataclass
class Plateau:
    start: float
    end: float | None
    loss: float
    verdict: Kind
    forecasts: list[Forecast] = field(default_factory=list)


def descent(levels: list[float], length: int = 1000, fall: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a run that stays on each level for ``length`` steps and falls for ``fall`` steps."""
    steps = np.arange(0, len(levels) * (length + fall), 10)
    nodes = [(k * (length + fall) + offset, level) for k, level in enumerate(levels) for offset in (0, length)]
    return steps, np.interp(steps, *zip(*nodes, strict=True))


def plateaus_of(levels: list[float], length: int = 1000, fall: int = 200) -> list[Plateau]:
    kinds = ["saddle", "local minimum", "type-2 candidate", "undecided"]
    found = []
    for k, level in enumerate(levels):
        start = k * (length + fall)
        forecast = Forecast(start + 0.2 * length, start + 1.02 * length, start + 0.9 * length, start + 1.1 * length)
        found.append(Plateau(start, start + length, level, Kind(kinds[k % 4]), [forecast]))
    return found


FIVE_POINTS = [0.0381, 0.0302, 0.0279]


def bands(figure: Figure, panel: int = 0) -> list[tuple[float, float]]:
    patches = [patch for patch in figure.axes[panel].patches if isinstance(patch, Rectangle)]
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in patches]


def test_each_plateau_is_a_band_with_its_verdict_and_loss(tmp_path: Path) -> None:
    found = plateaus_of(FIVE_POINTS)
    figure = rendered(story_figure(*descent(FIVE_POINTS), found, [(2200, "width 51")]), tmp_path)
    (panel,) = figure.axes
    assert bands(figure) == [(one.start, one.end) for one in found]
    expected = {"saddle 0.0381", "local minimum 0.0302", "type-2 candidate 0.0279", "width 51"}
    assert expected <= set(words_of(panel))
    for patch, one in zip(panel.patches, found, strict=True):
        style = VERDICT_STYLES[one.verdict.kind]
        assert patch.get_hatch() == style.hatch
        level = next(line for line in panel.lines if list(line.get_ydata()) == [one.loss, one.loss])
        assert level.get_color() == style.color
    assert overprinted(figure) == []


def test_three_close_levels_are_seen_as_three() -> None:
    """On fourteen decades 0.038, 0.030 and 0.028 are one line; here each is a twentieth of the height apart."""
    steps, losses = descent([*FIVE_POINTS, 1e-14], fall=5000)
    figure = story_figure(steps, losses, plateaus_of(FIVE_POINTS, fall=5000))
    main, tail = figure.axes
    low, high = main.get_ylim()
    assert (main.get_yscale(), tail.get_yscale()) == ("linear", "log")
    assert min(a - b for a, b in pairwise(FIVE_POINTS)) / (high - low) > 0.05
    assert tail.get_xlim() == (0, steps[-1])
    assert bands(figure, 1) == bands(figure, 0)


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (1e-3, "log")])
def test_the_whole_run_is_logarithmic_where_it_falls_by_a_decade(last: float, scale: str) -> None:
    steps, losses = descent([1.0, last], fall=9000)
    figure = story_figure(steps, losses, plateaus_of([1.0], fall=9000))
    assert [panel.get_yscale() for panel in figure.axes] == ["linear", scale]
    assert overprinted(figure) == []


def test_the_forecast_is_a_tick_with_its_interval_and_error() -> None:
    figure = story_figure(*descent([1.0, 0.5]), plateaus_of([1.0, 0.5]))
    (first, second) = (container for container in figure.axes[0].containers)
    tick, _, bars = first
    assert (tick.get_xdata()[0], tick.get_ydata()[0]) == (1020, 1.0)
    assert bars[0].get_segments()[0][:, 0].tolist() == [900, 1100]
    assert second[0].get_xdata()[0] == 1200 + 1020
    # 20 steps too late, looked at from 800 steps before the end.
    assert [word for word in words_of(figure.axes[0]) if "%" in word] == ["forecast +2.5 %", "+2.5 %"]


def test_a_forecast_made_in_the_second_half_proves_nothing() -> None:
    early, middle, late = (Forecast(step, step + 90, 0, 200) for step in (10, 40, 95))
    ended = Plateau(0, 100, 1.0, Kind("saddle"), [early, middle, late])
    assert told_forecast(ended) is middle
    assert forecast_error(ended) == pytest.approx(0.5)
    assert told_forecast(Plateau(0, None, 1.0, Kind("saddle"), [early, middle, late])) is late
    assert told_forecast(Plateau(0, 100, 1.0, Kind("saddle"), [late])) is late
    never = Forecast(10, math.inf, math.inf, math.inf)
    assert told_forecast(Plateau(0, 100, 1.0, Kind("saddle"), [never])) is None


def test_a_plateau_that_lasts_reaches_the_last_step_and_its_forecast_is_in_sight() -> None:
    steps, losses = descent([1.0, 0.5])
    found = plateaus_of([1.0, 0.5])
    found[1] = Plateau(1200, None, 0.5, Kind("saddle"), [Forecast(1500, 2600, 2500, 2700)])
    figure = story_figure(steps, losses, found)
    assert bands(figure)[1] == (1200, steps[-1])
    assert figure.axes[0].get_xlim()[1] > 2700
    assert "to end at 2.6k" in words_of(figure.axes[0])
    found[1].forecasts = [Forecast(1500, 1e9, 1e9, 1e9)]
    assert story_figure(steps, losses, found).axes[0].get_xlim()[1] < 2 * steps[-1]


@pytest.mark.parametrize("count", [1, 4, 9, 20])
@pytest.mark.parametrize("close", [False, True])
def test_however_many_plateaus_no_word_covers_another(count: int, close: bool) -> None:
    levels = [1.0 - (1e-3 if close else 0.03) * k for k in range(count)]
    marks = [(1200 * k + 1000, f"width {50 + k}") for k in range(0, count, 3)]
    figure = story_figure(*descent(levels), plateaus_of(levels), marks)
    words = words_of(figure.axes[0])
    assert overprinted(figure) == []
    assert len([word for word in words if "%" not in word and "width" not in word]) == count
    assert len([word for word in words if "width" in word]) == len(marks)


def test_words_keep_off_a_curve_that_leaves_them_room() -> None:
    steps, losses = descent(FIVE_POINTS)
    figure = story_figure(steps, losses, plateaus_of(FIVE_POINTS))
    (panel,) = figure.axes
    figure.draw_without_rendering()
    curve = Polyline(panel.transData.transform(np.column_stack([steps, losses])))
    covered = [text for text in panel.texts if curve.intersects_bbox(text.get_window_extent(), filled=False)]
    assert [text.get_text() for text in covered] == []


def test_it_is_read_at_340_pixels() -> None:
    figure = story_figure(*descent(FIVE_POINTS), plateaus_of(FIVE_POINTS))
    pixels_per_point = 340 / figure.get_figwidth() / 72
    sizes = [text.get_fontsize() * pixels_per_point for text in figure.axes[0].texts]
    assert max(sizes) > 8
    assert min(sizes) > 7


def test_it_takes_the_place_of_an_axes_in_any_figure() -> None:
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    steps, losses = descent([*FIVE_POINTS, 1e-9])
    drawn = story_figure(steps, losses, plateaus_of(FIVE_POINTS), ax=left)
    assert drawn is figure
    assert left.get_ylabel() == "loss"
    assert len(figure.axes) == 3
    assert figure.axes[2].get_position().x1 < right.get_position().x0
    by_hand = Figure().add_axes((0.1, 0.1, 0.4, 0.8))
    story_figure(steps, losses, plateaus_of(FIVE_POINTS), ax=by_hand)
    assert by_hand.get_position().x1 == pytest.approx(0.5)


def test_without_plateaus_the_whole_loss_is_drawn() -> None:
    figure = story_figure([0, 10, 20], [3.0, -1.0, math.nan], [])
    (panel,) = figure.axes
    assert panel.lines[0].get_ydata().tolist() == [3.0, -1.0]
    assert panel.get_ylim()[0] < -1 < 3 < panel.get_ylim()[1]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("high", [12.0, math.inf])
def test_odd_losses_and_open_intervals_are_drawn(loss: float, high: float, tmp_path: Path) -> None:
    """One that is not finite keeps its band, and has no height for words."""
    found = [Plateau(0, 10, loss, Kind("saddle"), [Forecast(2, 12, 0, high)]), Plateau(10, 10, 0.5, Kind("undecided"))]
    figure = rendered(story_figure([0, 5, 10], [loss, 1.0, 0.5], found), tmp_path)
    assert bands(figure) == [(0, 10), (10, 10)]
    assert "undecided 0.5" in words_of(figure.axes[0])
    assert any("saddle" in word for word in words_of(figure.axes[0])) == math.isfinite(loss)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite loss"):
        story_figure([0], [math.nan], [])
    with pytest.raises(ValueError, match="one loss for each step"):
        story_figure([0, 1], [1.0], [])
