"""Cost of growing a live network: one growth in units of training steps, its extra memory, and the steps after it.

    python benchmarks/growth_cost.py

A 784-4096-10 MLP under Adam, batch 256: one neuron replicated in place. Steps per second after it are compared, in
turns, with a network built at the final width.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from relu_diag.capture import BlockLocation, read_block
from relu_diag.functional import replicate_unit
from relu_diag.growth import grow

INPUTS, CLASSES, BATCH = 784, 10, 256
LOCATION = BlockLocation("0", "2", (0.0, 1.0))


def network(width: int) -> tuple[nn.Sequential, torch.optim.Adam]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, CLASSES))
    return net, torch.optim.Adam(net.parameters(), lr=1e-3)


def seconds_per_step(net: nn.Sequential, optimizer: torch.optim.Adam, steps: int) -> float:
    X, y = torch.rand(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,))
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def seconds_of_growth(net: nn.Sequential, optimizer: torch.optim.Adam) -> float:
    start = time.perf_counter()
    gamma = torch.tensor([0.5, 0.5])
    grow(net, LOCATION, replicate_unit(read_block(net, LOCATION), 0, torch.ones(2), gamma), [optimizer])
    return time.perf_counter() - start


def peak_memory(width: int, growing: bool) -> None:
    """Peak resident memory of some steps with or without a growth between them, in a process of its own."""
    net, optimizer = network(width)
    seconds_per_step(net, optimizer, 3)
    if growing:
        seconds_of_growth(net, optimizer)
        seconds_per_step(net, optimizer, 3)
    status = Path("/proc/self/status").read_text()
    print(float(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--memory", choices=["training", "growing"], help="print the peak of one run only")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.memory:
        peak_memory(args.width, args.memory == "growing")
        return
    grown, built = network(args.width), network(args.width + args.repeats)
    seconds_per_step(*grown, 3)
    seconds_per_step(*built, 3)
    cost = [seconds_of_growth(*grown) / seconds_per_step(*grown, args.steps) for _ in range(args.repeats)]
    speed = [seconds_per_step(*built, args.steps) / seconds_per_step(*grown, args.steps) for _ in range(args.repeats)]
    assert grown[0][0].weight.shape == built[0][0].weight.shape
    print(f"torch {torch.__version__}, 2 threads, MLP {INPUTS}-{args.width}-{CLASSES}, Adam, batch {BATCH}, float32")
    for name, ratios in (("growth by one neuron / step", cost), ("steps per second, grown / built", speed)):
        print(f"{name}: minimum {min(ratios):.3g}, median {statistics.median(ratios):.3g} of {len(ratios)}")
    command = [sys.executable, __file__, "--width", str(args.width), "--memory"]
    peaks = [
        float(subprocess.run([*command, which], capture_output=True, text=True, check=True).stdout)
        for which in ("training", "growing")
    ]
    weights = sum(p.numel() for p in grown[0].parameters()) * 4 / 2**20
    print(
        f"peak memory: training {peaks[0]:.0f} MiB, growing {peaks[1] - peaks[0]:+.0f} MiB; weights {weights:.0f} MiB"
    )


if __name__ == "__main__":
    main()
