"""How far a network is from the best of any width: no network is below the bound, growing closes the gap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import WeightDecay
from relu_diag.functional.output_loss import Loss, as_loss

Parts = list[Tensor]


def loss_of(name: str, samples: int, outputs: int, seed: int) -> Loss:
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(samples, outputs, generator=generator, dtype=torch.float64)
    losses = {
        "squared": lambda: F.SquaredError(Y),
        "half sum": lambda: F.SquaredError(Y, "half_sum"),
        "logistic": lambda: F.BinaryCrossEntropy((Y > 0).double()),
        "cross-entropy": lambda: F.CrossEntropy(Y.argmax(dim=1)),
        "huber": lambda: F.Huber(Y, delta=0.5),
        "poisson": lambda: F.Poisson(Y.exp().round()),
    }
    return losses[name]()


def inputs_of(samples: int, inputs: int, seed: int) -> Tensor:
    X = torch.randn(samples, inputs, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
    X[:, -1] = 1.0
    return X


def wide(width: int, inputs: int, outputs: int, seed: int, bias: bool, slopes: tuple[float, float]) -> ShallowBlock:
    generator = torch.Generator().manual_seed(seed)
    W, H = (0.3 * torch.randn(*shape, generator=generator).double() for shape in ((width, inputs), (outputs, width)))
    return ShallowBlock(W, H, slopes, torch.zeros(outputs).double() if bias else None)


def objective(block: ShallowBlock, X: Tensor, loss: Loss, decay: WeightDecay) -> Tensor:
    return loss(block(X)) + decay.cost(block)


def trained(block: ShallowBlock, X: Tensor, loss: Loss, decay: WeightDecay, turning: bool = True) -> ShallowBlock:
    """The block after a quasi-Newton search over all its parameters, or over all but the directions of its neurons."""
    W = block.W if turning else block.W.norm(dim=1, keepdim=True)
    parts = [W, block.H] + ([] if block.output_bias is None else [block.output_bias])

    def unpacked(x: Tensor) -> ShallowBlock:
        flat = x.split([part.numel() for part in parts])
        W, H, *bias = (one.reshape(part.shape) for one, part in zip(flat, parts, strict=True))
        W = W if turning else W * torch.nn.functional.normalize(block.W)
        return ShallowBlock(W, H, block.slopes, bias[0] if bias else None)

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(x, requires_grad=True)
        total = objective(unpacked(at), X, loss, decay)
        (gradient,) = torch.autograd.grad(total, at)
        return float(total.detach()), gradient.numpy()

    start = torch.cat([part.flatten() for part in parts]).numpy()
    options = {"maxiter": 300, "ftol": 1e-15, "gtol": 1e-10}
    return unpacked(torch.tensor(minimize(value, start, jac=True, method="L-BFGS-B", options=options).x))


CASES = [
    ("squared", 1, (0.0, 1.0), False, WeightDecay(0.02, 0.02)),
    ("half sum", 2, (0.1, 1.0), True, WeightDecay(0.3, 0.1)),
    ("logistic", 1, (0.0, 1.0), True, WeightDecay(0.01, 0.02, output_bias=0.05)),
    ("cross-entropy", 3, (0.0, 1.0), True, WeightDecay(0.01, 0.01, hidden_bias=0.002)),
    ("huber", 1, (-1.0, 1.0), False, WeightDecay(0.02, 0.01, hidden_bias=0.0)),
    ("poisson", 1, (0.0, 1.0), True, WeightDecay(0.02, 0.02, hidden_bias=0.0, output_bias=0.1)),
]


@pytest.mark.parametrize(("name", "outputs", "slopes", "bias", "decay"), CASES)
def test_no_wide_network_is_below_the_bound_and_one_comes_near(
    name: str, outputs: int, slopes: tuple[float, float], bias: bool, decay: WeightDecay
) -> None:
    X = inputs_of(12, 2, seed=3)
    loss = loss_of(name, 12, outputs, seed=3)
    gap = F.optimality_gap(wide(2, 2, outputs, 0, bias, slopes), X, loss, decay)
    assert gap.certified
    ends = [trained(wide(20, 2, outputs, seed, bias, slopes), X, loss, decay) for seed in range(2)]
    best = min(float(objective(end, X, loss, decay)) for end in ends)
    assert gap.dual <= best + 1e-9
    assert best - gap.dual <= 0.02 * abs(best)


@pytest.mark.parametrize("name", ["squared", "logistic"])
def test_adding_the_neuron_and_training_on_closes_the_gap(name: str) -> None:
    X = inputs_of(20, 2, seed=5)
    loss = loss_of(name, 20, 1, seed=5)
    decay = WeightDecay(0.01, 0.01)
    block = trained(wide(1, 2, 1, 0, True, (0.0, 1.0)), X, loss, decay)
    rounds = 0
    gap = F.optimality_gap(block, X, loss, decay, rounds=0)
    while gap.gap > 1e-4 and rounds < 25:
        W = torch.cat([block.W, 0.1 * gap.neuron[None]])
        H = torch.cat([block.H, 0.1 * gap.output[:, None]], dim=1)
        block = trained(ShallowBlock(W, H, block.slopes, block.output_bias), X, loss, decay, turning=False)
        gap = F.optimality_gap(block, X, loss, decay, rounds=0)
        rounds += 1
    assert gap.gap <= 1e-4
    assert gap.certified


def test_rounds_raise_the_bound_of_a_point_that_is_not_trained() -> None:
    X = inputs_of(20, 2, seed=1)
    Y = loss_of("squared", 20, 1, seed=1).Y
    block = wide(3, 2, 1, 0, False, (0.0, 1.0))
    alone, raised = (F.optimality_gap(block, X, Y, 0.01, rounds=rounds) for rounds in (0, 8))
    assert alone.primal == raised.primal == float(objective(block, X, as_loss(Y), WeightDecay(0.01, 0.01)))
    assert alone.dual < 0.7 * raised.dual
    assert torch.equal(alone.neuron, raised.neuron)


def test_the_zero_network_is_the_best_of_all_under_enough_decay() -> None:
    X = inputs_of(10, 2, seed=0)
    Y = loss_of("squared", 10, 1, seed=0).Y
    none = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
    pull = F.extremal_directions(X, F.squared_error_signal(none, X, Y).G).gain[0]
    enough, little = (F.optimality_gap(none, X, Y, factor * float(pull)) for factor in (1.001, 0.5))
    assert str(enough) == "a global minimum of every width"
    assert enough.pull < 1 < little.pull
    assert little.gap > 0


def test_a_gap_is_in_words() -> None:
    neuron = torch.ones(1)
    near, far, guess = (
        F.Gap(1.004, 1.0, 0.004, neuron, neuron, 1.1, True),
        F.Gap(1.0, 0.0, 1.0, neuron, neuron, 1.1, True),
        F.Gap(1.5, 1.0, 0.5, neuron, neuron, 1.1, False),
    )
    assert str(near) == "within 0.4 % of the best network of any width"
    assert str(far) == "the best network of any width may gain 1 of 1"
    assert str(guess) == "estimate: within 50 % of the best network of any width"


def test_without_decay_the_bound_is_what_no_function_of_such_networks_can_fit() -> None:
    rows = inputs_of(6, 3, seed=2)
    X = torch.cat([rows, rows[:2], 3 * rows[2:3]])  # twice the same inputs, and one on the ray of another
    Y = loss_of("squared", 9, 2, seed=2).Y
    block = wide(4, 3, 2, 0, False, (0.0, 1.0))
    gap = F.optimality_gap(block, X, Y)
    pairs = (Y[6:8] - Y[:2]).square().sum() / 2
    ray = (Y[8] - 3 * Y[2]).square().sum() / 10
    assert_close(gap.dual, float((pairs + ray) / Y.numel()))
    assert gap.certified
    assert gap.pull == math.inf


@pytest.mark.parametrize("bias", [False, True])
def test_without_decay_even_units_fit_even_functions_and_constants(bias: bool) -> None:
    line = torch.tensor([[1.0], [-1.0], [0.0]]).double()
    Y = torch.tensor([[1.0], [0.0], [0.5]]).double()
    block = wide(2, 1, 1, 0, bias, (-1.0, 1.0))
    # |x| has 1/2 at both ends; at 0 only a constant helps.
    assert_close(F.optimality_gap(block, line, Y, reduction="sum").dual, 0.5 if bias else 0.75)


def test_hidden_and_output_weights_share_the_decay_by_their_geometric_mean() -> None:
    X, loss = inputs_of(12, 2, seed=4), loss_of("logistic", 12, 1, seed=4)
    block = wide(2, 2, 1, 0, False, (0.0, 1.0))
    one, two = (F.optimality_gap(block, X, loss, decay) for decay in (WeightDecay(0.01, 0.04), WeightDecay(0.02, 0.02)))
    assert_close(one.dual, two.dual)
    assert_close(one.neuron, two.neuron)


def test_the_neuron_has_the_largest_pull_and_lowers_the_loss() -> None:
    X, loss = inputs_of(12, 2, seed=6), loss_of("cross-entropy", 12, 3, seed=6)
    decay = WeightDecay(0.01, 0.01, hidden_bias=0.0025)
    block = trained(wide(1, 2, 3, 0, True, (0.0, 1.0)), X, loss, decay)
    gap = F.optimality_gap(block, X, loss, decay)
    assert gap.pull > 1
    # The bias decays less, so the best balance of the two weights is not that of equal lengths.
    size = (decay.W * gap.neuron[0] ** 2 + 0.0025 * gap.neuron[1] ** 2).sqrt()
    grown = ShallowBlock(
        torch.cat([block.W, 0.01 * (gap.neuron / size)[None]]),
        torch.cat([block.H, 0.01 / decay.H**0.5 * gap.output[:, None]], dim=1),
        block.slopes,
        block.output_bias,
    )
    assert objective(grown, X, loss, decay) < objective(block, X, loss, decay)


def test_float32_gives_the_bound_of_the_same_network_in_float64() -> None:
    X, Y = inputs_of(12, 2, seed=7).float(), loss_of("squared", 12, 1, seed=7).Y.float()
    block = wide(2, 2, 1, 0, True, (0.0, 1.0)).cast(torch.float32)
    single, double = F.optimality_gap(block, X, Y, 0.01), F.optimality_gap(block.double(), X.double(), Y.double(), 0.01)
    assert_close(single.dual, double.dual)


def test_labels_of_one_class_only_have_no_best_bias() -> None:
    X = inputs_of(8, 2, seed=8)
    loss = F.BinaryCrossEntropy(torch.ones(8, 1).double())
    gap = F.optimality_gap(wide(2, 2, 1, 0, True, (0.0, 1.0)), X, loss, 0.1)
    assert -1e-12 <= gap.dual <= 1e-3


def test_the_absolute_error_has_a_bound_though_it_has_a_kink() -> None:
    X, Y = inputs_of(12, 2, seed=9), loss_of("squared", 12, 1, seed=9).Y
    loss, decay = F.AbsoluteError(Y), WeightDecay(0.02, 0.02)
    gap = F.optimality_gap(wide(2, 2, 1, 0, True, (0.0, 1.0)), X, loss, decay)
    best = trained(wide(30, 2, 1, 0, True, (0.0, 1.0)), X, loss, decay)
    assert 0 < gap.dual <= float(objective(best, X, loss, decay)) + 1e-9


def test_bad_input_is_refused() -> None:
    X, Y = inputs_of(5, 2, seed=0), torch.zeros(5, 1).double()
    block = wide(2, 2, 1, 0, False, (0.0, 1.0))
    with pytest.raises(ValueError, match="`loss` must be convex"):
        F.optimality_gap(block, X, F.OutputLoss(lambda outputs: outputs.sin().sum()), 0.1)
    with pytest.raises(NotImplementedError, match="conjugate"):
        F.optimality_gap(block, X, F.OutputLoss(lambda outputs: outputs.square().sum(), convex=True), 0.1)
    with pytest.raises(TypeError, match="targets as a tensor"):
        F.optimality_gap(block, X, torch.nn.MSELoss(), 0.1)
    with pytest.raises(ValueError, match="last column of X must be constant"):
        F.optimality_gap(block, X + torch.arange(5.0)[:, None], Y, WeightDecay(0.1, 0.1, hidden_bias=0.0))
    with pytest.raises(ValueError, match="`W` must be a finite factor"):
        F.optimality_gap(block, X, Y, -0.1)
    with pytest.raises(ValueError, match="`rounds` must not be negative"):
        F.optimality_gap(block, X, Y, 0.1, rounds=-1)
    with pytest.raises(ValueError, match="columns"):
        F.optimality_gap(block, X[:, :1], Y, 0.1)
