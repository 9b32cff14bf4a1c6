"""Stationarity and escape neurons against linear programs over all sign patterns, on random problems.

    python benchmarks/stationarity_agreement.py [problems] [seed]

Prints how often the two agree, outside the tolerance band, and how often the fast code says undecided.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.agreement import Tally, compare


def main() -> None:
    problems = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    rng, tally, start = np.random.default_rng(seed), Tally(), time.perf_counter()
    for number in range(problems):
        compare(rng, tally, random=number % 4 == 0)
    for name, count in sorted(tally.counts.items()):
        print(f"{name:<48} {count}")
    print(f"{'seconds, this package':<48} {tally.fast_seconds:.1f}")
    print(f"{'seconds, linear programs':<48} {time.perf_counter() - start - tally.fast_seconds:.1f}")


if __name__ == "__main__":
    main()
