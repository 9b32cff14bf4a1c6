"""Attack the kernel with structured problems, and judge what it says by an oracle of its own.

    python benchmarks/attack.py --problems 2000 --seed 0 [--family NAME] [--out FOLDER] [--full] [--deep]
    python benchmarks/attack.py --replay FILE.npz

Prints a table, one row a family: problems, wrong ones, exceptions, undecided ones, those of them whose answer is clear
to the oracle, type-2 candidates, worst seconds of one call. Every problem with a complaint goes into the folder as an
.npz file, with the line that replays it.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.attack.checks import Record, attack
from support.attack.families import FAMILIES, problem_of
from support.attack.problem import Problem

FULL = 100_000
NUMBER = r"\d+(\.\d+)?(e[+-]?\d+)?"


@dataclass
class Tally:
    """What one family came to."""

    problems: int = 0
    wrong: int = 0
    exceptions: int = 0
    undecided: int = 0
    clear: int = 0
    candidates: int = 0
    seconds: float = 0.0
    worst: tuple[float, str] = (0.0, "")
    kinds: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record, seconds: float) -> None:
        self.problems += 1
        self.wrong += bool(record.complaints)
        self.exceptions += bool(record.exceptions)
        self.undecided += record.kind == "undecided"
        self.clear += record.clear
        self.candidates += record.kind == "type-2 candidate"
        self.seconds += seconds
        self.kinds.update({kind for kind, _ in record.complaints})
        self.kinds.update(f"(missed) {what}" for what in record.missed)
        self.kinds.update({f"exception in {name}" for name, _ in record.exceptions})
        self.verdicts[
            record.kind if record.kind != "undecided" else f"undecided: {re.sub(NUMBER, '*', record.reason)}"
        ] += 1
        if record.seconds:
            name, longest = max(record.seconds.items(), key=lambda item: item[1])
            self.worst = max(self.worst, (longest, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=sorted(FAMILIES), action="append")
    parser.add_argument("--out", type=Path, help="folder for the problems that failed")
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} problems")
    parser.add_argument("--deep", action="store_true", help="every check on every problem, and a longer search")
    parser.add_argument("--replay", type=Path, help="one saved problem, in depth")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.replay:
        replay(options.replay)
        return
    families = options.family or list(FAMILIES)
    tallies = run(families, FULL if options.full else options.problems, options)
    print(table(tallies))


def run(families: list[str], problems: int, options: argparse.Namespace) -> dict[str, Tally]:
    tallies = {family: Tally() for family in families}
    for index in range(problems):
        family, number = families[index % len(families)], index // len(families)
        problem = problem_of(family, options.seed, number)
        start = time.process_time()
        record = attack(problem, np.random.default_rng([options.seed, number]), options.deep)
        tallies[family].add(record, time.process_time() - start)
        if options.out and (record.complaints or record.exceptions or record.clear or record.missed):
            save(options.out, f"{family.replace(' ', '_')}_{options.seed}_{number}", problem, record)
    return tallies


def save(folder: Path, name: str, problem: Problem, record: Record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npz"
    problem.save(file)
    undecided = [("undecided where the answer is clear", record.reason)] * record.clear
    undecided += [("missed", what) for what in record.missed]
    with (folder / "found.txt").open("a") as lines:
        for kind, text in [
            *record.complaints,
            *undecided,
            *((f"exception in {name}", text) for name, text in record.exceptions),
        ]:
            lines.write(f"{kind} | python benchmarks/attack.py --replay {file} | {text}\n")


def replay(file: Path) -> None:
    problem = Problem.load(file)
    print(problem)
    record = attack(problem, np.random.default_rng(0), deep=True)
    print(record.kind, record.reason)
    for kind, text in [*record.complaints, *record.exceptions]:
        print(f"{kind}: {text}")


def table(tallies: dict[str, Tally]) -> str:
    heads = (
        "family",
        "problems",
        "wrong",
        "exceptions",
        "undecided",
        "clear",
        "type-2",
        "ms a problem",
        "worst CPU s",
        "worst call",
    )
    rows = [heads]
    total = Counter[str]()
    for family, tally in tallies.items():
        counts = (tally.problems, tally.wrong, tally.exceptions, tally.undecided, tally.clear, tally.candidates)
        pace = f"{1000 * tally.seconds / max(tally.problems, 1):.1f}"
        rows.append((family, *map(str, counts), pace, f"{tally.worst[0]:.2f}", tally.worst[1]))
        total.update(dict(zip(heads[1:7], counts, strict=True)))
    rows.append(("all", *(str(total[head]) for head in heads[1:7]), "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    kinds, verdicts = Counter[str](), Counter[str]()
    for tally in tallies.values():
        kinds.update(tally.kinds)
        verdicts.update(tally.verdicts)
    lines += ["", *(f"{count:7d}  {kind}" for kind, count in kinds.most_common())]
    lines += ["", *(f"{count:7d}  {kind or 'no verdict'}" for kind, count in verdicts.most_common())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
