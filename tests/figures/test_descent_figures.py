"""The pictures of a descent draw what was computed."""

import math

import pytest
import torch
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.figures import direction_figure, neuron_figure, perturbation_figure

X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([[1.0], [-0.5], [0.3]], dtype=torch.float64)
# Of the points drawn along a direction, the one in the middle.
_WITNESS = 100


def block(w: tuple[float, float], h: float) -> ShallowBlock:
    return ShallowBlock(torch.tensor([w], dtype=X.dtype), torch.tensor([[h]], dtype=X.dtype))


def test_the_quartic_lies_on_the_evaluated_loss_up_to_the_first_kink() -> None:
    for point in (block((0.0, 0.0), 0.0), block((1.0, 0.5), 0.7)):
        verdict = F.classify(point, X, Y)
        assert verdict.direction is not None
        (ax,) = direction_figure(point, X, Y, verdict.direction).axes
        lines = {str(line.get_label()): torch.tensor(line.get_xydata()) for line in ax.lines}
        evaluated, quartic, witness = (lines[name] for name in ("loss change, evaluated", "exact quartic", "witness"))
        assert_close(evaluated[: len(quartic)], quartic)
        assert_close(witness[0], torch.tensor([verdict.direction.step, verdict.direction.loss_change], dtype=X.dtype))
        assert float(witness[0, 1]) < 0


def test_the_slope_is_the_loss_derivative_and_jumps_at_the_kinks_only() -> None:
    point = block((1.0, 0.0), 0.7)  # on the kink of the second sample
    top, bottom = neuron_figure(point, X, Y, 0).axes
    angle, loss = torch.tensor(top.lines[0].get_xydata()).T
    slope = torch.tensor(bottom.lines[0].get_ydata())
    step = float(angle[1] - angle[0])
    differences = (loss[1:] - loss[:-1]) / step
    kinks = {round(float(segment[0][0]), 9) for segment in top.collections[0].get_segments()}
    assert kinks == {round(math.pi / 4 * k, 9) for k in (0, 1, 2, 4, 5, 6)}
    middle = (angle[1:] + angle[:-1]) / 2
    open_ = torch.tensor([all(abs(m - k) > step for k in {*kinks, 2 * math.pi}) for m in middle.tolist()])
    # the mean of two slopes is the difference quotient up to the square of the step
    assert_close(((slope[1:] + slope[:-1]) / 2)[open_], differences[open_], rtol=0, atol=20 * step**2)
    own = {str(line.get_label()): float(line.get_ydata()[0]) for line in bottom.lines[1:3]}
    signal = F.squared_error_signal(point, X, Y)
    left = F.tangential_derivatives(point, signal, torch.tensor([[0.0, 1.0]], dtype=X.dtype))
    right = F.tangential_derivatives(point, signal, torch.tensor([[0.0, -1.0]], dtype=X.dtype))
    assert own == {"its slope turning left": float(left), "its slope turning right": -float(right)}


def test_a_silent_neuron_shows_the_pull_on_its_output_weights() -> None:
    (ax,) = neuron_figure(block((0.0, 0.0), 0.0), X, Y, 0).axes
    angle, pull = torch.tensor(ax.lines[0].get_xydata()).T
    toward = torch.stack([angle.cos(), angle.sin()], dim=1)
    expected = (2 / 3 * -Y.T) @ (X @ toward.T).clamp(min=0)
    assert_close(pull, expected[0])


def test_more_inputs_turn_in_the_plane_of_the_steepest_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    W, H, X4, Y4 = (torch.randn(*s, generator=generator, dtype=X.dtype) for s in ((3, 4), (2, 3), (9, 4), (9, 2)))
    point = ShallowBlock(W, H, (0.1, 1.0))
    for neuron in range(3):
        bottom = neuron_figure(point, X4, Y4, neuron).axes[1]
        steepest = F.neuron_geometry(point, F.squared_error_signal(point, X4, Y4)).steepest[neuron]
        assert bottom.lines[1].get_ydata()[0] == pytest.approx(float(steepest))


def test_a_classifier_turns_and_falls_under_its_own_loss() -> None:
    """The loss of the picture is cross-entropy, with weight decay along the witness."""
    labels = torch.tensor([0, 1, 1])
    W, H = torch.tensor([[0.6, -0.2]], dtype=X.dtype), torch.tensor([[0.5], [-0.3]], dtype=X.dtype)
    point = ShallowBlock(W, H)
    loss = F.CrossEntropy(labels)
    top, _ = neuron_figure(point, X, loss, 0).axes
    angle, drawn = torch.tensor(top.lines[0].get_xydata()).T
    own = int((angle - torch.atan2(W[0, 1], W[0, 0]) % (2 * math.pi)).abs().argmin())
    turned = W.norm() * torch.stack([angle.cos(), angle.sin()], dim=1)
    logits = (turned @ X.T).clamp(min=0)[..., None] * H[:, 0]
    expected = [torch.nn.functional.cross_entropy(one, labels) for one in logits]
    assert_close(drawn, torch.stack(expected))
    assert drawn[own] == pytest.approx(float(loss(point(X))), rel=1e-2)
    verdict = F.classify(point, X, loss, weight_decay=0.1)
    assert verdict.direction is not None
    (ax,) = direction_figure(point, X, loss, verdict.direction, weight_decay=0.1).axes
    lines = {str(line.get_label()): torch.tensor(line.get_xydata()) for line in ax.lines}
    assert_close(lines["loss change, evaluated"][_WITNESS, 1], lines["witness"][0, 1])
    evaluated, line = lines["loss change, evaluated"], lines["to fourth order"]
    assert_close(line[:5], evaluated[:5], rtol=1e-3, atol=1e-12)


def test_the_histogram_counts_every_perturbation() -> None:
    test = F.perturbation_test(block((1.0, 0.2), 1.0), X, Y, draws=300, generator=torch.Generator().manual_seed(0))
    (ax,) = perturbation_figure(test).axes
    assert sum(bar.get_height() for bar in ax.patches) == 300


def test_there_must_be_a_neuron_to_turn() -> None:
    with pytest.raises(ValueError, match="must be one of 1"):
        neuron_figure(block((1.0, 0.0), 1.0), X, Y, 1)
