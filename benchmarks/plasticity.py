"""Plasticity on permuted digits, ten tasks in a row: nothing done, ReDo, continual backprop, ReviveDeadUnits.

    python benchmarks/plasticity.py --seeds 3

Every task permutes the pixels anew; the network is never reset. All methods make the same number of steps on the same
batches. Prints a table in Markdown: share of neurons that are silent on the last task's training images, accuracy on
held-out images at the end of the last task and on average over tasks, and the time.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from relu_diag.callbacks import ReviveDeadUnits

METHODS = ("nothing", "redo", "continual backprop", "revive")


class Tasks(IterableDataset[list[Tensor]]):
    """Batches of digits, whose pixels are permuted anew in every task."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        X, y = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
        cut = len(X) * 3 // 4
        self.training, self.held_out = (X[:cut], y[:cut]), (X[cut:], y[cut:])
        self.options = options
        self.seed = seed

    def permutation(self, task: int) -> Tensor:
        return torch.randperm(64, generator=torch.Generator().manual_seed(1000 * self.seed + task))

    def __iter__(self) -> Iterator[list[Tensor]]:
        draw = torch.Generator().manual_seed(self.seed)
        X, y = self.training
        for task in range(self.options.tasks):
            pixels = self.permutation(task)
            for _ in range(self.options.steps):
                rows = torch.randint(0, len(X), (self.options.batch,), generator=draw)
                yield [X[rows][:, pixels], y[rows]]


class Learner(LightningModule):
    """64 pixels, two hidden layers, ten digits."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = options.width
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)
        self.options = options
        self.hidden: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(self.first(x))
        b = functional.relu(self.second(a))
        self.hidden = [a.detach(), b.detach()]
        return self.last(b)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.options.lr)

    @property
    def pairs(self) -> list[tuple[nn.Linear, nn.Linear]]:
        return [(self.first, self.second), (self.second, self.last)]


def renew(trainer: Trainer, into: nn.Linear, out: nn.Linear, units: Tensor) -> None:
    """Fresh input weights, output weights of zero, moments of zero."""
    with torch.no_grad():
        bound = 1 / math.sqrt(into.in_features)
        into.weight[units] = torch.empty(len(units), into.in_features).uniform_(-bound, bound)
        into.bias[units] = 0.0
        out.weight[:, units] = 0.0
        state = trainer.optimizers[0].state
        for name in ("exp_avg", "exp_avg_sq"):
            state[into.weight][name][units] = 0.0
            state[into.bias][name][units] = 0.0
            state[out.weight][name][:, units] = 0.0


class ReDo(Callback):
    """Sokar et al. 2023: neurons of a small share of the layer's mean activation start again every so many steps."""

    def __init__(self, every: int, tau: float = 0.1) -> None:
        self.every = every
        self.tau = tau

    def on_train_batch_end(self, trainer: Trainer, module: Learner, *_: Any) -> None:
        if trainer.global_step % self.every:
            return
        for (into, out), hidden in zip(module.pairs, module.hidden, strict=True):
            score = hidden.abs().mean(dim=0)
            dormant = (score <= self.tau * score.mean()).nonzero().squeeze(1)
            if len(dormant):
                renew(trainer, into, out, dormant)


class ContinualBackprop(Callback):
    """Dohare et al. 2024: the least useful of the mature neurons start again, a small share at every step."""

    def __init__(self, rate: float = 1e-4, maturity: int = 100, decay: float = 0.99) -> None:
        self.rate = rate
        self.maturity = maturity
        self.decay = decay
        self.utility: list[Tensor] = []
        self.age: list[Tensor] = []
        self.due = [0.0, 0.0]

    def on_train_batch_end(self, trainer: Trainer, module: Learner, *_: Any) -> None:
        if not self.utility:
            self.utility = [torch.zeros(hidden.shape[1]) for hidden in module.hidden]
            self.age = [torch.zeros(hidden.shape[1]) for hidden in module.hidden]
        for layer, ((into, out), hidden) in enumerate(zip(module.pairs, module.hidden, strict=True)):
            with torch.no_grad():
                now = hidden.abs().mean(dim=0) * out.weight.abs().sum(dim=0)
                self.utility[layer].mul_(self.decay).add_((1 - self.decay) * now)
            self.age[layer] += 1
            mature = (self.age[layer] > self.maturity).nonzero().squeeze(1)
            self.due[layer] += self.rate * len(mature)
            count = int(self.due[layer])
            if count:
                self.due[layer] -= count
                units = mature[self.utility[layer][mature].argsort()[:count]]
                renew(trainer, into, out, units)
                self.utility[layer][units] = 0.0
                self.age[layer][units] = 0.0


class Accuracy(Callback):
    """Accuracy on held-out images at the end of every task, and the share of silent neurons."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.accuracy: list[float] = []
        self.dead: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Learner, *_: Any) -> None:
        steps = self.tasks.options.steps
        if trainer.global_step % steps:
            return
        pixels = self.tasks.permutation(trainer.global_step // steps - 1)
        with torch.no_grad():
            X, y = self.tasks.held_out
            self.accuracy.append(float((module(X[:, pixels]).argmax(dim=1) == y).float().mean()))
            module(self.tasks.training[0][:, pixels])
            silent = torch.cat([(hidden == 0).all(dim=0) for hidden in module.hidden])
            self.dead.append(float(silent.float().mean()))


def run(method: str, options: argparse.Namespace, seed: int) -> dict[str, float]:
    tasks = Tasks(options, seed)
    module = Learner(options, seed)
    accuracy = Accuracy(tasks)
    made: dict[str, list[Callback]] = {
        "redo": [ReDo(options.every)],
        "continual backprop": [ContinualBackprop()],
        "revive": [ReviveDeadUnits(options.revive_every, options.samples, dormant=options.dormant)],
    }
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[accuracy, *made.get(method, [])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    began = time.process_time()
    trainer.fit(module, DataLoader(tasks, batch_size=None))
    seconds = time.process_time() - began
    return {
        "dead at the end": accuracy.dead[-1],
        "last task": accuracy.accuracy[-1],
        "all tasks": statistics.mean(accuracy.accuracy),
        "CPU s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200, help="steps of a task")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--every", type=int, default=100, help="steps between two looks of ReDo")
    parser.add_argument("--revive-every", type=int, default=200, help="the same for ReviveDeadUnits")
    parser.add_argument("--samples", type=int, default=256, help="rows that ReviveDeadUnits keeps")
    parser.add_argument("--dormant", type=float, default=0.025, help="what counts as dormant for it")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| method | dead at the end | last task | all tasks | CPU s |")
    print("|---|---:|---:|---:|---:|")
    for method in options.methods:
        runs = [run(method, options, seed) for seed in range(options.seeds)]
        means = [statistics.mean(one[name] for one in runs) for name in runs[0]]
        print(f"| {method} | {' | '.join(f'{value:.3f}' for value in means)} |", flush=True)


if __name__ == "__main__":
    main()
