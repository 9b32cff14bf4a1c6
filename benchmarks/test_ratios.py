"""A verdict, a look and a growth in units of one full-batch gradient, timed in turns in the same process.

    make bench                      # prints what was measured over the committed baseline
    make bench WRITE_BASELINE=1     # writes the baseline anew

Ratios travel between machines, seconds do not; of CPU on one thread, so that other programs matter little. In
`make test` everything runs once and nothing is timed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn import functional

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.capture import BlockLocation, choose_block, read_block, read_signal
from relu_diag.functional.local import geometry_from_sums, states_from_sums
from relu_diag.growth import grow
from relu_diag.metrics import BlockMetric

BASELINE = Path(__file__).with_name("baseline.json")
ROUNDS = 20


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_verdict(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """At a saddle: five fitted neurons, 195 spare ones at zero."""
    block, X, Y = saddle()
    W, H = block.W.clone().requires_grad_(), block.H.clone().requires_grad_()

    def gradient() -> None:
        torch.autograd.grad(functional.mse_loss(torch.relu(X @ W.T) @ H.T, Y), (W, H))

    assert F.classify(block, X, Y).kind == "saddle"
    compare("classify", benchmark, capsys, gradient, partial(F.classify, block, X, Y))


def test_look(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Geometry and states of 256 neurons over 2,000 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 10))
    X, y, location = torch.rand(2_000, 100), torch.randint(10, (2_000,)), choose_block(model)

    def loss() -> torch.Tensor:
        return functional.cross_entropy(model(X), y)

    def gradient() -> None:
        model.zero_grad()
        loss().backward()

    def look() -> None:
        block, metric = read_block(model, location), BlockMetric(256, 101, 10, reduction="mean")
        metric.update(block, read_signal(model, location, loss)[0])
        sums = metric.sums()
        geometry_from_sums(block, sums)
        states_from_sums(block, sums, scale=1.0)

    compare("look", benchmark, capsys, gradient, look)


def test_growth(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """One neuron more in a live network under Adam, replicated in place."""
    torch.manual_seed(0)
    model, location = nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 10)), BlockLocation("0", "2", (0, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    X, y = torch.rand(2_000, 100), torch.randint(10, (2_000,))

    def gradient() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(X), y).backward()

    gradient()
    optimizer.step()

    def growth() -> None:
        shares = torch.tensor([0.5, 0.5])
        grow(model, location, F.replicate_unit(read_block(model, location), 0, torch.ones(2), shares), [optimizer])

    compare("growth", benchmark, capsys, gradient, growth)


def saddle() -> tuple[ShallowBlock, torch.Tensor, torch.Tensor]:
    """Fitted neurons that do not respond to the residual, and neurons at zero that do."""
    torch.manual_seed(0)
    X, W, H = torch.randn(2_000, 20).double(), torch.randn(5, 20).double(), torch.randn(2, 5).double()
    basis = torch.linalg.qr(torch.cat([(X @ w > 0)[:, None] * X for w in W], dim=1))[0]
    residual = torch.randn(2_000, 2).double()
    for _ in range(2):
        residual = residual - basis @ (basis.T @ residual)
    block = ShallowBlock(torch.cat([W, W.new_zeros(195, 20)]), torch.cat([H, H.new_zeros(2, 195)], dim=1))
    return block, X, block(X) - residual


def compare(
    name: str,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    gradient: Callable[[], None],
    work: Callable[[], Any],
) -> None:
    """Times both in turns, and prints the ratio of the minima beside the baseline's."""
    gradients: list[float] = []

    def time_gradient() -> None:
        start = time.process_time()
        gradient()
        gradients.append(time.process_time() - start)

    benchmark.pedantic(work, setup=time_gradient, rounds=ROUNDS, warmup_rounds=2)
    if benchmark.stats is None:  # disabled
        return
    ratio = benchmark.extra_info["gradients"] = benchmark.stats.stats.min / min(gradients)
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if os.environ.get("WRITE_BASELINE"):
        BASELINE.write_text(json.dumps(baseline | {name: float(f"{ratio:.3g}")}, indent=2, sort_keys=True) + "\n")
    before = baseline.get(name)
    beside = f"baseline {before:.3g}, measured / baseline {ratio / before:.2f}" if before else "no baseline"
    with capsys.disabled():
        print(f"\n{name}: {ratio:.3g} gradients; {beside}")
