"""Dead layers get new neurons: the loss falls, or stays where no neuron lowers it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag.capture import BlockLocation, read_block
from relu_diag.functional import SquaredError
from relu_diag.functional.block import rho
from relu_diag.functional.widening import Network, drawn_anew, reopened


def with_dead(widths: tuple[int, ...], dead: tuple[int, ...]) -> Network:
    """A network some of whose hidden layers are silent for every input of `rows`."""
    torch.manual_seed(0)
    sizes = (3, *widths, 2)
    net = nn.Sequential()
    for place in range(len(sizes) - 1):
        net.append(nn.Linear(sizes[place], sizes[place + 1])).append(nn.ReLU())
    net = net[:-1].double()
    with torch.no_grad():
        for place in range(len(widths)):
            net[2 * place].bias.fill_(-50.0 if place in dead else -0.1)
            if place not in dead:  # every other neuron lives where nothing comes in
                net[2 * place].bias[::2] = 0.3
    places = range(0, len(net) - 1, 2)
    network = Network.of([read_block(net, BlockLocation(str(at), str(at + 2), (0.0, 1.0))) for at in places])
    # As after training: of all constant functions the best one.
    X, loss = rows()
    last = network.block(len(widths) - 1)
    left = loss.gradient(network(X)).mean(dim=0) / loss.gradient(network(X) + 1).sub(loss.gradient(network(X))).mean()
    return network.with_block(len(widths) - 1, replace(last, output_bias=last.output_bias - left))


def rows() -> tuple[Tensor, SquaredError]:
    draw = torch.Generator().manual_seed(1)
    X = torch.cat([torch.randn(40, 3, generator=draw), torch.ones(40, 1)], dim=1).double()
    return X, SquaredError(torch.stack([X[:, 0].abs(), X[:, 1] * X[:, 2]], dim=1))


def silent(network: Network, X: Tensor) -> list[int]:
    """The dead layers, by what each neuron does."""
    found = []
    for place, inputs in enumerate(network.inputs(X)):
        if not bool((inputs @ network.block(place).W.T > 0).any()):
            found.append(place)
    return found


CASES = [((4,), (0,)), ((4, 3), (0, 1)), ((4, 3, 4), (0, 2)), ((2, 2, 2, 2, 2), (0, 2, 3)), ((1, 1, 1), (0, 1, 2))]


@pytest.mark.parametrize(("widths", "dead"), CASES)
def test_behind_dead_layers_the_loss_falls_again(widths: tuple[int, ...], dead: tuple[int, ...]) -> None:
    network, (X, loss) = with_dead(widths, dead), rows()
    assert silent(network, X) == [*dead]
    opened = reopened(network, dead, X, loss, held_out=0.0)
    assert not silent(opened, X)
    before, after = (float(loss(one(X))) for one in (network, opened))
    assert after < 0.98 * before
    for place in range(len(widths)):  # of as many neurons as before
        assert opened.block(place).W.shape == network.block(place).W.shape


def test_layers_between_dead_ones_keep_what_is_their_own() -> None:
    network, (X, loss) = with_dead((2, 3, 2), (0, 2)), rows()
    opened = reopened(network, [0, 2], X, loss, held_out=0.0)
    assert_close(opened.block(0).output_bias, network.block(0).output_bias)


@pytest.mark.parametrize(("widths", "dead"), CASES)
def test_neurons_drawn_anew_live_and_change_no_function(widths: tuple[int, ...], dead: tuple[int, ...]) -> None:
    network, (X, _) = with_dead(widths, dead), rows()
    for seed in range(3):
        drawn = drawn_anew(network, dead, X, seed)
        assert not silent(drawn, X)
        assert_close(drawn(X), network(X))
        for place in dead[:-1]:  # who is silent behind would be with the other sign as well
            block = drawn.block(place)
            heard = rho(drawn.inputs(X)[place].to(block.W) @ block.W.T, block.slopes) @ block.H.T
            living, otherwise = (((sign * heard + block.output_bias) > 0).any(dim=0) for sign in (1, -1))
            assert bool((living | ~otherwise).all())


def test_nothing_is_lost_where_no_neuron_lowers_the_loss() -> None:
    network, (X, _) = with_dead((2, 2), (1,)), rows()
    loss = SquaredError(network(X))
    opened = reopened(network, [1], X, loss, held_out=0.0)
    assert_close(opened(X), network(X))
