"""How often `nearby_stationary_point` is right: at exact minima, and beside stationary points in training.

    python benchmarks/nearby_points.py [minima [runs [first seed]]]

*Exact minima*: small networks (1 to 4 inputs, 3 to 12 samples, 2 to 8 neurons, 1 or 2 outputs; ReLU, leaky and others;
with and without biases) are trained and polished to rounding until `classify` calls them a local or global minimum. The
answer is wrong where it is another kind of point; "moved" counts those that are not the point itself. From
1e-5 of every neuron's length beside it the same kind of point must be found, within a hundredth of all weights' length.

*Runs*: gradient descent stopped on the way, one output and at most three neurons in two dimensions. By force every
neuron is put to zero, into every cell and onto every kink within 0.5 rad; where that finds a stationary point within a
tenth of the weights' length the answer must be one, and wherever there is an answer it must be no farther away.

Seen: of 313 exact minima, 241 of them with a loss that is not zero, none of another kind, 1 moved by less than a
hundredth of its length, and all found again from beside. Of 200 runs 120 are within a tenth of a stationary point, none
of them missed; of 139 answers one, at 0.53, is farther than the nearest, at 0.41, and 2 points with the signs of their
stratum are not stationary, which the answer says.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from relu_diag import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.trained import descend, draw_problem, exact_minimum, nearest_by_force


def judge_minima(count: int, first: int = 0) -> Counter[str]:
    seen: Counter[str] = Counter()
    seconds = 0.0
    for seed in itertools.count(first):
        p = exact_minimum(seed)
        if p is None:
            continue
        expected = F.classify(p.block, *p.data).kind
        start = time.perf_counter()
        near = F.nearby_stationary_point(p.block, *p.data)
        seconds += time.perf_counter() - start
        size = float(np.sqrt(np.square(p.W).sum() + np.square(p.H).sum() + np.square(p.b).sum()))
        seen["minima"] += 1
        seen["loss not zero"] += near.verdict.theorem != "zero loss"
        wrong = near.verdict.kind != expected or not near.genuine
        seen["wrong kind"] += wrong
        seen["moved"] += not wrong and near.distance > 1e-8 * size
        seen["moved far"] += not wrong and near.distance > 1e-2 * size
        if wrong:
            print(f"seed {seed}: {expected}, but {near}")
        rng = np.random.default_rng(seed)
        p.W += 1e-5 * np.linalg.norm(p.W, axis=1, keepdims=True) * rng.standard_normal(p.W.shape)
        p.H += 1e-5 * np.linalg.norm(p.H, axis=0) * rng.standard_normal(p.H.shape)
        near = F.nearby_stationary_point(p.block, *p.data)
        wrong = near.verdict.kind != expected or not near.genuine or near.distance > 1e-2 * size
        seen["beside: wrong"] += wrong
        if wrong:
            print(f"seed {seed}, beside it: {expected}, but {near}")
        if seen["minima"] == count:
            seen["ms"] = round(1e3 * seconds / count)
            return seen
    raise AssertionError


def judge_runs(count: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        p = draw_problem(seed, small=True)
        descend(p, int(10 ** rng.uniform(1.5, 4)))
        near = F.nearby_stationary_point(p.block, *p.data)
        distance, kind = nearest_by_force(p)
        size = max(1.0, float(np.sqrt(np.square(p.W).sum() + np.square(p.H).sum())))
        stationary = near.verdict.kind not in {"not stationary", "undecided"}
        said = stationary and not near.reason
        seen["runs"] += 1
        seen["a point found"] += said
        seen["one within 0.1"] += distance < 0.1 * size
        seen["missed within 0.1"] += distance < 0.1 * size and not said
        farther = said and near.distance > 1.05 * distance + 1e-9 * size
        seen["not the nearest"] += farther
        seen["not stationary, but genuine"] += near.genuine and not stationary
        if farther or (distance < 0.1 * size and not said):
            print(f"seed {seed}: {near} | by force: {kind} at {distance:.3g}, size {size:.3g}")
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    minima, runs, first = [int(argument) for argument in sys.argv[1:]] + [313, 200, 0][len(sys.argv) - 1 :]
    if minima:
        print(dict(judge_minima(minima, first)))
    if runs:
        print(dict(judge_runs(runs)))
