"""Any loss along a move: the pairs that cross their kink are followed, and say what a look at all of them says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.problem import LossProblem, loss_problem
from relu_diag.functional.verdict._loss_line import loss_line
from relu_diag.functional.verdict.line import Move


def drawn(seed: int, slopes: tuple[float, float] = (0.0, 1.0)) -> tuple[LossProblem, Move]:
    """Five neurons, forty samples, one of them on a kink and one zero, and a move of all weights."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    block = ShallowBlock(normal(5, 3), normal(2, 5), slopes, normal(2))
    X = normal(40, 3)
    X[0] = 0.0
    X[1] -= (X[1] @ block.W[0]) * block.W[0] / block.W[0].square().sum()
    problem = loss_problem(block, X, F.CrossEntropy(torch.arange(40) % 2))
    assert isinstance(problem, LossProblem)
    return problem, Move(normal(5, 3), normal(2, 5), normal(2))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kept", [1, 20, 10**6])
def test_changes_along_a_move_are_those_of_the_moved_network(
    seed: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relu_diag.functional.verdict._loss_line.BUDGETS", replace(BUDGETS, crossed=kept))
    problem, move = drawn(seed, slopes=(0.1 * (seed % 2), 1.0))
    block, steps = problem.block, torch.tensor([1e-3, 0.03, 0.3, 2.0], dtype=torch.float64)
    changes, _ = loss_line(problem, move).followed(2.0).changes(steps)
    for step, change in zip(steps.tolist(), changes, strict=True):
        assert block.output_bias is not None
        bias = block.output_bias + step * move.db
        there = ShallowBlock(block.W + step * move.dW, block.H + step * move.dH, block.slopes, bias)
        outputs = there(problem.signal.X)
        torch.testing.assert_close(change, problem.output_loss(outputs) - problem.loss, rtol=1e-9, atol=1e-13)


def test_steps_at_which_kinks_are_crossed_are_known_up_to_the_last_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, move = drawn(0)
    Z, dZ = problem.signal.X @ problem.block.W.T, problem.signal.X @ move.dW.T
    roots = (-Z / dZ)[(Z.abs() > 1e-9) & (-Z / dZ > 0)].sort().values
    line = loss_line(problem, move).followed(1.0)
    torch.testing.assert_close(line.crossings(0.2), roots[roots < 0.2])
    monkeypatch.setattr("relu_diag.functional.verdict._loss_line.BUDGETS", replace(BUDGETS, crossed=5))
    cut = loss_line(problem, move).followed(1.0)
    torch.testing.assert_close(cut.crossings(cut.crossed.end), roots[:4])
    assert not len(cut.crossings(1.0))
