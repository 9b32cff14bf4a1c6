"""What a ride reads of blocks as people write them is what a plain block computes at the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from relu_diag.capture import Sighting, riding
from relu_diag.functional import rho

Layer = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """A layer, what stands behind it, and the layer that reads that; it keeps the tensors between."""

    def __init__(self, hidden: nn.Module, between: Layer, output: nn.Module, first: bool = True) -> None:
        super().__init__()
        self.below = nn.Identity() if first else nn.Linear(3, 3)
        self.hidden = hidden
        self.between = between
        self.output = output
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.activations = self.between(self.hidden(self.below(x)))
        self.out = self.output(self.activations)
        for kept in (self.activations, self.out):
            kept.retain_grad()
        return self.out.sin().sum()


class Merged(nn.Linear):
    """A frozen weight plus a product of thin factors, merged before use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, inputs))
        self.up = nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return nnf.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias)


class Beside(Merged):
    """The same, as a path of its own beside the frozen one."""

    def forward(self, x: Tensor) -> Tensor:
        return nnf.linear(x, self.weight, self.bias) + 0.5 * (x @ self.down.mT) @ self.up.mT


class Standardised(nn.Linear):
    """A weight with mean 0 and variance 1 in every row."""

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.weight.mean(1, keepdim=True), self.weight.std(1, keepdim=True)
        return nnf.linear(x, (self.weight - mean) / spread, self.bias)


class Clipped(nn.Module):
    """A parametrization: no entry over 1/2."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.clamp(-0.5, 0.5)


class Equalised(nn.Linear):
    """A weight times a constant, as networks with an equalised learning rate have it."""

    def forward(self, x: Tensor) -> Tensor:
        return nnf.linear(x, self.weight * 3**-0.5, self.bias)


class Bare(nn.Module):
    """A weight and a bias, and no Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def frozen(layer: nn.Linear) -> nn.Linear:
    layer.weight.requires_grad_(False)
    return layer


def clipped(layer: nn.Linear) -> nn.Linear:
    parametrize.register_parametrization(layer, "weight", Clipped())
    return layer


def old(norm: Callable[[nn.Linear], nn.Linear]) -> Callable[[nn.Linear], nn.Linear]:
    def normed(layer: nn.Linear) -> nn.Linear:
        with pytest.warns(FutureWarning):
            return norm(layer)

    return normed


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "Linear": nn.Linear,
    "without bias": lambda d, k: nn.Linear(d, k, bias=False),
    "frozen weight": lambda d, k: frozen(nn.Linear(d, k)),
    "raw parameters": Bare,
    "weight_norm": lambda d, k: parametrizations.weight_norm(nn.Linear(d, k)),
    "weight_norm of all": lambda d, k: parametrizations.weight_norm(nn.Linear(d, k), dim=None),
    "old weight_norm": lambda d, k: old(nn.utils.weight_norm)(nn.Linear(d, k)),
    "spectral_norm": lambda d, k: parametrizations.spectral_norm(nn.Linear(d, k)),
    "old spectral_norm": lambda d, k: nn.utils.spectral_norm(nn.Linear(d, k)),
    "orthogonal": lambda d, k: parametrizations.orthogonal(nn.Linear(d, k)),
    "clipped": lambda d, k: clipped(nn.Linear(d, k)),
    "pruned": lambda d, k: prune.l1_unstructured(nn.Linear(d, k), "weight", 0.5),
    "pruned rows": lambda d, k: prune.ln_structured(nn.Linear(d, k), "weight", 0.5, n=2, dim=0),
    "merged": Merged,
    "standardised": Standardised,
    "equalised": Equalised,
}
BETWEEN: dict[str, Callable[[], Layer]] = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "LeakyReLU in place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "PReLU": nn.PReLU,
    "functional": lambda: nnf.relu,
    "functional in place": lambda: lambda z: nnf.relu(z, inplace=True),
    "threshold in place": lambda: nn.Threshold(0.0, 0.0, inplace=True),
    "dropout in eval": lambda: nn.Sequential(nn.ReLU(), nn.Dropout().eval()),
    "batch norm in eval": lambda: nn.Sequential(used_norm(), nn.ReLU()),
    "batch norm without weights": lambda: nn.Sequential(used_norm(affine=False), nn.LeakyReLU(0.2)),
    "batch norm in eval, in place": lambda: nn.Sequential(used_norm(), nn.ReLU(inplace=True)),
    "batch norm read twice": lambda: nn.Sequential(used_norm(), Both()),
    "frozen batch norm": lambda: nn.Sequential(used_norm().requires_grad_(False), nn.ReLU()),
}


class Both(nn.Module):
    """A leaky ReLU as the sum of two ReLUs."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z) - 0.25 * torch.relu(-z)


def used_norm(affine: bool = True) -> nn.BatchNorm1d:
    """A batch norm with statistics of some data, in eval mode."""
    norm = nn.BatchNorm1d(6, affine=affine)
    norm(2 * torch.randn(9, 6) + 1)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.eval()


def ride_on(module: nn.Module, x: Tensor) -> tuple[list[Sighting], dict[str, str]]:
    with riding(module) as ride:
        loss = module(x)
        ride.board(loss)
        loss.backward()
        return ride.end(), ride.reasons


def read_as_computed(chain: Chain, x: Tensor) -> None:
    """Outputs, activations and both gradients are those of a plain block with the weights read."""
    found, reasons = ride_on(chain, x)
    assert len(found) == 1, reasons
    (seen,) = found
    block, signal = seen.block, seen.signal
    Z = signal.X @ block.W.mT
    assert_close(rho(Z, block.slopes), chain.activations.detach())
    assert_close(block(signal.X), chain.out.detach())
    assert_close(signal.G, chain.out.grad)
    assert_close(signal.C, chain.activations.grad)
    if signal.Z is not None:
        assert_close(signal.Z, Z)
    if seen.gradients is not None:
        slope = torch.where(Z > 0, block.slopes[1], block.slopes[0])
        assert_close(seen.gradients[0], (slope * signal.C).mT @ signal.X)
        assert_close(seen.gradients[1], signal.G.mT @ rho(Z, block.slopes))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 3, dtype=torch.float64)


@pytest.mark.parametrize("first", [True, False], ids=["on data", "on a layer"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_hidden_layer_is_read_at_its_effective_weight(
    layer: Callable[[int, int], nn.Module], first: bool, x: Tensor
) -> None:
    read_as_computed(Chain(layer(3, 6), nn.ReLU(), nn.Linear(6, 2), first), x)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_an_output_layer_is_read_at_its_effective_weight(layer: Callable[[int, int], nn.Module], x: Tensor) -> None:
    read_as_computed(Chain(nn.Linear(3, 6), nn.ReLU(), layer(6, 2)), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_stands_between_is_in_the_block(between: Callable[[], Layer], bias: bool, x: Tensor) -> None:
    read_as_computed(Chain(nn.Linear(3, 6, bias=bias), between(), nn.Linear(6, 2)), x)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_weights_are_those_of_the_present_step(layer: Callable[[int, int], nn.Module], x: Tensor) -> None:
    chain = Chain(layer(3, 6), nn.ReLU(), layer(6, 2), first=False)
    optimizer = torch.optim.SGD(chain.parameters(), lr=0.1)
    for _ in range(3):
        read_as_computed(chain, x)
        optimizer.step()
        optimizer.zero_grad()


def mlp(inplace: bool) -> nn.Sequential:
    """As torchvision writes it: Linear, ReLU, Dropout, Linear, Dropout."""
    layers = [nn.Linear(3, 6), nn.ReLU(inplace), nn.Dropout(0.5), nn.Linear(6, 2), nn.Dropout(0.5)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_mlp_with_dropout_behind_both_layers(training: bool, inplace: bool, x: Tensor) -> None:
    net = mlp(inplace).train(training)
    outputs: list[Tensor] = []
    net[2].register_forward_hook(lambda *args: outputs.append(args[2]))
    net[3].register_forward_hook(lambda *args: (outputs.append(args[2]), args[2].retain_grad())[0])
    (seen,), reasons = ride_on(nn.Sequential(net, Total()), x)
    dropped, out = outputs
    assert reasons == {}
    assert seen.name == "0.0 -> 0.3"
    assert seen.dropout is training
    A = rho(seen.signal.X @ seen.block.W.mT, seen.block.slopes)
    mask = torch.where(A > 0, dropped.detach() / A, 0.0)
    assert_close(A * mask, dropped.detach())
    assert_close(nnf.linear(A * mask, seen.block.H, seen.block.output_bias), out.detach())
    assert_close(seen.signal.G, out.grad)
    active = A > 0
    assert_close(seen.signal.C[active], (seen.signal.G @ seen.block.H * mask)[active])


class Total(nn.Module):
    """The sum of all sines."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin().sum()


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_feed_forward_of_an_encoder(training: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=norm_first).double()
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    outputs: list[Tensor] = []
    for one in encoder.layers:
        one.linear2.register_forward_hook(lambda *args: (outputs.append(args[2]), args[2].retain_grad())[0])
    found, _ = ride_on(nn.Sequential(encoder, Total()), torch.randn(2, 5, 4, dtype=torch.float64))
    assert [seen.name for seen in found] == [f"0.layers.{i}.linear1 -> 0.layers.{i}.linear2" for i in range(2)]
    for seen, out in zip(found, outputs, strict=True):
        assert_close(seen.block(seen.signal.X), out.detach().reshape(-1, 4))
        assert_close(seen.signal.G, out.grad.reshape(-1, 4))
        assert_close(seen.signal.C, seen.signal.G @ seen.block.H)


def test_a_path_beside_the_output_layer_is_a_second_reader(x: Tensor) -> None:
    chain = Chain(nn.Linear(3, 6), nn.ReLU(), Beside(6, 2))
    (seen,), _ = ride_on(chain, x)
    assert seen.name == "hidden -> output, output.down"
    assert_close(seen.block.H, torch.cat([chain.output.weight, chain.output.down]).detach())
    assert_close(seen.signal.C, chain.activations.grad)
    assert_close(seen.signal.G, torch.cat([chain.out.grad, 0.5 * chain.out.grad @ chain.output.up], dim=1).detach())


class Attending(nn.Module):
    """Inputs compared with rows of a table that the data look up, behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table(torch.arange(len(x)) % 5).mT


class Heads(nn.Module):
    """A masked weight of its own for each of two heads, and their mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, inputs, outputs))
        self.register_buffer("mask", torch.ones(2, inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x if x.ndim == 3 else x.expand(2, -1, -1), self.weight * self.mask)


class Comparing(nn.Module):
    """Attention with a ReLU for a softmax, and no bias, over places that are learned: no factor of it is a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(7, 3))
        self.query, self.key, self.value = (nn.Linear(3, 3, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places
        return torch.relu(self.query(x) @ self.key(x).mT) @ self.value(x)


class Squeezed(nn.Module):
    """A batch norm that is no module."""

    def forward(self, z: Tensor) -> Tensor:
        return nnf.batch_norm(z, torch.zeros(6, dtype=z.dtype), torch.ones(6, dtype=z.dtype)).relu()


class Scaled(nn.Module):
    """A ReLU times a trained number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, z: Tensor) -> Tensor:
        return (self.scale * z).relu()


class Tokens(nn.Module):
    """A batch norm whose channels are the rows of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(7).eval()

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(z.unsqueeze(0)).squeeze(0).relu()


def pruned_bias(inputs: int, outputs: int) -> nn.Linear:
    return prune.random_unstructured(nn.Linear(inputs, outputs), "bias", 0.5)


REFUSED: dict[str, tuple[Callable[[], Chain], dict[str, str]]] = {
    "batch norm in training mode": (
        lambda: Chain(nn.Linear(3, 6), nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()), nn.Linear(6, 2)),
        {"hidden -> output": "BatchNorm between, in training mode"},
    ),
    "batch norm behind the activation": (
        lambda: Chain(nn.Linear(3, 6), nn.Sequential(nn.ReLU(), used_norm()), nn.Linear(6, 2)),
        {"hidden -> output": "BatchNorm between"},
    ),
    "batch norm that is no module": (
        lambda: Chain(nn.Linear(3, 6), Squeezed(), nn.Linear(6, 2)),
        {"hidden -> output": "BatchNorm between, which is no module"},
    ),
    "batch norm over rows": (
        lambda: Chain(nn.Linear(3, 6), Tokens(), nn.Linear(6, 2)),
        {"hidden -> output": "BatchNorm between, over other axes than the last"},
    ),
    "a slope for each neuron": (
        lambda: Chain(nn.Linear(3, 6), nn.PReLU(6), nn.Linear(6, 2)),
        {
            "hidden": "its PReLU has a slope for each of 6 neurons, and a block one pair for all: no states, slopes or "
            "verdicts of it; nn.PReLU() has one slope"
        },
    ),
    "a scale that is trained": (
        lambda: Chain(nn.Linear(3, 6), Scaled(), nn.Linear(6, 2)),
        {"hidden -> output": "the parameter 'between.scale' between"},
    ),
    "a bias that is pruned": (
        lambda: Chain(pruned_bias(3, 6), nn.ReLU(), nn.Linear(6, 2)),
        {"hidden": "a bias is computed from others, and the graph does not keep it"},
    ),
    "an output bias that is pruned": (
        lambda: Chain(nn.Linear(3, 6), nn.ReLU(), pruned_bias(6, 2)),
        {"hidden": "a bias is computed from others, and the graph does not keep it"},
    ),
    "a path beside the first layer": (
        lambda: Chain(Beside(3, 6), nn.ReLU(), nn.Linear(6, 2)),
        {"hidden.up -> output": "Addmm between", "hidden.down": "what stands behind it is not ReLU-like"},
    ),
    "a weight for each head": (
        lambda: Chain(Heads(3, 6), nn.ReLU(), Heads(6, 2)),
        {"hidden": "its weight is computed from others, and the graph does not keep it"},
    ),
    "attention": (lambda: Chain(Comparing(), nn.Identity(), nn.Identity()), {}),
    "a lookup": (lambda: Chain(nn.Linear(3, 6), nn.ReLU(), Attending()), {}),
}


@pytest.mark.parametrize(("build", "reasons"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_block_is_refused_by_name(build: Callable[[], Chain], reasons: dict[str, str], x: Tensor) -> None:
    assert ride_on(build(), x) == ([], reasons)


def test_a_batch_norm_that_something_else_reads_too_makes_no_block(x: Tensor) -> None:
    net = nn.ModuleDict({"hidden": nn.Linear(3, 6), "norm": used_norm(), "output": nn.Linear(6, 2)}).double()
    with riding(net) as ride:
        z = net["norm"](net["hidden"](x))
        loss = net["output"](z.relu()).sum() + z.sum()
        ride.board(loss)
        loss.backward()
        assert ride.end() == []
        assert ride.reasons == {"hidden": "its pre-activations are read by more than the activation"}
