"""Cost of the exact integral loss: forward and backward against the network evaluated between its breakpoints.

The naive loss puts 8 Gauss nodes into every interval between breakpoints, as exact as ours, and costs O(I x nodes).
Both run interleaved on the same networks; processor time on a CPU, device time on a GPU. The growth exponent is the
slope of log time against log width.

    python benchmarks/interval_loss.py                    # widths to 1e5, half a minute
    python benchmarks/interval_loss.py --full             # widths to 1e6
    python benchmarks/interval_loss.py --full --device cuda
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from relu_diag import functional as F

INTERVAL, ORDER, REPEATS = (-1.0, 2.0), 8, 5
CHUNK = 2**23
# One read of the parameters and one write of their gradients, float64.
FLOOR_BYTES = 2 * 3 * 8


def network(width: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(width)
    w, b, h = torch.randn(3, width, generator=generator, dtype=torch.float64)
    return [value.to(device).requires_grad_() for value in (w, b, h / width**0.5)]


def target(x: Tensor) -> Tensor:
    return torch.sin(3 * x)


def ours(w: Tensor, b: Tensor, h: Tensor) -> float:
    loss = F.interval_l2_loss(w, b, h, 0.3, F.IntervalTarget(target, order=ORDER, cells=1), INTERVAL)
    loss.backward()
    return float(loss.detach())


def naive(w: Tensor, b: Tensor, h: Tensor) -> float:
    """The same integral from the outputs at all nodes, in pieces that fit in memory, each with its backward."""
    A, B = INTERVAL
    t = (-b / w).detach()
    edges = torch.cat([t.new_tensor([A, B]), t[(t > A) & (t < B)]]).sort().values
    unit, share = (torch.tensor(v, device=w.device) for v in np.polynomial.legendre.leggauss(ORDER))
    half = edges.diff()[:, None] / 2
    x, weight = ((edges[:-1, None] + half * (1 + unit)).flatten(), (half * share).flatten())
    total = 0.0
    rows = max(1, CHUNK // len(w))
    for part, scale in zip(x.split(rows), weight.split(rows), strict=True):
        out = 0.3 + torch.relu(torch.outer(part, w) + b) @ h
        loss = (scale * (out - target(part)).square()).sum()
        loss.backward()
        total += float(loss.detach())
    return total


def seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def exponent(widths: list[int], times: list[float]) -> float:
    return float(np.polyfit([math.log(v) for v in widths], [math.log(v) for v in times], 1)[0])


def measure(width: int, with_naive: bool, device: str) -> tuple[list[float], list[float], float]:
    parameters = network(width, device)
    values = [call(*parameters) for call in ([ours, naive] if with_naive else [ours])]  # also warms up
    runs: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        runs[0].append(seconds(lambda: ours(*parameters), device))
        if with_naive:
            runs[1].append(seconds(lambda: naive(*parameters), device))
    return *runs, abs(values[-1] / values[0] - 1)


def bandwidth() -> float:
    """Bytes a second that a copy on the device moves."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    times = [seconds(lambda: copy.copy_(source), "cuda") for _ in range(10)]
    return 2 * len(source) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="widths to 1e6, on a GPU to 1e7")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this torch sees no CUDA device; run with --device cpu.")
    torch.set_num_threads(1)
    widths = [10**k for k in range(3, 8 if options.device == "cuda" else 7)][: None if options.full else 3]
    naive_widths = [300, 1000, 3000]
    print(f"forward + backward on {options.device}, seconds: min / median of {REPEATS}, interleaved")
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    for width in sorted({*widths, *naive_widths}):
        mine, theirs, apart = measure(width, width in naive_widths, options.device)
        line = f"I = {width:>8}: ours {min(mine):.2e} / {statistics.median(mine):.2e}"
        if theirs:
            line += f"   naive {min(theirs):.2e} / {statistics.median(theirs):.2e}"
            line += f"   ratio {statistics.median(theirs) / statistics.median(mine):.0f}   apart {apart:.0e}"
            times["naive"].append(statistics.median(theirs))
        if width in widths:
            times["ours"].append(statistics.median(mine))
            if options.device == "cuda":
                line += f"   {FLOOR_BYTES * width / bandwidth() / min(mine):.1%} of the bandwidth floor"
        print(line)
    growth = exponent(widths, times["ours"]), exponent(naive_widths, times["naive"])
    print(f"growth exponents: ours {growth[0]:.2f} over {widths}, naive {growth[1]:.2f} over {naive_widths}")


if __name__ == "__main__":
    main()
