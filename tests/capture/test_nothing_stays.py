"""What a module's forward changes while blocks are looked for is put back, and what is not, is refused."""

from __future__ import annotations

import copy
import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from relu_diag.capture import find_blocks, riding


class Keeping(nn.Module):
    """A network that keeps things of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("step", torch.tensor(0))
        self.hidden = torch.zeros(4)
        self.calls = 0
        self.seen: list[float] = [1.0]
        self.recent: deque[int] = deque([1], maxlen=2)
        self.counts = {"calls": 0}
        self.torch_numbers = torch.Generator().manual_seed(5)
        self.numbers = np.random.default_rng(5)
        self.python_numbers = random.Random(5)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # exchanged
        self.step += 1  # in place
        self.hidden.add_(1)
        self.last = x
        self.calls += 1
        self.seen.append(float(x.sum()))
        self.recent.append(self.calls)
        self.counts["calls"] += 1
        self.cache = nn.Identity()
        torch.rand(2, generator=self.torch_numbers)
        self.numbers.random()
        self.python_numbers.random()
        out: Tensor = self.net(x)
        return out


def state(module: Keeping) -> dict[str, Any]:
    own = copy.deepcopy({name: value for name, value in vars(module).items() if not name.startswith("_")})
    generators = own.pop("torch_numbers"), own.pop("numbers"), own.pop("python_numbers")
    states = generators[0].get_state().tolist(), generators[1].bit_generator.state, generators[2].getstate()
    return {**own, "weights": module.state_dict(), "modules": list(module._modules), "generators": states}


def test_looking_for_blocks_leaves_nothing_behind() -> None:
    module = Keeping()
    mean = module.mean
    before = repr(state(module))
    assert [str(block) for block in find_blocks(module, torch.ones(2, 3))] == ["net.0 -> net.2"]
    assert repr(state(module)) == before
    assert module.mean is mean
    assert not hasattr(module, "last")


def test_a_module_of_lightning_logs_nothing_and_stays() -> None:
    class Logging(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Keeping()

        def forward(self, x: Tensor) -> Tensor:
            self.log("calls", 1.0)
            self.last = x
            out: Tensor = self.net(x)
            return out

    module = Logging()
    before, own = repr(state(module.net)), dict(vars(module))
    assert [str(block) for block in find_blocks(module, torch.ones(2, 3))] == ["net.net.0 -> net.net.2"]
    assert repr(state(module.net)) == before
    assert vars(module) == own


def test_layers_without_weights_are_refused() -> None:
    module = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    with pytest.raises(ValueError, match="run the module once"):
        find_blocks(module, torch.ones(2, 3))
    assert isinstance(module[0], nn.LazyLinear)


class Lora(nn.Linear):
    """A low-rank update beside the weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.ones(1, inputs))
        self.up = nn.Parameter(torch.ones(outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Adapted(nn.Module):
    """One beside a frozen layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, 1, bias=False), nn.Linear(1, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


@pytest.mark.parametrize(("layer", "words"), [(Lora, "several layers meet in 0, a Lora"), (Adapted, "frozen layer")])
def test_a_low_rank_update_is_named_with_a_cure(layer: type[nn.Module], words: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer(3, 8), nn.ReLU(), nn.Linear(8, 1))
    with riding(net) as ride:
        loss = net(torch.randn(6, 3)).square().mean()
        ride.board(loss)
        loss.backward()
        assert ride.end() == []
    told = "; ".join(ride.reasons.values())
    assert words in told
    assert "merge it" in told
