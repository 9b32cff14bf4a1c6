"""Neurons of a live module get new weights: what changes, what stays, and what the optimizers remember."""

from __future__ import annotations

import copy

import pytest
import torch
from support.copying_optimizers import copying
from support.small_net import LOCATION, data, net
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adafactor, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag.capture import read_block, riding
from relu_diag.growth import grow, replace_units

UNITS = [1, 4]
KEPT = [0, 2, 3, 5]


def train(module: nn.Module, optimizer: Optimizer, steps: int) -> None:
    X, Y = data(next(module.parameters()).dtype)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(X), Y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def other_weights(block: ShallowBlock) -> ShallowBlock:
    """All neurons anew, so that only those that are named may be taken over; silent ones, output weights zero."""
    draw = torch.Generator().manual_seed(3)
    W = torch.randn(block.W.shape, generator=draw).to(block.W)
    return ShallowBlock(W, torch.zeros_like(block.H), block.slopes, block.output_bias)


def optimizer_of(name: str, module: nn.Module) -> Optimizer:
    parameters = list(module.parameters())
    return {
        "momentum": lambda: SGD(parameters, lr=0.05, momentum=0.9),
        "adam": lambda: Adam(parameters, lr=0.01, amsgrad=True),
        "adamw fused": lambda: AdamW(parameters, lr=0.01, fused=True),
        "nadam": lambda: NAdam(parameters, lr=0.01),
        "rmsprop": lambda: RMSprop(parameters, lr=0.01, centered=True, momentum=0.5),
        "adagrad": lambda: Adagrad(parameters, lr=0.05),
    }[name]()


OPTIMIZERS = ("momentum", "adam", "adamw fused", "nadam", "rmsprop", "adagrad")


def test_only_the_named_neurons_change_and_every_parameter_stays_the_same_object() -> None:
    module = net()
    before = read_block(module)
    parameters = list(module.parameters())
    memory = [parameter.data_ptr() for parameter in parameters]
    new = other_weights(before)
    replace_units(module, LOCATION, UNITS, new)
    now = read_block(module)
    assert torch.equal(now.W[UNITS], new.W[UNITS])
    assert torch.equal(now.H[:, UNITS], new.H[:, UNITS])
    assert torch.equal(now.W[KEPT], before.W[KEPT])
    assert torch.equal(now.H[:, KEPT], before.H[:, KEPT])
    assert torch.equal(now.output_bias, before.output_bias)
    assert [parameter.data_ptr() for parameter in module.parameters()] == memory
    assert all(one is other for one, other in zip(parameters, module.parameters(), strict=True))


def test_a_block_of_the_new_neurons_alone_says_the_same() -> None:
    module, other = net(), net()
    new = other_weights(read_block(module))
    replace_units(module, LOCATION, UNITS, new)
    replace_units(other, LOCATION, torch.tensor(UNITS), ShallowBlock(new.W[UNITS], new.H[:, UNITS], new.slopes))
    assert torch.equal(module[0].weight, other[0].weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_the_named_neurons_start_again_in_place_and_no_others(name: str) -> None:
    module = net()
    optimizer = optimizer_of(name, module)
    train(module, optimizer, 5)
    state = optimizer.state
    old = copy.deepcopy({n: dict(state[p]) for n, p in module.named_parameters()})
    tensors = {n: {key: id(value) for key, value in state[p].items()} for n, p in module.named_parameters()}
    replace_units(module, LOCATION, UNITS, other_weights(read_block(module)), [optimizer])
    axes = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    for parameter_name, parameter in module.named_parameters():
        assert {key: id(value) for key, value in state[parameter].items()} == tensors[parameter_name]
        for key, value in state[parameter].items():
            before = old[parameter_name][key]
            if parameter_name not in axes or value.ndim == 0:
                assert torch.equal(value, before)
                continue
            rows, rows_before = value.movedim(axes[parameter_name], 0), before.movedim(axes[parameter_name], 0)
            assert torch.equal(rows[KEPT], rows_before[KEPT])
            scale = key in {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}
            expected = rows_before[KEPT].mean(0) if scale else torch.zeros_like(rows[0])
            assert_close(rows[UNITS], expected.expand_as(rows[UNITS]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_silent_new_neurons_leave_the_others_training_as_before_at_first_and_learn_themselves(name: str) -> None:
    module = net()
    optimizer = optimizer_of(name, module)
    train(module, optimizer, 20)
    replace_units(module, LOCATION, UNITS, other_weights(read_block(module)), [optimizer])
    before = module[2].weight.detach().clone()
    train(module, optimizer, 1)
    moved = (module[2].weight - before).abs().amax(dim=0)
    assert bool((moved[UNITS] > 0).all())
    assert bool((moved[UNITS] <= 5 * moved[KEPT].max()).all())


def test_factored_moments_keep_what_they_say_of_the_others() -> None:
    module = net()
    optimizer = Adafactor(module.parameters(), lr=0.01)
    train(module, optimizer, 2)
    old = optimizer.state[module[0].weight]["row_var"].clone()
    columns = optimizer.state[module[0].weight]["col_var"].clone()
    replace_units(module, LOCATION, UNITS, other_weights(read_block(module)), [optimizer])
    now = optimizer.state[module[0].weight]
    assert torch.equal(now["row_var"][KEPT], old[KEPT])
    assert_close(now["row_var"][UNITS], old[KEPT].mean(0).expand_as(old[UNITS]))
    assert torch.equal(now["col_var"], columns)
    train(module, optimizer, 2)


def test_moments_of_all_neurons_together_are_dropped_and_so_is_the_history_of_lbfgs() -> None:
    module = net()
    optimizer = SGD(module.parameters(), lr=0.1)
    for parameter in module.parameters():
        optimizer.state[parameter]["preconditioner"] = torch.eye(9)
    with pytest.warns(UserWarning, match="preconditioner of SGD is of all neurons together"):
        replace_units(module, LOCATION, UNITS, other_weights(read_block(module)), [optimizer])
    assert not optimizer.state[module[0].weight]
    assert optimizer.state[module[2].bias]
    lbfgs = LBFGS(module.parameters(), max_iter=3)
    train(module, lbfgs, 1)
    with pytest.warns(UserWarning, match="history starts again"):
        replace_units(module, LOCATION, UNITS, other_weights(read_block(module)), [lbfgs])


@pytest.mark.parametrize("name", ["lookahead", "lookahead in lists", "schedule-free", "prodigy"])
@pytest.mark.parametrize("growing", [False, True])
def test_copies_that_an_optimizer_keeps_of_its_parameters_take_the_new_values(name: str, growing: bool) -> None:
    """At a learning rate of zero nothing may move, whatever copy the weights are pulled to."""
    module = net()
    optimizer = copying(name, list(module.parameters()))
    train(module, optimizer, 7)
    block = read_block(module)
    if growing:
        W = torch.cat([block.W, torch.ones_like(block.W[:2])])
        H = torch.cat([block.H, torch.ones_like(block.H[:, :2])], dim=1)
        grow(module, LOCATION, ShallowBlock(W, H, block.slopes, block.output_bias), [optimizer])
    else:
        new = other_weights(block)
        replace_units(module, LOCATION, UNITS, ShallowBlock(new.W, new.H + 1, new.slopes), [optimizer])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    now = read_block(module)
    places = [6, 7] if growing else UNITS
    train(module, optimizer, 3)
    assert_close(read_block(module).W[places], now.W[places])
    assert_close(read_block(module).H[:, places], now.H[:, places])


def test_gradients_that_are_being_accumulated_are_those_of_the_neurons_that_stay() -> None:
    module, (X, Y) = net(), data()
    nn.functional.mse_loss(module(X), Y).backward()
    old = module[0].weight.grad.clone()
    replace_units(module, LOCATION, UNITS, other_weights(read_block(module)))
    assert torch.equal(module[0].weight.grad[KEPT], old[KEPT])
    assert not module[0].weight.grad[UNITS].any()


def test_compiled_code_goes_on_without_a_new_compilation() -> None:
    module = net()
    torch._dynamo.reset()
    module.compile(backend="eager")
    X, _ = data()
    module(X)
    with torch._dynamo.config.patch(error_on_recompile=True):
        replace_units(module, LOCATION, UNITS, other_weights(read_block(module, LOCATION)))
        outputs = module(X)
    assert_close(outputs, read_block(module, LOCATION)(torch.cat([X, X.new_ones(len(X), 1)], dim=1)))


class Raw(nn.Module):
    """Raw parameters, stored the other way round; tied on request."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Parameter(torch.randn(3, 6, dtype=torch.float64))
        self.out = self.into if tied else nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x @ self.into + self.bias).relu()
        return hidden @ (self.into.T if self.tied else self.out)


@pytest.mark.parametrize("tied", [False, True])
def test_raw_parameters_are_replaced_where_a_ride_has_seen_them(tied: bool) -> None:
    module, (X, _) = Raw(tied), data()
    if tied:
        del module.out
    with riding(module) as ride:
        loss = (module(X) - X).square().mean()
        ride.board(loss)
        loss.backward()
        (seen,) = ride.end()
    assert seen.live is not None
    new = other_weights(seen.live())
    if tied:
        with pytest.raises(ValueError, match="input and the output weight at once"):
            replace_units(module, seen.live, UNITS, new)
        new = ShallowBlock(new.W, new.W[:, :3].T.contiguous(), new.slopes)
    replace_units(module, seen.live, UNITS, new, [SGD(module.parameters(), lr=0.1)])
    assert torch.equal(module.into[:, UNITS], new.W[UNITS, :3].T)
    assert torch.equal(module.bias[UNITS], new.W[UNITS, 3])


def test_what_cannot_be_replaced_is_refused_and_nothing_changes() -> None:
    module = net()
    block = other_weights(read_block(module))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="0 to 5"):
        replace_units(module, LOCATION, [6], block)
    with pytest.raises(ValueError, match="twice"):
        replace_units(module, LOCATION, [1, 1], block)
    with pytest.raises(ValueError, match="4 inputs"):
        replace_units(module, LOCATION, [1], ShallowBlock(block.W[:, :3], block.H))
    with pytest.raises(ValueError, match="slopes"):
        replace_units(module, LOCATION, [1], ShallowBlock(block.W, block.H, (0.5, 1.0)))
    with pytest.raises(ValueError, match="none of the optimizers"):
        replace_units(module, LOCATION, [1], block, [SGD(module[0].parameters(), lr=0.1)])
    module[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        replace_units(module, LOCATION, [1], block)
    module[0].bias.requires_grad_(True)
    shared = nn.ModuleList([module, module[0]])
    with pytest.raises(ValueError, match="share their weights"):
        replace_units(nn.Sequential(*module, shared[1]), LOCATION, [1], block)
    normed = nn.utils.parametrizations.weight_norm(net()[0])
    with pytest.raises(ValueError, match="parametrization"):
        replace_units(nn.Sequential(normed, nn.ReLU(), module[2]), LOCATION, [1], block)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
