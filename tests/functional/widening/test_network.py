"""A network of several layers, its blocks, and where training of all of it leads."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag.capture import BlockLocation, read_block
from relu_diag.functional import SquaredError
from relu_diag.functional.widening import Network, add_inactive_propagation, rehearsed_losses

SIZES = (3, 4, 2, 5, 2)


def layers(seed: int = 0, *sizes: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    pairs = itertools.pairwise(sizes or SIZES)
    return nn.Sequential(*[one for pair in pairs for one in (nn.Linear(*pair, bias=bias), nn.ReLU())][:-1]).double()


def network_of(net: nn.Sequential) -> Network:
    places = range(0, len(net) - 1, 2)
    return Network.of([read_block(net, BlockLocation(str(at), str(at + 2), (0.0, 1.0))) for at in places])


def rows(bias: bool = True) -> tuple[Tensor, Tensor]:
    X = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    return X, torch.cat([X, torch.ones(7, 1).double()], dim=1) if bias else X


def test_the_blocks_of_a_network_compute_what_its_layers_do() -> None:
    for bias in (True, False):
        net = layers(bias=bias)
        X, with_constant = rows(bias)
        network = network_of(net)
        assert_close(network(with_constant), net(X).detach())
        for place, inputs in enumerate(network.inputs(with_constant)):
            expected = net[: 2 * place](X).detach()
            assert_close(inputs[:, :-1] if bias else inputs, expected)
        target = SquaredError(torch.ones(7, 2).double())
        outputs = net[:3](X).detach()
        assert_close(network.loss_behind(0, target)(outputs), target(net(X).detach()))


def test_a_network_of_half_precision_computes_in_single() -> None:
    for sizes in ((3, 4, 2), (3, 4, 5, 2)):
        net = layers(0, *sizes).bfloat16()
        X, with_constant = rows()
        outputs = network_of(net)(with_constant.bfloat16())
        assert_close(outputs, net.float()(X.bfloat16().float()).detach())


def test_a_block_that_is_put_back_changes_the_weights_that_others_share_with_it() -> None:
    net = layers()
    X, with_constant = rows()
    network = network_of(net)
    for place in range(3):
        block = network.block(place)
        assert_close(network.with_block(place, block)(with_constant), network(with_constant))
        changed = ShallowBlock(2 * block.W, 3 * block.H, block.slopes, block.output_bias)
        own = layers()
        with torch.no_grad():
            own[2 * place].weight.mul_(2)
            own[2 * place].bias.mul_(2)
            own[2 * place + 2].weight.mul_(3)
        assert_close(network.with_block(place, changed)(with_constant), own(X).detach())


def trained(net: nn.Sequential, X: Tensor, Y: Tensor, rate: float) -> float:
    """The loss after torch's Adam."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, eps=torch.finfo(torch.float64).eps)
    for _ in range(200):
        optimizer.zero_grad()
        (net(X) - Y).square().mean().backward()
        optimizer.step()
    return (net(X) - Y).square().mean().item()


def test_a_rehearsal_of_deep_networks_is_adam_on_all_their_layers() -> None:
    X, with_constant = rows()
    Y = torch.randn(7, 2, generator=torch.Generator().manual_seed(2)).double()
    several = [layers(seed) for seed in range(3)]
    networks = [network_of(net) for net in several]
    expected = [trained(net, X, Y, rate=0.01) for net in several]
    assert_close(
        torch.tensor(rehearsed_losses(networks, with_constant, SquaredError(Y), rate=0.01)),
        torch.tensor(expected),
        rtol=1e-6,  # sums in another order, 200 times
        atol=1e-9,
    )


def test_networks_of_other_widths_are_rehearsed_beside_each_other_as_alone() -> None:
    _, with_constant = rows()
    loss = SquaredError(torch.ones(7, 2).double())
    network = network_of(layers())
    block = network.block(1)
    wide = network.with_block(1, add_inactive_propagation(block, torch.randn(3, block.W.shape[1]).double()))
    together = rehearsed_losses([network, wide], with_constant, loss, rate=0.01)
    alone = [rehearsed_losses([one], with_constant, loss, rate=0.01)[0] for one in (network, wide)]
    assert_close(torch.tensor(together), torch.tensor(alone), rtol=1e-6, atol=1e-9)
