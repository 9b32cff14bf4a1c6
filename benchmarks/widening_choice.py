"""Compare `best_widening` with what people do by hand when a network grows, at the same number of steps.

    python benchmarks/widening_choice.py                 # all problems, 6 seeds
    python benchmarks/widening_choice.py --cost          # one widening in units of training steps only

One hidden layer of 8 (32 where there are 30,000 rows) neurons is trained by Adam on minibatches of 64, as many neurons
are added, and training goes on for as many steps; the moments of the old weights are kept, those of the new ones are 0.

* random on: the new weights as torch's Linear draws them, outputs too; random zero: their output weights 0;
* Net2Net: copies of random neurons, the output weight halved, 5 % noise on the copy;
* GradMax: input weights near 0, output weights the top left singular vectors of sum_k e_k x_k^T, of usual length;
* ours: all rows where there are few (`held_out=0`, and 0.25), else a sample of 2,048 or 8,192 of them (0.25).

Losses are over all rows; "rel" is the geometric mean over the seeds of the last loss over that without growth.

The cost is CPU time on one thread, in turns with a training step: 784-256-10, 32 neurons, 2,048 rows.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from relu_diag import ShallowBlock
from relu_diag import functional as F

BATCH = 64
Data = tuple[Tensor, Tensor]


def digits() -> Data:
    from sklearn.datasets import load_digits  # optional: pip install scikit-learn

    X, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    return standardised(X.float()), y.long()


def spirals(rows: int = 1500, classes: int = 3) -> Data:
    draw = torch.Generator().manual_seed(0)
    radius, y = torch.rand(rows, generator=draw), torch.randint(classes, (rows,), generator=draw)
    angle = 3 * math.pi * radius + 2 * math.pi / classes * y
    X = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return standardised(X + 0.02 * torch.randn(rows, 2, generator=draw)), y


def clusters(rows: int, inputs: int, classes: int, each: int, apart: float) -> Data:
    draw = torch.Generator().manual_seed(0)
    centres = apart * torch.randn(each * classes, inputs, generator=draw)
    which = torch.randint(each * classes, (rows,), generator=draw)
    return standardised(centres[which] + torch.randn(rows, inputs, generator=draw)), which % classes


def teacher(rows: int, inputs: int, outputs: int, width: int) -> Data:
    draw = torch.Generator().manual_seed(0)
    shapes = ((rows, inputs), (width, inputs), (width,), (outputs, width))
    X, W, bias, H = (torch.randn(shape, generator=draw) for shape in shapes)
    return X, standardised(functional.relu(X @ W.T / inputs**0.5 + bias / 2) @ H.T)


def standardised(X: Tensor) -> Tensor:
    return (X - X.mean(dim=0)) / X.std()


PROBLEMS: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "spirals": spirals,
    "clusters": lambda: clusters(3000, 20, 8, 3, 1.2),
    "teacher, 4 inputs": lambda: teacher(2000, 4, 3, 30),
    "teacher, 10 inputs": lambda: teacher(2000, 10, 1, 30),
    "many clusters": lambda: clusters(30_000, 100, 10, 6, 0.6),
    "many, teacher": lambda: teacher(30_000, 40, 1, 60),
}


def loss_of(y: Tensor) -> F.SquaredError | F.CrossEntropy:
    return F.SquaredError(y) if y.is_floating_point() else F.CrossEntropy(y)


def drawn(width: int, inputs: int, outputs: int, seed: int) -> ShallowBlock:
    """As two Linears draw their weights; the input weights with the bias as the last column."""
    draw = torch.Generator().manual_seed(seed)
    W = (2 * torch.rand(width, inputs, generator=draw) - 1) / (inputs - 1) ** 0.5
    H, bias = ((2 * torch.rand(*shape, generator=draw) - 1) / width**0.5 for shape in ((outputs, width), (outputs,)))
    return ShallowBlock(W, H, output_bias=bias)


def trained(block: ShallowBlock, data: Data, steps: int, seed: int, state: dict | None = None) -> tuple:
    """The block after some steps of Adam, and the optimizer's state."""
    X, y = data
    parts = [part.clone().requires_grad_() for part in (block.W, block.H, block.output_bias)]
    optimizer = torch.optim.Adam(parts, lr=2e-3)
    if state is not None:
        optimizer.load_state_dict(padded(state, parts))
    draw = torch.Generator().manual_seed(seed)
    error = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
    for _ in range(steps):
        rows = torch.randint(len(X), (BATCH,), generator=draw)
        optimizer.zero_grad()
        error(functional.relu(X[rows] @ parts[0].T) @ parts[1].T + parts[2], y[rows]).backward()
        optimizer.step()
    W, H, bias = (part.detach() for part in parts)
    return ShallowBlock(W, H, output_bias=bias), optimizer.state_dict()


def padded(state: dict, parts: list[Tensor]) -> dict:
    """The state for wider weights, zero for the new ones."""
    state = copy.deepcopy(state)
    for index, part in enumerate(parts):
        for name, value in state["state"][index].items():
            if value.ndim:
                wider = torch.zeros_like(part)
                wider[tuple(map(slice, value.shape))] = value
                state["state"][index][name] = wider
    return state


Growth = Callable[[ShallowBlock, Data, int, int], ShallowBlock]


def random_units(on: bool) -> Growth:
    def grown(block: ShallowBlock, data: Data, units: int, seed: int) -> ShallowBlock:
        new = drawn(len(block.W) + units, block.W.shape[1], len(block.H), seed + 7)
        return joined(block, new.W[-units:], on * new.H[:, -units:])

    return grown


def net2net(block: ShallowBlock, data: Data, units: int, seed: int) -> ShallowBlock:
    draw = torch.Generator().manual_seed(seed + 7)
    copied = torch.randperm(len(block.W), generator=draw)[:units]
    H = block.H.clone()
    H[:, copied] /= 2
    noisy = [
        part + 0.05 * part.std() * torch.randn(part.shape, generator=draw) for part in (block.W[copied], H[:, copied])
    ]
    return joined(ShallowBlock(block.W, H, output_bias=block.output_bias), *noisy)


def gradmax(block: ShallowBlock, data: Data, units: int, seed: int) -> ShallowBlock:
    X, y = data
    M = loss_of(y).gradient(block(X)).T @ X
    U = torch.linalg.svd(M, full_matrices=False)[0]
    sign = [(-1.0) ** (index // U.shape[1]) for index in range(units)]
    H = block.H.norm(dim=0).mean() * torch.stack([s * U[:, i % U.shape[1]] for i, s in enumerate(sign)], dim=1)
    # At 0 itself autograd's gradient of a ReLU is 0.
    return joined(block, -1e-3 * functional.normalize(H.T @ M), H)


def ours(rows: int | None, held_out: float) -> Growth:
    def grown(block: ShallowBlock, data: Data, units: int, seed: int) -> ShallowBlock:
        X, y = data
        if rows is not None:
            some = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))[:rows]
            X, y = X[some], y[some]
        return F.best_widening(block, X, loss_of(y), units=units, held_out=held_out, seed=seed).new_block

    return grown


def joined(block: ShallowBlock, W: Tensor, H: Tensor) -> ShallowBlock:
    return ShallowBlock(torch.cat([block.W, W]), torch.cat([block.H, H], dim=1), output_bias=block.output_bias)


BY_HAND: dict[str, Growth] = {
    "no growth": lambda block, data, units, seed: block,
    "random on": random_units(True),
    "random zero": random_units(False),
    "Net2Net": net2net,
    "GradMax": gradmax,
}
FEW_ROWS = {"ours, all rows": ours(None, 0.0), "ours, a quarter judges": ours(None, 0.25)}
MANY_ROWS = {"ours, 2,048 rows": ours(2048, 0.25), "ours, 8,192 rows": ours(8192, 0.25)}


def compare(name: str, seeds: int, steps: int) -> dict[str, list[float]]:
    """Losses over those without growth, seed by seed."""
    X, y = PROBLEMS[name]()
    data = torch.cat([X, torch.ones(len(X), 1)], dim=1), y
    many = len(X) > 10_000
    width = 32 if many else 8
    methods = {**BY_HAND, **(MANY_ROWS if many else FEW_ROWS)}
    outputs = y.shape[1] if y.is_floating_point() else int(y.max()) + 1
    curves: dict[str, list[list[float]]] = {method: [] for method in methods}
    for seed in range(seeds):
        block, state = trained(drawn(width, data[0].shape[1], outputs, seed), data, steps, seed)
        for method, grow in methods.items():
            wider = grow(block, data, width, seed)
            end, _ = trained(wider, data, steps, seed + 50, state)
            curves[method].append([float(loss_of(y)(one(data[0]))) for one in (block, wider, end)])
    last = [curve[-1] for curve in curves["no growth"]]
    print(f"{name}: {len(X)} rows, {seeds} seeds, {steps} steps before and after")
    relative = {}
    for method, some in curves.items():
        relative[method] = [curve[-1] / alone for curve, alone in zip(some, last, strict=True)]
        before, after, end = (statistics.median(values) for values in zip(*some, strict=True))
        spread = f"{min(relative[method]):.3f} to {max(relative[method]):.3f}"
        print(
            f"  {method:24}before {before:<8.3g} at the growth {after:<8.3g} at the end {end:<8.3g} "
            f"rel {statistics.geometric_mean(relative[method]):.3f} ({spread})",
            flush=True,
        )
    return relative


def cost(repeats: int = 5) -> None:
    """One widening in units of training steps, in turns, by CPU time."""
    torch.manual_seed(0)
    X, y = torch.rand(2048, 784) - 0.5, torch.randint(10, (2048,))
    y = (X[:, :50].sum(dim=1) > 0).long() + 2 * (X[:, 50] > 0).long() + y % 2
    net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(rows: int) -> float:
        start = time.process_time()
        optimizer.zero_grad()
        functional.cross_entropy(net(X[:rows]), y[:rows]).backward()
        optimizer.step()
        return time.process_time() - start

    def widening() -> float:
        W = torch.cat([net[0].weight, net[0].bias[:, None]], dim=1).detach()
        block = ShallowBlock(W, net[2].weight.detach(), output_bias=net[2].bias.detach())
        start = time.process_time()
        F.best_widening(block, torch.cat([X, torch.ones(2048, 1)], dim=1), F.CrossEntropy(y), units=32)
        return time.process_time() - start

    times: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        small, large = (statistics.median(step(rows) for _ in range(10)) for rows in (256, 2048))
        times.append((small, large, widening()))
    small, large, wide = (statistics.median(values) for values in zip(*times, strict=True))
    print(f"784-256-10, 32 neurons, 2,048 rows: {wide:.3g} s, a step of 256 rows {1e3 * small:.3g} ms, of all "
          f"{1e3 * large:.3g} ms")  # fmt: skip
    print(f"  {wide / large:.3g} steps of those rows, {wide / small:.3g} of 256 rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cost", action="store_true", help="of one widening, nothing else")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cost()
    for name in [] if args.cost else args.problems:
        compare(name, args.seeds, args.steps)


if __name__ == "__main__":
    main()
