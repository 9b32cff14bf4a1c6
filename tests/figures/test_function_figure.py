"""The figure of the learned function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.drawn import rendered
from torch.testing import assert_close

from relu_diag.figures import function_figure
from relu_diag.functional import ShallowBlock

FIVE = torch.tensor([[-1.0, 1.0], [-0.6, 1.0], [-0.1, 1.0], [0.3, 1.0], [0.7, 1.0]], dtype=torch.float64)
FIVE_TARGETS = torch.tensor([[0.28], [-0.1], [0.03], [0.23], [-0.22]], dtype=torch.float64)


def two_kinks() -> ShallowBlock:
    """Kinks at -0.5 and 0.5, a dead neuron with its kink at 0.9, one without a kink, one whose kink is out of sight."""
    W = torch.tensor([[1.0, 0.5], [-2.0, 1.0], [1.0, -0.9], [0.0, 1.0], [1.0, 50.0]], dtype=torch.float64)
    return ShallowBlock(W, torch.tensor([[1.0, -1.0, 3.0, 0.5, 0.1]], dtype=torch.float64))


def test_on_a_line_the_drawn_function_is_the_block_everywhere(tmp_path: Path) -> None:
    block = two_kinks()
    ax = rendered(function_figure(block, FIVE, FIVE_TARGETS), tmp_path).axes[0]
    function, kinks, data = ax.lines
    assert_close(torch.as_tensor(kinks.get_xdata()), torch.tensor([-0.5, 0.5], dtype=torch.float64))
    low, high = function.get_xdata()[[0, -1]]
    assert low < -1.0 < 0.7 < high
    inner = torch.linspace(low, high, 200, dtype=torch.float64)
    drawn = torch.as_tensor(np.interp(inner, function.get_xdata(), function.get_ydata()))
    assert_close(drawn, block(torch.stack([inner, torch.ones_like(inner)], dim=1))[:, 0])
    assert_close(torch.as_tensor(np.stack(data.get_data(), axis=1)), torch.cat([FIVE[:, :1], FIVE_TARGETS], dim=1))


def test_the_constant_input_need_not_be_one() -> None:
    block, X = two_kinks(), FIVE * torch.tensor([1.0, -2.0], dtype=torch.float64)
    function, kinks, _ = function_figure(block, X, FIVE_TARGETS).axes[0].lines
    for x, value in (*zip(*kinks.get_data(), strict=True), *zip(*function.get_data(), strict=True)):
        assert_close(block(torch.tensor([[x, -2.0]], dtype=torch.float64)).item(), float(value))


def test_each_output_has_its_own_line() -> None:
    block = two_kinks()
    block = ShallowBlock(block.W, torch.cat([block.H, -block.H]), output_bias=torch.tensor([0.0, 1.0]).double())
    drawn = function_figure(block, FIVE, FIVE_TARGETS.expand(5, 2)).axes[0].lines
    assert len(drawn) == 6
    assert_close(drawn[0].get_ydata() + drawn[3].get_ydata(), np.ones_like(drawn[0].get_ydata()))
    assert drawn[0].get_color() == drawn[2].get_color() != drawn[3].get_color()


def test_on_the_plane_kinks_are_orthogonal_to_the_living_input_weights(tmp_path: Path) -> None:
    W = torch.tensor([[1.0, 0.5], [-2.0, 1.0], [-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    X = torch.tensor([[1.0, 0.1], [0.2, 1.0], [0.5, 0.5]], dtype=torch.float64)
    block = ShallowBlock(W, torch.tensor([[1.0, -1.0, 2.0, 1.0]], dtype=torch.float64))
    Y = torch.tensor([[0.1], [0.2], [-3.0]], dtype=torch.float64)
    ax = rendered(function_figure(block, X, Y), tmp_path).axes[0]
    through = [torch.tensor([line.get_xy1(), line.get_xy2()], dtype=torch.float64) for line in ax.lines]
    assert len(through) == 2  # the third neuron is dead, the fourth has no direction
    for points, w in zip(through, W[:2], strict=True):
        assert_close(points @ w, torch.zeros(2, dtype=torch.float64))
        assert bool((points[0] != points[1]).any())


def test_on_the_plane_data_and_function_share_one_colour_scale() -> None:
    block = ShallowBlock(torch.eye(2), torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
    X, Y = torch.tensor([[1.0, 0.1], [0.2, 1.0]]), torch.tensor([[0.5, 1.0], [9.0, -2.0]])
    figure = function_figure(block, X, Y)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["output 1", "output 2"]
    for j, ax in enumerate(panels):
        filled, points = ax.collections
        assert filled.norm is points.norm
        assert filled.cmap == points.cmap
        assert_close(torch.as_tensor(points.get_array()), Y[:, j].double())
        assert_close(torch.as_tensor(np.asarray(points.get_offsets())), X.double())
        assert -points.norm.vmin == points.norm.vmax >= Y[:, j].abs().max()


def test_the_function_of_more_than_two_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="two inputs"):
        function_figure(ShallowBlock(torch.ones(1, 3), torch.ones(1, 1)), torch.ones(2, 3), torch.ones(2, 1))


def test_targets_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="columns"):
        function_figure(two_kinks(), FIVE, FIVE_TARGETS.expand(5, 3))
