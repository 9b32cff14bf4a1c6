"""Gradient steps per second of the five-point run: the Trainer with the monitor on, against the usual torch loop.

Run ``python benchmarks/five_points.py``; ``--repeats`` and ``--steps`` shorten it. All numbers come from one process
on one thread, with the contenders taking turns, in processor time, so that a busy machine disturbs them less. The floor
is the same gradient steps with nothing around them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from torch.nn import functional

from relu_diag.callbacks import LandscapeMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression, gradient_descent_
from relu_diag.functional.block import residual_factor

LR = 1e-3
STEPS_PER_BATCH = 1000
RAW_STEPS = 5000
FLOOR_STEPS = 100_000


def raw_torch(steps: int) -> ReferenceRegression:
    """What one writes without a Trainer."""
    module = ReferenceRegression("five_points")
    X, Y = module.problem.tensors()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(module.net(X), Y).backward()
        optimizer.step()
    return module


def floor(steps: int) -> ReferenceRegression:
    """The analytic gradient steps alone."""
    module = ReferenceRegression("five_points")
    X, Y = module.problem.tensors()
    gradient_descent_(module.block, X, Y, LR * residual_factor(Y, "mean"), steps)
    return module


def through_trainer(steps: int, monitored: bool) -> ReferenceRegression:
    """The run of configs/five_points.yaml, without its logger, checkpoints and progress bar."""
    module = ReferenceRegression("five_points", lr=LR, steps_per_batch=STEPS_PER_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[LandscapeMonitor(every_n_steps=STEPS_PER_BATCH)] if monitored else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=500))
    return module


def steps_per_second(run: Callable[[], object], steps: int) -> float:
    start = time.process_time()
    run()
    return steps / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "raw torch SGD loop": (RAW_STEPS, lambda: raw_torch(RAW_STEPS)),
        "Trainer + monitor": (options.steps, lambda: through_trainer(options.steps, monitored=True)),
        "Trainer": (options.steps, lambda: through_trainer(options.steps, monitored=False)),
        "floor": (FLOOR_STEPS, lambda: floor(FLOOR_STEPS)),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, (steps, run) in contenders.items():
            rates[name].append(steps_per_second(run, steps))
    raw, best = rates["raw torch SGD loop"], rates["floor"]
    print(f"{'gradient steps per second':26}{'minimum':>10}{'median':>10}{'x raw (min, median)':>22}{'of floor':>10}")
    for name, values in rates.items():
        ratios = sorted(value / other for value, other in zip(values, raw, strict=True))
        share = statistics.median(value / other for value, other in zip(values, best, strict=True))
        spread = f"{ratios[0]:.1f}, {statistics.median(ratios):.1f}"
        print(f"{name:26}{min(values):10.0f}{statistics.median(values):10.0f}{spread:>22}{share:10.2f}")


if __name__ == "__main__":
    main()
