"""Compare ways to widen a small regression at a certified local minimum, at the same number of gradient steps.

    python benchmarks/growth_comparison.py

Five points, 50 neurons (Wu et al., Figure 3) from several initialisations; and regressions on 40 random samples with
three inputs and a constant, targets of a random network with 8 neurons, learned by 4 from a small initialisation. A
start counts if plain gradient descent ends beside a local minimum that `nearby_stationary_point` certifies. From there
each method adds the same number of neurons, one at a time, and the same full-batch gradient descent continues.

* plain replication: an exact copy of a neuron, each with half of its output weight, drawn in proportion to its
  amplitude ||w|| ||h||; with noise, all weights of the two times 1 + 0.05 or 0.5 of a standard normal number;
* random unit: zero output weight, normal input weights as long as the median of the others;
* GroMo 0.1.0 (optional: pip install gromo), one neuron of TINY by its container tutorial: statistics of all samples,
  `compute_optimal_updates` with its defaults (the optimal delta of the output weights applied, too), the best scaling
  of 0, 0.1, 0.5, 1. "both signs": without the delta, the best of 40 scalings of +-0.001 to +-10, zero not allowed,
  as what is right for the linear part of the activation may be wrong for its kink. No optimizer is carried over;
* ours: the first of `growth_proposals` at default settings, of one kind or of all.

Losses are fractions of the loss at the minimum: median (smallest to largest). "left" counts the runs in which the
loss fell by more than one per cent in the end. The growth step is proposal and `relu_diag.growth.grow` of the live
module (GroMo: all but building its model), in units of one training step by autograd, medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.capture import BlockLocation
from relu_diag.experiments import ReferenceRegression, gradient_descent_
from relu_diag.growth import grow
from relu_diag.nn import ShallowNet

try:
    from gromo.containers.growing_mlp import GrowingMLP
except ImportError:
    GrowingMLP = None

LOCATION = BlockLocation("hidden", "output", (0.0, 1.0))
BUDGETS = (100, 500, 5_000, 20_000)
# Learning rate, steps to the minimum, smallest loss there, and largest fraction of it left to descend.
LR, STEPS, LOSS, GAP = 0.05, 40_000, 1e-3, 1e-3


@dataclass(frozen=True)
class Minimum:
    """All data of a problem, and a network that learned it."""

    X: Tensor
    Y: Tensor
    block: ShallowBlock

    @property
    def loss(self) -> float:
        return float(F.squared_loss(self.block, self.X, self.Y))


def five_points(seed: int) -> Minimum:
    start = ReferenceRegression("five_points", seed=seed)
    return Minimum(*start.problem.tensors(), start.block)


def regression(seed: int, samples: int = 40, inputs: int = 4, teacher: int = 8, width: int = 4) -> Minimum:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((samples, inputs), (teacher, inputs), (1, teacher), (width, inputs), (1, width))
    X, *weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    X[:, -1] = 1
    Y = ShallowBlock(*weights[:2])(X)
    return Minimum(X, Y / Y.std(), ShallowBlock(*(0.1 * weight for weight in weights[2:])))


def minima(problem: Callable[[int], Minimum], count: int) -> Iterator[Minimum]:
    """The first certified local minima at which training ends, over the seeds."""
    found = 0
    for seed in itertools.count():
        end = problem(seed)
        descend(end.block, end.X, end.Y, STEPS)
        point = F.nearby_stationary_point(end.block, end.X, end.Y)
        minimum = point.genuine and point.verdict.kind == "local minimum"
        if minimum and abs(point.loss_gap) <= GAP * point.loss and point.loss > LOSS:
            found += 1
            yield end
        if found == count:
            print(f"{problem.__name__}: {found} of {seed + 1} starts ended beside a certified local minimum")
            return


def descend(block: ShallowBlock, X: Tensor, Y: Tensor, steps: int) -> None:
    gradient_descent_(block, X, Y, LR * 2 / len(X), steps)


# Ways to grow: from a minimum to its network with one more neuron, None without a proposal.
Draw = torch.Generator
Proposal = Callable[[Minimum, Draw], ShallowBlock | None]


def replicated(noise: float) -> Proposal:
    def propose(stuck: Minimum, draw: Draw) -> ShallowBlock:
        block = stuck.block
        unit = int(torch.multinomial(block.W.norm(dim=1) * block.H.norm(dim=0), 1, generator=draw))
        new = F.replicate_unit(block, unit, (1.0, 1.0), (0.5, 0.5))
        halves = [unit, -1]
        new.W[halves] *= 1 + noise * torch.randn(new.W[halves].shape, generator=draw, dtype=torch.float64)
        new.H[:, halves] *= 1 + noise * torch.randn(new.H[:, halves].shape, generator=draw, dtype=torch.float64)
        return new

    return propose


def random_unit(stuck: Minimum, draw: Draw) -> ShallowBlock:
    w = torch.randn(1, stuck.X.shape[1], generator=draw, dtype=torch.float64)
    length = stuck.block.W.norm(dim=1).median() / w.shape[1] ** 0.5
    return F.add_inactive_propagation(stuck.block, length * w)


def ours(*kinds: str) -> Proposal:
    def propose(stuck: Minimum, draw: Draw) -> ShallowBlock | None:
        proposals = F.growth_proposals(stuck.block, stuck.X, stuck.Y)
        return next((one.new_block for one in proposals if one.kind in kinds), None)

    return propose


def in_place(propose: Proposal, stuck: Minimum, draw: Draw) -> tuple[ShallowBlock, float]:
    """The network after one growth of a live module with its optimizer, and the seconds that took."""
    net, optimizer = live(stuck.block)
    start = time.perf_counter()
    new = propose(stuck, draw)
    if new is not None:
        grow(net, LOCATION, new, [optimizer])
    seconds = time.perf_counter() - start
    return ShallowBlock(net.hidden.weight.detach(), net.output.weight.detach()), seconds


def live(block: ShallowBlock) -> tuple[ShallowNet, torch.optim.SGD]:
    net = ShallowNet(block.W.shape[1], len(block.W), len(block.H)).double()
    with torch.no_grad():
        net.hidden.weight.copy_(block.W)
        net.output.weight.copy_(block.H)
    return net, torch.optim.SGD(net.parameters(), lr=LR)


def by_gromo(delta: bool, scalings: list[float], stuck: Minimum, draw: Draw) -> tuple[ShallowBlock, float]:
    block, criterion = stuck.block, nn.MSELoss(reduction="sum")
    sizes = {"in_features": block.W.shape[1], "out_features": len(block.H), "hidden_size": len(block.W)}
    model = GrowingMLP(**sizes, number_hidden_layers=1, activation=nn.ReLU(), use_bias=False, device="cpu")
    model[0].weight.data.copy_(block.W)
    model[1].weight.data.copy_(block.H)
    start = time.perf_counter()
    model.init_computation()
    criterion(model(stuck.X), stuck.Y).backward()
    model.update_computation()
    model.compute_optimal_updates(maximum_added_neurons=1, compute_delta=delta, dtype=torch.float64)
    model.reset_computation()
    model.dummy_select_update()

    @torch.no_grad()
    def loss(scaling: float) -> float:
        model.set_scaling_factor(scaling)
        return float(mse_loss(model.extended_forward(stuck.X), stuck.Y))

    model.set_scaling_factor(min(scalings, key=loss))
    model.apply_change()
    seconds = time.perf_counter() - start
    return ShallowBlock(model[0].weight.detach(), model[1].weight.detach()), seconds


def seconds_of_a_step(stuck: Minimum, steps: int = 200) -> float:
    net, optimizer = live(stuck.block)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        mse_loss(net(stuck.X), stuck.Y).backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


BOTH_SIGNS = [sign * 10**power for power in torch.linspace(-3, 1, 20).tolist() for sign in (1, -1)]
METHODS: dict[str, Callable[[Minimum, Draw], tuple[ShallowBlock, float]]] = {
    "no growth": lambda stuck, draw: (stuck.block, 0.0),
    "plain replication": partial(in_place, replicated(0.0)),
    "replication, 5 % noise": partial(in_place, replicated(0.05)),
    "replication, 50 % noise": partial(in_place, replicated(0.5)),
    "random unit": partial(in_place, random_unit),
    "GroMo": partial(by_gromo, True, [0.0, 0.1, 0.5, 1.0]),
    "GroMo, both signs": partial(by_gromo, False, BOTH_SIGNS),
    "ours, replication": partial(in_place, ours("replication")),
    "ours, inactive propag.": partial(in_place, ours("inactive propagation")),
    "ours, first of all": partial(in_place, ours("replication", "inactive propagation")),
}


def compare(some: list[Minimum], units: int) -> None:
    step = statistics.median(seconds_of_a_step(stuck) for stuck in some)
    losses = [stuck.loss for stuck in some]
    print(f"loss {statistics.median(losses):.4g} ({min(losses):.2g} to {max(losses):.2g}), {step * 1e6:.0f} us a step")
    print(f"neurons to add: {units}")
    print(f"{'':24}{'added':>6}" + "".join(f"{f'{steps:,} steps':>28}" for steps in (0, *BUDGETS)) + "    left  growth")
    for name, method in METHODS.items():
        if GrowingMLP is None and name.startswith("GroMo"):
            print(f"{name:24}gromo is not installed: pip install gromo")
            continue
        added, seconds = [], []
        curves: list[list[float]] = []
        for seed, stuck in enumerate(some):
            draw, now, took = torch.Generator().manual_seed(seed), stuck, 0.0
            for _ in range(units):
                new, one = method(now, draw)
                now, took = Minimum(stuck.X, stuck.Y, new), took + one
            added.append(len(now.block.W) - len(stuck.block.W))
            seconds.append(took)
            curves.append(fractions(now, stuck.loss))
        cells = [f"{statistics.median(at):.3g} ({min(at):.2g} to {max(at):.2g})" for at in zip(*curves, strict=True)]
        left = f"{sum(curve[-1] < 0.99 for curve in curves)}/{len(some)}"
        line = f"{name:24}{statistics.mean(added):6.3g}" + "".join(f"{cell:>28}" for cell in cells)
        print(f"{line}{left:>8}{statistics.median(seconds) / step:8.0f}")


def fractions(grown: Minimum, before: float) -> list[float]:
    """The loss after the growth and after every budget, relative to what it was."""
    block = ShallowBlock(grown.block.W.clone(), grown.block.H.clone())
    values = [float(F.squared_loss(block, grown.X, grown.Y)) / before]
    for done, steps in itertools.pairwise((0, *BUDGETS)):
        descend(block, grown.X, grown.Y, steps - done)
        values.append(float(F.squared_loss(block, grown.X, grown.Y)) / before)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minima", type=int, default=20, help="of each problem")
    parser.add_argument("--units", type=int, nargs="+", default=[1, 2], help="neurons to add, a table for each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # of GroMo's layers
    warnings.filterwarnings("ignore", module="gromo")  # a singular matrix, a zero scaling
    print(f"torch {torch.__version__}, 1 thread, float64, gradient descent at {LR}")
    for problem in (five_points, regression):
        some = list(minima(problem, args.minima))
        for units in args.units:
            compare(some, units)


if __name__ == "__main__":
    main()
