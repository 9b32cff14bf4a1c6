from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from support.drawn import overprinted, rendered
from torch import Tensor
from torch.testing import assert_close

from relu_diag.figures import TrainingHistory, function_figure, training_figure
from relu_diag.figures.palette import BLACK, GREY, PALETTE
from relu_diag.functional import ShallowBlock
from relu_diag.functional.local import dead_sector

FIVE = torch.tensor([[-1.0, 1.0], [-0.6, 1.0], [-0.1, 1.0], [0.3, 1.0], [0.7, 1.0]], dtype=torch.float64)


def history(neurons: int = 4, outputs: int = 1, moments: int = 6, seed: int = 0) -> TrainingHistory:
    """Neuron 0 dead, 1 and 3 the largest group, 2 the second, the rest in groups of their own."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.arange(neurons) - 2
    group[:4] = torch.tensor([-1, 0, 1, 0])
    return TrainingHistory(
        steps=torch.arange(moments) * 1000,
        loss=torch.linspace(1.0, 0.5, moments),
        # Below pi apart: nothing wraps.
        angle=3.0 * torch.rand(moments, neurons, generator=draw),
        input_norm=torch.rand(moments, neurons, generator=draw),
        output=torch.randn(moments, outputs, neurons, generator=draw),
        group=group,
        dead=torch.arange(neurons) == 0,
        dead_sector=dead_sector(FIVE),
    )


def lines(ax: Axes) -> Tensor:
    return torch.as_tensor(np.array([line.get_ydata() for line in ax.lines]), dtype=torch.float64)


def in_some_order(ax: Axes, expected: Tensor) -> None:
    """The lines of the panel are the columns of the expected tensor, ``(T, I)``."""
    got, expected = lines(ax), expected.double().T
    assert_close(got[got[:, 0].argsort()], expected[expected[:, 0].argsort()])


@pytest.mark.parametrize("outputs", [1, 2])
def test_every_panel_shows_the_history_itself(outputs: int, tmp_path: Path) -> None:
    run = history(outputs=outputs)
    axes = rendered(training_figure(run), tmp_path).axes
    assert len(axes) == 3 + outputs
    assert_close(lines(axes[0]), run.loss.double()[None])
    for ax, values in zip(axes[1:], [run.angle, run.input_norm, *run.output.unbind(1)], strict=True):
        in_some_order(ax, values)
    assert all((line.get_xdata() == run.steps.numpy()).all() for ax in axes for line in ax.lines)


def test_more_than_two_outputs_are_drawn_as_a_norm(tmp_path: Path) -> None:
    run = history(outputs=3)
    axes = rendered(training_figure(run), tmp_path).axes
    assert len(axes) == 4
    in_some_order(axes[3], run.output.norm(dim=1))


def test_groups_of_two_or_more_have_one_colour_each_dead_neurons_are_black_others_grey() -> None:
    pairs = torch.arange(18) // 2  # eight groups of two, of which six have a colour
    run = replace(history(neurons=20), group=torch.cat([torch.tensor([-1, 9]), pairs]))
    for ax, values in zip(training_figure(run).axes[1:], [run.angle, run.input_norm, run.output[:, 0]], strict=True):
        color = {}
        for line in ax.lines:
            neuron = int((values[0] - float(line.get_ydata()[0])).abs().argmin())
            color[neuron] = to_hex(line.get_color()).upper()
        assert color[0] == BLACK
        assert color[1] == GREY  # alone
        by_group = [{color[2 + 2 * g], color[3 + 2 * g]} for g in range(9)]
        assert all(len(colors) == 1 for colors in by_group)
        assert [colors.pop() for colors in by_group] == [*PALETTE, GREY, GREY, GREY]


def test_the_legend_counts_the_neurons_of_each_group() -> None:
    legend = training_figure(history()).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [
        "group 0 (2 neurons)",
        "alone (1 neuron)",
        "dead (1 neuron)",
        "dead sector",
    ]


def test_dead_neurons_do_not_set_the_scale() -> None:
    run = history(neurons=10)
    run.input_norm[:, 0] = 1000.0
    figure = training_figure(run)
    assert figure.axes[2].get_ylim()[1] < 2
    assert figure.legends[0].get_title().get_text() == "dead neurons may be off the scale"
    everybody = replace(run, dead=torch.ones(10, dtype=torch.bool))
    assert training_figure(everybody).axes[2].get_ylim()[1] > 1000


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_more_inputs_show_alignment_with_the_end_and_every_run_the_share_of_active_samples(
    outputs: int, tmp_path: Path
) -> None:
    run = history(outputs=outputs)
    run = replace(run, alignment=run.angle.cos(), active=torch.rand(6, 4))
    figure = rendered(training_figure(run), tmp_path)
    assert run.alignment is not None
    assert run.active is not None
    in_some_order(figure.axes[1], run.alignment)
    in_some_order(figure.axes[-1], run.active)
    assert figure.axes[1].get_ylabel() == "alignment of $w_i$"
    assert figure.axes[-1].get_ylabel() == "share active"
    assert "dead sector" not in [text.get_text() for text in figure.legends[0].get_texts()]
    assert overprinted(figure) == []


def test_a_wide_layer_draws_the_largest_512_and_says_so() -> None:
    run = history(neurons=600, moments=2)
    figure = training_figure(run)
    amplitude = run.input_norm[-1] * run.output[-1, 0].abs()
    shown = amplitude.topk(512).indices
    in_some_order(figure.axes[2], run.input_norm[:, shown])
    assert figure.legends[0].get_title().get_text() == "the 512 of 600 neurons of largest amplitude"


def test_angle_lines_break_where_they_wrap_and_nowhere_else() -> None:
    run = history(moments=4)
    angle = torch.tensor([[0.2], [6.2], [6.1], [0.1]]).expand(4, 4).clone()
    angle[:, 1] = torch.tensor([0.0, 3.1, 6.2, 3.2])
    figure = training_figure(replace(run, angle=angle))
    drawn = {tuple(np.isnan(line.get_ydata())) for line in figure.axes[1].lines}
    assert drawn == {(False, True, False, True), (False, False, False, False)}


def dead_share(sector: tuple[float, float] | None, angles: Tensor) -> Tensor:
    if sector is None:
        return torch.zeros_like(angles, dtype=torch.bool)
    start, end = sector
    return (angles - start) % (2 * torch.pi) < end - start


def silent(X: Tensor, angles: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The definition: ``rho(w . x_k) = 0`` for all ``k``, with nothing on a kink."""
    Z = torch.stack([angles.cos(), angles.sin()], dim=1) @ X[X.any(dim=1)].T
    quiet = (Z < 0) if slopes[0] == 0 else (Z > 0)
    return quiet.all(dim=1) & torch.tensor(0.0 in slopes)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (1.0, 0.0), (0.1, 1.0), (0.0, -1.0)])
def test_the_dead_sector_is_where_the_activation_is_silent(slopes: tuple[float, float]) -> None:
    draw = torch.Generator().manual_seed(1)
    angles = torch.linspace(0, 2 * torch.pi, 5000, dtype=torch.float64)[:-1] + 1e-7
    seen = 0
    for trial in range(60):
        X = torch.randn(1 + trial % 4, 2, generator=draw, dtype=torch.float64)
        X = torch.cat([X, torch.zeros(trial % 2, 2, dtype=torch.float64)])
        sector = dead_sector(X, slopes)
        seen += sector is not None
        assert torch.equal(dead_share(sector, angles), silent(X, angles, slopes))
    assert (seen > 0) == (0.0 in slopes)


def test_the_dead_sector_of_the_five_point_problem_is_the_published_one() -> None:
    # Wu et al., section 4.1.1, prints 3.93 and 5.67 rad.
    start, end = dead_sector(FIVE)
    assert (round(start, 2), round(end, 2)) == (3.93, 5.67)


def test_no_arc_is_dead_where_the_samples_fill_a_half_plane() -> None:
    assert dead_sector(torch.tensor([[1.0, 2.0], [-0.5, -1.0], [2.0, 0.3]])) is None
    assert dead_sector(torch.zeros(2, 2)) == (0.0, 2 * np.pi)


def test_the_dead_sector_needs_two_inputs() -> None:
    with pytest.raises(ValueError, match="two columns"):
        dead_sector(torch.ones(3, 3))


@pytest.mark.parametrize(
    ("sector", "spans"),
    [((4.0, 5.0), [(4.0, 5.0)]), ((5.5, 7.5), [(5.5, 2 * np.pi), (0.0, 7.5 - 2 * np.pi)]), (None, [])],
)
def test_the_shaded_span_is_the_dead_sector(
    sector: tuple[float, float] | None, spans: list[tuple[float, float]], tmp_path: Path
) -> None:
    figure = rendered(training_figure(replace(history(), dead_sector=sector)), tmp_path)
    assert [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in figure.axes[1].patches] == [
        pytest.approx(span) for span in spans
    ]
    assert ("dead sector" in [text.get_text() for text in figure.legends[0].get_texts()]) == (sector is not None)


def test_marks_are_dashed_lines_in_every_panel() -> None:
    for ax in training_figure(history(), marks=(1000, 3000)).axes:
        dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
        assert dashed == [1000, 3000]


@pytest.mark.parametrize(
    ("loss", "scale"), [([1.0, 0.5, 0.02], "linear"), ([1.0, 0.1, 1e-6], "log"), ([1.0, 0.0, 1e-6], "linear")]
)
def test_the_loss_axis_is_logarithmic_where_the_loss_falls_far(loss: list[float], scale: str) -> None:
    run = replace(history(moments=3), loss=torch.tensor(loss))
    assert training_figure(run).axes[0].get_yscale() == scale


def test_a_single_moment_can_be_drawn(tmp_path: Path) -> None:
    rendered(training_figure(history(moments=1)), tmp_path)


@pytest.mark.parametrize("name", ["steps", "loss", "angle", "input_norm", "group", "dead"])
def test_a_history_that_does_not_fit_is_refused_by_name(name: str) -> None:
    run = history()
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        replace(run, **{name: getattr(run, name)[:-1]})


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="`output` must be"):
        history(moments=0)


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    before = plt.get_fignums()
    block = ShallowBlock(torch.randn(3, 2), torch.randn(1, 3))
    rendered(function_figure(block, torch.randn(4, 2), torch.randn(4, 1)), tmp_path)
    rendered(training_figure(history()), tmp_path)
    assert plt.get_fignums() == before == []
