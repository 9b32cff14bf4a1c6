"""Compare GrowOnPlateau, the callback, with what people do by hand when a network grows, at the same number of steps.

    python benchmarks/growth_in_training.py                    # digits, 3 seeds
    python benchmarks/growth_in_training.py --depth 3          # three hidden layers, the block is ours to choose
    python benchmarks/growth_in_training.py --first 20         # seeds 20, 21 and 22

An MLP of 8 neurons a layer is trained by Adam on minibatches of 64 images of digits under the cross-entropy. After some
steps 8 neurons are added (deeper networks: 8 to the first hidden layer, ours to the layer that gains most), and
training goes on for as many steps. All methods grow the live module, and the moments of the old weights are kept
(`relu_diag.growth.grow`). By hand: random units as torch's Linear draws them, outputs on or zero; Net2Net: copies of
random neurons with half the output weight and 5 % noise; GradMax: input weights near zero, output weights the top left
singular vectors of sum_k e_k x_k^T.

"rel" is the geometric mean over the seeds of the final loss over that without growth, all rows; "growth" the CPU time
of the growth, in steps of training.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import ShallowBlock
from relu_diag.callbacks import GrowOnPlateau
from relu_diag.capture import BlockLocation
from relu_diag.growth import grow_in_training

WIDTH, BATCH = 8, 64


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    X = torch.tensor(images).float()
    return (X - X.mean(dim=0)) / X.std(), torch.tensor(labels)


class Net(LightningModule):
    """An MLP of narrow hidden layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        sizes = [64, *depth * [WIDTH], 10]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def loss_of(module: Net) -> float:
    X, y = digits()
    with torch.no_grad():
        return float(functional.cross_entropy(module.net(X), y))


Embed = Callable[[Net, ShallowBlock], ShallowBlock]


def joined(block: ShallowBlock, W: Tensor, H: Tensor) -> ShallowBlock:
    return ShallowBlock(torch.cat([block.W, W]), torch.cat([block.H, H], dim=1), block.slopes, block.output_bias)


def random_units(on: bool) -> Embed:
    def embed(module: Net, block: ShallowBlock) -> ShallowBlock:
        inputs = block.W.shape[1]
        W = (2 * torch.rand(WIDTH, inputs) - 1) / (inputs - 1) ** 0.5
        H = (2 * torch.rand(len(block.H), WIDTH) - 1) / (2 * WIDTH) ** 0.5
        return joined(block, W, on * H)

    return embed


def net2net(module: Net, block: ShallowBlock) -> ShallowBlock:
    H = block.H.clone() / 2
    noisy = [part + 0.05 * part.std() * torch.randn(part.shape) for part in (block.W, H)]
    return joined(ShallowBlock(block.W, H, block.slopes, block.output_bias), *noisy)


def gradmax(module: Net, block: ShallowBlock) -> ShallowBlock:
    X, y = digits()
    outputs = module.net[:3](X).detach().requires_grad_()
    (G,) = torch.autograd.grad(functional.cross_entropy(module.net[3:](outputs), y), outputs)
    M = G.T @ torch.cat([X, torch.ones(len(X), 1)], dim=1)
    U = torch.linalg.svd(M, full_matrices=False)[0]
    columns = [(-1.0) ** (index // U.shape[1]) * U[:, index % U.shape[1]] for index in range(WIDTH)]
    H = block.H.norm(dim=0).mean() * torch.stack(columns, dim=1)
    # At 0 itself autograd's gradient of a ReLU is 0.
    return joined(block, -1e-3 * functional.normalize(H.T @ M), H)


class ByHand(Callback):
    """Grows the first hidden layer at a step."""

    def __init__(self, step: int, embed: Embed) -> None:
        self.step, self.embed = step, embed

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            location = BlockLocation("net.0", "net.2", (0.0, 1.0))
            grow_in_training(trainer, location, lambda block: self.embed(pl_module, block))


class Watch(Callback):
    """CPU time of every step, and the loss on all rows before and after the growth."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


class Before(Watch):
    """Stands before the one that grows."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.losses.append(loss_of(pl_module))


class After(Watch):
    """Stands behind the one that grows."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step == self.step:
            self.losses.append(loss_of(pl_module))


METHODS: dict[str, Callable[[int], list[Callback]]] = {
    "no growth": lambda step: [],
    "random on": lambda step: [ByHand(step, random_units(True))],
    "random zero": lambda step: [ByHand(step, random_units(False))],
    "Net2Net": lambda step: [ByHand(step, net2net)],
    "GradMax": lambda step: [ByHand(step, gradmax)],
    "ours": lambda step: [GrowOnPlateau(at_steps=(step,), units=WIDTH)],
}


def run(method: str, depth: int, steps: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    X, y = digits()
    loader = DataLoader(TensorDataset(X, y), BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    module, before, after = Net(depth), Before(steps), After(steps)
    trainer = Trainer(
        max_steps=2 * steps, max_epochs=-1, callbacks=[before, *METHODS[method](steps), after], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, loader)
    usual = statistics.median(after.seconds)
    return {
        "before": before.losses[0],
        "after": after.losses[0],
        "end": loss_of(module),
        "growth": (after.seconds[steps - 1] - usual) / usual,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=600, help="before the growth, and after it")
    parser.add_argument("--depth", type=int, default=1, help="number of hidden layers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seeds = range(args.first, args.first + args.seeds)
    found = {name: [run(name, args.depth, args.steps, seed) for seed in seeds] for name in METHODS}
    alone = [one["end"] for one in found["no growth"]]
    print(f"digits, {args.depth} hidden layers of {WIDTH}, {args.seeds} seeds, {args.steps} steps before and after")
    for name, runs in found.items():
        relative = [one["end"] / last for one, last in zip(runs, alone, strict=True)]
        middle = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        print(
            f"  {name:12} before {middle['before']:<7.3g} after {middle['after']:<7.3g} end {middle['end']:<8.3g} "
            f"rel {statistics.geometric_mean(relative):.3f} ({min(relative):.3f} to {max(relative):.3f}) "
            f"growth {max(middle['growth'], 0):.0f} steps"
        )


if __name__ == "__main__":
    main()
