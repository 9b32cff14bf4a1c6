"""What counts as zero in a cell is measured against the targets, not against the solution."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F


def unreachable(seed: int, bias: bool) -> tuple[ShallowBlock, torch.Tensor, torch.Tensor]:
    """Targets orthogonal, to rounding, to all that the neurons of a cell compute."""
    rng = np.random.default_rng(seed)
    X, W = rng.standard_normal((9, 2)), rng.standard_normal((2, 2))
    A = np.hstack([np.where(X @ w > 0, 1.0, 0.0)[:, None] * X for w in W] + [np.ones((9, int(bias)))])
    y = rng.standard_normal(9)
    y -= A @ np.linalg.lstsq(A, y)[0]
    b = torch.zeros(1).double() if bias else None
    return ShallowBlock(*map(torch.as_tensor, (W, np.ones((1, 2)))), output_bias=b), *map(
        torch.as_tensor, (X, y[:, None])
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_solution_that_vanishes_is_zero_and_in_the_cell(seed: int, bias: bool) -> None:
    block, X, Y = unreachable(seed, bias)
    found = F.cell_minimum(block, X, Y)
    assert found.genuine is True
    assert found.block is not None
    assert torch.equal(found.block.H, torch.zeros(1, 2).double())  # R = 0: every w_i may stay
    assert torch.equal(found.block.W, block.W)
    assert_close(found.loss, float(Y.square().mean()))


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("seed", range(6))
def test_scales_of_inputs_and_targets_do_not_change_the_answer(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    X, Y, W = (torch.randn(*shape, generator=draw).double() for shape in ((7, 2), (7, 1), (2, 2)))
    block = ShallowBlock(W, torch.ones(1, 2).double(), output_bias=torch.zeros(1).double())
    expected = F.cell_minimum(block, X, Y)
    for x, y in ((scale, 1.0), (1.0, scale), (scale, scale), (scale, 1 / scale)):
        found = F.cell_minimum(block, x * X, y * Y)
        assert (found.genuine, found.unique) == (expected.genuine, expected.unique)
        assert_close(found.loss, y**2 * expected.loss)
