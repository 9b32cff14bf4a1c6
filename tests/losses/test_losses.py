"""Integral losses of models: against the kernel, against each other, their errors, their refusals."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from support.reference_interval import Network, loss_by_quadrature
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional.integral import Gaussian
from relu_diag.losses import IntervalL2Loss, MonteCarloLoss, QuadratureLoss
from relu_diag.nn import ShallowNet

INTERVAL = (-1.0, 2.0)


def net(seed: int = 0, inputs: int = 1, outputs: int = 1, **options: Any) -> ShallowNet:
    torch.manual_seed(seed)
    return ShallowNet(inputs, 12, outputs, hidden_bias=True, output_bias=True, **options).double()


def as_network(model: ShallowNet) -> Network:
    w, b, h = (v.detach().flatten() for v in (model.hidden.weight, model.hidden.bias, model.output.weight))
    slopes = (model.activation.s_minus, model.activation.s_plus)
    return Network(w, b, h, float(model.output.bias.detach()), INTERVAL, slopes)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.3, 1.0)])
def test_interval_loss_of_a_model_is_the_integral(slopes: tuple[float, float]) -> None:
    model = net(slopes=slopes)
    loss = IntervalL2Loss(torch.sin, INTERVAL)
    assert_close(float(loss(model).detach()), loss_by_quadrature(as_network(model), math.sin), rtol=1e-12, atol=0)
    loss(model).backward()
    gradient = model.output.bias.grad.clone()
    with torch.no_grad():
        model.output.bias += 1e-6
    up = loss(model)
    with torch.no_grad():
        model.output.bias -= 2e-6
    assert_close(gradient, ((up - loss(model)) / 2e-6).reshape(1), rtol=1e-6, atol=1e-8)


def test_interval_loss_takes_a_block_without_biases_in_any_module() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 5, bias=False), nn.LeakyReLU(0.2)), nn.Linear(5, 1, bias=False))
    w, h = model[0][0].weight.flatten(), model[1].weight.flatten()
    expected = F.interval_l2_loss(w, 0 * w, h, 0.0, torch.cos, (0.0, 1.0), slopes=(0.2, 1.0))
    assert_close(IntervalL2Loss(torch.cos, (0.0, 1.0))(model), expected)


@pytest.mark.parametrize("loss_of", [QuadratureLoss, MonteCarloLoss])
def test_node_losses_converge_to_the_exact_one(loss_of: type) -> None:
    model, exact = net(), IntervalL2Loss(torch.sin, INTERVAL)
    options = {"order": 2000} if loss_of is QuadratureLoss else {"samples": 2**15}
    loss = loss_of(torch.sin, INTERVAL, **options)
    assert_close(loss(model), exact(model), rtol=1e-3, atol=0)
    found, expected = (torch.autograd.grad(each(model), list(model.parameters())) for each in (loss, exact))
    assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_quadrature_is_exact_for_polynomial_errors() -> None:
    linear = nn.Linear(2, 2).double()
    loss = QuadratureLoss(lambda X: torch.stack([X.prod(dim=1), X[:, 0] ** 2], dim=1), [(0, 1), (-1, 1)], order=3)
    finer = QuadratureLoss(loss.target, [(0, 1), (-1, 1)], order=9)
    assert_close(loss(linear), finer(linear))
    assert float(loss.error(linear)) > 1e-3  # two nodes are not enough
    assert float(finer.error(linear)) < 1e-14


@pytest.mark.parametrize("sampler", ["sobol", "iid"])
@pytest.mark.parametrize("domain", [[(0.0, 1.0), (-1.0, 2.0)], Gaussian(2, mean=0.5)])
def test_monte_carlo_is_unbiased_with_the_error_it_reports(sampler: Any, domain: Any) -> None:
    model = net(3, inputs=2)
    exact = QuadratureLoss(lambda X: X.prod(dim=1), domain, order=300)(model)
    loss = MonteCarloLoss(lambda X: X.prod(dim=1), domain, samples=64, sampler=sampler)
    draws = torch.stack([loss(model).detach() for _ in range(400)])
    assert abs(draws.mean() - exact) < 4 * draws.std() / 20 + 1e-4 * exact
    assert_close(loss.error(model), draws.std(), rtol=0.7, atol=0)


def test_nodes_are_fresh_or_fixed_and_numbered() -> None:
    model = net(inputs=3)
    fresh = MonteCarloLoss(lambda X: X.sum(dim=1), [(0, 1)] * 3, samples=32)
    first, second = fresh(model), fresh(model)
    assert first != second
    fresh.error(model)
    third = fresh(model)
    fresh.draws = 1
    assert (fresh(model), fresh(model)) == (second, third)  # and looking at the error changed nothing
    fixed = MonteCarloLoss(lambda X: X.sum(dim=1), [(0, 1)] * 3, samples=32, fresh=False)
    assert fixed(model) == fixed(model)
    assert MonteCarloLoss(fixed.target, [(0, 1)] * 3, samples=32, seed=1)(model) != first


@pytest.mark.parametrize("sampler", ["sobol", "iid"])
def test_seeds_numbers_and_purposes_have_nodes_of_their_own(sampler: Any) -> None:
    """A CPU generator reads 32 bits of its seed: all that tells nodes apart must be in them."""
    like = torch.ones(1, dtype=torch.float64)
    drawn = []
    for seed in (0, 1, 2, 2**24, 2**31, 2**40):
        loss = MonteCarloLoss(torch.sin, INTERVAL, samples=8, sampler=sampler, seed=seed)
        drawn += [loss._draw(like, *key)[0] for key in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 1, 1))]
        assert torch.equal(loss.nodes(nn.Linear(1, 1).double())[0], drawn[-5])
    assert len({tuple(X.flatten().tolist()) for X in drawn}) == len(drawn)


def test_the_global_generator_is_left_alone() -> None:
    model, scalar = net(inputs=2), net()
    before = torch.get_rng_state()
    for loss in (
        MonteCarloLoss(lambda X: X.sum(dim=1), [(0, 1)] * 2, sampler="iid"),
        QuadratureLoss(lambda X: X.sum(dim=1), [(0, 1)] * 2),
    ):
        loss(model)
        loss.error(model)
    IntervalL2Loss(torch.sin, INTERVAL)(scalar)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "loss",
    [
        IntervalL2Loss(F.IntervalTarget(torch.sin, density=lambda x: 2 + x), INTERVAL),
        QuadratureLoss(torch.sin, INTERVAL, order=200),
        MonteCarloLoss(torch.sin, INTERVAL, samples=4096),
    ],
)
def test_nodes_with_their_weights_are_the_loss(loss: Any) -> None:
    model = net()
    X, Y, weight = loss.nodes(model)
    assert (X.shape, Y.shape) == ((len(weight), 1), (len(weight), 1))
    assert_close((weight * (model(X) - Y).square().sum(dim=1)).mean(), loss(model), rtol=2e-3, atol=0)


def test_errors_of_the_exact_loss_are_tiny_for_smooth_targets_and_seen_for_rough_ones() -> None:
    model = net()
    assert float(IntervalL2Loss(torch.sin, INTERVAL).error(model)) < 1e-12
    rough = IntervalL2Loss(F.IntervalTarget(lambda x: (37 * x).sin(), order=2, cells=1), INTERVAL)
    truth = IntervalL2Loss(lambda x: (37 * x).sin(), INTERVAL)(model)
    assert float(rough.error(model)) > 0.1 * float((rough(model) - truth).abs().detach())


def test_one_node_is_no_exact_rule() -> None:
    one = F.IntervalTarget(torch.sin, order=1, cells=1)
    for loss in (QuadratureLoss(torch.sin, INTERVAL, order=1), IntervalL2Loss(one, INTERVAL)):
        assert float(loss.error(net())) > 0.01


def test_losses_are_copied_and_pickled_with_their_module() -> None:
    model, loss = net(), IntervalL2Loss(torch.sin, INTERVAL)
    expected = loss(model)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert_close(other(model), expected)
        assert "((-1.0, 2.0),)" in repr(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_dtypes_train(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    for loss in (IntervalL2Loss(torch.sin, INTERVAL), MonteCarloLoss(torch.sin, INTERVAL)):
        value = loss(model)
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, list(model.parameters())))


def test_the_exact_loss_is_exact_in_mixed_precision() -> None:
    """Also where it sees the model for the first time, and the model's own outputs are those of bfloat16."""
    model = net().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = IntervalL2Loss(torch.sin, INTERVAL)(model)
    assert_close(found, IntervalL2Loss(torch.sin, INTERVAL)(model), rtol=0, atol=0)


@pytest.mark.parametrize("loss_of", [QuadratureLoss, MonteCarloLoss])
def test_targets_that_are_networks_keep_their_digits_in_mixed_precision(loss_of: Any) -> None:
    teacher, student = net(1).float(), net(2).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss_of(teacher, INTERVAL).nodes(student)
    assert_close(mixed, loss_of(teacher, INTERVAL).nodes(student), rtol=0, atol=0)


@pytest.mark.parametrize("loss_of", [QuadratureLoss, MonteCarloLoss])
def test_targets_that_are_networks_are_not_trained_and_may_have_other_digits(loss_of: Any) -> None:
    teacher, student = net(1).double(), net(2).float()
    loss = loss_of(teacher, INTERVAL)
    assert not [*loss.parameters()]
    X, Y, _ = loss.nodes(student)
    assert_close(Y, teacher(X.double()).detach().float())
    before = loss(student)
    nn.init.zeros_(teacher.output.weight)  # the loss has a copy
    assert_close(loss_of(net(1).double(), INTERVAL)(student), before)


class Squeezed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


def test_models_that_drop_the_output_dimension_are_taken() -> None:
    model = net()
    for loss in (IntervalL2Loss(torch.sin, INTERVAL), QuadratureLoss(torch.sin, INTERVAL)):
        assert_close(loss(Squeezed(model)), loss(model))


def outputs_two(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: IntervalL2Loss(torch.sin, (1.0, 0.0)), ValueError, "`interval` must be"),
        (lambda: IntervalL2Loss(torch.log, (-1.0, 1.0)), ValueError, "`target` is not finite at x = -0.99"),
        (lambda: QuadratureLoss(torch.log, (-1.0, 1.0)), ValueError, r"`target` is not finite at x = \[-0.98"),
        (lambda: MonteCarloLoss(torch.log, (-1.0, 1.0)), ValueError, r"`target` is not finite at x = \["),
        (lambda: QuadratureLoss(torch.sum, (-1.0, 1.0)), ValueError, "`target` must return one row per node"),
        (lambda: QuadratureLoss(lambda X: X.tolist(), (0, 1)), TypeError, "`target` must return a torch.Tensor"),
        (lambda: QuadratureLoss(torch.sin, [(0, 1)] * 12), ValueError, "draw Sobol points: MonteCarloLoss"),
        (lambda: MonteCarloLoss(torch.sin, (0, 1), samples=1), ValueError, "`samples` must be at least 2"),
        (lambda: MonteCarloLoss(torch.sin, (0, 1), seed=-1), ValueError, "`seed` must be at least 0; got -1"),
        (lambda: MonteCarloLoss(torch.sin, (0, 1), sampler="halton"), ValueError, "`sampler` must be 'sobol' or 'iid'"),
    ],
)
def test_what_cannot_be_integrated_is_refused_at_once(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), "could not be run on the example"),
        (nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)), "needs one input and one output"),
        (nn.Sequential(nn.Linear(1, 3), nn.PReLU(), nn.Linear(3, 1)), "The slope of '1' is trained"),
        (nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1), nn.Tanh()), "computes more than its block 0 -> 2"),
        (nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), "No Linear -> ReLU-like -> Linear block"),
        (
            nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)),
            "Monte.* take any model",
        ),
        (nn.ReLU(), "has no floating-point parameter"),
    ],
)
def test_models_that_are_no_block_of_one_input_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntervalL2Loss(torch.sin, (0.0, 1.0))(model)


def test_models_that_do_not_fit_the_target_are_refused() -> None:
    loss = QuadratureLoss(outputs_two, (0.0, 1.0))
    with pytest.raises(ValueError, match=r"The model returns \(16, 1\) where the target returns \(16, 2\)"):
        loss(nn.Linear(1, 1))
