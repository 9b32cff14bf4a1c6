"""The derivative along a direction is the limit of difference quotients, at points placed on kinks too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from relu_diag import functional as F
from relu_diag.functional import NotFiniteError

Build = Callable[[], tuple[nn.Module, Callable[[], Tensor]]]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """A direction of all parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}


def quotient(module: nn.Module, loss: Callable[[], Tensor], direction: dict[str, Tensor], h: float) -> float:
    """A forward difference quotient; random states and buffers as before each evaluation."""
    values = []
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for step in (0.0, h):
        with torch.no_grad(), torch.random.fork_rng():
            before = [p.clone() for p in module.parameters()]
            for name, parameter in module.named_parameters():
                parameter.add_(direction[name], alpha=step)
            values.append(float(loss()))
            for parameter, value in zip(module.parameters(), before, strict=True):
                parameter.copy_(value)
            for buffer, value in buffers:
                buffer.copy_(value)
    return (values[1] - values[0]) / h


def limit(module: nn.Module, loss: Callable[[], Tensor], direction: dict[str, Tensor], h: float = 1e-5) -> float:
    """The one-sided derivative to second order in ``h``."""
    return 2 * quotient(module, loss, direction, h / 2) - quotient(module, loss, direction, h)


class Bent(nn.Module):
    """A function with kinks, at a point with inputs exactly on them: ``f((x W^T) + b)``."""

    def __init__(self, function: Callable[[Tensor], Tensor], at: float = 0.0, grid: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 3))
        self.bias = nn.Parameter(torch.randn(6))
        self.x = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 1.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.5]])
        self.function = function
        self.mix = torch.randn(64)
        with torch.no_grad():
            # Sums of these are exact: rows 0 to 2 on the kink, or all numbers tied among few values.
            self.weight.mul_(2).round_().div_(2)
            self.bias.zero_().add_(at)
            self.weight[:3, 0] = 0.0
            if grid:
                self.weight.zero_()

    def forward(self) -> Tensor:
        z = self.x @ self.weight.mT + self.bias
        out = self.function(z).flatten()
        return (out.sin() * self.mix[: len(out)]).sum()


ON_KINK: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (torch.relu, 0.0),
    "relu in place": (lambda z: z.clone().relu_(), 0.0),
    "functional relu": (nnf.relu, 0.0),
    "relu into another tensor": (lambda z: torch.zeros_like(z).copy_(nnf.relu(z)), 0.0),
    "out": (lambda z: torch.clamp(z.detach(), min=0.0, out=torch.empty_like(z)), 0.0),
    "leaky_relu": (lambda z: nnf.leaky_relu(z, 0.1), 0.0),
    "prelu": (nn.PReLU(dtype=torch.float64), 0.0),
    "prelu per neuron": (lambda z: nnf.prelu(z, torch.arange(6) / 4 - 0.5), 0.0),
    "relu6": (nnf.relu6, 6.0),
    "hardtanh": (nnf.hardtanh, -1.0),
    "clamp": (lambda z: z.clamp(0.0, 2.0), 2.0),
    "clamp by name": (lambda z: z.clamp(max=0.0), 0.0),
    "clamp in place": (lambda z: z.clone().clamp_(min=0.0), 0.0),
    "clamp by a tensor": (lambda z: torch.clamp(z, z.flip(1), 2 * z.detach()), 0.0),
    "threshold": (lambda z: nnf.threshold(z, 0.0, 0.0), 0.0),
    "absolute value": (torch.abs, 0.0),
    "elu": (lambda z: nnf.elu(z, 2.0), 0.0),
    "selu": (nnf.selu, 0.0),
    "celu": (lambda z: nnf.celu(z, 2.0), 0.0),
    "gelu": (nnf.gelu, 0.0),
    "hardswish": (nnf.hardswish, -3.0),
    "hardsigmoid": (nnf.hardsigmoid, 3.0),
    "softshrink": (lambda z: nnf.softshrink(z, 0.5), 0.5),
    "where": (lambda z: torch.where(z > 0, z, 0.1 * z), 0.0),
    "where not": (lambda z: torch.where(z <= 0.0, 0.1 * z, z), 0.0),
    "a mask": (lambda z: z * (z >= 0), 0.0),
    "masked_fill": (lambda z: z.masked_fill(z < 0, 0.0), 0.0),
    "sign": (lambda z: z * z.sign(), 0.0),
    "maximum": (lambda z: torch.maximum(z, torch.zeros(())), 0.0),
    "minimum of moving ones": (lambda z: torch.minimum(z, z.flip(1)), 0.0),
    "maxout": (lambda z: z.reshape(4, 3, 2).amax(-1), 0.0),
    "smallest": (lambda z: z.amin((0, 1)), 0.0),
    "max along a dimension": (lambda z: z.max(dim=1).values, 0.0),
    "max of all": (lambda z: z.max(), 0.0),
    "gather by argmax": (lambda z: z.gather(1, z.argmax(1, keepdim=True)), 0.0),
    "sort": (lambda z: z.sort(dim=1).values, 0.0),
    "topk": (lambda z: z.topk(2, dim=1).values, 0.0),
    "median": (lambda z: z.median(dim=0).values, 0.0),
    "max_pool1d": (lambda z: nnf.max_pool1d(z[None], 3, 2, 1), 0.0),
    "max_pool2d": (lambda z: nnf.max_pool2d(z[None, None], 2), 0.0),
    "max_pool3d": (lambda z: nnf.max_pool3d(z[None, None], (1, 2, 2)), 0.0),
    "adaptive_max_pool2d": (lambda z: nnf.adaptive_max_pool2d(z[None, None], 3), 0.0),
    "norm of rows": (lambda z: z.norm(dim=1), 0.0),
    "sum of sizes": (lambda z: torch.linalg.vector_norm(z, 1, dim=1), 0.0),
    "largest size": (lambda z: torch.linalg.vector_norm(z, torch.inf, dim=1), 0.0),
    "l1_loss": (lambda z: nnf.l1_loss(z, torch.zeros_like(z)), 0.0),
    "hinge": (lambda z: nnf.margin_ranking_loss(z, z.flip(1), torch.ones_like(z), margin=0.0), 0.0),
}


@pytest.mark.parametrize("tied", [False, True], ids=["some on the kink", "all on the kink"])
@pytest.mark.parametrize(("function", "at"), ON_KINK.values(), ids=ON_KINK)
def test_operations_are_derived_on_the_side_that_is_entered(
    function: Callable[[Tensor], Tensor], at: float, tied: bool
) -> None:
    bent = Bent(function, at, tied)
    for seed in range(3):
        direction = drawn(bent, seed)
        found = F.directional_derivative(bent, bent, direction)
        assert_close(float(found), limit(bent, bent, direction), rtol=1e-6, atol=1e-6)


def on_kinks(net: nn.Sequential, x: Tensor) -> None:
    """Biases that put the first sample on the kinks of every second unit, layer by layer, to within rounding."""
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.bias[::2] = -(layer.weight @ x[0])[::2]
            x = layer(x)


@pytest.mark.parametrize("seed", range(20))
def test_deep_nets_with_units_on_kinks_in_every_layer(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.ReLU())
    x, target = torch.randn(5, 3), torch.randn(8)
    on_kinks(net, x)

    def loss() -> Tensor:
        return (net(x) - target).square().mean()

    direction = drawn(net, seed)
    found = F.directional_derivative(net, loss, direction)
    assert_close(float(found), limit(net, loss, direction), rtol=1e-6, atol=1e-6)
    loss().backward()
    by_autograd = sum(float((p.grad * direction[n]).sum()) for n, p in net.named_parameters() if p.grad is not None)
    assert abs(by_autograd - float(found)) > 1e-3


def test_with_no_tolerance_rounding_decides_the_side() -> None:
    bias = nn.ParameterDict({"bias": torch.tensor([-1e-15, 1.0])})
    along = {"bias": torch.ones(2)}
    slopes = [
        float(F.directional_derivative(bias, lambda: bias["bias"].relu().sum(), along, tol)) for tol in (None, 0.0)
    ]
    assert slopes == [2.0, 1.0]


def transformer() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
    x = torch.randn(2, 5, 4)
    return layer, lambda: layer(x).square().mean()


def transformer_in_eval() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 4)
    return layer, lambda: layer(x).sin().mean()


def of(*layers: nn.Module, shape: tuple[int, ...] = (7, 6), mode: bool = True) -> Build:
    def build() -> tuple[nn.Module, Callable[[], Tensor]]:
        torch.manual_seed(0)
        net = nn.Sequential(*layers).double().train(mode)
        x = torch.randn(shape)
        net(x)
        return net, lambda: net(x).sin().mean()

    return build


def labelled() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randint(5, (7, 3)), torch.randint(3, (7,))
    return net, lambda: nnf.cross_entropy(net(x), y)


class Last(nn.Module):
    """The last of the outputs of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Scattered(nn.Module):
    """Rows written into a tensor that is there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(8, 2)
        out[:-1] = self.layer(x)
        out[::2] += out[1::2].detach()
        return out


torch.manual_seed(0)  # of the weights of these layers: no kink may lie within a step of the differences by chance
MODULES: dict[str, Build] = {
    "dropout": of(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)),
    "batch norm in eval": of(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), mode=False),
    "batch norm": of(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
    "layer norm": of(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)),
    "convolutions": of(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2), shape=(3, 2, 8, 8)
    ),
    "weight_norm": of(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2)),
    "spectral_norm": of(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2)),
    "lstm": of(Last(nn.LSTM(6, 4, batch_first=True)), shape=(3, 5, 6)),
    "recurrent relu": of(Last(nn.RNN(6, 4, nonlinearity="relu", batch_first=True)), shape=(3, 5, 6)),
    "written in place": of(Scattered()),
    "transformer": transformer,
    "transformer in eval": transformer_in_eval,
    "embedding and labels": labelled,
}


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_modules_as_people_write_them(build: Build) -> None:
    module, loss = build()
    direction = drawn(module, 1)
    torch.manual_seed(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = F.directional_derivative(module, loss, direction)
    assert torch.initial_seed() == 3
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert_close(float(found), limit(module, loss, direction, 1e-4), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert_close(F.directional_derivative(module, loss, direction), found)


def test_a_direction_may_name_few_parameters_and_half_the_slope_follows_half_the_direction() -> None:
    bent = Bent(torch.relu)
    along = {"bias": torch.randn(6)}
    whole = F.directional_derivative(bent, bent, along)
    assert_close(F.directional_derivative(bent, bent, {**along, "weight": torch.zeros(6, 3)}), whole)
    assert_close(F.directional_derivative(bent, bent, {"bias": along["bias"] / 2}), whole / 2)
    assert float(F.directional_derivative(bent, bent, {})) == 0.0


def test_a_tied_weight_moves_wherever_it_is_used() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    net["b"].weight = net["a"].weight
    x = torch.randn(4, 3)

    def loss() -> Tensor:
        return net["b"](net["a"](x).relu()).square().sum()

    direction = drawn(net, 0)
    found = F.directional_derivative(net, loss, direction)
    assert_close(float(found), limit(net, loss, direction), rtol=1e-6, atol=1e-6)
    twice = {"a.weight": direction["a.weight"], "b.weight": direction["a.weight"]}
    with pytest.raises(ValueError, match=r"one parameter twice, as 'a\.weight' and 'b\.weight'"):
        F.directional_derivative(net, loss, twice)


def test_nothing_of_the_step_is_changed() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1))
    x, calls = torch.randn(5, 3), []

    def loss() -> Tensor:
        calls.append(1)
        return net(x).square().mean()

    loss().backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    state, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    F.directional_derivative(net, loss, drawn(net, 0))
    assert len(calls) == 2
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip((p.grad for p in net.parameters()), gradients, strict=True))


WAYS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "inference mode": torch.inference_mode()(lambda net, x: net(x)),
    "checkpoint": lambda net, x: checkpoint(net, x, use_reentrant=False),
    "reentrant checkpoint": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "vmap": lambda net, x: torch.vmap(net)(x),
    "compiled": lambda net, x: torch.compile(net, backend="eager")(x),
    "traced": lambda net, x: torch.jit.trace(net, x, check_trace=False)(x),
    "straight through": lambda net, x: Through.apply(net(x)),
}


class Through(torch.autograd.Function):
    """The identity, of which backward knows nothing."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 1.0 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace:DeprecationWarning", "ignore:None of the inputs have requires_grad"
)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_however_the_module_is_run(way: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(5, 3)
    on_kinks(net, x)
    direction = drawn(net, 0)
    expected = F.directional_derivative(net, lambda: net(x).square().mean(), direction)
    assert_close(F.directional_derivative(net, lambda: way(net, x).square().mean(), direction), expected)


def test_an_operation_that_somebody_has_added_is_not_taken_for_constant() -> None:
    @torch.library.custom_op("relu_diag_tests::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    bent = Bent(torch.relu)
    with pytest.raises(NotImplementedError, match="doubled, which has no forward derivative"):
        F.directional_derivative(bent, lambda: doubled(bent.bias).sum(), {"bias": torch.ones(6)})


def test_float32_and_autocast() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).float()
    x = torch.randn(5, 3, dtype=torch.float32)
    along = {"0.bias": torch.ones(4)}
    exact = F.directional_derivative(net, lambda: net(x).square().mean(), along)
    assert exact.dtype == torch.float32

    def mixed() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x).square().mean()

    assert_close(F.directional_derivative(net, mixed, along).to(exact), exact, rtol=0.1, atol=0.05)


BAD: dict[str, tuple[Callable[[Bent], object], dict[str, Tensor], type[Exception], str]] = {
    "unknown name": (Bent.forward, {"w": torch.ones(1)}, ValueError, "'w', no parameter of Bent; it has weight, bias"),
    "shape": (Bent.forward, {"bias": torch.ones(1)}, ValueError, r"shape of 'bias', \(6,\); got \(1,\)"),
    "vector": (lambda bent: bent.weight, {}, ValueError, r"one element; got shape \(6, 3\)"),
    "number": (lambda bent: 1.0, {}, TypeError, "one element; got float"),
    "infinite": (lambda bent: bent.bias.sqrt().sum(), {"bias": torch.ones(6)}, NotFiniteError, "infinitely steep"),
    "no derivative": (
        lambda bent: nnf.multi_margin_loss(bent.weight, torch.zeros(6).long()),
        {"weight": torch.ones(6, 3)},
        NotImplementedError,
        "multi_margin_loss, which has no forward derivative",
    ),
    "unknown side": (
        lambda bent: nnf.rrelu(bent.bias, training=True).sum(),
        {"bias": torch.ones(6)},
        NotImplementedError,
        "rrelu_with_noise, whose one-sided derivatives are not known",
    ),
    "derived": (
        lambda bent: torch.autograd.grad(bent.bias.relu().sum(), bent.bias)[0].sum(),
        {"bias": torch.ones(6)},
        NotImplementedError,
        "threshold_backward",
    ),
}


@pytest.mark.parametrize(("loss", "direction", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(
    loss: Callable[[Bent], object], direction: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    bent = Bent(torch.relu)
    with pytest.raises(error, match=message):
        F.directional_derivative(bent, lambda: loss(bent), direction)  # type: ignore[arg-type, return-value]
