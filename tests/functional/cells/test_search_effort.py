"""What a search for the point nearby may cost where it leads nowhere: of many weights, and of many kinks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._reach import Choice, Reach
from relu_diag.functional.cells._solver import Linearisation


def case(neurons: int, samples: int = 40) -> tuple[ShallowBlock, torch.Tensor, F.CrossEntropy]:
    """Random weights, far from any stationary point, three classes."""
    draw = torch.Generator().manual_seed(0)
    W, H, X = (torch.randn(*shape, generator=draw).double() for shape in ((neurons, 5), (3, neurons), (samples, 5)))
    return ShallowBlock(W, 0.1 * H), X, F.CrossEntropy(torch.arange(samples) % 3)


def test_a_search_in_many_weights_that_halves_no_gradient_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    plain = Linearisation.damped_step

    def counted(line: Linearisation, damping: float, most: int) -> object:
        steps.append(line.size)
        return plain(line, damping, most)

    monkeypatch.setattr(Linearisation, "damped_step", counted)
    monkeypatch.setattr("relu_diag.functional.cells._solver.BUDGETS", replace(BUDGETS, small_step=10))
    block, X, loss = case(neurons=8)
    F.nearby_stationary_point(block, X, loss, weight_decay=1e-3)
    slow, lowest = 0, float("inf")
    for size in steps:
        # Another stratum starts with a larger gradient.
        slow = 1 if size > lowest or size <= lowest / 2 else slow + 1
        lowest = size if slow == 1 else lowest
        assert slow <= BUDGETS.slow_steps


def test_a_hessian_that_cannot_be_afforded_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linearisation, "damped_step", lambda *_: pytest.fail("begun"))
    monkeypatch.setattr("relu_diag.functional.cells._solver.BUDGETS", replace(BUDGETS, multiplications=2**16))
    block, X, loss = case(neurons=8)
    near = F.nearby_stationary_point(block, X, loss, weight_decay=1e-3)
    assert near.verdict.kind == "undecided"


def test_no_more_strata_are_made_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = Reach.choices

    def counted(reach: Reach, limit: int) -> Iterator[Choice]:
        for choice in plain(reach, limit):
            made.append(choice)
            yield choice

    monkeypatch.setattr(Reach, "choices", counted)
    block, X, loss = case(neurons=8)
    on = torch.linalg.lstsq(X[:2], X[:2] @ block.W.T).solution.T  # the part that the first two samples see
    on_kinks = ShallowBlock(block.W - on + 1e-6 * on, block.H)
    F.nearby_stationary_point(on_kinks, X, loss, weight_decay=1e-3)
    assert len(made) <= 2 * BUDGETS.few_strata
