"""A block is found however it is written, and its signal is the gradient behind the activation."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.capture import BlockLocation, choose_block, find_blocks, loss_at_outputs, read_block, read_signal
from relu_diag.nn import ReLULike, ShallowNet


class Custom(nn.Module):
    def __init__(
        self,
        activation: Callable[[Tensor], Tensor],
        inputs: int = 3,
        width: int = 7,
        outputs: int = 2,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.second = nn.Linear(width, outputs, bias=bias)
        self.first = nn.Linear(inputs, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


def leaky_by_where(z: Tensor) -> Tensor:
    return torch.where(z > 0, 2.0 * z, -0.5 * z)


ACTIVATIONS = {
    "nn.ReLU": (nn.ReLU(), (0.0, 1.0)),
    "nn.ReLU inplace": (nn.ReLU(inplace=True), (0.0, 1.0)),
    "nn.LeakyReLU": (nn.LeakyReLU(0.01), (0.01, 1.0)),
    "nn.PReLU": (nn.PReLU(), (0.25, 1.0)),
    "ReLULike": (ReLULike(-1.5, 0.0), (-1.5, 0.0)),
    "F.relu": (functional.relu, (0.0, 1.0)),
    "F.relu_": (functional.relu_, (0.0, 1.0)),
    "F.leaky_relu": (lambda z: functional.leaky_relu(z, 0.3), (0.3, 1.0)),
    "torch.clamp": (lambda z: torch.clamp(z, min=0), (0.0, 1.0)),
    "torch.maximum": (lambda z: torch.maximum(z, torch.zeros_like(z)), (0.0, 1.0)),
    "torch.abs": (torch.abs, (-1.0, 1.0)),
    "torch.where": (leaky_by_where, (-0.5, 2.0)),
    "dropout in eval mode": (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)).eval(), (0.0, 1.0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_is_found_however_the_activation_is_written(name: str, dtype: torch.dtype) -> None:
    activation, slopes = ACTIVATIONS[name]
    module = Custom(copy.deepcopy(activation)).to(dtype)
    (location,) = find_blocks(module)
    assert (location.hidden, location.output) == ("first", "second")
    assert location.slopes == pytest.approx(slopes, rel=1e-6)
    X = torch.randn(11, 3, dtype=dtype)
    assert_close(read_block(module)(torch.cat([X, X.new_ones(11, 1)], dim=1)), module(X))


def test_block_is_found_with_zero_weights_and_on_one_sample() -> None:
    net = ShallowNet(2, 5, init_scale=0.0)
    assert find_blocks(net, torch.ones(1, 2))[0].slopes == (0.0, 1.0)


def test_blocks_of_a_deep_network_are_all_found_and_one_must_be_chosen() -> None:
    deep = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.LeakyReLU(0.2),
        nn.Linear(4, 3),
        nn.GELU(),
        nn.Linear(3, 1),
    )
    assert [(b.hidden, b.output, b.slopes) for b in find_blocks(deep)] == [
        ("1", "3", (0.0, 1.0)),
        ("3", "5", (0.2, 1.0)),
    ]
    assert choose_block(deep, "3").output == "5"
    with pytest.raises(ValueError, match=r"several blocks; choose one by its first Linear: '1' .*'3'"):
        read_block(deep)
    with pytest.raises(ValueError, match="No block starts at '5'"):
        choose_block(deep, "5")


def test_a_second_reader_makes_two_blocks_of_one_hidden_layer() -> None:
    class TwoHeads(Custom):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.activation(self.first(x))
            return self.second(a), self.value(a)

    module = TwoHeads(nn.ReLU())
    module.value = nn.Linear(7, 1)
    assert [b.output for b in find_blocks(module)] == ["second", "value"]


class Shared(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x))) + self.second(self.activation(self.first(-x)))


def tied() -> nn.Module:
    module = Custom(nn.ReLU(), inputs=2, width=2, outputs=2)
    module.second.weight = module.first.weight
    return module


class Residual(Custom):
    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.second(z + torch.relu(z).roll(1, dims=1))


REFUSED = {
    "dropout in train mode": (Custom(nn.Sequential(nn.ReLU(), nn.Dropout(0.5))), "Dropout 'activation.1'"),
    "norm": (Custom(nn.Sequential(nn.ReLU(), nn.LayerNorm(7))), "LayerNorm 'activation.1'"),
    "nn.GELU": (Custom(nn.GELU()), "GELU 'activation'"),
    "F.gelu": (Custom(functional.gelu), r"not ReLU-like \(gelu\)"),
    "ReLU6 bends twice": (Custom(nn.ReLU6()), "ReLU6"),
    "one slope a neuron": (Custom(nn.PReLU(7)), "PReLU"),
    "nothing": (Custom(nn.Identity()), "linear"),
    "residual": (Residual(nn.ReLU()), "roll, add"),
    "applied twice": (Shared(nn.ReLU()), "'first' is applied 2 times"),
    "tied": (tied(), "shared with 'second.weight'"),
    "no layer": (nn.ReLU(), "no nn.Linear"),
    "one layer": (nn.Linear(2, 2), "none of its 1 Linear layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_block_is_named(name: str) -> None:
    module, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        find_blocks(module)


def test_a_module_that_needs_an_example_says_so() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp = nn.Embedding(10, 4), ShallowNet(4, 6)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.mlp(self.embed(tokens).mean(1))

    with pytest.raises(ValueError, match="Pass `example`"):
        find_blocks(Text())
    tokens = torch.randint(10, (3, 5))
    for example in (tokens, (tokens,), {"tokens": tokens}, [tokens, torch.ones(3, 1)]):
        assert find_blocks(Text(), example)[0].hidden == "mlp.hidden"


def test_finding_leaves_module_and_random_numbers_alone() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    module[0].eval()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    find_blocks(module)
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in module] == [False, True, True, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def penalised(module: nn.Module, X: Tensor, Y: Tensor) -> Tensor:
    A = module.activation(module.first(X))
    return functional.huber_loss(module.second(A), Y) + 0.1 * A.abs().mean()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1)])
def test_signal_gives_autograds_gradients_off_the_kink_with_an_l1_penalty_included(activation: nn.Module) -> None:
    torch.manual_seed(0)
    module = Custom(activation).double()
    X, Y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    location = choose_block(module)
    signal, loss = read_signal(module, location, lambda: penalised(module, X, Y))
    assert all(p.grad is None for p in module.parameters())
    penalised(module, X, Y).backward()
    geometry = F.neuron_geometry(read_block(module, location), signal)
    assert_close(loss, penalised(module, X, Y).detach())
    assert_close(geometry.smooth, torch.cat([module.first.weight.grad, module.first.bias.grad[:, None]], dim=1))
    assert_close(geometry.output_gradient, module.second.weight.grad)
    assert_close(signal.G.sum(0), module.second.bias.grad)


def test_signal_does_not_depend_on_the_side_autograd_picks_at_the_kink() -> None:
    net = ShallowNet(2, 1).double()
    with torch.no_grad():
        net.hidden.weight.copy_(torch.tensor([[1.0, 0.0]]))
        net.output.weight.fill_(1.0)
    X, Y = torch.tensor([[0.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    signal, _ = read_signal(net, choose_block(net), lambda: functional.mse_loss(net(X), Y))
    assert_close(F.neuron_geometry(read_block(net), signal).steepest, torch.tensor([-2.0], dtype=torch.float64))


def test_sequences_count_every_position_as_a_sample() -> None:
    module = Custom(nn.ReLU()).double()
    X = torch.randn(4, 5, 3, dtype=torch.float64)
    signal, _ = read_signal(module, choose_block(module, example=X), lambda: module(X).square().sum())
    assert signal.X.shape == (20, 4)
    assert signal.C is not None
    assert signal.C.shape == (20, 7)


def test_frozen_layers_still_have_a_signal() -> None:
    module = Custom(nn.ReLU(inplace=True)).requires_grad_(False)
    signal, _ = read_signal(module, choose_block(module), lambda: module(torch.ones(2, 3)).sum())
    assert_close(signal.G, torch.ones(2, 2))


def test_trained_prelu_slope_is_read_at_the_time() -> None:
    module = Custom(nn.PReLU())
    location = choose_block(module)
    with torch.no_grad():
        module.activation.weight.fill_(0.75)
    assert read_block(module, location).slopes == (0.75, 1.0)


def test_in_place_use_of_the_output_does_not_change_its_gradient() -> None:
    module = Custom(nn.ReLU())

    def loss() -> Tensor:
        out = module(torch.ones(2, 3))
        out.mul_(3.0)
        return out.sum()

    assert_close(read_signal(module, choose_block(module), loss)[0].G, torch.full((2, 2), 3.0))


class Leaking(Custom):
    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.second(torch.relu(z)) + z.sum(1, keepdim=True)


BAD_LOSSES = {
    "not scalar": (lambda m: m(torch.ones(2, 3)), r"one element; got \(2, 2\)"),
    "not a tensor": (lambda m: m(torch.ones(2, 3)).sum().item(), "got float"),
    "NaN": (lambda m: m(torch.ones(2, 3)).sum() * float("nan"), "The loss is nan"),
    "infinite": (lambda m: m(torch.ones(2, 3)).sum() / 0, "The loss is -?inf"),
    "detached": (lambda m: m(torch.ones(2, 3)).detach().sum(), "no gradient path"),
    "elsewhere": (
        lambda m: (m(torch.ones(2, 3)).detach() * m.first.weight.sum()).sum(),
        "does not depend on the output",
    ),
    "twice": (lambda m: (m(torch.ones(2, 3)) + m(torch.zeros(2, 3))).sum(), "ran 2 times"),
    "never": (lambda m: m.first.weight.sum(), "ran 0 times"),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_bad_losses_are_named(name: str) -> None:
    loss, message = BAD_LOSSES[name]
    module = Custom(nn.ReLU())
    with pytest.raises(ValueError, match=message):
        read_signal(module, choose_block(module), lambda: loss(module))


def test_another_reader_of_the_pre_activations_is_refused() -> None:
    module = Leaking(nn.ReLU())
    with pytest.raises(ValueError, match="read by more than the activation"):
        read_signal(module, choose_block(module), lambda: module(torch.ones(2, 3)).sum())


def test_an_activation_that_changed_since_it_was_found_is_refused() -> None:
    module = Custom(nn.ReLU())
    location = choose_block(module)
    module.activation = nn.LeakyReLU(0.5)
    with pytest.raises(ValueError, match="not the one traced"):
        read_signal(module, location, lambda: module(torch.randn(8, 3)).sum())
    with pytest.raises(ValueError, match="no Linear layers"):
        read_block(module, BlockLocation("absent", "second", (0.0, 1.0)))


def test_code_that_is_compiled_already_is_looked_at_too() -> None:
    X, net = torch.randn(4, 3), nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    compiled = torch.compile(net, backend="eager")
    compiled(X).sum().backward()  # compiled code knows of no later hook
    holder = nn.ModuleList([compiled])
    location = choose_block(holder, example=lambda: compiled(X))
    signal, loss = read_signal(holder, location, lambda: compiled(X).square().mean())
    assert_close(loss, net(X).square().mean().detach())
    assert_close(read_block(holder, location)(signal.X), net(X).detach())
    replaced, _ = loss_at_outputs(holder, location, torch.ones(4, 1), lambda: compiled(X).sum())
    assert replaced == 4
