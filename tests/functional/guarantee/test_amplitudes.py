"""The best amplitudes of given neurons: every one that is left is pulled by its price exactly, and no other by more."""

from __future__ import annotations

import pytest
import torch

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.block import rho
from relu_diag.functional.guarantee import Amplitudes, refit_amplitudes


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.1])
def test_the_best_amplitudes_meet_their_conditions(outputs: int, bias_decay: float | None) -> None:
    draw = torch.Generator().manual_seed(outputs)
    X, V = (torch.randn(rows, 2, generator=draw, dtype=torch.float64) for rows in (12, 30))
    Y = torch.randn(12, outputs, generator=draw, dtype=torch.float64)
    A = rho(X @ torch.nn.functional.normalize(V).T, (0.0, 1.0))
    mu = 3e-3
    for loss in (F.SquaredError(Y), F.BinaryCrossEntropy((Y > 0).double())):
        start = Amplitudes(0.1 * torch.ones(outputs, 30).double(), torch.zeros(outputs).double())
        best = refit_amplitudes(loss, A, start, mu, bias_decay)
        E = loss.gradient(A @ best.H.T + best.bias)
        pull = (E.T @ A).norm(dim=0)
        there = best.H.norm(dim=0) > 0
        assert 0 < int(there.sum()) < 30
        assert float((pull[there] - mu).abs().max()) < 1e-8 * mu
        assert float(pull.max()) < mu * (1 + 1e-6)
        if bias_decay is not None:
            assert float((E.sum(dim=0) + bias_decay * best.bias).abs().max()) < 1e-10


def test_small_decay_leaves_a_small_gap() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(36, 2, generator=draw, dtype=torch.float64)
    Y = torch.randn(36, 1, generator=draw, dtype=torch.float64)
    block = ShallowBlock(X[:1], Y[:1], (0.0, 1.0))
    gap = F.optimality_gap(block, X, Y, weight_decay=1e-3)
    assert gap.certified
    more = F.optimality_gap(block, X, Y, weight_decay=1e-3, rounds=20)
    assert more.dual - gap.dual < 1e-3 * gap.dual
