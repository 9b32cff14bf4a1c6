"""What holds of every figure: it takes the place of any axes, and no word covers another."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace as Record

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.drawn import overprinted, words_of

from relu_diag import ShallowBlock, figures
from relu_diag import functional as F
from relu_diag.functional import integral

DRAW = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


X, Y = normal(7, 2), normal(7, 1)
LINE = torch.stack([torch.linspace(0.01, 1.99, 100, dtype=torch.float64), torch.ones(100, dtype=torch.float64)], dim=1)
BLOCK = ShallowBlock(normal(5, 2), normal(1, 5))
TWO = ShallowBlock(BLOCK.W, normal(2, 5))
SILENT = ShallowBlock(BLOCK.W, 0 * BLOCK.H)
ONE = ShallowBlock(normal(1, 2), torch.ones(1, 1, dtype=torch.float64))
WITNESS = F.classify(SILENT, X, Y).direction
AFFINE = integral.AffineProblem(*normal(3, 50), torch.tensor(0.5).double(), 1.0, 0.0, (0.0, 1.0), (0.0, 1.0))
GUARANTEE = F.convergence_threshold(1.0, (0.0, 1.0), 50)
# Zero loss is certain: wide enough, and near.
CERTIFICATE = F.convergence_certificate(
    ShallowBlock(torch.eye(2).double() + 0.5, 10 * torch.ones(1, 2).double()),
    torch.eye(2).double(),
    20.01 * torch.ones(2, 1).double(),
)


def run(outputs: int, inputs: int) -> figures.TrainingHistory:
    alignment = torch.rand(9, 12, generator=DRAW)
    return figures.TrainingHistory(
        steps=torch.arange(9) * 1000,
        loss=torch.linspace(1.0, 1e-4, 9),
        angle=6 * torch.rand(9, 12, generator=DRAW),
        input_norm=1e-9 * torch.rand(9, 12, generator=DRAW),
        output=torch.randn(9, outputs, 12, generator=DRAW),
        group=torch.arange(12) // 2,
        dead=torch.arange(12) > 9,
        alignment=alignment if inputs > 2 else None,
        active=alignment,
    )


STORY = [
    Record(start=100 * k, end=100 * k + 80, loss=1 - 0.1 * k, verdict=Record(kind="saddle"), forecasts=[])
    for k in range(4)
]
FIGURES: dict[str, Callable[[Axes | None], Figure]] = {
    "cells": lambda ax: figures.cell_figure(ONE, X, Y, ax=ax),
    "certificate": lambda ax: figures.certificate_figure(CERTIFICATE, [0.0, 0.1], [1e-4, 1e-5], ax=ax),
    "direction": lambda ax: figures.direction_figure(SILENT, X, Y, WITNESS, ax=ax),
    "function": lambda ax: figures.function_figure(BLOCK, LINE[:7], Y, ax=ax),
    "function of many samples": lambda ax: figures.function_figure(BLOCK, LINE, LINE[:, :1], ax=ax),
    "function on an interval": lambda ax: figures.function_figure(BLOCK, LINE, LINE[:, :1], (0.0, 2.0), ax=ax),
    "function over a plane": lambda ax: figures.function_figure(TWO, X, X, ax=ax),
    "interval": lambda ax: figures.interval_figure(AFFINE.neurons, AFFINE.c, torch.sin, (0.0, 1.0), ax=ax),
    "ladder": lambda ax: figures.ladder_figure([0, 1], [0.1, 1e-8], AFFINE, GUARANTEE, 1, ax=ax),
    "neuron": lambda ax: figures.neuron_figure(BLOCK, X, Y, 0, ax=ax),
    "silent neuron": lambda ax: figures.neuron_figure(SILENT, X, Y, 0, ax=ax),
    "perturbations": lambda ax: figures.perturbation_figure(
        F.perturbation_test(BLOCK, X, Y, draws=100, generator=DRAW), "at the local minimum nearby", ax=ax
    ),
    "story": lambda ax: figures.story_figure([0, 380, 400], [1.0, 0.6, 1e-9], STORY, [(80, "moved")], ax=ax),
    "toy": lambda ax: figures.toy_figure([np.array([[1.0, 2.0], [1.0, 1.0]])], ax=ax),
    "training": lambda ax: figures.training_figure(run(1, 2), [2000], ax=ax),
    "training with many inputs": lambda ax: figures.training_figure(run(3, 9), [2000], ax=ax),
}
every_figure = pytest.mark.parametrize("name", FIGURES)


@every_figure
def test_no_word_covers_another_and_all_are_read_at_340_pixels(name: str) -> None:
    figure = FIGURES[name](None)
    assert overprinted(figure) == []
    pixels = 340 / figure.get_figwidth() / 72
    wide = name == "function over a plane"  # two outputs beside each other
    labels = [label for ax in figure.axes for label in (ax.xaxis.label, ax.yaxis.label) if label.get_text()]
    assert min(label.get_fontsize() for label in labels) * pixels > (5 if wide else 7)


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
