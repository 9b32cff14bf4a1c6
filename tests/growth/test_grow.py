"""Growing a live module: parameters, gradients, optimizer state; what stays and what a new neuron starts with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.small_net import LOCATION, data, net, with_replica
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop, Rprop
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag.capture import read_block
from relu_diag.growth import check_growable, grow

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "adamw_foreach": lambda p: AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "nadam": lambda p: NAdam(p, lr=0.01),
    "adamax": lambda p: Adamax(p, lr=0.01),
    "adadelta": lambda p: Adadelta(p, lr=1.0),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda p: Adagrad(p, lr=0.05),
    "rprop": lambda p: Rprop(p, lr=0.01),
}


def train(module: nn.Module, optimizer: Optimizer, steps: int) -> None:
    X, Y = data(next(module.parameters()).dtype)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(X), Y)
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        optimizer.step(closure)


def loss_of(module: nn.Module) -> float:
    X, Y = data()
    with torch.no_grad():
        return float(nn.functional.mse_loss(module(X), Y))


def with_silent_neurons(block: ShallowBlock, count: int) -> ShallowBlock:
    """Neurons that read nothing and write nothing: their gradients are zero, so the old ones must not notice them."""
    W, H = block.W.new_zeros(count, block.W.shape[1]), block.H.new_zeros(len(block.H), count)
    return ShallowBlock(torch.cat([block.W, W]), torch.cat([block.H, H], dim=1), block.slopes, block.output_bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_neurons_train_on_as_if_nothing_had_happened(name: str) -> None:
    module = net()
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    train(module, optimizer, 5)
    alone = copy.deepcopy(module)
    other = OPTIMIZERS[name](list(alone.parameters()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    grow(module, LOCATION, with_silent_neurons(read_block(module), 2), [optimizer])
    train(module, optimizer, 5)
    train(alone, other, 5)
    assert_close(module[0].weight[:6], alone[0].weight)
    assert_close(module[0].bias[:6], alone[0].bias)
    assert_close(module[2].weight[:, :6], alone[2].weight)
    assert_close(module[2].bias, alone[2].bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_neurons_train_and_their_first_step_is_no_leap(name: str) -> None:
    module = net()
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    train(module, optimizer, 20)
    grow(module, LOCATION, with_replica(read_block(module)), [optimizer])
    before = module[0].weight.detach().clone()
    train(module, optimizer, 1)
    moved = (module[0].weight - before).abs().amax(dim=1)
    assert moved[-1] > 0
    assert moved[-1] <= 3 * moved[:-1].max()
    losses = []
    for _ in range(3):
        losses.append(loss_of(module))
        train(module, optimizer, 10)
    assert losses[2] < losses[0]


def test_state_of_a_new_neuron_is_zero_momentum_and_the_mean_second_moment() -> None:
    module = net()
    optimizer = Adam(module.parameters(), lr=0.01)
    train(module, optimizer, 5)
    old = copy.deepcopy(optimizer.state_dict()["state"])
    grow(module, LOCATION, with_replica(read_block(module)), [optimizer])
    hidden, output = optimizer.state[module[0].weight], optimizer.state[module[2].weight]
    assert torch.equal(hidden["exp_avg"], torch.cat([old[0]["exp_avg"], torch.zeros(1, 3)]))
    assert_close(hidden["exp_avg_sq"], torch.cat([old[0]["exp_avg_sq"], old[0]["exp_avg_sq"].mean(0, keepdim=True)]))
    assert_close(output["exp_avg_sq"][:, -1], old[2]["exp_avg_sq"].mean(1))
    assert torch.equal(hidden["step"], old[0]["step"])
    assert torch.equal(optimizer.state[module[2].bias]["exp_avg"], old[3]["exp_avg"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_layers_hold_the_new_block_and_stay_the_objects_they_were(dtype: torch.dtype) -> None:
    module = net(dtype=dtype)
    layers, parameters = list(module), list(module.parameters())
    new = with_replica(read_block(module))
    grow(module, LOCATION, new)
    assert all(one is other for one, other in zip(module, layers, strict=True))
    assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))
    assert (module[0].out_features, module[2].in_features) == (7, 7)
    read = read_block(module, LOCATION)
    assert read.W.dtype == dtype
    for name in ("W", "H", "output_bias"):
        assert torch.equal(getattr(read, name), getattr(new, name))


def test_gradients_that_are_being_accumulated_are_padded() -> None:
    module, (X, Y) = net(), data()
    optimizer = SGD(module.parameters(), lr=0.1)
    nn.functional.mse_loss(module(X), Y).backward()
    old = [parameter.grad.clone() for parameter in module.parameters()]
    grow(module, LOCATION, with_silent_neurons(read_block(module), 1), [optimizer])
    assert torch.equal(module[0].weight.grad, torch.cat([old[0], torch.zeros(1, 3)]))
    assert torch.equal(module[2].weight.grad, torch.cat([old[2], torch.zeros(2, 1)], dim=1))
    nn.functional.mse_loss(module(X), Y).backward()
    assert_close(module[0].weight.grad[:6], 2 * old[0])


def test_schedulers_go_on() -> None:
    module = net()
    optimizer = SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(module, optimizer, 1)
    scheduler.step()
    grow(module, LOCATION, with_replica(read_block(module)), [optimizer])
    train(module, optimizer, 1)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.025]


def test_lbfgs_starts_its_history_again_and_says_so() -> None:
    module = net()
    optimizer = LBFGS(module.parameters(), max_iter=3)
    train(module, optimizer, 2)
    with pytest.warns(UserWarning, match="history starts again"):
        grow(module, LOCATION, with_replica(read_block(module)), [optimizer])
    before = loss_of(module)
    train(module, optimizer, 3)
    assert loss_of(module) < before


def test_factored_moments_of_adafactor_say_the_same_of_the_old_neurons() -> None:
    module = net()
    optimizer = Adafactor(module.parameters(), lr=0.01)
    train(module, optimizer, 2)

    def estimates() -> list[torch.Tensor]:
        moments = [optimizer.state[module[layer].weight] for layer in (0, 2)]
        return [one["row_var"] @ one["col_var"] / one["row_var"].mean() for one in moments]

    hidden, output = estimates()
    grow(module, LOCATION, with_replica(read_block(module)), [optimizer])
    wider_hidden, wider_output = estimates()
    assert_close(wider_hidden, torch.cat([hidden, hidden.mean(0, keepdim=True)]))
    assert_close(wider_output, torch.cat([output, output.mean(1, keepdim=True)], dim=1))
    assert len(optimizer.state[module[0].bias]["variance"]) == 7
    train(module, optimizer, 2)


def test_compiled_code_is_made_again() -> None:
    module = net()
    module.compile(backend="eager")
    X, _ = data()
    before = module(X).detach()
    grow(
        module,
        LOCATION,
        with_replica(read_block(module, LOCATION)),
    )
    assert_close(module(X), before)


def test_hooks_and_attributes_of_a_parameter_stay() -> None:
    module, (X, _) = net(), data()
    weight, called = module[0].weight, []
    weight.decay = False
    handles = [
        weight.register_hook(lambda grad: called.append(grad.shape)),
        weight.register_post_accumulate_grad_hook(lambda parameter: called.append(parameter.grad.shape)),
    ]
    grow(module, LOCATION, with_replica(read_block(module)))
    module(X).sum().backward()
    assert called == 2 * [weight.shape]
    assert not weight.decay
    for handle in handles:
        handle.remove()
    module(X).sum().backward()
    assert len(called) == 2


def test_blocks_that_can_never_grow_are_told_before_any_training() -> None:
    module = net()
    optimizer = SGD(module.parameters(), lr=0.1)
    check_growable(module, LOCATION, [optimizer])
    with pytest.raises(ValueError, match="none of the optimizers"):
        check_growable(module, LOCATION, [SGD(module[0].parameters(), lr=0.1)])
    module[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        check_growable(module, LOCATION)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(net()[0]), nn.ReLU(), net()[2])
    with pytest.raises(ValueError, match="parametrization"):
        check_growable(normed, LOCATION)
