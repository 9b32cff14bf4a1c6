"""State that an optimizer keeps in another place or shape than torch's own follows a growth and new neurons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.testing import assert_close

from relu_diag.capture import find_blocks, read_block
from relu_diag.functional import ShallowBlock
from relu_diag.growth import grow, replace_units

Kept = Callable[[nn.Parameter], Tensor]


class Wrapper(Optimizer):
    """An optimizer around another one, whose state it shares under names of its own, and averages in a tuple."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.fast_state = inner.state
        self.defaults = inner.defaults
        self.averages = tuple(p.detach().clone() for p in self.param_groups[0]["params"])

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)


class NoOptimizer:
    """What Lightning takes for an optimizer: no subclass of torch's."""

    def __init__(self, inner: Optimizer) -> None:
        self.base = inner

    param_groups = property(lambda self: self.base.param_groups)
    defaults = property(lambda self: self.base.defaults)
    state = property(lambda self: self.base.state)

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)


def trained(make: Callable[[list[nn.Parameter]], Any]) -> tuple[Any, Any]:
    """A net after a step, and its optimizer."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = make(list(net.parameters()))
    net(torch.randn(20, 3)).square().mean().backward()
    getattr(optimizer, "inner", optimizer).step()
    return net, optimizer


def changed(net: Any, optimizer: Any, growing: bool) -> int:
    """Give the net a new neuron, or new weights for one; returns which."""
    (place,) = find_blocks(net)
    block = read_block(net, place)
    if not growing:
        replace_units(net, place, [1], ShallowBlock(block.W + 1, block.H + 1, block.slopes), [optimizer])
        return 1
    W, H = torch.cat([block.W, block.W[:1] + 1]), torch.cat([block.H, block.H[:, :1] + 1], dim=1)
    grow(net, place, ShallowBlock(W, H, block.slopes, block.output_bias), [optimizer])
    return 4


def rows(net: Any, kept: Kept, at: list[int]) -> list[Tensor]:
    """What is kept of some neurons, in the shape of their parameters."""
    parameters = [(net[0].weight, 0), (net[0].bias, 0), (net[2].weight, 1)]
    return [kept(p).reshape(p.shape).index_select(axis, torch.tensor(at)) for p, axis in parameters]


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("wrap", [Wrapper, NoOptimizer])
def test_a_wrapper_that_shares_the_state_of_another_optimizer_changes_it_once(wrap: Any, growing: bool) -> None:
    net, optimizer = trained(lambda p: wrap(Adam(p)))
    moments: list[Kept] = [lambda p: optimizer.state[p]["exp_avg"], lambda p: optimizer.state[p]["exp_avg_sq"]]
    before = [rows(net, kept, [0, 2, 3]) for kept in moments]
    new = changed(net, optimizer, growing)
    for kept, old in zip(moments, before, strict=True):
        assert_close(rows(net, kept, [0, 2, 3]), old)
    assert all(not one.any() for one in rows(net, moments[0], [new]))
    assert all(one.any() for one in rows(net, moments[1], [new]))
    if wrap is Wrapper:
        average = dict(zip(net.parameters(), optimizer.averages, strict=True))
        assert_close(rows(net, lambda p: average[p], [new]), rows(net, lambda p: p.detach(), [new]))


@pytest.mark.parametrize("growing", [False, True])
def test_state_kept_as_one_vector_is_that_of_the_neurons(growing: bool) -> None:
    net, optimizer = trained(lambda p: SGD(p, lr=0.1))
    for p in net.parameters():
        optimizer.state[p] = {"p0": p.detach().flatten().clone() + 0.1, "s": torch.ones(p.numel())}
    kept: Kept = lambda p: optimizer.state[p]["p0"]  # noqa: E731
    before = rows(net, kept, [0, 2, 3])
    new = changed(net, optimizer, growing)
    assert all(state["p0"].ndim == state["s"].ndim == 1 for state in optimizer.state.values())
    assert_close(rows(net, kept, [0, 2, 3]), before)
    assert_close(rows(net, kept, [new]), rows(net, lambda p: p.detach(), [new]))
    assert all(not one.any() for one in rows(net, lambda p: optimizer.state[p]["s"], [new]))


@pytest.mark.parametrize("growing", [False, True])
def test_matrices_of_a_whole_layer_in_a_list_start_again(growing: bool) -> None:
    net, optimizer = trained(lambda p: Adam(p))
    for p in net.parameters():
        optimizer.state[p]["Q"] = [torch.eye(size) for size in p.shape]
    with pytest.warns(UserWarning, match="The state Q of Adam"):
        changed(net, optimizer, growing)
    assert not optimizer.state[net[0].weight]
    assert optimizer.state[net[2].bias]


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_momentum_that_is_kept_beside_the_state_is_zero_for_new_neurons(mapped: bool, growing: bool) -> None:
    net, optimizer = trained(lambda p: SGD(p, lr=0.1))
    own = list(net.parameters())
    held = [p.detach() * 0 + 7.0 for p in own]
    optimizer.velocity = defaultdict(Tensor, zip(own, held, strict=True)) if mapped else held
    kept: Kept = lambda p: optimizer.velocity[p] if mapped else held[[one is p for one in own].index(True)]  # noqa: E731
    new = changed(net, optimizer, growing)
    assert all(bool((one == 7).all()) for one in rows(net, kept, [0, 2, 3]))
    assert all(not one.any() for one in rows(net, kept, [new]))


def test_what_is_no_optimizer_is_refused() -> None:
    net, _ = trained(lambda p: Adam(p))
    with pytest.raises(TypeError, match="`optimizers`"):
        changed(net, net, growing=True)
