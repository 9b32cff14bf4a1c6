"""What holds of every figure: it takes the place of any axes, and no word covers another."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support.drawn import overprinted, words_in_sight, words_of
from support.figures import BLOCK, CERTIFICATE, FIGURES, LINE, ONE, X, Y

from relu_diag import figures

every_figure = pytest.mark.parametrize("name", FIGURES)


@every_figure
def test_no_word_covers_another_and_all_are_read_at_340_pixels(name: str) -> None:
    figure = FIGURES[name](None)
    assert overprinted(figure) == []
    pixels = 340 / figure.get_figwidth() / 72
    small = [words.get_text() for words in words_in_sight(figure) if words.get_fontsize() * pixels < 7]
    assert small == []


@every_figure
def test_it_takes_the_place_of_an_axes(name: str) -> None:
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    right.plot([0, 1], [2, 3])
    assert FIGURES[name](left) is figure
    assert left in figure.axes
    assert left.has_data()
    assert len(right.lines) == 1
    assert figure.legends == []
    figure.draw_without_rendering()
    others = [ax for ax in figure.axes if ax is not right]
    assert max(ax.get_window_extent().x1 for ax in others) < right.get_window_extent().x0
    assert plt.get_fignums() == []


def test_an_axes_of_a_subfigure_or_placed_by_hand_will_do() -> None:
    figure = Figure(figsize=(12, 6))
    left, _ = figure.subfigures(1, 2)
    ax = left.subplots()
    assert FIGURES["neuron"](ax) is figure
    assert len(left.axes) == 2
    by_hand = Figure().add_axes((0.1, 0.2, 0.3, 0.6))
    FIGURES["training"](by_hand)
    assert by_hand.get_position().x0 == pytest.approx(0.1)
    assert max(ax.get_position().x1 for ax in by_hand.figure.axes) == pytest.approx(0.4)


def test_a_certificate_stops_where_rounding_does() -> None:
    times = np.linspace(0, 100 / CERTIFICATE.rate, 400)
    losses = np.maximum(CERTIFICATE.loss * np.exp(-2 * CERTIFICATE.rate * times), 1e-32 * CERTIFICATE.loss)
    for dtype in (torch.float64, torch.float32):
        (ax,) = figures.certificate_figure(CERTIFICATE, times, losses, dtype).axes
        drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
        (rounding,) = set(drawn["rounding"].tolist())
        assert rounding == pytest.approx(CERTIFICATE.loss * (64 * torch.finfo(dtype).eps) ** 2)
        assert min(drawn["bound"].min(), drawn["loss"].min()) >= rounding
        assert len(drawn["loss"]) < len(drawn["bound"]) < len(times)
    (ax,) = figures.certificate_figure(CERTIFICATE, times[:9], losses[:9]).axes
    assert [line.get_label() for line in ax.lines] == ["bound", "loss"]


def test_the_function_on_an_interval_has_a_target_line_a_residual_and_ends_with_it() -> None:
    figure = figures.function_figure(BLOCK, LINE, LINE[:, :1].sin(), (0.0, 2.0))
    top, bottom = figure.axes
    assert top.get_xlim() == bottom.get_xlim() == (0.0, 2.0)
    drawn = {str(line.get_label()): line for line in top.lines}
    function, target = drawn["learned function"].get_xydata(), drawn["target"].get_xydata()
    assert (function[0, 0], function[-1, 0]) == (0.0, 2.0)
    assert drawn["target"].get_linestyle() == "--"
    np.testing.assert_allclose(target[:, 1], np.sin(target[:, 0]))
    left = bottom.lines[0].get_xydata()
    np.testing.assert_allclose(left[:, 1], np.interp(left[:, 0], *function.T) - np.sin(left[:, 0]), atol=1e-12)


def test_nodes_beyond_the_interval_are_not_drawn_and_a_plane_has_none() -> None:
    top = figures.function_figure(BLOCK, LINE, LINE[:, :1], (0.5, 1.0)).axes[0]
    assert all(0.5 <= x <= 1.0 for line in top.lines for x in line.get_xdata())
    with pytest.raises(ValueError, match="`interval` is of one input"):
        figures.function_figure(BLOCK, X, Y, (0.5, 1.0))


def test_levels_without_room_lose_their_names_but_not_their_lines() -> None:
    (ax,) = FIGURES["ladder"](None).axes
    assert len([line for line in ax.lines if line.get_linewidth() == 0.6]) == 26
    assert words_of(ax)[:3] == ["n = 0", "n = 2", "n = 4"]
    assert len(words_of(ax)) < 26


def test_words_of_cells_keep_off_the_stars() -> None:
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        inputs, targets = (torch.randn(9, n, generator=draw, dtype=torch.float64) for n in (2, 1))
        figure = figures.cell_figure(ONE, inputs, targets)
        ax = figure.axes[0]
        assert overprinted(figure) == []
        stars = [ax.transData.transform(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "*"]
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(box.contains(*star) for box in boxes for star in stars if not math.isnan(star[0]))
