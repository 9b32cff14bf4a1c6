"""Cost of LandscapeMonitor for a 784-1024-10 MLP: a step without a look, and a look at 60,000 samples.

Prints minimum and median of ratios measured in turn. The floor of a look: the forward product (N d I), the backward
product to the activations (N I J) and the sum of outer products (N d I), as in one gradient.
"""

from __future__ import annotations

import argparse
import copy
import logging
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor
from relu_diag.capture import choose_block, read_block, read_signal
from relu_diag.functional import local
from relu_diag.metrics import BlockMetric

INPUTS, WIDTH, CLASSES = 784, 1024, 10


class MLP(LightningModule):
    """The network and its step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def data(samples: int) -> TensorDataset:
    return TensorDataset(torch.rand(samples, INPUTS), torch.randint(CLASSES, (samples,)))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(name: str, ratios: list[float]) -> None:
    print(f"{name}: minimum {min(ratios):.3g}, median {statistics.median(ratios):.3g} of {len(ratios)}")


def off_step(steps: int, repeats: int) -> None:
    """The callback's hooks on a step without a look, called as the Trainer calls them."""
    model, dataset = MLP(), data(256)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = LandscapeMonitor(every_n_steps=10**9)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, callbacks=[monitor], accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader(dataset, batch_size=256))
    X, y = dataset.tensors

    def step() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(model.net(X), y).backward()
            optimizer.step()

    def watch() -> None:
        for index in range(steps):
            monitor.on_train_batch_start(trainer, model, (X, y), index)
            monitor.on_train_batch_end(trainer, model, None, (X, y), index)

    report("hooks of a step without a look / step, batch 256", [seconds(watch) / seconds(step) for _ in range(repeats)])
    with_backpack(model, X, y, repeats, seconds(step) / steps)


def with_backpack(model: MLP, X: Tensor, y: Tensor, repeats: int, step: float) -> None:
    """BackPACK's per-sample gradient norms in every step, where it is installed."""
    try:
        from backpack import backpack, extend
        from backpack.extensions import BatchL2Grad, SumGradSquared
    except ImportError:
        print("BackPACK is not installed: pip install backpack-for-pytorch")
        return
    net, loss = extend(copy.deepcopy(model.net)), extend(nn.CrossEntropyLoss())
    for extension in (BatchL2Grad(), SumGradSquared()):

        def work(extension: object = extension) -> None:
            with backpack(extension):
                loss(net(X), y).backward()

        work()
        report(f"BackPACK {type(extension).__name__} / step, batch 256", [seconds(work) / step for _ in range(repeats)])


def passes(samples: int, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """One full-batch gradient, and geometry and states of all neurons over the same batches."""
    model, dataset = MLP().net, data(samples)
    location = choose_block(model)
    batches = [tuple(t[i : i + batch] for t in dataset.tensors) for i in range(0, samples, batch)]

    def loss(X: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(X), y)

    def gradient() -> None:
        model.zero_grad()
        for X, y in batches:
            (loss(X, y) * len(X) / samples).backward()

    def look() -> None:
        block = read_block(model, location)
        metric = BlockMetric(WIDTH, INPUTS + 1, CLASSES, reduction="mean")
        for X, y in batches:
            metric.update(block, read_signal(model, location, partial(loss, X, y))[0])
        sums = metric.sums()
        local.geometry_from_sums(block, sums)
        local.states_from_sums(block, sums, scale=1.0)

    return gradient, look


def full_pass(samples: int, batch: int, repeats: int) -> None:
    gradient, look = passes(samples, batch)
    gradient()
    look()
    ratios = [seconds(look) / seconds(gradient) for _ in range(repeats)]
    report(f"look at {samples:,} samples / gradient, batches of {batch:,}", ratios)


def peak_memory(which: str, samples: int, batch: int) -> None:
    """Peak resident memory of one pass, in a process of its own."""
    passes(samples, batch)[which == "look"]()
    # VmHWM, not ru_maxrss: the latter starts from the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(float(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("PASS", "BATCH"), help="print the peak of one pass only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if args.memory:
        peak_memory(args.memory[0], args.samples, int(args.memory[1]))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, MLP {INPUTS}-{WIDTH}-{CLASSES}, float32")
    off_step(steps=20, repeats=args.repeats)
    for batch in (256, 1000, 6000, args.samples):
        full_pass(args.samples, batch, args.repeats)
        command = [sys.executable, __file__, "--samples", str(args.samples), "--threads", str(args.threads), "--memory"]
        peaks = [
            float(subprocess.run([*command, which, str(batch)], capture_output=True, text=True, check=True).stdout)
            for which in ("gradient", "look")
        ]
        print(f"    peak memory: gradient {peaks[0]:.0f} MiB, look {peaks[1] - peaks[0]:+.0f} MiB")


if __name__ == "__main__":
    main()
