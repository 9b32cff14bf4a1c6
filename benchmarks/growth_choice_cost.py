"""Cost of one growth by GrowOnPlateau in units of training steps, all that it takes counted.

    python benchmarks/growth_choice_cost.py
    python benchmarks/growth_choice_cost.py --only digits --repeats 5

Fits of MLPs under Adam, one growth in the middle of each; all shapes take turns, in one process and one thread. The
time that the thread spends in hooks is counted: Lightning's calls of callbacks and ours on layers and nodes, less what
a step takes in which nothing happens. A step is what is left of the fit, per step.

Prints a table in Markdown, minimum and median of the repeats: "growth" is the hook in which neurons are chosen and
added, "riding" what all other steps take for it, "beginning" what the first steps of a run take, once.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from growth_in_training import PROBLEMS
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer import call
from riding_cost import Counted
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import GrowOnPlateau
from relu_diag.capture import Ride

# Steps at the beginning of a run in which blocks are seen for the first time.
FIRST = 3
CLASSES = 10
Data = tuple[Tensor, Tensor]


def clusters(rows: int, inputs: int) -> Data:
    """Classes of six clusters each."""
    draw = torch.Generator().manual_seed(0)
    centres = 0.35 * torch.randn(6 * CLASSES, inputs, generator=draw)
    which = torch.randint(len(centres), (rows,), generator=draw)
    return centres[which] + torch.randn(rows, inputs, generator=draw), which % CLASSES


def problem(name: str) -> Data:
    """The data of the comparison of what growths bring."""
    found = PROBLEMS[name]()
    return found.X, found.y


@dataclass(frozen=True)
class Shape:
    """A network and its data, the step of the growth, and numbers of neurons to be added."""

    data: Callable[[], Data]
    hidden: tuple[int, ...]
    units: tuple[int, ...]
    step: int = 300
    batch: int = 64


SEVERAL = (8, 16, 32)
SHAPES = {
    "784-256-10": Shape(lambda: clusters(8192, 784), (256,), SEVERAL, 128, 128),
    "784-1024-10": Shape(lambda: clusters(8192, 784), (1024,), SEVERAL, 128, 128),
    "4x512": Shape(lambda: clusters(8192, 512), (512,) * 4, SEVERAL, 128, 128),
    "digits, 1 layer of 8": Shape(lambda: problem("digits"), (8,), (8,)),
    "digits, 3 layers of 8": Shape(lambda: problem("digits"), (8,) * 3, (8,)),
    "digits, 5 layers of 8": Shape(lambda: problem("digits"), (8,) * 5, (8,)),
    "five points": Shape(lambda: problem("five points"), (2,), (2,)),
    "three inputs": Shape(lambda: problem("three inputs"), (1,), (1,)),
    "two outputs": Shape(lambda: problem("two outputs"), (1,), (1,)),
    "two outputs, 5 layers": Shape(lambda: problem("two outputs"), (1,) * 5, (1,)),
}


class Net(LightningModule):
    """An MLP."""

    def __init__(self, hidden: tuple[int, ...], X: Tensor, y: Tensor) -> None:
        super().__init__()
        self.error = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
        sizes = [X.shape[1], *hidden, y.shape[1] if y.is_floating_point() else CLASSES]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.error(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(shape: Shape, units: int) -> dict[str, float]:
    """What a growth takes in a fit, in steps; the step in milliseconds."""
    X, y = shape.data()
    torch.manual_seed(0)
    module = Net(shape.hidden, X, y)
    grow = GrowOnPlateau(at_steps=(shape.step,), units=units)
    trainer = Trainer(
        max_steps=shape.step + shape.step // 2, max_epochs=-1, callbacks=[grow], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    loader = DataLoader(
        TensorDataset(X, y), min(shape.batch, len(X)), shuffle=True, generator=torch.Generator().manual_seed(0)
    )

    def step_of(*args: Any) -> int:
        # The number of the step has moved on when it ends.
        return trainer.global_step - (args[1] in {"on_train_batch_end", "on_train_epoch_end"})

    with Counted(step_of) as counted:
        counted.add(call, "_call_callback_hooks")
        counted.add(Ride, "_guarded")
        start = time.thread_time()
        trainer.fit(module, loader)
        total = time.thread_time() - start
    assert grow.growths, "nothing has grown"
    usual = statistics.median(counted.seconds.values())
    step = (total - sum(counted.seconds.values())) / trainer.global_step + usual
    beside = {number: seconds - usual for number, seconds in counted.seconds.items()}
    beginning = sum(seconds for number, seconds in beside.items() if number < FIRST)
    return {
        "step": 1e3 * step,
        "growth": counted.longest / step,
        "riding": (sum(beside.values()) - beginning - counted.longest) / step,
        "beginning": beginning / step,
        "growth and riding": (sum(beside.values()) - beginning) / step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    shapes = [(name, units) for name, shape in SHAPES.items() if args.only in name for units in shape.units]
    fit(SHAPES["five points"], 2)
    found: dict[tuple[str, int], list[dict[str, float]]] = {one: [] for one in shapes}
    for _ in range(args.repeats):
        for name, units in shapes:
            found[name, units].append(fit(SHAPES[name], units))
    columns = ["growth", "riding", "growth and riding", "beginning"]
    print(f"torch {torch.__version__}, 1 thread; steps of training, minimum / median of {args.repeats}\n")
    print(f"| network | neurons | a step, ms | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * (len(columns) + 2)}")
    for (name, units), fits in found.items():
        cells = [
            f"{min(one[column] for one in fits):.1f} / {statistics.median(one[column] for one in fits):.1f}"
            for column in columns
        ]
        print(f"| {name} | {units} | {min(one['step'] for one in fits):.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
