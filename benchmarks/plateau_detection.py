"""How well plateaus are found and forecast, what an early escape saves, and what watching costs a step.

``python benchmarks/plateau_detection.py PART``, where PART is

streams    synthetic losses with known plateaus, against the criteria of ReduceLROnPlateau and EarlyStopping, at their
           defaults and at the setting of a grid that does best on these very streams
noise      the same plateaus and decreases under 5 to 50 % of noise a step, and steps until a stuck run is found stuck
runs       the four reference problems in a Trainer, ten seeds each, against the plateaus of their whole loss curves
escape     the five-point run with and without EscapeOnPlateau
cost       microseconds per step, and milliseconds per forecast
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from forecast_error import DROP, FLAT, RUNS, plateaus
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from numpy.typing import NDArray
from torch.optim.lr_scheduler import ReduceLROnPlateau

from relu_diag.callbacks import EscapeOnPlateau, PlateauMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.functional import forecast_escape
from relu_diag.training import PlateauDetector

Losses = NDArray[np.float64]
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "max_epochs": -1,
}


# Synthetic streams


@dataclass(frozen=True)
class Stream:
    """Losses, and first and last step of every plateau; the end of the last one is that of the stream."""

    losses: Losses
    truth: list[tuple[int, int]]


def staircase(draw: np.random.Generator) -> Stream:
    """Three plateaus of 3,000 to 30,000 steps, each left by an exponential escape, and a fourth without end."""
    parts, level, levels = [], 1.0, []
    for _ in range(3):
        length, fall = int(10 ** draw.uniform(3.5, 4.5)), draw.uniform(0.1, 0.6)
        low, steps = level * (1 - fall), np.arange(round(1.5 * length))
        parts.append(low + (level - low) / (1 + np.exp(20 / length * (steps - 1.15 * length))))
        levels.append(level)
        level = low
    losses = np.concatenate([*parts, np.full(20_000, level)])
    truth = [(int(np.argmax(losses <= 1.01 * one)), int(np.argmax(losses < 0.99 * one))) for one in levels]
    return Stream(losses, [*truth, (int(np.argmax(losses <= 1.01 * level)), len(losses))])


def decreasing(draw: np.random.Generator) -> Stream:
    """A steady decrease, by a factor of two to ten: exponential, linear, or a power."""
    steps, factor = np.arange(60_000.0), draw.uniform(2, 10)
    shapes = [
        factor ** (-steps / len(steps)),
        1 - (1 - 1 / factor) * steps / len(steps),
        (1 + steps) ** (-np.log(factor) / np.log(len(steps))),
    ]
    return Stream(shapes[draw.integers(3)], [])


def restarts(draw: np.random.Generator) -> Stream:
    """Warm restarts every 2,000 to 8,000 steps; the loss falls by half in each and slowly from one to the next."""
    steps, period = np.arange(60_000.0), draw.integers(2_000, 8_000)
    return Stream((1 - 0.5 * (steps % period) / period) * np.exp(-steps / 1e5), [])


def noisy(stream: Stream, noise: float, spikes: float, seed: int) -> Stream:
    size, draw = len(stream.losses), np.random.default_rng(1000 + seed)
    factor = (1 + noise * draw.standard_normal(size)) * np.where(draw.random(size) < spikes, 10.0, 1.0)
    return Stream(stream.losses * factor, stream.truth)


KINDS: dict[str, tuple[Callable[[np.random.Generator], Stream], float, float]] = {
    "plateaus": (staircase, 0.0, 0.0),
    "plateaus, noise 1 %": (staircase, 0.01, 0.0),
    "plateaus, noise 5 %": (staircase, 0.05, 0.0),
    "plateaus, noise 20 %": (staircase, 0.2, 0.0),
    "plateaus, 1 % of steps x 10": (staircase, 0.01, 0.01),
    "steady decrease": (decreasing, 0.0, 0.0),
    "steady decrease, noise 5 %": (decreasing, 0.05, 0.0),
    "steady decrease, noise 20 %": (decreasing, 0.2, 0.0),
    "warm restarts": (restarts, 0.0, 0.0),
    "warm restarts, noise 5 %": (restarts, 0.05, 0.0),
}

# A criterion says at which steps a plateau was noticed, its end was noticed, or it was taken back.
Said = list[tuple[int, str]]


def ours(losses: Losses) -> Said:
    detector, said = PlateauDetector(), []
    for step, loss in enumerate(losses.tolist()):
        change = detector.add(step, loss)
        if change is not None:
            said.append((step, {"start": "start", "slide": "back"}.get(change.how, "end")))
    return said


def checks(losses: Losses, every: int) -> Iterator[tuple[int, torch.Tensor]]:
    means = losses[: len(losses) // every * every].reshape(-1, every).mean(axis=1)
    for k, mean in enumerate(torch.as_tensor(means)):
        yield (k + 1) * every - 1, mean


def reduce_on_plateau(losses: Losses, every: int, patience: int, threshold: float) -> Said:
    """On a plateau from where it would reduce the rate to where it next sees a better loss."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.999, patience=patience, threshold=threshold, eps=0.0)
    said: Said = []
    for step, mean in checks(losses, every):
        before, better = optimizer.param_groups[0]["lr"], float(mean) < scheduler.best * (1 - threshold)
        scheduler.step(float(mean))
        on = bool(said) and said[-1][1] == "start"
        if on and better:
            said.append((step, "end"))
        elif not on and optimizer.param_groups[0]["lr"] < before:
            said.append((step, "start"))
    return said


def early_stopping(losses: Losses, every: int, patience: int, threshold: float) -> Said:
    """On a plateau from where it would stop to where it next sees an improvement; the threshold is absolute."""
    stopping = EarlyStopping("loss", min_delta=threshold, patience=patience)
    said: Said = []
    for step, mean in checks(losses, every):
        stop, _ = stopping._evaluate_stopping_criteria(mean)
        on = bool(said) and said[-1][1] == "start"
        if on and stopping.wait_count == 0:
            said.append((step, "end"))
        elif not on and stop:
            said.append((step, "start"))
    return said


@dataclass
class Score:
    """Plateaus found, missed; starts outside all of them, and those taken back; ends found, and ends seen on them."""

    found: int = 0
    missed: int = 0
    false: int = 0
    back: int = 0
    ends: int = 0
    false_ends: int = 0

    @property
    def wrong(self) -> int:
        return self.missed + self.false - self.back + self.false_ends


def score(stream: Stream, said: Said, total: Score, delays: list[float]) -> None:
    """A plateau is found if the detector is on it after nine tenths of it; from then on its end may be noticed."""
    held = False
    for k, (step, what) in enumerate(said):
        on = any(start <= step < end for start, end in stream.truth)
        early = any(start <= step < end - 0.1 * (end - start) for start, end in stream.truth)
        if what == "start":
            # A start on the way down to a plateau is early, not false, if it is kept on that plateau.
            following = said[k + 1][0] if k + 1 < len(said) else len(stream.losses)
            total.false += not on and not any(step <= start < following for start, _ in stream.truth)
        else:
            total.back += what == "back"
            total.false_ends += what == "end" and held and early
        held = what == "start"
    for k, (start, end) in enumerate(stream.truth):
        late = end - 0.1 * (end - start)
        on = next((what == "start" for step, what in reversed(said) if step < late), False)
        total.found, total.missed = total.found + on, total.missed + (not on)
        following = stream.truth[k + 1][1] if k + 1 < len(stream.truth) else end
        noticed = next((step for step, what in said if what == "end" and late <= step < following), None)
        if on and noticed is not None:
            total.ends += 1
            delays.append((noticed - end) / (end - start))


def streams(seeds: int) -> None:
    data = {
        name: [noisy(make(np.random.default_rng(seed)), noise, spikes, seed) for seed in range(seeds)]
        for name, (make, noise, spikes) in KINDS.items()
    }
    everything = [stream for some in data.values() for stream in some]
    criteria: dict[str, Callable[[Losses], Said]] = {
        "PlateauDetector": ours,
        "ReduceLROnPlateau, defaults": lambda losses: reduce_on_plateau(losses, 100, 10, 1e-4),
        "EarlyStopping, defaults": lambda losses: early_stopping(losses, 100, 3, 0.0),
    }
    for name, criterion in (("ReduceLROnPlateau", reduce_on_plateau), ("EarlyStopping", early_stopping)):
        grid = itertools.product((100, 500), (3, 10, 30), (1e-4, 1e-3, 1e-2, 3e-2))
        best = min(grid, key=lambda setting, criterion=criterion: wrong(everything, criterion, setting))
        label = f"{name}, best of a grid: every {best[0]} steps, patience {best[1]}, threshold {best[2]:g}"
        criteria[label] = lambda losses, criterion=criterion, best=best: criterion(losses, *best)
    print("checks of the other two see means over 100 steps unless said otherwise")
    for label, criterion in criteria.items():
        print(f"\n{label}")
        columns = f"{'plateaus':>9}{'found':>7}{'missed':>7}{'false':>7}{'taken back':>12}{'ends':>6}{'false ends':>12}"
        print(f"{'':30}{columns}{'delay median, worst':>23}")
        for name, some in data.items():
            total, delays = Score(), []
            for stream in some:
                score(stream, criterion(stream.losses), total, delays)
            late = f"{statistics.median(delays):14.1%}{max(delays):9.1%}" if delays else ""
            counts = f"{total.found + total.missed:9}{total.found:7}{total.missed:7}{total.false:7}{total.back:12}"
            print(f"{name:30}{counts}{total.ends:6}{total.false_ends:12}{late}")


def noise(seeds: int) -> None:
    columns = f"{'plateaus':>9}{'found':>7}{'false':>7}{'back':>6}{'false ends':>12}{'noticed after':>20}"
    print(f"{'a step':>7}{columns}{'stuck run, steps':>22}{'decreases: starts, ends':>26}")
    for level in (0.05, 0.1, 0.2, 0.3, 0.5):
        total, early, shares, stuck, falling = Score(), [], [], [], []
        for seed in range(seeds):
            stream = noisy(staircase(np.random.default_rng(seed)), level, 0.0, seed)
            said = ours(stream.losses)
            score(stream, said, total, [])
            for start, end in stream.truth:
                seen = next((step for step, what in said if what == "start" and start <= step < end), None)
                if seen is not None:
                    early.append(seen - start)
                    shares.append((seen - start) / (end - start))
            # A descent of 300 steps, and then nothing.
            stopped = Stream(1 + np.exp(-np.arange(20_000) / 100.0), [])
            seen_stuck = next((step for step, what in ours(noisy(stopped, level, 0.0, seed).losses)), 20_000)
            stuck.append(seen_stuck)
            falling += [
                what for _, what in ours(noisy(decreasing(np.random.default_rng(seed)), level, 0.0, seed).losses)
            ]
        counts = f"{total.found + total.missed:9}{total.found:7}{total.false:7}{total.back:6}{total.false_ends:12}"
        late = f"{statistics.median(early):10.0f}{statistics.median(shares):10.1%}" if early else f"{'':20}"
        held = f"{statistics.median(stuck):14.0f}{max(stuck):8}"
        print(f"{level:7.0%}{counts}{late}{held}{falling.count('start'):18}{falling.count('end'):8}")


def wrong(everything: list[Stream], criterion: Callable[..., Said], setting: tuple[float, ...]) -> int:
    total = Score()
    for stream in everything:
        score(stream, criterion(stream.losses, *setting), total, [])
    return total.wrong


# The reference problems

# Steps after which every run has settled.
SETTLED = {"five_points": 15_000, "five_points_wide_init": 150_000, "three_inputs": 150_000, "two_outputs": 40_000}


class Curve(Callback):
    """The loss after every batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def fit(problem: Any, seed: int, steps: int, *callbacks: Callback) -> None:
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    module = ReferenceRegression(problem, seed=seed, lr=RUNS[problem][0], steps_per_batch=10)
    trainer.fit(module, PointsDataModule(problem, batches_per_epoch=1000))


def runs(seeds: int) -> None:
    print(f"{'problem':23}{'plateaus':>9}{'found':>7}{'ends found':>11}{'other ends':>12}   final states")
    seen, ended, errors = [], [], defaultdict(list)
    for problem, steps in SETTLED.items():
        counts, final = defaultdict(int), defaultdict(int)
        for seed in range(seeds):
            monitor, curve = PlateauMonitor(), Curve()
            fit(problem, seed, steps, monitor, curve)
            truth = [one for one in plateaus(np.array(curve.losses)) if one.slide < FLAT]
            counts["truth"] += len(truth)
            for one in truth:
                match = next((p for p in monitor.plateaus if abs(p.loss - one.loss) < DROP * one.loss), None)
                counts["found"] += match is not None
                if match is None:
                    continue
                length = one.end - one.start
                seen.append((match.seen - one.start, (match.seen - one.start) / length))
                counts["ends"] += match.end is not None
                if match.end is not None:
                    ended.append(match.end - one.end)
                for share in (0.1, 0.3, 0.5):
                    # The first forecast of the monitor comes after this share of the plateau.
                    made = [f for f in match.forecasts if f.step >= one.start + share * length]
                    if made:
                        errors[share].append(abs(made[0].end - one.end) / length)
            ends = [p for p in monitor.plateaus if p.end is not None]
            counts["other"] += len(ends) - sum(any(abs(p.loss - t.loss) < DROP * t.loss for t in truth) for p in ends)
            assert monitor.final is not None
            final[monitor.final.verdict.kind] += 1
        said = ", ".join(f"{count} {kind}" for kind, count in final.items())
        print(f"{problem:23}{counts['truth']:9}{counts['found']:7}{counts['ends']:11}{counts['other']:12}   {said}")
    steps_late, shares = zip(*seen, strict=True)
    for name, of in (("median", statistics.median), ("worst", max)):
        print(f"noticed after: {name} {of(steps_late):.0f} steps, {of(shares):.1%} of the plateau")
    print(f"end off by: median {statistics.median(map(abs, ended)):.0f} steps, worst {max(map(abs, ended)):.0f}")
    for share, some in errors.items():
        print(
            f"forecast at the first look after {share:.0%}: median {statistics.median(some):.2%}, worst {max(some):.2%}"
        )


def escape(seeds: int) -> None:
    print("five points: first steps of the second and third plateau, and the loss at the end")
    for seed in range(seeds):
        rows = []
        for callbacks in ([], [EscapeOnPlateau()]):
            monitor, curve = PlateauMonitor(), Curve()
            fit("five_points", seed, RUNS["five_points"][1], monitor, *callbacks, curve)
            second, third = (monitor.plateaus[k].start for k in (1, 2))
            rows.append((second, third, curve.losses[-1]))
        (a, b, loss), (c, d, lower) = rows
        print(f"seed {seed}: {a:,} and {b:,}, {loss:.5f}; moved: {c:,} and {d:,}, {lower:.5f}")


# Cost


def cost() -> None:
    """Per step, in turn: an empty hook, the monitor's hook with what it drains, the detector alone."""
    monitor = PlateauMonitor(min_steps=10**9)
    trainer = Trainer(max_steps=1, callbacks=[monitor], **QUIET)
    module = ReferenceRegression("five_points", steps_per_batch=1)
    trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=1))
    loss, detector, plain = torch.rand(1000).double().split(1), PlateauDetector(), Callback()
    numbers, steps = [float(one) for one in loss], itertools.count()
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress

    def watch(callback: Callback) -> None:
        for one in loss:
            progress.increment_by(1)
            callback.on_train_batch_end(trainer, module, {"loss": one}, None, 0)

    def detect() -> None:
        for one in numbers:
            detector.add(next(steps), one)

    works = {"empty hook": lambda: watch(plain), "PlateauMonitor's hook": lambda: watch(monitor), "detector": detect}
    times = defaultdict(list)
    for _ in range(30):
        for name, work in works.items():
            begin = time.process_time()
            work()
            times[name].append(1e6 * (time.process_time() - begin) / len(loss))
    for name, some in times.items():
        print(f"{name:24} minimum {min(some):6.2f}, median {statistics.median(some):6.2f} us per step")
    X, Y = module.problem.tensors()
    forecasts = []
    for _ in range(30):
        begin = time.process_time()
        forecast_escape(module.block, X, Y, lr=1e-3)
        forecasts.append(1e3 * (time.process_time() - begin))
    print(f"{'a forecast, 50 neurons':24} minimum {min(forecasts):6.2f}, median {statistics.median(forecasts):6.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["streams", "noise", "runs", "escape", "cost"])
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    {"streams": streams, "noise": noise, "runs": runs, "escape": escape}.get(args.part, lambda _: cost())(args.seeds)


if __name__ == "__main__":
    main()
