"""Compare GrowOnPlateau, the callback, with what people do by hand when a network grows, at equal steps and equal time.

    python benchmarks/growth_in_training.py                              # digits, 3 seeds
    python benchmarks/growth_in_training.py --problems all --depth 3     # deep: the block is ours to choose
    python benchmarks/growth_in_training.py --first 20                   # seeds 20, 21 and 22

A narrow MLP is trained by Adam, classifiers (digits, wine, breast cancer) on minibatches of 64 under the cross-entropy,
the reference regressions on all points. After some steps as many neurons are added as a layer has (deeper networks: to
the first hidden layer, ours to the layer that gains most), and training goes on for as many steps. All methods grow the
live module, and the moments of the old weights are kept (`relu_diag.growth.grow`). By hand: random units as torch's
Linear draws them, outputs on or zero; Net2Net: copies of random neurons with half the output weight and 5 % noise;
GradMax: input weights near zero, output weights the top left singular vectors of sum_k e_k x_k^T; and where it is
installed (`pip install gromo`, which nothing else here needs) GroMo: what the rule of Verbockhaven et al. 2024,
"Growing tiny networks", adds, at the best of 61 scales.

Prints a table in Markdown: the geometric mean over the seeds of the final loss over that without growth, all rows; ours
over the best of the others in that mean, at equal steps, and with the CPU time of our growth given to the others as
further steps; that time, in steps of training; and the loss right after our growth over the one right before it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import ShallowBlock
from relu_diag.callbacks import GrowOnPlateau
from relu_diag.capture import BlockLocation
from relu_diag.experiments import reference_problem
from relu_diag.growth import grow_in_training

BATCH = 64
# Steps before and behind the growth in which what it takes is spent: rows are kept, and a growth may wait for them.
BEFORE, BEHIND = 40, 60
# A loss below it is zero.
TINY = 1e-12


@dataclass(frozen=True)
class Problem:
    """What is learned, by how many neurons a layer, from initial weights so many times torch's."""

    X: Tensor
    y: Tensor
    width: int
    rate: float
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        return self.y.shape[1] if self.y.is_floating_point() else int(self.y.max()) + 1

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        error = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
        return error(outputs, y)


def classes(load: Callable[..., Any], each: bool) -> Problem:
    rows, labels = load(return_X_y=True)
    X = torch.tensor(rows).float()
    X = (X - X.mean(dim=0)) / (X.std(dim=0) if each else X.std())
    return Problem(X, torch.tensor(labels), 2 if each else 8, 2e-3)


def points(name: Any, width: int, scale: float = 1.0) -> Problem:
    X, Y = (part.float() for part in reference_problem(name).tensors())
    constant = bool((X[:, -1] == 1).all())
    return Problem(X[:, :-1] if constant else X, Y, width, 1e-2, scale)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": lambda: classes(load_digits, each=False),
    "wine": lambda: classes(load_wine, each=True),
    "breast cancer": lambda: classes(load_breast_cancer, each=True),
    "five points": lambda: points("five_points", 2, 0.3),
    "five points, wide": lambda: points("five_points_wide_init", 2),
    "three inputs": lambda: points("three_inputs", 1),
    "two outputs": lambda: points("two_outputs", 1),
}


class Net(LightningModule):
    """An MLP of narrow hidden layers."""

    def __init__(self, problem: Problem, depth: int) -> None:
        super().__init__()
        self.problem = problem
        sizes = [problem.X.shape[1], *depth * [problem.width], problem.outputs]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(problem.scale)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.problem.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.problem.rate)


def loss_of(module: Net) -> float:
    with torch.no_grad():
        return float(module.problem.loss(module.net(module.problem.X), module.problem.y))


def neurons(module: Net) -> int:
    return sum(layer.out_features for layer in module.net if isinstance(layer, nn.Linear))


Embed = Callable[[Net, ShallowBlock], ShallowBlock]


def joined(block: ShallowBlock, W: Tensor, H: Tensor) -> ShallowBlock:
    return ShallowBlock(torch.cat([block.W, W]), torch.cat([block.H, H], dim=1), block.slopes, block.output_bias)


def random_units(on: bool) -> Embed:
    def embed(module: Net, block: ShallowBlock) -> ShallowBlock:
        width, inputs = block.W.shape
        W = (2 * torch.rand(width, inputs) - 1) / (inputs - 1) ** 0.5
        H = (2 * torch.rand(len(block.H), width) - 1) / (2 * width) ** 0.5
        return joined(block, W, on * H)

    return embed


def net2net(module: Net, block: ShallowBlock) -> ShallowBlock:
    H = block.H.clone() / 2
    noisy = [part + 0.05 * part.std(correction=0) * torch.randn(part.shape) for part in (block.W, H)]
    return joined(ShallowBlock(block.W, H, block.slopes, block.output_bias), *noisy)


def gradmax(module: Net, block: ShallowBlock) -> ShallowBlock:
    X, y = module.problem.X, module.problem.y
    outputs = module.net[:3](X).detach().requires_grad_()
    (G,) = torch.autograd.grad(module.problem.loss(module.net[3:](outputs), y), outputs)
    M = G.T @ torch.cat([X, torch.ones(len(X), 1)], dim=1)
    U = torch.linalg.svd(M, full_matrices=False)[0]
    columns = [(-1.0) ** (index // U.shape[1]) * U[:, index % U.shape[1]] for index in range(len(block.W))]
    H = block.H.norm(dim=0).mean() * torch.stack(columns, dim=1)
    # At 0 itself autograd's gradient of a ReLU is 0.
    return joined(block, -1e-3 * functional.normalize(H.T @ M), H)


def tiny(module: Net, block: ShallowBlock) -> ShallowBlock:
    """Neurons as GroMo's layers compute them, in several growths where one adds fewer."""
    most = 2 * len(block.W)
    while len(block.W) < most:
        wider = extended(module, block, most - len(block.W))
        if len(wider.W) == len(block.W):
            W, H = block.W[: most - len(block.W)], block.H[:, : most - len(block.W)]
            return joined(block, W, torch.zeros_like(H))
        block = wider
    return block


def extended(module: Net, block: ShallowBlock, count: int) -> ShallowBlock:
    """One growth by GroMo with the rule of its authors' paper, the factor by a search along a line."""
    from gromo.modules.linear_growing_module import LinearGrowingModule

    X, y = module.problem.X, module.problem.y
    width, inputs = block.W.shape
    first = LinearGrowingModule(inputs - 1, width, post_layer_function=nn.ReLU(), name="first")
    second = LinearGrowingModule(width, len(block.H), previous_module=first, allow_growing=True, name="second")
    with torch.no_grad():
        first.layer.weight.copy_(block.W[:, :-1])
        first.layer.bias.copy_(block.W[:, -1])
        second.layer.weight.copy_(block.H)
        second.layer.bias.copy_(block.output_bias)
    second.init_computation()
    # Thresholds of it are meant for losses added up over samples.
    (len(X) * module.problem.loss(module.net[3:](second(first(X))), y)).backward()
    second.update_computation()
    second.compute_optimal_updates(maximum_added_neurons=count, compute_delta=False)
    if second.extended_input_layer is None:
        return block
    W = torch.cat([first.extended_output_layer.weight, first.extended_output_layer.bias[:, None]], dim=1).detach()
    H = second.extended_input_layer.weight.detach()

    def loss_at(factor: float) -> float:
        with torch.no_grad():
            wider = joined(block, factor * W, factor * H)
            return float(module.problem.loss(module.net[3:](wider(torch.cat([X, torch.ones(len(X), 1)], dim=1))), y))

    factor = min((10 ** (power / 10) for power in range(-40, 21)), key=loss_at)
    return joined(block, factor * W, factor * H)


class ByHand(Callback):
    """Grows the first hidden layer at a step."""

    def __init__(self, step: int, embed: Embed) -> None:
        self.step, self.embed = step, embed

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            location = BlockLocation("net.0", "net.2", (0.0, 1.0))
            grow_in_training(trainer, location, lambda block: self.embed(pl_module, block))


class Watch:
    """CPU time from the end of a step to the next one's, and the loss on all rows before and after the growth."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seconds: list[float] = []
        self.last = time.process_time()
        self.width = 0
        self.before = self.fall = 1.0
        self.end = 0.0

    def loss_of(self, module: Net) -> float:
        """The loss on all rows, for which no method has to pay."""
        began = time.process_time()
        loss = loss_of(module)
        self.last += time.process_time() - began
        return loss


class Before(Callback):
    """Stands before the one that grows, which may wait for the end of an epoch."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.watch.width = neurons(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        watch = self.watch
        due = watch.step <= trainer.global_step <= watch.step + BEHIND
        if due and neurons(pl_module) == watch.width:
            watch.before = watch.loss_of(pl_module)


class After(Callback):
    """Stands behind the one that grows."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.watch.last = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        watch = self.watch
        now = time.process_time()
        watch.seconds.append(now - watch.last)
        watch.last = now
        if trainer.global_step == 2 * watch.step:
            watch.end = watch.loss_of(pl_module)
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        watch = self.watch
        if neurons(pl_module) != watch.width:
            watch.width = neurons(pl_module)
            watch.fall = watch.loss_of(pl_module) / watch.before


Make = Callable[[int, int], list[Callback]]
METHODS: dict[str, Make] = {
    "ours": lambda step, width: [GrowOnPlateau(at_steps=(step,), units=width)],
    "no growth": lambda step, width: [],
    "random on": lambda step, width: [ByHand(step, random_units(True))],
    "random zero": lambda step, width: [ByHand(step, random_units(False))],
    "Net2Net": lambda step, width: [ByHand(step, net2net)],
    "GradMax": lambda step, width: [ByHand(step, gradmax)],
}
if importlib.util.find_spec("gromo"):
    METHODS["GroMo"] = lambda step, width: [ByHand(step, tiny)]
BY_HAND = list(METHODS)[2:]


def run(method: str, problem: Problem, depth: int, steps: int, further: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    batch = BATCH if len(problem.X) > BATCH else len(problem.X)
    draw = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(problem.X, problem.y), batch, shuffle=True, generator=draw)
    module, watch = Net(problem, depth), Watch(steps)
    trainer = Trainer(
        max_steps=2 * steps + further, max_epochs=-1,
        callbacks=[Before(watch), *METHODS[method](steps, problem.width), After(watch)],
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, loader)
    usual = statistics.median(watch.seconds)
    around = watch.seconds[steps - BEFORE : steps + BEHIND]
    return {
        "fall": watch.fall,
        "steps": watch.end,
        "time": loss_of(module),
        "growth": max(sum(one - usual for one in around) / usual, 0.0),
    }


def compare(name: str, depth: int, steps: int, seeds: range) -> str:
    """A row of the table."""
    problem = PROBLEMS[name]()
    ours = [run("ours", problem, depth, steps, 0, seed) for seed in seeds]
    cost = round(statistics.median(one["growth"] for one in ours))
    others = {
        other: [run(other, problem, depth, steps, cost, seed) for seed in seeds] for other in METHODS if other != "ours"
    }
    found = {"ours": ours, **others}

    def mean(method: str, budget: str) -> float:
        return statistics.geometric_mean(max(one[budget], TINY) for one in found[method])

    alone = mean("no growth", "steps")
    best = {
        budget: mean("ours", budget) / min(mean(other, budget) for other in BY_HAND) for budget in ("steps", "time")
    }
    columns = [f"{mean(method, 'steps') / alone:.3f}" for method in [*BY_HAND, "ours"]]
    fall = statistics.geometric_mean(one["fall"] for one in ours)
    return (
        f"| {name} | {depth} | {' | '.join(columns)} | {best['steps']:.2f} | {best['time']:.2f} | {cost} | {fall:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["digits"], choices=[*PROBLEMS, "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=600, help="before the growth, and after it")
    parser.add_argument("--depth", type=int, nargs="+", default=[1], help="number of hidden layers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    columns = ["problem", "depth", *BY_HAND, "ours", "ours / best, steps", "ours / best, time", "growth", "fall"]
    print(f"| {' | '.join(columns)} |")
    print(f"|---|{'---:|' * (len(columns) - 1)}")
    names = list(PROBLEMS) if "all" in args.problems else args.problems
    for depth, name in itertools.product(args.depth, names):
        print(compare(name, depth, args.steps, range(args.first, args.first + args.seeds)), flush=True)


if __name__ == "__main__":
    main()
