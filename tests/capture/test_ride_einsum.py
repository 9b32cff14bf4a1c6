"""Products written as einsum are read as those written with @."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag.capture import riding

SIZES = {"n": 7, "s": 4, "d": 3, "h": 5, "j": 2}
# Of rows and weight, or of weight and rows.
PRODUCTS = {
    "inputs by outputs": ("nd,dh->nh", "nh,hj->nj"),
    "outputs by inputs": ("nd,hd->nh", "nh,jh->nj"),
    "weights first": ("dh,nd->nh", "hj,nh->nj"),
    "tokens": ("nsd,dh->nsh", "nsh,jh->nsj"),
}


class ByEinsum(nn.Module):
    """Two products of raw parameters."""

    def __init__(self, equations: tuple[str, str]) -> None:
        super().__init__()
        self.equations = equations
        self.weights = nn.ParameterList([nn.Parameter(drawn(self.factor(one))) for one in equations])
        self.bias = nn.Parameter(drawn("h"))

    @staticmethod
    def factor(equation: str) -> str:
        return next(part for part in equation.partition("->")[0].split(",") if "n" not in part)

    def product(self, layer: int, rows: Tensor) -> Tensor:
        equation = self.equations[layer]
        factors = (rows, self.weights[layer])
        return torch.einsum(equation, *(factors if equation.startswith("n") else factors[::-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(1, torch.relu(self.product(0, x) + self.bias))


def drawn(letters: str) -> Tensor:
    return torch.randn(*(SIZES[letter] for letter in letters), dtype=torch.float64)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("equations", PRODUCTS.values(), ids=PRODUCTS)
def test_a_block_by_einsum_computes_what_the_module_does(
    equations: tuple[str, str], square: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if square:  # where a turned weight has the same shape
        monkeypatch.setitem(SIZES, "h", SIZES["d"])
        monkeypatch.setitem(SIZES, "j", SIZES["d"])
    torch.manual_seed(0)
    net, x = ByEinsum(equations), drawn("nsd" if "s" in equations[0] else "nd")
    with riding(net) as ride:
        outputs = net(x)
        ride.board(outputs.square().sum())
        outputs.square().sum().backward()
        (seen,) = ride.end()
    assert_close(seen.block(seen.signal.X), outputs.detach().reshape(-1, len(seen.block.H)))
    assert seen.live is not None
    assert_close(seen.live().W, seen.block.W)


def test_a_permutation_of_tokens_is_none_of_length_one() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)
            self.b = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().permute(0, 2, 1))

    net = Mixer()
    with riding(net) as ride:
        loss = net(torch.randn(7, 4, 3)).square().sum()
        ride.board(loss)
        loss.backward()
        assert not ride.end()
    assert ride.reasons == {"a -> b": "Permute between"}
