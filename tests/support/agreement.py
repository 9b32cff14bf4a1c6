"""How often the package and the linear programs over all sign patterns agree."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from support.reference_stationarity import Problem, answer, loss_slope, random_problem, stationary_problem

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F


def parts(problem: Problem) -> tuple[ShallowBlock, BlockSignal]:
    block = ShallowBlock(torch.as_tensor(problem.W), torch.as_tensor(problem.H), problem.slopes)
    return block, BlockSignal(torch.as_tensor(problem.X), torch.as_tensor(problem.E))


@dataclass
class Tally:
    """How often the package and the linear programs agree."""

    counts: Counter[str] = field(default_factory=Counter)
    fast_seconds: float = 0.0


def compare(rng: np.random.Generator, tally: Tally, random: bool) -> None:
    """One random problem, neuron by neuron."""
    problem = random_problem(rng) if random else stationary_problem(rng)
    start = time.perf_counter()
    found, escape = F.stationarity(*parts(problem)), F.escape_neurons(*parts(problem))
    tally.fast_seconds += time.perf_counter() - start
    for i in range(len(problem.W)):
        truth = answer(problem, i)
        says = bool(found.stationary[i])
        tally.counts["neurons"] += 1
        if not found.decided[i]:
            tally.counts["stationarity: undecided"] += 1
        elif truth.in_band:
            tally.counts["stationarity: in the tolerance band"] += 1
        else:
            tally.counts[f"stationarity: package {says}, programs {truth.stationary}"] += 1
        if says and truth.stationary:
            tally.counts[escape_agreement(problem, i, escape, truth.pull)] += 1


def escape_agreement(problem: Problem, i: int, escape: F.EscapeNeurons, pull: float) -> str:
    says = bool(escape.mask[i])
    if not escape.decided[i]:
        return "escape neuron: undecided"
    # A slope or a pull below the tolerance 1e-9, but not below rounding.
    flat = 1e-13 < loss_slope(problem, i, escape.direction[i].numpy()) <= 1e-9
    if (says and pull == 0 and flat) or (not says and 0 < pull < 1e-8):
        return "escape neuron: in the tolerance band"
    return f"escape neuron: package {says}, programs {pull > 0}"
