"""How far off forecasts are on random runs, against the gradient descent of the runs themselves.

Run ``python benchmarks/forecast_random_runs.py``. Runs of twelve neurons differ in seed, dimension, outputs, slopes,
bias and size at the start. A plateau is one of ``forecast_error.py``; the forecast is made at 30 % of it, and the truth
is the first step at which the loss is 1 % lower than there. Errors are in percent of the plateau. Where a run ends on a
plateau, a forecast of an escape before its end is one that never comes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import forecast_error
import numpy as np
import torch
from numpy.typing import NDArray

from relu_diag import ShallowBlock
from relu_diag import functional as F

Array = NDArray[np.float64]
SLOPES = [(0.0, 1.0), (0.01, 1.0), (0.0, 1.0), (0.1, 1.0), (-0.5, 1.0), (0.2, 1.0)]
LR, WIDTH, EVERY, SHARE = 0.02, 12, forecast_error.EVERY, 0.3


@dataclass(frozen=True)
class Runs:
    """Problems of one shape, the loss of each every few steps, and the weights then."""

    X: Array
    Y: Array
    slopes: list[tuple[float, float]]
    losses: Array
    path: list[tuple[Array, Array]]


def train(seed: int, count: int, steps: int) -> Runs:
    draw = np.random.default_rng(seed)
    inputs, outputs, samples = 2 + seed % 3, 1 + (seed // 3) % 2, int(draw.integers(3, 8))
    X, Y = draw.standard_normal((count, samples, inputs)), draw.standard_normal((count, samples, outputs))
    if seed % 2 == 0:
        X[:, :, -1] = 1.0
    slopes = [SLOPES[(seed + run) % len(SLOPES)] for run in range(count)]
    below, above = (np.array([pair[side] for pair in slopes])[:, None, None] for side in (0, 1))
    size = 10.0 ** -draw.uniform(3, 6, (count, 1, 1))
    W, H = size * draw.standard_normal((count, WIDTH, inputs)), size * draw.standard_normal((count, outputs, WIDTH))
    losses, path = [], []
    for step in range(steps):
        Z = X @ W.transpose(0, 2, 1)
        S = np.where(Z > 0, above, below)
        E = (S * Z) @ H.transpose(0, 2, 1) - Y
        if step % EVERY == 0:
            losses.append((E * E).mean(axis=(1, 2)))
            path.append((W, H))
        G = 2 / (samples * outputs) * E
        W, H = W - LR * (S * (G @ H)).transpose(0, 2, 1) @ X, H - LR * G.transpose(0, 2, 1) @ (S * Z)
    return Runs(X, Y, slopes, np.array(losses).T, path)


def forecast(runs: Runs, run: int, now: int) -> tuple[F.EscapeForecast | None, float]:
    """The forecast at one look, and its seconds."""
    W, H = (torch.as_tensor(part[run]) for part in runs.path[now])
    begin = time.process_time()
    block = ShallowBlock(W, H, runs.slopes[run])
    found = F.forecast_escape(block, torch.as_tensor(runs.X[run]), torch.as_tensor(runs.Y[run]), LR)
    return found, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=12)
    parser.add_argument("--runs", type=int, default=17, help="of each shape")
    parser.add_argument("--steps", type=int, default=120_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[str, list[float | None]] = {"first, flat": [], "later, flat": [], "sliding": []}
    seconds, ends, never = [], 0, 0
    for seed in range(args.shapes):
        runs = train(seed, args.runs, args.steps)
        for run, losses in enumerate(runs.losses):
            if not np.isfinite(losses).all():
                continue
            fitted = int(np.argmax(losses < 1e-6 * losses[0])) or len(losses)
            for number, plateau in enumerate(forecast_error.plateaus(losses[:fitted])):
                length = plateau.end - plateau.start
                now = round((plateau.start + SHARE * length) / EVERY)
                found, spent = forecast(runs, run, now)
                truth = EVERY * forecast_error.crossing(losses[now:], 0.99 * losses[now])
                flat = abs(plateau.slide) < forecast_error.FLAT
                kind = "sliding" if not flat else "later, flat" if number else "first, flat"
                errors[kind].append(None if found is None else abs(found.steps - truth) / length)
                seconds.append(spent)
            first = int(np.argmax(losses <= losses[-1] / 0.99))
            now = round(first + SHARE * (len(losses) - first))
            if fitted == len(losses) and len(losses) - first > 400 and losses[now:].min() > 0.99 * losses[now]:
                found, _ = forecast(runs, run, now)
                ends += 1
                never += found is not None and found.steps < 0.95 * (args.steps - EVERY * now)
    for kind, found in errors.items():
        sizes = [100 * error for error in found if error is not None]
        wrong = [sum(size > most for size in sizes) for most in (1, 5)]
        missing, median = len(found) - len(sizes), statistics.median(sizes)
        print(f"{kind:12}{len(found):5} plateaus, {missing} without: median {median:.2f} %, over 1 and 5 %: {wrong}")
    print(f"runs that end on a plateau: {ends}, an escape forecast in {never}")
    print(f"one forecast: median {1e3 * statistics.median(seconds):.0f} ms, worst {1e3 * max(seconds):.0f} ms")


if __name__ == "__main__":
    main()
