"""Figures, tables, logged numbers and texts number and count groups as `NeuronStates.group` does."""

import re

import pytest
import torch

from relu_diag.experiments import ReferenceRegression, gradient_descent_
from relu_diag.figures import training_figure
from relu_diag.functional import NeuronStates, ShallowBlock, neuron_geometry, neuron_states, squared_error_signal
from relu_diag.inspection import neuron_table
from relu_diag.metrics import landscape_scalars
from relu_diag.training import HistoryRecorder

X = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
Y = torch.ones(4, 1, dtype=torch.float64)


def block_of(groups: int) -> ShallowBlock:
    """Groups of two neurons, the later ones smaller; then a dead neuron and one with ``w = 0``, in no group."""
    angle = torch.linspace(0.0, 2.0, groups, dtype=torch.float64).repeat_interleave(2)
    living = torch.stack([angle.cos(), angle.sin()], dim=1)
    apart = torch.tensor([[-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    h = torch.cat([torch.arange(2 * groups, 0, -1), torch.ones(2)]).double()
    return ShallowBlock(torch.cat([living, apart]), h[None])


def legend_of(block: ShallowBlock, states: NeuronStates) -> list[str]:
    recorder = HistoryRecorder()
    recorder.add(0, 1.0, block, states)
    return [text.get_text() for text in training_figure(recorder.finished(states, None)).legends[0].get_texts()]


@pytest.mark.parametrize("groups", [1, 3, 6, 7, 9])
def test_the_legend_names_every_group_by_its_number_and_counts_its_members(groups: int) -> None:
    block = block_of(groups)
    states = neuron_states(block, X, Y)
    assert len(states.group_amplitude) == groups
    covered = []
    for text in legend_of(block, states):
        match = re.fullmatch(r"groups? (\d+)(?: to (\d+))? \((\d+) neurons?\)", text)
        if match:
            first, last, count = int(match[1]), int(match[2] or match[1]), int(match[3])
            assert count == int(((states.group >= first) & (states.group <= last)).sum())
            covered += range(first, last + 1)
    assert covered == list(range(groups))


def test_neurons_in_no_group_are_counted_apart() -> None:
    block = block_of(7)
    assert legend_of(block, neuron_states(block, X, Y))[-3:] == [
        "group 6 (2 neurons)",
        "in no group (1 neuron)",
        "dead (1 neuron)",
    ]


def test_the_table_shows_the_group_of_each_neuron() -> None:
    block = block_of(4)
    states = neuron_states(block, X, Y)
    columns = {column.header: list(column.cells) for column in neuron_table(block, X, Y).columns}
    shown = dict(zip(map(int, columns["neuron"]), columns["group"], strict=True))
    assert shown == {i: str(int(g)) if g >= 0 else "-" for i, g in enumerate(states.group)}


def test_the_number_of_effective_neurons_is_the_number_of_groups_everywhere() -> None:
    block = block_of(4)
    states = neuron_states(block, X, Y)
    geometry = neuron_geometry(block, squared_error_signal(block, X, Y))
    assert int(landscape_scalars(geometry, states)["effective"]) == 4 == int(states.group.max()) + 1
    assert "4 effective neurons" in str(states)


def test_the_wide_start_ends_with_four_effective_neurons() -> None:
    module = ReferenceRegression("five_points_wide_init")
    inputs, targets = module.problem.tensors()
    residual = gradient_descent_(module.block, inputs, targets, rate=1e-2 * 2 / 5, steps=60_000)
    assert float(residual.square().mean()) < 1e-4
    states = neuron_states(module.block, inputs, targets)
    assert len(states.group_amplitude) == 4
