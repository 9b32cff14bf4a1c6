"""The expansion of any loss along a line: the loss itself to fourth order, weight decay included."""

import pytest
import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.verdict import TaylorExpansion


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def losses(outputs: int) -> list[Loss]:
    Y = draw(12, outputs)
    found: list[Loss] = [
        F.SquaredError(Y, "sum", weight=torch.rand(12).double()),
        F.BinaryCrossEntropy((Y > 0).double(), pos_weight=torch.tensor(2.0)),
        F.Poisson(Y.abs()),
        F.Huber(Y, 2.0),
        F.OutputLoss(lambda outputs: (outputs - Y).cosh().sum(), convex=True),
        F.OutputLoss(lambda outputs: outputs.sum()),
    ]
    if outputs > 1:
        found.append(F.CrossEntropy(torch.randint(outputs, (12,)), label_smoothing=0.1))
    return found


def problem(outputs: int) -> tuple[ShallowBlock, Tensor]:
    """Three neurons, one zero and one with a sample on its kink, and a sample at zero."""
    W, X = draw(3, 3), draw(12, 3)
    W[0], X[0] = 0.0, 0.0
    X[1] -= (X[1] @ W[1]) / (W[1] @ W[1]) * W[1]
    return ShallowBlock(W, draw(outputs, 3), (0.1, 1.0), draw(outputs)), X


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("decay", [0.0, F.WeightDecay(W=0.3, H=0.2, hidden_bias=0.1, output_bias=0.4)])
def test_what_is_left_is_of_fifth_order(outputs: int, decay: float | F.WeightDecay) -> None:
    torch.manual_seed(outputs)
    block, X = problem(outputs)
    dW, dH = draw(3, 3), draw(outputs, 3)
    for loss in losses(outputs):
        line = F.taylor_expansion(block, X, loss, dW, dH, weight_decay=decay)

        def miss(step: float, loss: Loss = loss, line: TaylorExpansion = line) -> float:
            moved = ShallowBlock(block.W + step * dW, block.H + step * dH, block.slopes, block.output_bias)
            cost = decay.cost(moved) if isinstance(decay, F.WeightDecay) else 0.0
            return float((loss(moved(X)) + cost - line(step)).abs())

        step = min(line.eps_max, 0.02)
        rounding = 1e-14 * float(line.coefficients.abs().max())
        assert miss(0.0) <= rounding
        assert miss(step / 2) <= miss(step) / 16 + rounding or miss(step) <= rounding
        if line.exact:
            assert miss(line.eps_max) <= 100 * rounding


def test_a_squared_error_is_the_same_as_its_targets() -> None:
    torch.manual_seed(0)
    block, X = problem(2)
    Y, dW, dH = draw(12, 2), draw(3, 3), draw(2, 3)
    ours = F.taylor_expansion(block, X, F.SquaredError(Y, "half_sum"), dW, dH)
    theirs = F.taylor_expansion(block, X, Y, dW, dH, "half_sum")
    torch.testing.assert_close(ours.coefficients, theirs.coefficients)
    assert (ours.eps_max, ours.exact) == (theirs.eps_max, theirs.exact)


def test_a_loss_with_kinks_of_its_own_has_no_expansion() -> None:
    block, X = problem(1)
    with pytest.raises(ValueError, match="kinks of its own"):
        F.taylor_expansion(block, X, F.AbsoluteError(draw(12, 1)), block.W, block.H)
