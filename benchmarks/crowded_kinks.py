"""Seconds of one call where kinks are many: N = 10,000, I = 1,000, J = 10, 50 samples on a kink, float64.

    python benchmarks/crowded_kinks.py [inputs] [neurons] [samples]

The crowds are the worst known: kinks of one neuron and of a hundred, neurons with w = 0 (every sample is on their
kink), and a loud stationary neuron whose way out is searched over all output weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F

KINKS, OUTPUTS = 50, 10
Crowd = tuple[ShallowBlock, Tensor, Tensor]


def base(inputs: int, neurons: int, samples: int) -> Crowd:
    torch.manual_seed(0)
    X = torch.cat([torch.randn(samples, inputs - 1), torch.ones(samples, 1)], dim=1).double()
    W, H = torch.randn(neurons, inputs).double(), torch.randn(OUTPUTS, neurons).double() / neurons**0.5
    return ShallowBlock(W, H), X, torch.randn(samples, OUTPUTS).double()


def on_kinks(crowd: Crowd, neurons: int) -> Crowd:
    """The first samples on the kinks of the first neurons, ``KINKS`` each."""
    block, X, Y = crowd
    X = X.clone()
    for i in range(neurons):
        own, w = X[KINKS * i : KINKS * (i + 1)], block.W[i]
        own -= (own @ w)[:, None] * w / (w @ w)
    return block, X, Y


def shared_kinks(crowd: Crowd) -> Crowd:
    """A hundred neurons with the same kinks: multiples of one."""
    block, X, Y = on_kinks(crowd, 1)
    W = block.W.clone()
    W[:100] = W[:1] * torch.linspace(0.5, 2, 100).double()[:, None]
    return ShallowBlock(W, block.H), X, Y


def without_input(crowd: Crowd) -> Crowd:
    block, X, Y = crowd
    W = block.W.clone()
    W[:KINKS] = 0.0
    return ShallowBlock(W, block.H), X, Y


def loud(crowd: Crowd, held: bool) -> Crowd:
    """One neuron that sees nothing but the samples on its kink; held, it rises to all sides. The others are dead."""
    block, X, _ = crowd
    X, w = X.clone(), block.W[0].clone()
    w[-1] = 0.0
    X[:KINKS] -= (X[:KINKS] @ w)[:, None] * w / (w @ w)  # the last column stays 1
    W = torch.zeros_like(block.W)
    W[:, -1] = -1.0
    W[0] = w
    block = ShallowBlock(W, block.H)
    E = torch.zeros(len(X), OUTPUTS).double()
    E[:KINKS] = torch.randn(KINKS, OUTPUTS).double()
    if held:
        E *= (E @ block.H[:, 0]).sign()[:, None]
    return block, X, block(X) - E


def main() -> None:
    inputs, neurons, samples = (int(value) for value in (*sys.argv[1:], *("20", "1000", "10000")[len(sys.argv) - 1 :]))
    torch.set_num_threads(1)
    start = base(inputs, neurons, samples)
    crowds: dict[str, Callable[[], Crowd]] = {
        "no kink": lambda: start,
        "50 samples on the kink of one": lambda: on_kinks(start, 1),
        "50 samples on the kink of each of a hundred": lambda: on_kinks(start, 100),
        "a hundred share 50": lambda: shared_kinks(start),
        "50 neurons with w = 0": lambda: without_input(start),
        "one loud neuron, held": lambda: loud(start, held=True),
        "one loud neuron, let go": lambda: loud(start, held=False),
    }
    for name, make in crowds.items():
        block, X, Y = make()
        begin = time.perf_counter(), time.process_time()
        kind = F.classify(block, X, Y, "half_sum").kind
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        print(f"{name:<46} {wall:7.2f} s ({cpu:.2f} s of CPU)  {kind}", flush=True)


if __name__ == "__main__":
    main()
