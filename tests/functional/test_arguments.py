"""Arguments of a wrong type are refused by their name, with what was expected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import joined, recognise

X, Y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
BLOCK = ShallowBlock(torch.randn(4, 3).double(), torch.randn(2, 4).double())
SIGNAL = BlockSignal(X, Y)
NET = nn.Linear(2, 1)


def slope_along(direction: Any, module: Any = NET) -> object:
    return F.directional_derivative(module, lambda: NET(torch.ones(1, 2)).sum(), direction)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("delta", lambda wrong: F.Huber(Y, wrong)),
        ("label_smoothing", lambda wrong: F.CrossEntropy(torch.tensor([0]), label_smoothing=wrong)),
        ("factor", lambda wrong: F.SquaredError(Y, factor=wrong)),
        ("weight_decay", lambda wrong: F.classify(BLOCK, X, Y, weight_decay=wrong)),
        ("weight_decay", lambda wrong: F.growth_proposals(BLOCK, X, Y, weight_decay=wrong)),
        ("H", lambda wrong: F.WeightDecay(H=wrong)),
        ("tol", lambda wrong: F.classify(BLOCK, X, Y, tol=wrong)),
        ("kink_tol", lambda wrong: F.neuron_geometry(BLOCK, SIGNAL, kink_tol=wrong)),
        ("lr", lambda wrong: F.forecast_escape(BLOCK, X, Y, lr=wrong)),
        ("drop", lambda wrong: F.forecast_escape(BLOCK, X, Y, lr=0.1, drop=wrong)),
        ("price", lambda wrong: F.extremal_directions(X, Y, price=wrong)),
        ("price", lambda wrong: F.dead_causes(BLOCK, SIGNAL, price=wrong)),
        ("rounds", lambda wrong: F.optimality_gap(BLOCK, X, Y, 0.1, rounds=wrong)),
        ("draws", lambda wrong: F.perturbation_test(BLOCK, X, Y, draws=wrong)),
        ("zeta", lambda wrong: F.perturbation_test(BLOCK, X, Y, zeta=wrong)),
        ("reach", lambda wrong: F.growth_proposals(BLOCK, X, Y, reach=wrong)),
        ("candidates", lambda wrong: F.growth_proposals(BLOCK, X, Y, candidates=wrong)),
        ("held_out", lambda wrong: F.best_widening(BLOCK, X, Y, held_out=wrong)),
        ("steps", lambda wrong: F.best_widening(BLOCK, X, Y, steps=wrong)),
        ("small", lambda wrong: F.neuron_states(BLOCK, X, Y, small=wrong)),
        ("module", lambda wrong: slope_along({}, module=wrong)),
        ("loss", lambda wrong: F.directional_derivative(NET, wrong, {})),
        ("direction", slope_along),
        (
            "direction",
            lambda wrong: slope_along({"bias": wrong}),
        ),
    ],
)
@pytest.mark.parametrize("wrong", ["0.1", (0.1, 0.1)])
def test_what_is_no_number_or_function_is_refused_by_its_name(
    name: str, call: Callable[[Any], object], wrong: object
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        call(wrong)


def test_numbers_of_other_libraries_are_numbers() -> None:
    for half in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5)):
        assert F.Huber(Y, half)(Y) == 0  # type: ignore[arg-type]
        assert F.classify(BLOCK, X, Y, weight_decay=half).loss == F.classify(BLOCK, X, Y, weight_decay=0.5).loss  # type: ignore[arg-type]


def test_neurons_are_small_beside_the_targets_of_a_loss() -> None:
    for loss in (F.SquaredError(1000 * Y), F.CrossEntropy(torch.zeros(6).long())):
        states = F.neuron_states(BLOCK, X, loss)
        scale = 1000 * Y if isinstance(loss, F.SquaredError) else torch.ones(6)
        assert torch.equal(states.small_living, F.neuron_states(BLOCK, X, scale).small_living)
    with pytest.raises(ValueError, match="`Y` needs one row per sample"):
        F.neuron_states(BLOCK, X, F.SquaredError(Y[:4]))


def test_joined_batches_of_different_sizes_keep_float64() -> None:
    outputs, labels = torch.randn(10, 3).double(), torch.arange(10) % 3
    weight = torch.rand(3).double()
    for given in (None, torch.rand(10).double()):
        parts = [slice(0, 3), slice(3, 10)]
        losses = [
            F.CrossEntropy(labels[part], weight, sample_weight=None if given is None else given[part]) for part in parts
        ]
        apart = sum(loss(outputs[part]) for loss, part in zip(losses, parts, strict=True))
        torch.testing.assert_close(joined(losses)(outputs), apart, rtol=1e-14, atol=0)


def test_a_batch_may_hold_arrays() -> None:
    outputs = torch.randn(6, 2).double().requires_grad_()
    nn.functional.mse_loss(outputs, Y).backward()
    assert outputs.grad is not None
    found = recognise(outputs.detach(), outputs.grad, {"x": np.array(["a"] * 6), "y": Y.numpy()})
    assert isinstance(found.loss, F.SquaredError)
