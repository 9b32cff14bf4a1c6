"""A ride counts what sits on a kink behind a block, and slopes are exact where nothing does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.capture import Ride, Sighting, exactness, riding


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ride_on(module: nn.Module, loss: Callable[[], Tensor]) -> list[Sighting]:
    with riding(module) as ride:
        value = loss()
        ride.board(value)
        value.backward()
        return ride.end()


class Deep(nn.Module):
    """A block, a later layer, and anything between that and the output."""

    def __init__(self, later: Callable[[Tensor], Tensor], width: int = 5, out: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, width)).double()
        self.later = later
        self.out = nn.Linear(out, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.later(self.block(x)))

    def put_on_kink(self, place: float = 0.0, units: int = 3) -> None:
        """Later units with no weights: their inputs are their bias, for all samples."""
        with torch.no_grad():
            self.block[2].weight[:units] = 0.0
            self.block[2].bias[:units] = place


LATER: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (torch.relu, 0.0),
    "nn.ReLU": (nn.ReLU(), 0.0),
    "nn.ReLU in place": (nn.ReLU(inplace=True), 0.0),
    "nn.ReLU behind a norm": (nn.Sequential(nn.Identity(), nn.BatchNorm1d(5).double().eval(), nn.ReLU()), 0.0),
    "leaky": (nn.LeakyReLU(0.1), 0.0),
    "leaky in place": (nn.LeakyReLU(0.1, inplace=True), 0.0),
    "prelu": (nn.PReLU(dtype=torch.float64), 0.0),
    "absolute value": (torch.abs, 0.0),
    "relu6": (nnf.relu6, 6.0),
    "clamp": (lambda z: z.clamp(-1.0, 0.5), 0.5),
    "clamp_min": (lambda z: z.clamp_min(0.25), 0.25),
    "threshold": (lambda z: nnf.threshold(z, 0.25, 0.0), 0.25),
    "maximum": (lambda z: torch.maximum(z, torch.full_like(z, 0.25)), 0.25),
    "hardswish": (nnf.hardswish, -3.0),
}


@pytest.mark.parametrize(("later", "place"), LATER.values(), ids=LATER)
def test_inputs_on_a_later_kink_are_counted(later: Callable[[Tensor], Tensor], place: float) -> None:
    net, x = Deep(later), inputs(7, 3)
    first = ride_on(net, lambda: net(x).square().sum())[0]
    assert first.exactness == "exact"
    net.put_on_kink(place)
    first = ride_on(net, lambda: net(x).square().sum())[0]
    assert first.later_kinks is not None
    assert int(first.later_kinks) == 21
    assert first.exactness == "not exact: 21 later kinks"


def test_kinks_without_a_say_in_the_loss_do_not_count() -> None:
    net, x = Deep(torch.relu), inputs(7, 3)
    net.put_on_kink()
    with torch.no_grad():
        net.out.weight[:, 0] = 0.0
    first = ride_on(net, lambda: net(x)[:2].square().sum())[0]
    assert first.exactness == "not exact: 4 later kinks"


def test_each_block_counts_what_is_behind_itself() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for place in (2, 4):
            net[place].weight[0] = 0.0
            net[place].bias[0] = 0.0
        net[4].weight[:, 0] = 1.0
        net[4].weight[0] = 0.0
        net[6].weight.fill_(1.0)
        for place in (0, 2, 4):
            net[place].weight[1:].abs_()
            net[place].bias[1:] = 1.0
    seen = ride_on(net, lambda: net(inputs(5, 4).abs()).sum())
    assert [one.exactness for one in seen] == ["not exact: 10 later kinks", "not exact: 5 later kinks", "exact"]


@pytest.mark.parametrize(
    ("later", "name"),
    [
        (lambda z: nnf.max_pool1d(z[:, None], 5)[:, 0].expand(-1, 5), "MaxPool2DWithIndices"),
        (lambda z: torch.relu(torch.relu(z) - 1.0), "Relu"),
    ],
)
def test_what_nobody_keeps_is_said_not_to_be_counted(later: Callable[[Tensor], Tensor], name: str) -> None:
    net, x = Deep(later), inputs(7, 3)
    first = ride_on(net, lambda: net(x).square().sum())[0]
    assert first.uncounted == (name,)
    assert first.exactness == f"perhaps not exact: kinks of a later {name} were not counted"


def test_behind_repeated_applications_each_kink_counts_once() -> None:
    net, x = Deep(torch.relu, width=3, out=3), inputs(7, 3)
    net.put_on_kink(units=2)
    first = ride_on(net, lambda: net.out(torch.relu(net.block(net.block(x)))).square().sum())[0]
    assert len(first.signal.X) == 14
    assert first.later_kinks is not None
    assert int(first.later_kinks) == 14


def test_a_loss_that_was_not_seen_leaves_it_open() -> None:
    net = Deep(torch.relu)
    ride = Ride(net)
    ride.begin(board_outputs=True)
    net(inputs(7, 3)).square().sum().backward()
    assert {one.exactness for one in ride.end()} == {"perhaps not exact: later kinks were not counted"}


def test_exactness_in_words() -> None:
    assert exactness(1) == "not exact: 1 later kink"
    assert exactness(1234) == "not exact: 1,234 later kinks"


def test_where_a_count_says_exact_the_dual_pass_agrees_and_else_it_is_right() -> None:
    net, x = Deep(torch.relu), inputs(7, 3)

    def loss() -> Tensor:
        return net(x).square().sum()

    (seen,) = (one for one in ride_on(net, loss) if one.hidden == "block.0")
    along = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    unit = seen.block.W / seen.block.W.norm(dim=1, keepdim=True)
    along = along - (along * unit).sum(1, keepdim=True) * unit
    direction = {"block.0.weight": along[:, :-1], "block.0.bias": along[:, -1]}
    expected = F.tangential_derivatives(seen.block, seen.signal, along).sum()
    assert seen.exactness == "exact"
    assert_close(F.directional_derivative(net, loss, direction), expected)
    with torch.no_grad():  # a later unit whose input is 0 until the block moves
        net.block[2].weight[0] = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
        net.block[2].bias[0] = 0.0
        net.block[0].weight[1] = net.block[0].weight[0]
        net.block[0].bias[:2] = 3.0
    (seen,) = (one for one in ride_on(net, loss) if one.hidden == "block.0")
    assert seen.exactness == "not exact: 7 later kinks"
    unit = seen.block.W / seen.block.W.norm(dim=1, keepdim=True)
    along = along - (along * unit).sum(1, keepdim=True) * unit
    direction = {"block.0.weight": along[:, :-1], "block.0.bias": along[:, -1]}
    expected = F.tangential_derivatives(seen.block, seen.signal, along).sum()
    assert abs(float(F.directional_derivative(net, loss, direction) - expected)) > 1e-3
