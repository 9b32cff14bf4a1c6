"""The figure of activation cells and their minima."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support.drawn import rendered
from torch.testing import assert_close

from relu_diag.figures import cell_figure
from relu_diag.functional import ShallowBlock


def two_samples(target: float, h: float = 1.0) -> Figure:
    """Liu, section IV.B: the axes as inputs, targets 1 and another."""
    block = ShallowBlock(torch.tensor([[0.5, 0.3]]).double(), torch.tensor([[h]]).double())
    return cell_figure(block, torch.eye(2).double(), torch.tensor([[1.0], [target]]).double())


def minima(figure: Figure) -> list[np.ndarray]:
    """The drawn points of every minimum, shape ``(n, 2)``."""
    drawn = [np.stack(line.get_data(), axis=1) for line in figure.axes[0].lines if line.get_label() == "minimum"]
    return [points[~np.isnan(points).any(axis=1)] for points in drawn]


def test_liu_figure_2_labels_every_cell_with_its_minimum(tmp_path: Path) -> None:
    labels = {}
    for target in (1.0, -1.0):
        figure = rendered(two_samples(target), tmp_path)
        labels[target] = {
            (text.get_position()[0] > 0, text.get_position()[1] > 0): text.get_text() for text in figure.axes[0].texts
        }
    assert labels[1.0] == {(True, True): "0", (True, False): "0.5", (False, True): "0.5", (False, False): "1"}
    assert labels[-1.0] == {(True, True): "(0)", (True, False): "0.5", (False, True): "(0.5)", (False, False): "1"}


def test_liu_figure_2_draws_a_point_two_half_lines_and_nothing_in_the_flat_cell() -> None:
    drawn = minima(two_samples(1.0))
    assert len(drawn) == 3
    (point,) = (points for points in drawn if len(points) == 1)
    assert_close(point, np.array([[1.0, 1.0]]))
    lines = [points for points in drawn if len(points) > 1]
    for points, fixed in zip(sorted(lines, key=lambda points: points[:, 0].min()), (1, 0), strict=True):
        assert_close(points[:, fixed], np.ones(len(points)))
        assert (points[:, 1 - fixed] <= 0).all()


def test_the_output_weight_is_held() -> None:
    (point,) = (points for points in minima(two_samples(1.0, h=2.0)) if len(points) == 1)
    assert_close(point, np.array([[0.5, 0.5]]))
    # With a negative output weight only the flat cell keeps its minimum.
    negative = two_samples(1.0, h=-1.0)
    assert all(len(points) == 0 for points in minima(negative))
    assert sorted(text.get_text() for text in negative.axes[0].texts) == ["(0)", "(0.5)", "(0.5)", "1"]


def test_the_drawn_loss_is_the_loss_and_boundaries_are_orthogonal_to_samples() -> None:
    figure = two_samples(1.0)
    ax = figure.axes[0]
    boundaries = [line for line in ax.lines if line.get_label() not in {"minimum", "now"}]
    assert [tuple(line.get_xy2()) for line in boundaries] == [(0.0, 1.0), (-1.0, 0.0)]
    (now,) = (line.get_data() for line in ax.lines if line.get_label() == "now")
    assert_close(np.concatenate(now), np.array([0.5, 0.3]))
    # Contours of the smooth cell are circles about (1, 1) of radius sqrt(2 loss).
    (filled,) = ax.collections
    level = filled.levels[2]
    edge = [path.vertices for path, low in zip(filled.get_paths(), filled.levels, strict=False) if low == level]
    inner = np.concatenate(edge)
    radius = np.linalg.norm(inner - 1.0, axis=1)
    # Contours are polygons on a grid of 300 intervals.
    assert np.abs(radius - np.sqrt(2 * level)).min() < 1e-3


@pytest.mark.parametrize(
    ("W", "H", "bias"),
    [((2, 2), (1, 2), None), ((1, 3), (1, 1), None), ((1, 2), (2, 1), None), ((1, 2), (1, 1), torch.zeros(1))],
)
def test_a_landscape_that_is_no_plane_is_refused(
    W: tuple[int, int], H: tuple[int, int], bias: torch.Tensor | None
) -> None:
    block = ShallowBlock(torch.ones(W), torch.ones(H), output_bias=bias)
    with pytest.raises(ValueError, match="one neuron"):
        cell_figure(block, torch.eye(W[1]), torch.ones(W[1], H[0]))
