"""Error of random nodes against their number: root mean square over many draws, and the slopes of the two samplers.

The integral is the squared error of a random network against a teacher on Gaussian inputs or a box; the truth comes
from a million Sobol points. With --device cuda also: samples a second that go through forward, backward and the drawing
of the nodes, against a plain loop whose batches come from the host.

    python benchmarks/quadrature_error.py
    python benchmarks/quadrature_error.py --device cuda
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from relu_diag.experiments import Teacher
from relu_diag.losses import Box, Gaussian, MonteCarloLoss
from relu_diag.nn import ShallowNet

INPUTS, DRAWS = 4, 64
COUNTS = [2**k for k in range(5, 13)]


def student() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ShallowNet(INPUTS, 20, hidden_bias=True, output_bias=True).double().requires_grad_(False)


def errors(domain: Box | Gaussian, sampler: str) -> list[float]:
    """Root mean square error, relative to the integral, for every number of nodes."""
    model, target = student(), Teacher(INPUTS, 5, seed=3)
    truth = MonteCarloLoss(target, domain, samples=2**20)(model)
    found = []
    for count in COUNTS:
        loss = MonteCarloLoss(target, domain, samples=count, sampler=sampler, seed=7)
        draws = torch.stack([loss(model) for _ in range(DRAWS)])
        found.append(float((draws / truth - 1).square().mean().sqrt()))
    return found


def throughput(samples: int, steps: int) -> tuple[float, float]:
    """Samples a second of a training loop with nodes drawn on the device, and of one with batches from the host."""
    model = ShallowNet(INPUTS, 256, hidden_bias=True, output_bias=True).cuda()
    target = Teacher(INPUTS, 5, seed=3)
    loss = MonteCarloLoss(target, Gaussian(INPUTS), samples=samples, sampler="iid")
    host = torch.randn(8 * samples, INPUTS)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(host), batch_size=samples, shuffle=True)

    def drawn() -> None:
        for _ in range(steps):
            descend(model, loss(model))

    def copied() -> None:
        done = 0
        while done < steps:
            for (x,) in batches:
                batch = x.cuda()
                descend(model, (model(batch) - target(batch)).square().mean())
                done += 1

    return samples * steps / timed(drawn), samples * steps / timed(copied)


def descend(model: nn.Module, loss: Tensor) -> None:
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad


def timed(call: Callable[[], None]) -> float:
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this torch sees no CUDA device; run with --device cpu.")
    torch.set_num_threads(1)
    domains = {"box": Box(((-1.0, 1.0),) * INPUTS), "Gaussian": Gaussian(INPUTS)}
    print(f"{INPUTS} inputs, relative root mean square error over {DRAWS} draws")
    print(f"{'nodes':>20}" + "".join(f"{count:>9}" for count in COUNTS) + "    slope")
    for name, domain in domains.items():
        for sampler in ("iid", "sobol"):
            found = errors(domain, sampler)
            slope = np.polyfit([math.log(n) for n in COUNTS], [math.log(e) for e in found], 1)[0]
            print(f"{name + ', ' + sampler:>20}" + "".join(f"{e:>9.1e}" for e in found) + f"{slope:>9.2f}")
    if device == "cuda":
        for samples in (2**12, 2**16, 2**20):
            drawn, copied = throughput(samples, steps=50)
            print(f"batch {samples:>8}: {drawn:.3g} samples/s drawn on the device, {copied:.3g} from the host")


if __name__ == "__main__":
    main()
