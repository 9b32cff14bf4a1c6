"""Certificates at zero loss and with singular Jacobians, on kinks, out of range: never an exception, never a guess."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.guarantee import ConvergenceCertificate


def certificates(block: ShallowBlock, X: Tensor, Y: Tensor) -> list[ConvergenceCertificate]:
    smooth = ShallowBlock(block.W, block.H, (0.2, 1.0), block.output_bias)
    return [F.convergence_certificate(block, X, Y), F.smooth_convergence_certificate(smooth, X, Y, centred=True)]


def check(found: ConvergenceCertificate) -> None:
    """What every certificate is, whatever it was made of."""
    numbers = (found.radius, found.alpha, found.rate, found.margin, found.kink_distance, found.largest_lr)
    assert all(number >= 0 for number in numbers), found  # and no NaN
    assert found.holds == (found.margin > 1)
    if not found.holds:
        assert (found.rate, found.largest_lr) == (0.0, 0.0)
    elif found.loss > 0:
        assert not found.assumptions.broken
        assert found.rate >= found.alpha > 0
    for lr in (1e-3, 1.0, 1e3):
        assert 0 <= found.step_factor(lr) <= 1
        assert found.steps_to(0.5, lr) is None or lr < found.largest_lr
    assert str(found)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_structured_points_get_a_certificate_of_sound_numbers(data: Any) -> None:
    entries = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.5, 3.0])
    samples, inputs, width, outputs = (data.draw(st.integers(1, 4)) for _ in range(4))

    def matrix(rows: int, columns: int) -> Tensor:
        flat = data.draw(st.lists(entries, min_size=rows * columns, max_size=rows * columns))
        return torch.tensor(flat, dtype=torch.float64).reshape(rows, columns)

    scale = data.draw(st.sampled_from([1e-150, 1e-8, 1.0, 1e8, 1e150]))
    bias = matrix(1, outputs)[0] if data.draw(st.booleans()) else None
    block = ShallowBlock(scale * matrix(width, inputs), matrix(outputs, width), (0.0, 1.0), bias)
    X = matrix(samples, inputs)
    fitted = block(X)
    Y = fitted + data.draw(st.sampled_from([0.0, 0.0, 1e-300, 1e-9, 1.0])) * matrix(samples, outputs)
    for found in certificates(block, X, Y):
        check(found)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_student_that_is_its_teacher_has_arrived(outputs: int) -> None:
    torch.manual_seed(outputs)
    X = torch.randn(50, 3, dtype=torch.float64)
    teacher = ShallowBlock(torch.randn(2, 3, dtype=torch.float64), torch.randn(outputs, 2, dtype=torch.float64))
    found = F.convergence_certificate(teacher, X, teacher(X))
    check(found)
    assert (found.holds, found.loss, found.alpha) == (True, 0.0, 0.0)
    assert "the loss is zero already" in str(found)
    off = F.convergence_certificate(teacher, X, teacher(X) + 1e-9)
    check(off)
    assert not off.holds
    assert off.assumptions.broken == ("Jacobian of full rank",)


def test_samples_on_kinks_are_certified_at_zero_loss_only() -> None:
    X = torch.eye(3, dtype=torch.float64)
    block = ShallowBlock(torch.tensor([[1.0, 0.0, 2.0]]).double(), torch.ones(2, 1).double())
    there = F.convergence_certificate(block, X, block(X))
    off = F.convergence_certificate(block, X, block(X) + 1e-6)
    for found in (there, off):
        check(found)
        assert found.kink_distance == 0
    assert (there.holds, off.holds) == (True, False)
    assert "no sample on a kink" in off.assumptions.broken


@pytest.mark.parametrize("scale", [1e-200, 1e160, 1e300])
def test_weights_out_of_range_are_not_certified(scale: float) -> None:
    torch.manual_seed(0)
    block = ShallowBlock(scale * torch.randn(4, 2).double(), scale * torch.randn(1, 4).double())
    X, Y = torch.randn(3, 2).double(), torch.randn(3, 1).double()
    for found in certificates(block, X, Y):
        assert not found.holds
        assert math.isfinite(found.rate)
        assert "nothing certain" in str(found)
