"""Cost of watching: time of whole fits with monitors at their defaults, of a sampled step, and of an exact pass.

Fits without a callback, with LandscapeMonitor(), with PlateauMonitor() and with both take turns, in one process and one
thread. Two fits alike differ by more than monitors cost. So the time that the thread spends in hooks is counted, in
steps and at the beginning and end of a fit: Lightning's calls of callbacks, less those of a fit without any, and ours
on layers and nodes. What a callback costs that does nothing, and the ratio of the least times of fits, stand beside it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.capture import Glance, Memory, Ride
from relu_diag.training import BlockWatch, Look, Window


class Classifier(LightningModule):
    """Any network, cross-entropy, Adam."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Encoder(nn.Module):
    """Two transformer layers over eight tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(len(x), 8, 64)).mean(1))


def mlp(*widths: int) -> nn.Module:
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


PROBLEMS = {
    "784-256-10, batch 128": (lambda: mlp(784, 256, 10), 784, 128, 1000),
    "784-1024-10, batch 256": (lambda: mlp(784, 1024, 10), 784, 256, 400),
    "4 layers of 512, batch 128": (lambda: mlp(512, 512, 512, 512, 512, 10), 512, 128, 300),
    "transformer encoder, batch 32": (Encoder, 512, 32, 400),
}


WATCHING: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "a callback that does nothing": lambda: [Callback()],
    "LandscapeMonitor": lambda: [LandscapeMonitor()],
    "PlateauMonitor": lambda: [PlateauMonitor()],
    "both": lambda: [LandscapeMonitor(), PlateauMonitor()],
}


# Sampled steps that make a report, and how many at the beginning are not counted.
REPORTED = 20
WARM = 5
# Hooks that a fit calls once.
ONCE = {"setup", "on_fit_start", "on_train_start", "on_train_end", "on_fit_end", "teardown"}


# The blocks that passes at fixed weights look at; those of the encoder have dropout inside, and are refused.
BLOCKS = {
    "784-256-10, batch 128": "net.0",
    "784-1024-10, batch 256": "net.0",
    "4 layers of 512, batch 128": "net.6",
}


def hook(*args: Any) -> str:
    """The name of a hook of callbacks, by what it is called with; one for all of ours on nodes."""
    return args[1] if isinstance(args[1], str) else "on_node"


class Counted:
    """Adds up the time that some functions take, by a key that is told from what they are called with."""

    def __init__(self, key: Callable[..., Any] = hook) -> None:
        self.seconds: Counter[Any] = Counter()
        self.longest = 0.0
        self._key = key
        self._inside = False
        self._undo: list[tuple[Any, str, Any]] = []

    def add(self, owner: Any, function: str) -> None:
        """Time a function from now on, unless another one calls it."""
        original = getattr(owner, function)
        self._undo.append((owner, function, original))

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            self._inside = True
            start = time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                taken = time.thread_time() - start
                self.seconds[self._key(*args)] += taken
                self.longest = max(self.longest, taken)
                self._inside = False

        setattr(owner, function, timed)

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self._undo:
            setattr(owner, name, function)

    @property
    def once(self) -> float:
        """Seconds in what is called once in a fit."""
        return sum(seconds for name, seconds in self.seconds.items() if name in ONCE)

    @property
    def in_steps(self) -> float:
        """Seconds in all the rest."""
        return sum(self.seconds.values()) - self.once


def fit(
    net: nn.Module, data: DataLoader[tuple[Tensor, ...]], steps: int, callbacks: list[Callback]
) -> tuple[float, Counted]:
    """Processor time of a fit, and that in hooks."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=steps, callbacks=callbacks, enable_model_summary=False, **quiet)
    with Counted() as counted:
        counted.add(call, "_call_callback_hooks")
        counted.add(Ride, "_guarded")
        counted.add(Glance, "_note")
        start = time.process_time()
        trainer.fit(Classifier(net), data)
        return time.process_time() - start, counted


def print_fits(fits: Mapping[str, Sequence[tuple[float, Counted]]], steps: int) -> None:
    """Print what each way of watching costs of a fit with none."""
    alone = fits["none"]
    least = min(seconds for seconds, _ in alone)
    in_steps = min(counted.in_steps for _, counted in alone)
    print(f"  {steps} steps of {1e3 * least / steps:.2f} ms", flush=True)
    for watching, watched in fits.items():
        costs = [(counted.in_steps - in_steps) / least for _, counted in watched]
        ends = [counted.once for _, counted in watched]
        print(
            f"  {watching}: steps {1 + min(costs):.4f}, median {1 + statistics.median(costs):.4f} of {len(costs)}; "
            f"beginning and end {1e3 * statistics.median(ends):.1f} ms; least time of a fit over least "
            f"{min(seconds for seconds, _ in watched) / least:.3f}",
            flush=True,
        )


def sampled_steps(net: nn.Module, X: Tensor, y: Tensor, count: int) -> dict[str, list[float]]:
    """Processor time of steps alone, and of steps ridden or glanced at as a monitor does, in turn; and of reports."""
    module = Classifier(net)
    optimizer = module.configure_optimizers()
    memory = Memory()
    windows: dict[str, Window] = {}
    times: dict[str, list[float]] = {"alone": [], "ridden": [], "glanced": [], "report": []}
    for number, sampled in itertools.product(range(count), (False, True)):
        inputs = X + number  # the same batch twice would be the whole data set
        enough = bool(windows) and all(window.glances for window in windows.values())
        kind = ("glanced" if enough else "ridden") if sampled else "alone"
        start = time.process_time()
        optimizer.zero_grad()
        if kind == "ridden":
            ride = Ride(module, memory, lent=True)
            ride.begin()
        elif kind == "glanced":
            glance = Glance(memory.telling)
        loss = functional.cross_entropy(net(inputs), y)
        if kind == "ridden":
            ride.board(loss)
        loss.backward()
        if kind == "ridden":
            for seen in ride.end():
                windows.setdefault(seen.hidden, Window(seen.hidden)).add(seen, number, 1.0)
        elif kind == "glanced":
            for glimpse in glance.end():
                windows[glimpse.hidden].glance(glimpse, number)
        optimizer.step()
        times[kind].append(time.process_time() - start)
        if sampled and (number + 1) % REPORTED == 0:
            start = time.process_time()
            for window in windows.values():
                window.report()
            times["report"].append(time.process_time() - start)
    return times


def exact_pass(module: Classifier, block: str, batches: list[tuple[Tensor, Tensor]]) -> tuple[list[float], list[float]]:
    """Processor time of gradients of some batches, and of a pass at fixed weights over them, in turn."""
    look = Look("riding_cost", block, batches, None, loss_of)
    trainer = Trainer(barebones=True, accelerator="cpu")
    look.find(trainer, module)
    gradients, passes = [], []
    for _ in range(REPORTED):
        start = time.process_time()
        for batch in batches:
            loss_of(module, batch).backward()
        module.zero_grad()
        gradients.append(time.process_time() - start)
        watch = BlockWatch(look.location.hidden, "", judging=False, max_samples=None)
        start = time.process_time()
        watch.look(look.sightings(trainer, module), 0, everything=True)
        passes.append(time.process_time() - start)
    return gradients[WARM:], passes[WARM:]


def loss_of(module: Classifier, batch: Sequence[Tensor]) -> Tensor:
    return functional.cross_entropy(module.net(batch[0]), batch[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=float, default=1.0, help="factor of the number of steps")
    parser.add_argument("--only", default="", help="problems whose name has this in it")
    parser.add_argument(
        "--learnable", action="store_true", help="labels of a linear teacher, not random ones: no plateau"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, (make, inputs, batch, steps) in PROBLEMS.items():
        if arguments.only not in name:
            continue
        X, y = torch.randn(200 * batch, inputs), torch.randint(10, (200 * batch,))
        if arguments.learnable:
            y = (X @ torch.randn(inputs, 10)).argmax(1)
        data = DataLoader(TensorDataset(X, y), batch_size=batch, shuffle=True)
        count = int(arguments.steps * steps)
        fit(make(), data, 20, [])
        fits: dict[str, list[tuple[float, Counted]]] = {watching: [] for watching in WATCHING}
        for _ in range(arguments.repeats):
            for watching, callbacks in WATCHING.items():
                fits[watching].append(fit(make(), data, count, callbacks()))
        print(name, flush=True)
        print_fits(fits, count)
        sampled = sampled_steps(make(), X[:batch], y[:batch], REPORTED * arguments.repeats)
        alone, ridden, glanced = (sampled[kind][WARM:] for kind in ("alone", "ridden", "glanced"))
        share = len(sampled["ridden"]) / (len(sampled["ridden"]) + len(sampled["glanced"]))
        for word, middle in (("least", min), ("medians", statistics.median)):
            one, other = middle(ridden) / middle(alone), middle(glanced) / middle(alone)
            print(
                f"  a sampled step / a step, {word}: {share * one + (1 - share) * other:.3f}; ridden {one:.3f} "
                f"({share:.0%} of them), glanced at {other:.3f}, of {1e3 * middle(alone):.2f} ms; adding up a report "
                f"{1e3 * middle(sampled['report']):.2f} ms",
                flush=True,
            )
        if name in BLOCKS:
            batches = [(X[:batch], y[:batch]), (X[-batch:], y[-batch:])]
            gradients, passes = exact_pass(Classifier(make()), BLOCKS[name], batches)
            usual = statistics.median(passes) / statistics.median(gradients)
            least = min(passes) / min(gradients)
            print(f"  an exact pass / a gradient: least {least:.3f}, medians {usual:.3f}", flush=True)


if __name__ == "__main__":
    main()
