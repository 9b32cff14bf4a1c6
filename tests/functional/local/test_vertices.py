from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import _descents, steepest_descent
from relu_diag.functional.local._vertices import descend_at_vertices


def drawn(seed: int, kinks: int, inputs: int, strength: float) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    shapes = (400, inputs), (400, kinks), (400, kinks, inputs)
    g, q, X = (torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
    return g, strength * q, X


@pytest.mark.parametrize("inputs", [2, 3, 8])
@pytest.mark.parametrize("kinks", [1, 2, 4, 6])
@pytest.mark.parametrize("strength", [0.02, 0.3])
def test_proven_minima_are_those_found_one_by_one(kinks: int, inputs: int, strength: float) -> None:
    g, q, X = drawn(kinks * inputs, kinks, inputs, strength)
    slope, direction, proven = descend_at_vertices(g, q, X)
    assert proven.float().mean() > (0.8 if strength < 0.1 else 0.01)
    for i in proven.nonzero().squeeze(1)[:60].tolist():
        alone = steepest_descent(g[i].numpy(), q[i].numpy(), X[i].numpy())
        assert alone.exact
        assert slope[i].item() == pytest.approx(alone.slope, rel=1e-9)
        reached = g[i] @ direction[i] + q[i] @ (X[i] @ direction[i]).abs()
        assert reached.item() == pytest.approx(slope[i].item(), rel=1e-9)


def test_a_convex_kink_that_holds_the_neuron_is_not_settled_at_a_vertex() -> None:
    g, q, X = torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0]]), torch.tensor([[[1.0, 0.0]]])
    assert not descend_at_vertices(g, q, X)[2]


def test_vectors_that_nearly_cancel_are_left_to_the_slow_search() -> None:
    g, q, X = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]]), torch.tensor([[[1.0, 1e-9]]])
    assert not descend_at_vertices(g.double(), q.double(), X.double())[2]


def test_geometry_is_the_same_with_and_without_vertices(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 9, generator=generator, dtype=torch.float64)
    W = torch.randn(30, 9, generator=generator, dtype=torch.float64)
    for i in range(30):  # on the kinks of i % 8 samples
        basis = torch.linalg.qr(X[: i % 8].T).Q
        W[i] -= basis @ (basis.T @ W[i])
    block = ShallowBlock(W, torch.randn(1, 30, generator=generator, dtype=torch.float64))
    signal = BlockSignal(X, torch.randn(60, 1, generator=generator, dtype=torch.float64))
    together = F.neuron_geometry(block, signal)
    monkeypatch.setattr(_descents, "BUDGETS", replace(BUDGETS, vertex_kinks=0))
    alone = F.neuron_geometry(block, signal)
    assert sorted(set(together.kink_count.tolist())) == list(range(8))
    assert bool(together.exact.all())
    assert_close(together.steepest, alone.steepest)
    assert_close(together.direction, alone.direction)
