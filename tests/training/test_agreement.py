"""Gradients of steps agree beyond their noise where the expected gradient is not zero, and only there."""

import pytest
import torch
from torch import nn

from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.training import agreement, agreement_words


def block(seed: int) -> ShallowBlock:
    torch.manual_seed(seed)
    return ShallowBlock(torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64))


def steps(pull: float, seed: int, count: int = 12, rows: int = 8) -> list[BlockSignal]:
    """Steps whose loss gradients have a mean, and a noise that is the same for all rows of a step."""
    torch.manual_seed(seed)
    X = torch.randn(count, rows, 3, dtype=torch.float64)
    G = pull + torch.randn(count, 1, 2, dtype=torch.float64).expand(count, rows, 2)
    return [BlockSignal(x, g) for x, g in zip(X, G, strict=True)]


def test_it_is_the_mean_product_of_autograds_gradients_over_its_standard_error() -> None:
    one, signals = block(0), steps(0.3, seed=1)
    gradients = []
    for signal in signals:
        W = nn.Parameter(one.W.clone())
        outputs = torch.relu(signal.X @ W.mT) @ one.H.mT
        (outputs * signal.G).sum().backward()
        gradients.append(W.grad)
    products = torch.stack([
        (a * b).sum() for i, a in enumerate(gradients) for b in gradients[:i] if a is not None and b is not None
    ])
    expected = products.mean() / (products.std() / len(products) ** 0.5)
    assert agreement(one, signals) == pytest.approx(float(expected))


def test_noise_is_seldom_called_a_movement_though_rows_of_a_step_move_together() -> None:
    found = [agreement(block(seed), steps(0.0, seed)) for seed in range(400)]
    assert sum(abs(one) > 5 for one in found) <= 4


def test_a_mean_is_seen_behind_noise() -> None:
    assert "still moves" in agreement_words(block(0), steps(2.0, seed=3))


def test_few_steps_say_nothing() -> None:
    assert agreement_words(block(0), steps(2.0, seed=3, count=3)) == ""
