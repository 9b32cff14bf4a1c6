"""What is remembered of earlier steps saves work and changes no number; another kind of step is read anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag.capture import Memory, Ride, SampledSums, Sighting, samples_cheaply
from relu_diag.capture._reading import read
from relu_diag.functional import NotFiniteError
from relu_diag.functional.local import RunningSums


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ride_on(
    module: nn.Module, x: Tensor, memory: Memory | None, lent: bool = False
) -> tuple[list[Sighting], dict[str, str]]:
    ride = Ride(module, memory, lent)
    ride.begin()
    loss = module(x).square().sum()
    ride.board(loss)
    module.zero_grad()
    loss.backward()
    try:
        return ride.end(), ride.reasons
    finally:
        ride.leave()


def same(some: list[Sighting], others: list[Sighting]) -> None:
    assert [one.name for one in some] == [one.name for one in others]
    for one, other in zip(some, others, strict=True):
        for found, expected in ((one.block, other.block), (one.signal, other.signal)):
            fields = ("W", "H", "slopes", "output_bias") if found is one.block else ("X", "G", "C", "Z")
            assert_close([getattr(found, name) for name in fields], [getattr(expected, name) for name in fields])
        assert_close(one.gradients, other.gradients)
        assert (one.tied, one.dropout, one.kinks_after) == (other.tied, other.dropout, other.kinks_after)
        assert one.exactness == other.exactness
        assert list(map(id, one.parameters)) == list(map(id, other.parameters))
        if one.live is not None and other.live is not None:
            assert_close(one.live().W, other.live().W)
            assert one.live().slopes == other.live().slopes


class Net(nn.Module):
    """Three layers whose second activation, heads and weights can be changed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(3, 6).double()
        self.b = nn.Linear(6, 6).double()
        self.c = nn.Linear(6, 6).double()
        self.first: nn.Module = nn.ReLU()
        self.second: nn.Module = nn.PReLU().double()
        self.heads = 1
        self.norm = nn.BatchNorm1d(6).double()
        self.normed = False

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        hidden = self.first(self.norm(z) if self.normed else z)
        out: Tensor = self.c(self.second(self.b(hidden)))
        return out + hidden if self.heads == 2 else out


def change(net: Net) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)


def widen(net: Net) -> None:
    net.a = nn.Linear(3, 9).double()
    net.b = nn.Linear(9, 6).double()


CHANGES: dict[str, Callable[[Net], Any]] = {
    "nothing but weights": change,
    "another activation": lambda net: setattr(net, "first", nn.LeakyReLU(0.3)),
    "another slope": lambda net: net.second.load_state_dict({"weight": torch.tensor([0.7], dtype=torch.float64)}),
    "no ReLU": lambda net: setattr(net, "first", nn.GELU()),
    "another reader": lambda net: setattr(net, "heads", 2),
    "a shared weight": lambda net: setattr(net.c, "weight", net.b.weight),
    "another layer": lambda net: setattr(net, "b", nn.Linear(6, 6).double()),
    "a layer without bias": lambda net: setattr(net, "b", nn.Linear(6, 6, bias=False).double()),
    "another width": widen,
    "a frozen layer": lambda net: net.b.requires_grad_(False),
    "a frozen bias": lambda net: net.b.bias.requires_grad_(False),
    "a norm in training": lambda net: setattr(net, "normed", True),
}


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_a_step_is_seen_with_a_memory_as_without(changed: Callable[[Net], Any], lent: bool) -> None:
    net, memory = Net(), Memory()
    for step in range(3):
        ride_on(net, inputs(5, 3, seed=step), memory, lent)
    changed(net)
    x = inputs(7, 3, seed=4)
    found, reasons = ride_on(net, x, memory, lent)
    expected, reasons_expected = ride_on(net, x, None)
    same(found, expected)
    assert reasons == reasons_expected


def test_a_norm_that_turns_to_its_fixed_statistics_becomes_part_of_the_block() -> None:
    net, memory, x = Net(), Memory(), inputs(5, 3)
    net.normed = True
    for _ in range(2):
        found, reasons = ride_on(net, x, memory)
        assert [one.name for one in found] == ["b -> c"]
        assert "BatchNorm" in reasons["a -> b"]
    net.norm.eval()
    found, _ = ride_on(net, x, memory)
    assert [one.name for one in found] == ["a -> b", "b -> c"]


def test_the_graph_of_a_second_step_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(1)
        return read(*args)

    monkeypatch.setattr("relu_diag.capture.memory.read", counted)
    net, memory = Net(), Memory()
    for step in range(4):
        ride_on(net, inputs(5, 3, seed=step), memory)
    assert len(calls) == 1


def test_copies_of_a_step_outlive_a_later_one_that_is_not_finite() -> None:
    net, memory, x = Net(), Memory(), inputs(5, 3)
    ride_on(net, x, memory, lent=True)
    (first, _), _ = ride_on(net, x, memory, lent=True)
    W = net.a.weight.detach().clone()
    with torch.no_grad():
        net.a.weight.fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(NotFiniteError):
            ride_on(net, x, memory, lent=True)
    assert_close(first.block.W[:, :-1], W)


def test_gradients_are_lent_unless_a_hook_may_change_them() -> None:
    net, memory, x = Net(), Memory(), inputs(5, 3)
    net.a.weight.register_hook(lambda gradient: gradient.mul_(0.0))  # type: ignore[no-untyped-call]
    (first, _), _ = ride_on(net, x, memory, lent=True)
    expected = RunningSums()
    expected.add(first.block, first.signal)
    assert first.gradients is not None
    assert_close(first.gradients[0], expected.sums().smooth)


def wide(bias: bool, inplace: bool) -> nn.Module:
    torch.manual_seed(0)
    hidden = nn.Linear(700, 300, bias=bias)
    net = nn.Sequential(hidden, nn.ReLU(inplace), nn.Linear(300, 2)).double()
    with torch.no_grad():
        if bias:
            hidden.bias[:40] = -1e4  # silent on all rows
            hidden.bias[40:80] = 1e4
    return net


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_sampled_sums_have_the_gradients_and_extremes_of_all_rows(bias: bool, inplace: bool) -> None:
    net, memory, sampled, everything = wide(bias, inplace), Memory(), SampledSums(), RunningSums()
    for step in range(3):
        x = inputs(150, 700, seed=step)
        x[:50] = 0.0  # on no kink, where there is no bias
        (seen,), _ = ride_on(net, x, memory)
        assert samples_cheaply(seen)
        sampled.add(seen)
        everything.add(seen.block, seen.signal, weight=150, gradients=seen.gradients)
        change_a_little(net)
    found, expected = sampled.sums(seen.block), everything.sums()
    assert int(found.samples) == int(expected.samples) == 450
    assert_close((found.smooth, found.output_gradient), (expected.smooth, expected.output_gradient))
    # An activation of 0 does not tell how far below its kink a neuron is.
    known = (expected.z_max > 0) | (expected.z_max < (-torch.inf if inplace else -1))
    assert_close(found.z_max[known], expected.z_max[known], atol=1e-8, rtol=1e-8)
    assert torch.equal(found.z_max < 0, expected.z_max < 0)
    assert torch.equal(found.z_min > 0, expected.z_min > 0)
    for name in ("activation", "terms", "output_terms", "squares"):
        ratio = getattr(found, name).sum() / getattr(expected, name).sum()
        assert 0.8 < ratio < 1.25, name


def change_a_little(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.01)


def test_of_few_rows_all_are_taken_and_the_memory_of_a_window_serves_the_next() -> None:
    net, sampled = Net(), SampledSums()
    for _ in range(2):
        everything = RunningSums()
        for step in range(40):  # more than wait for a report
            seen = ride_on(net, inputs(5, 3, seed=step), None)[0][0]
            sampled.add(seen)
            everything.add(seen.block, seen.signal, weight=5, gradients=seen.gradients)
        found, expected = sampled.sums(seen.block), everything.sums()
        for name in ("smooth", "z_min", "z_max", "activation", "terms", "squares", "kink_count", "samples"):
            assert_close(getattr(found, name), getattr(expected, name), check_dtype=False)
    assert sampled.empty
