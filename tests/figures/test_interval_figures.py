"""Figures of networks with one input, of the ladder, of certificates: what they draw is what was computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from support.reference_interval import random_network, zigzag
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.figures import certificate_figure, interval_figure, ladder_figure, toy_figure
from relu_diag.functional import integral


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = (line for line in ax.lines if str(line.get_label()).startswith(label))
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


def labels(ax: Axes) -> set[str]:
    return {str(line.get_label()) for line in ax.lines if not str(line.get_label()).startswith("_")}


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0)])
def test_interval_figure_draws_the_function_the_target_and_the_kinks(slopes: tuple[float, float]) -> None:
    network = random_network(0, 9, slopes=slopes)
    w, b, h, c = network.parameters
    figure = interval_figure(torch.stack([w, b, h]), c, torch.sin, network.interval, slopes)
    top, bottom = figure.axes
    x, y = line(top, "network")
    assert_close(y, np.array([network(at) for at in x]), rtol=1e-9, atol=1e-9)
    x, y = line(top, "target")
    assert_close(y, np.sin(x))
    types = F.neuron_types(w, b, h, network.interval)
    t, kink = line(bottom, "type-2-active")
    assert_close(t, types.breakpoint[types.type_2_active].numpy())
    eps = 1e-7
    jumps = [(network(at + eps) - 2 * network(at) + network(at - eps)) / eps for at in t]
    assert_close(kink, np.array(jumps), rtol=1e-4, atol=1e-6)
    assert int(types.type_2_active.sum()) > 0


def test_interval_figure_names_every_type_once() -> None:
    network = zigzag(2, 1.0, 0.0, (-1.0, 2.0)).with_neurons(
        (1.0, -2.0, 1.0), (1.0, 5.0, 0.5), (-1.0, -3.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)
    )
    w, b, h, c = network.parameters
    figure = interval_figure(torch.stack([w, b, h]), c, F.IntervalTarget(torch.cos), network.interval)
    found = labels(figure.axes[1])
    assert found == {"type-2-active (2)", "semi-inactive (1)", "type-1-active (1)", "inactive (1)"}
    assert figure.axes[0].get_title() == "7 neurons, 2 of them without a breakpoint"
    low, high = figure.axes[1].get_xlim()
    for drawn in figure.axes[1].lines[:4]:  # what is outside is drawn at the edge
        assert low < np.min(drawn.get_xdata()) <= np.max(drawn.get_xdata()) < high


@pytest.mark.parametrize("width", [5, 6])
def test_ladder_figure_draws_levels_loss_and_threshold(width: int) -> None:
    w, b, h, c = random_network(1, width).parameters
    problem = integral.AffineProblem(w, b, h, c, 1.3, 0.0, (-1.0, 2.0))
    guarantee = F.convergence_threshold(1.3, (-1.0, 2.0), width)
    figure = ladder_figure([0, 10, 20], [1.0, 0.1, 1e-4], problem, guarantee, certain_from=20)
    (ax,) = figure.axes
    drawn = {float(line.get_ydata()[0]) for line in ax.lines if len(line.get_ydata()) == 2}
    assert {*F.critical_levels(1.3, (-1.0, 2.0), width).tolist(), guarantee.threshold} <= drawn
    assert_close(line(ax, "loss"), (np.array([0.0, 10, 20]), np.array([1.0, 0.1, 1e-4])))
    assert "certain from step 20" in labels(ax)
    assert guarantee.statement in " ".join(labels(ax))
    leaky = F.convergence_threshold(1.3, (-1.0, 2.0), width, (0.1, 1.0))
    assert labels(ladder_figure([0, 1], [1.0, 0.5], problem, leaky).axes[0]) == {"loss"}


def test_certificate_figure_draws_the_bound_over_the_loss() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    certificate = F.convergence_certificate(ShallowBlock(1.1 * one, one), one, one)
    figure = certificate_figure(certificate, [0.0, 1.0, 2.0], [0.01, 1e-3, 1e-4])
    x, y = line(figure.axes[0], "bound")
    assert_close(y, 0.01 * np.exp(-certificate.rate * x))
    assert_close(line(figure.axes[0], "loss")[1], np.array([0.01, 1e-3, 1e-4]))
    missed = F.convergence_certificate(ShallowBlock(0.1 * one, one), one, one)
    with pytest.raises(ValueError, match="There is no bound to draw: nothing certain: the criterion is missed"):
        certificate_figure(missed, [0.0], [1.0])


def test_toy_figure_shades_the_region_of_the_criterion() -> None:
    path = np.array([[2.0, -1.0], [1.5, 0.2]])
    figure = toy_figure([path], limit=2.0)
    (ax,) = figure.axes
    shaded, curve = (collection for collection in ax.collections if collection.get_paths())
    for x, y in np.random.default_rng(0).uniform(-1.95, 1.95, (200, 2)):
        margin = (x**2 + y**2) / 4 - abs(x * y - 1)
        if abs(margin) > 0.05:
            assert any(part.contains_point((x, y)) for part in shaded.get_paths()) == (margin > 0)
    points = np.concatenate([part.vertices for part in curve.get_paths() if len(part.vertices)])
    assert math.isclose(float((points[:, 0] * points[:, 1]).mean()), 1.0, rel_tol=1e-2)
    assert_close(np.asarray(ax.lines[0].get_xdata()), path[:, 0])
