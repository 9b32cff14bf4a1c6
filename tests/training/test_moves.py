"""The move off a saddle goes to the lowest loss among the steps that are evaluated."""

import pytest
import torch

from relu_diag import functional as F
from relu_diag.functional import Direction, ShallowBlock, WeightDecay
from relu_diag.training import TrainingData, lowest_along, trained_loss

X = torch.eye(2, dtype=torch.float64)
Y = torch.ones(2, 1, dtype=torch.float64)
DATA = TrainingData(X, F.SquaredError(Y))
ORIGIN = ShallowBlock(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))


def test_the_lowest_of_all_halvings_is_taken() -> None:
    direction = F.classify(ORIGIN, X, Y).direction
    assert direction is not None
    far = Direction(direction.dW, direction.dH, 64 * direction.step, direction.loss_change)
    lowest = lowest_along(ORIGIN, far, DATA)
    assert lowest is not None
    tried = [DATA.loss_of(far.applied_to(ORIGIN, far.step / 2**k)) for k in range(20)]
    assert DATA.loss_of(lowest) == min(tried) < DATA.loss_of(ORIGIN)


def test_nothing_moves_where_no_step_lowers_the_loss() -> None:
    uphill = Direction(torch.ones(1, 2).double(), -torch.ones(1, 1).double(), 1.0, -1.0)
    assert lowest_along(ORIGIN, uphill, DATA) is None


def test_weight_decay_counts_where_it_is_part_of_the_loss() -> None:
    direction = F.classify(ORIGIN, X, Y).direction
    assert direction is not None
    light, heavy = WeightDecay(0.1, 0.1), WeightDecay(10.0, 10.0)
    lowest = lowest_along(ORIGIN, direction, DATA, light)
    assert lowest is not None
    assert trained_loss(lowest, DATA, light) < trained_loss(ORIGIN, DATA, light)
    assert lowest_along(ORIGIN, direction, DATA, heavy) is None


@pytest.mark.parametrize("reduction", ["mean", "sum", "half_sum"])
def test_the_loss_of_a_block_is_the_squared_error(reduction: str) -> None:
    data = TrainingData(X, F.SquaredError(Y, reduction))
    assert data.loss_of(ORIGIN) == pytest.approx(float(F.squared_loss(ORIGIN, X, Y, reduction)))  # type: ignore[arg-type]
