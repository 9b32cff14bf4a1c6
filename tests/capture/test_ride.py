"""Riding along sees what a pass of its own would see, in modules however written, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from relu_diag.capture import Ride, Sighting, find_blocks, read_block, read_signal, riding


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def ride_on(module: nn.Module, loss: Callable[[], Tensor]) -> tuple[list[Sighting], dict[str, str]]:
    with riding(module) as ride:
        value = loss()
        ride.board(value)
        value.backward()
        return ride.end(), ride.reasons


class Between(nn.Module):
    """Two Linear layers with anything between them."""

    def __init__(self, act: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(3, 6, bias=bias)
        self.b = nn.Linear(6, 2, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "PReLU": nn.PReLU(),
    "clamp": lambda z: z.clamp(min=0),
    "where": lambda z: torch.where(z > 0, z, 0.1 * z),
    "maximum": lambda z: torch.maximum(z, torch.zeros(())),
    "mask": lambda z: z * (z > 0),
    "absolute value": lambda z: (z + z.abs()) / 2,
    "threshold": lambda z: nn.functional.threshold(z, 0.0, 0.0),
    "two ReLUs": lambda z: torch.relu(z) - 0.3 * torch.relu(-z),
}


@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3)], ids=["rows", "sequences"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_a_ride_sees_what_a_pass_of_its_own_sees(
    act: Callable[[Tensor], Tensor], bias: bool, shape: tuple[int, ...]
) -> None:
    net, x = Between(act, bias), inputs(*shape)
    (location,) = find_blocks(net, x)
    expected, _ = read_signal(net, location, lambda: net(x).square().mean())
    (seen,), _ = ride_on(net, lambda: net(x).square().mean())
    block = read_block(net, location)
    assert seen.name == "a -> b"
    assert seen.block.slopes == block.slopes
    assert_close((seen.block.W, seen.block.H), (block.W, block.H))
    assert_close((seen.signal.X, seen.signal.G, seen.signal.C), (expected.X, expected.G, expected.C))
    assert_close(seen.block(seen.signal.X), net(x).reshape(-1, 2))


def test_the_gradients_are_those_of_autograd_and_cost_no_product() -> None:
    net, x = Between(nn.ReLU()), inputs(9, 3)
    (seen,), _ = ride_on(net, lambda: net(x).square().mean())
    assert seen.gradients is not None
    assert net.a.weight.grad is not None
    assert net.a.bias.grad is not None
    assert_close(seen.gradients[0], torch.cat([net.a.weight.grad, net.a.bias.grad[:, None]], dim=1))
    assert_close(seen.gradients[1], net.b.weight.grad)


class SparseAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.W_enc = nn.Parameter(torch.randn(3, 8))
        self.b_enc = nn.Parameter(torch.randn(8))
        self.W_dec = nn.Parameter(torch.randn(8, 3))
        self.b_dec = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        return features @ self.W_dec + self.b_dec, features


@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3)], ids=["rows", "sequences"])
def test_products_with_parameters_are_blocks_too_and_a_penalty_is_in_C(shape: tuple[int, ...]) -> None:
    sae, x = SparseAutoencoder(), inputs(*shape)

    def loss() -> Tensor:
        out, features = sae(x)
        return (out - x).square().sum() + 0.1 * features.abs().sum()

    (seen,), _ = ride_on(sae, loss)
    assert seen.name == "W_enc -> W_dec"
    assert_close(seen.block(seen.signal.X), sae(x)[0].reshape(-1, 3))
    active = seen.signal.X @ seen.block.W.T > 0
    price = (seen.signal.C - seen.signal.G @ seen.block.H)[active]
    assert_close(price, torch.full_like(price, 0.1))


def test_the_parameters_that_took_part_are_told() -> None:
    net = Between(nn.PReLU())
    (seen,), _ = ride_on(net, lambda: net(inputs(7, 3)).square().mean())
    assert {id(parameter) for parameter in seen.parameters} == {id(parameter) for parameter in net.parameters()}


def test_one_layer_read_by_two_heads_is_one_block() -> None:
    torch.manual_seed(0)
    body = nn.ModuleDict({"hidden": nn.Linear(3, 6), "mean": nn.Linear(6, 2), "spread": nn.Linear(6, 1)})
    x = inputs(7, 3)

    def loss() -> Tensor:
        features = torch.relu(body["hidden"](x))
        return body["mean"](features).square().mean() + body["spread"](features).exp().mean()

    (seen,), _ = ride_on(body, loss)
    assert seen.name == "hidden -> mean, spread"
    assert seen.block.H.shape == (3, 6)
    assert_close(seen.signal.C, seen.signal.G @ seen.block.H)


def test_a_layer_applied_twice_is_one_block_with_more_rows() -> None:
    net, x = Between(nn.ReLU()), inputs(7, 3)
    (seen,), _ = ride_on(net, lambda: (net(x) - net(-x)).square().sum())
    assert len(seen.signal.X) == 14
    assert seen.gradients is not None
    assert_close(seen.gradients[1], net.b.weight.grad)


def test_the_mask_of_dropout_is_in_C() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)), inputs(7, 3)
    (seen,), _ = ride_on(net, lambda: net(x).square().sum())
    assert seen.dropout
    share = seen.signal.C / (seen.signal.G @ seen.block.H)
    assert_close(share, torch.where(share.abs() < 1, 0.0, 2.0))


def test_the_feed_forward_of_a_transformer_is_a_block_and_attention_is_left_alone() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    (seen,), reasons = ride_on(layer, lambda: layer(inputs(2, 5, 4)).square().mean())
    assert seen.name == "linear1 -> linear2"
    assert reasons == {}, "no activation stands between attention and the feed-forward"


def test_several_blocks_know_of_the_kinks_behind_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    (first, last), _ = ride_on(net, lambda: net(inputs(7, 3)).square().mean())
    assert (first.name, first.kinks_after, first.from_data) == ("0 -> 2", ("Relu",), True)
    assert (last.name, last.kinks_after, last.from_data) == ("2 -> 4", (), False)


EFFECTIVE: dict[str, Callable[[nn.Sequential], object]] = {
    "weight_norm": lambda net: [parametrizations.weight_norm(net[i]) for i in (0, 2)],
    "spectral_norm": lambda net: parametrizations.spectral_norm(net[0]),
    "pruned": lambda net: [prune.random_unstructured(net[i], "weight", 0.5) for i in (0, 2)],
    "frozen output": lambda net: net[2].requires_grad_(False),
}


@pytest.mark.parametrize("change", EFFECTIVE.values(), ids=EFFECTIVE)
def test_the_weight_read_is_the_one_that_took_part(change: Callable[[nn.Sequential], object]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), inputs(7, 3)
    change(net)
    outputs = []

    def loss() -> Tensor:
        outputs.append(net(x))
        return outputs[-1].square().sum()

    (seen,), _ = ride_on(net, loss)
    assert_close(seen.block(seen.signal.X), outputs[0].detach())


def test_a_linear_with_a_forward_of_its_own_is_read_as_it_computes() -> None:
    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * 0.5, self.bias)

    net, x = nn.Sequential(Halved(3, 6), nn.ReLU(), Halved(6, 2)), inputs(7, 3)
    (seen,), _ = ride_on(net, lambda: net(x).square().sum())
    assert_close(seen.block(seen.signal.X), net(x).detach())


REFUSED: dict[str, tuple[list[nn.Module], str]] = {
    "GELU": ([nn.GELU()], "Gelu between"),
    "ReLU6": ([nn.ReLU6()], "Hardtanh between"),
    "batch norm": ([nn.BatchNorm1d(6), nn.ReLU()], "BatchNorm between, in training mode"),
    "layer norm": ([nn.ReLU(), nn.LayerNorm(6)], "LayerNorm between"),
    "nothing": ([], "nothing between"),
}


@pytest.mark.parametrize(("between", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_stands_between_is_named(between: list[nn.Module], reason: str) -> None:
    net = nn.Sequential(nn.Linear(3, 6), *between, nn.Linear(6, 2))
    seen, reasons = ride_on(net, lambda: net(inputs(7, 3)).square().sum())
    assert not seen
    assert reasons == {f"0 -> {len(between) + 1}": reason}


def test_pre_activations_with_another_reader_make_no_block() -> None:
    class Skip(Between):
        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            return self.b(torch.relu(z)) + z[:, :2]

    net = Skip(nn.ReLU())
    seen, reasons = ride_on(net, lambda: net(inputs(7, 3)).square().sum())
    assert not seen
    assert reasons == {"a": "its pre-activations are read by more than the activation"}


def test_a_gradient_penalty_makes_no_block() -> None:
    net, x = Between(nn.ReLU()), inputs(7, 3).requires_grad_()

    def loss() -> Tensor:
        out = net(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.square().sum() + slope.square().sum()

    seen, reasons = ride_on(net, loss)
    assert not seen
    assert reasons["the loss"].startswith("it is computed from derivatives of the network")


def test_a_checkpointed_forward_is_not_run_once_more() -> None:
    net, x, calls = Between(nn.ReLU()), inputs(7, 3).requires_grad_(), []
    net.b.register_forward_pre_hook(lambda *_: calls.append(1))

    def loss() -> Tensor:
        return checkpoint(net, x, use_reentrant=False).square().sum()

    loss().backward()
    alone = len(calls)
    (seen,), _ = ride_on(net, loss)
    assert len(calls) == 2 * alone
    assert len(seen.signal.X) == 7


def test_under_autocast_the_signal_has_the_dtype_of_the_weights() -> None:
    net, x = Between(nn.ReLU()), inputs(7, 3)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x).float().square().sum()

    (seen,), _ = ride_on(net, loss)
    assert seen.signal.G.dtype == torch.float32
    assert_close(seen.block(seen.signal.X), net(x).detach(), rtol=0.05, atol=0.05)


def test_a_factor_undoes_what_the_loss_was_multiplied_by_and_retained_graphs_add_up() -> None:
    net, x = Between(nn.ReLU()), inputs(7, 3)
    ride = Ride(net)
    loss = 1024 * net(x).square().sum()
    ride.board(loss, factor=1 / 1024)
    loss.backward(retain_graph=True)
    loss.backward()
    (seen,) = ride.end()
    assert_close(seen.signal.G, 4 * net(x).detach())


def test_weights_and_gradients_are_the_same_to_the_bit() -> None:
    def trained(watched: bool) -> list[Tensor]:
        net, x = Between(nn.ReLU()), inputs(7, 3)
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            if watched:
                ride_on(net, lambda: net(x).square().sum())
            else:
                net(x).square().sum().backward()
            optimizer.step()
        return list(net.parameters())

    assert all(torch.equal(*pair) for pair in zip(trained(True), trained(False), strict=True))


def test_boarding_outputs_first_and_the_loss_later_sees_the_kinks_behind_a_block() -> None:
    torch.manual_seed(0)
    net, judge = Between(nn.ReLU()), nn.Sequential(nn.Linear(2, 5), nn.LeakyReLU(0.2), nn.Linear(5, 1))
    both = nn.ModuleDict({"net": net, "judge": judge})
    ride = Ride(both)
    ride.begin(board_outputs=True)
    loss = judge(net(inputs(7, 3))).square().mean()
    ride.board(loss)
    loss.backward()
    first, last = ride.end()
    assert (first.name, first.kinks_after, first.to_the_loss) == ("net.a -> net.b", ("LeakyRelu",), True)
    assert (last.name, last.kinks_after, last.to_the_loss) == ("judge.0 -> judge.2", (), True)


def test_inputs_by_keyword_are_read_off_the_graph() -> None:
    class Named(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(input=torch.relu(self.a(input=x)))

    net = Named(nn.ReLU())
    (seen,), _ = ride_on(net, lambda: net(inputs(7, 3)).square().sum())
    assert_close(seen.block(seen.signal.X), net(inputs(7, 3)).detach())


@pytest.mark.parametrize("broken", ["relu_diag.capture.ride.product_of", "relu_diag.capture._sighting._added"])
def test_what_goes_wrong_in_a_hook_does_not_end_the_step(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, lambda *_: 1 / 0)
    net = Between(nn.ReLU())
    with riding(net) as ride:
        loss = net(inputs(7, 3)).square().sum()
        ride.board(loss)
        loss.backward()
        assert net.a.weight.grad is not None
        with pytest.raises(ZeroDivisionError):
            ride.end()


def test_a_loss_boarded_after_its_outputs_sets_the_factor() -> None:
    net = Between(nn.ReLU())
    ride = Ride(net)
    ride.begin(board_outputs=True)
    out = net(inputs(7, 3))
    loss = 8 * out.square().sum()
    ride.board(loss, factor=1 / 8)
    loss.backward()
    (seen,) = ride.end()
    assert_close(seen.signal.G, 2 * out.detach())


def test_no_hook_is_left_behind() -> None:
    net = Between(nn.ReLU())
    with pytest.raises(ZeroDivisionError), riding(net):
        raise ZeroDivisionError
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())
