"""Attack the verdicts under any loss, with and without weight decay, and judge them by evaluations of the loss alone.

    python benchmarks/attack_losses.py --problems 400 --seed 0 [--loss NAME] [--workers 2]
    python benchmarks/attack_losses.py --loss NAME --number 17 [--decay]

Points are stationary by construction, samples on kinks on half of them, or small whole numbers, or anything; 1 to 4
outputs. Prints a row a loss: points, wrong verdicts, exceptions, undecided ones, those of them and of the type-2
candidates that the oracle leaves downhill, and every kind of verdict.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.attack.any_loss import KINKED, MAKERS, case_of, decayed_case
from support.attack.loss_oracle import complaints, largest_excess

from relu_diag import functional as F

Job = tuple[str, int, int, bool]


@dataclass(frozen=True)
class Found:
    """Kind of a verdict, what is wrong with it, whether the oracle found a fall it missed, CPU seconds it took."""

    kind: str
    wrong: list[str]
    missed: bool
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=400, help="of all losses together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loss", choices=[*sorted(MAKERS), *KINKED], action="append")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--number", type=int, help="one point by itself, the verdict in full")
    parser.add_argument("--decay", action="store_true", help="with --number: the point with weight decay")
    options = parser.parse_args()
    names = options.loss or list(MAKERS)
    if options.number is not None:
        show((names[0], options.seed, options.number, options.decay))
        return
    jobs = [
        (names[k // 2 % len(names)], options.seed, k // 2 // len(names), k % 2 == 1) for k in range(options.problems)
    ]
    with multiprocessing.get_context("spawn").Pool(options.workers, torch.set_num_threads, (1,)) as pool:
        found = pool.map(attack, jobs, chunksize=8)
    print(table(jobs, found))


def attack(job: Job) -> Found:
    """The verdict on a point, and what its oracle says of it."""
    name, seed, number, decay = job
    case = decayed_case(name, seed, number) if decay else case_of(name, seed, number)
    start = time.process_time()
    try:
        verdict = F.classify(case.block, case.X, case.loss, weight_decay=case.mu)
    except Exception:
        return Found("exception", [traceback.format_exc(limit=-1)], False, time.process_time() - start)
    seconds = time.process_time() - start
    rng = np.random.default_rng(number)
    if verdict.kind in {"undecided", "type-2 candidate"}:
        kind = f"undecided: {verdict.reason}" if verdict.kind == "undecided" else verdict.kind
        return Found(kind, [], largest_excess(case, rng) > 1, seconds)
    return Found(verdict.kind, complaints(case, verdict, rng), False, seconds)


def show(job: Job) -> None:
    name, seed, number, decay = job
    case = decayed_case(name, seed, number) if decay else case_of(name, seed, number)
    print(case)
    print(F.classify(case.block, case.X, case.loss, weight_decay=case.mu).summary())
    print(*attack(job).wrong, sep="\n")


def table(jobs: list[Job], found: list[Found]) -> str:
    heads = f"{'wrong':>7}{'exceptions':>12}{'undecided':>11}{'missed':>8}{'ms a verdict':>14}"
    lines = [f"{'loss':24}{'points':>8}{heads}"]
    for group in dict.fromkeys((name, decay) for name, _, _, decay in jobs):
        own = [result for job, result in zip(jobs, found, strict=True) if (job[0], job[3]) == group]
        failed = sum(result.kind == "exception" for result in own)
        wrong = sum(bool(result.wrong) for result in own) - failed
        undecided = sum(result.kind.startswith("undecided") for result in own)
        missed = sum(result.missed for result in own)
        pace = 1000 * sum(result.seconds for result in own) / len(own)
        label = f"{group[0]}{' with decay' if group[1] else ''}"
        lines.append(f"{label:24}{len(own):8}{wrong:7}{failed:12}{undecided:11}{missed:8}{pace:14.1f}")
    kinds = Counter(result.kind for result in found)
    lines += ["", *(f"{count:7}  {kind}" for kind, count in kinds.most_common())]
    for (name, seed, number, decay), result in zip(jobs, found, strict=True):
        texts = [*result.wrong, *[f"{result.kind}, but the loss falls"] * result.missed]
        texts += [result.kind] * (result.kind.startswith("undecided") and not result.missed)
        lines += [f"--seed {seed} --loss {name!r} --number {number}{' --decay' * decay}: {text}" for text in texts]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
