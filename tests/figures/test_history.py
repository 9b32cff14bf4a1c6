"""What a monitor keeps of a run: directions and activity of neurons, in bounded memory."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from support.drawn import overprinted
from torch.testing import assert_close

from relu_diag.figures import training_figure
from relu_diag.functional import ShallowBlock, neuron_states
from relu_diag.training import HistoryRecorder, history

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.zeros(40, 2, dtype=torch.float64)


def block_of(neurons: int, seed: int, inputs: int = 5) -> ShallowBlock:
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(neurons, inputs, generator=draw, dtype=torch.float64)
    return ShallowBlock(W, torch.randn(2, neurons, generator=draw, dtype=torch.float64))


def recorded(blocks: list[ShallowBlock]) -> tuple[HistoryRecorder, history.TrainingHistory]:
    recorder = HistoryRecorder()
    for step, block in enumerate(blocks):
        recorder.add(step, 1.0, block, neuron_states(block, X[:, : block.W.shape[1]], Y), X[:, : block.W.shape[1]])
    return recorder, recorder.finished(neuron_states(blocks[-1], X[:, : blocks[-1].W.shape[1]], Y), None)


def test_alignment_is_the_cosine_with_the_last_direction_and_active_the_share_of_samples() -> None:
    first, last = block_of(3, 0), block_of(4, 1)  # a neuron was added
    _, run = recorded([first, last])
    assert run.alignment is not None
    assert run.active is not None
    expected = torch.nn.functional.cosine_similarity(first.W, last.W[:3], dim=1)
    assert_close(run.alignment[0, :3], expected.float())
    assert_close(run.alignment[1], torch.ones(4))
    assert_close(run.active[0, :3], (X @ first.W.T > 0).float().mean(0))
    assert run.alignment[0, 3].isnan()
    assert run.active[0, 3].isnan()


def test_with_two_inputs_the_angle_is_enough() -> None:
    _, run = recorded([block_of(3, 0, inputs=2)])
    assert run.alignment is None
    assert run.active is not None


def test_of_a_wide_layer_the_directions_of_evenly_spaced_neurons_are_kept() -> None:
    first, last = block_of(10, 0), block_of(11, 1)
    with patch.object(history, "_MAX_DIRECTIONS", 10):  # two neurons of five inputs: every fifth, later every sixth
        recorder, run = recorded([first, last])
    assert [len(moment.direction) for moment in recorder.moments if moment.direction is not None] == [2, 2]
    assert run.alignment is not None
    assert (~run.alignment.isnan()).nonzero().tolist() == [[0, 0], [1, 0], [1, 6]]


def test_moments_saved_before_there_were_directions_are_read() -> None:
    recorder, _ = recorded([block_of(3, 0), block_of(3, 1)])
    old = history.Moment(*recorder.moments[0][:5])
    recorder.moments[0] = old
    run = recorder.finished(neuron_states(block_of(3, 1), X, Y), None)
    assert run.alignment is not None
    assert run.active is not None
    assert bool(run.alignment[0].isnan().all())
    assert bool(run.active[0].isnan().all())


@pytest.mark.parametrize(("inputs", "turning"), [(1, "angle"), (2, "angle"), (3, "alignment"), (50, "alignment")])
def test_a_run_is_drawn_with_any_number_of_inputs(inputs: int, turning: str) -> None:
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(40, inputs, generator=draw, dtype=torch.float64)
    recorder = HistoryRecorder()
    for step in range(3):
        block = block_of(6, step, inputs)
        states = neuron_states(block, data, Y)
        recorder.add(100 * step, 1.0 / (step + 1), block, states, data)
    figure = training_figure(recorder.finished(states, None))
    assert overprinted(figure) == []
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert labels[1].startswith(turning)
    assert all(len(panel.lines) == 6 for panel in figure.axes[1:])
