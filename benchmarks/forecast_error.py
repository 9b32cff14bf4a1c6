"""How far off the forecasts of `forecast_escape` are: the four reference problems, ten seeds, at 10, 30 and 50 %.

Run ``python benchmarks/forecast_error.py``; ``--seeds`` shortens it; ``--losses`` runs SGD under cross-entropy and the
logistic loss instead, four problems whose labels no line tells apart. The true ends come from the loss of the whole
run.
A plateau's loss is that where training is slowest. It begins when the loss is within 1 % of that, and ends when the
loss is lower by 1 %. Errors are in percent of its length. On a straight line the loss falls by 1 % in the middle half
of such a stretch. A stretch counts as flat below 0.4 %, and as sliding up to 0.7 %: its end then depends more on the
slide than on an escape, and forecasts are about growing neurons only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.experiments import ReferenceRegression, gradient_descent_
from relu_diag.functional.block import residual_factor
from relu_diag.functional.output_loss import Loss

# Learning rate and steps of a run, and the steps between two looks.
RUNS = {
    "five_points": (2e-2, 12_000),
    "five_points_wide_init": (1e-2, 45_000),
    "three_inputs": (5e-3, 20_000),
    "two_outputs": (5e-3, 24_000),
}
EVERY = 10
DROP = 0.01
SHARES = (0.1, 0.3, 0.5)
FLAT, SLIDING = 0.004, 0.007
SPEEDUP = 2.0


# Labels of a classification, inputs and classes; learning rate and steps of a run.
LABELLED = {
    "xor, logistic": (2, 1),
    "stripes, logistic": (2, 1),
    "three classes, entropy": (2, 3),
    "random labels, entropy": (3, 2),
}
LABELLED_LR, LABELLED_STEPS, LABELLED_WIDTH = 0.02, 30_000, 12


@dataclass(frozen=True)
class Plateau:
    """First and last step, loss, and the fraction by which the loss falls in the middle half."""

    start: float
    end: float
    loss: float
    slide: float


def train(problem: str, seed: int) -> tuple[ReferenceRegression, list[ShallowBlock], NDArray[np.float64]]:
    """The network and its loss, every few steps."""
    lr, steps = RUNS[problem]
    module = ReferenceRegression(problem, seed=seed, lr=lr)
    (X, Y), block, reduction = module.problem.tensors(), module.block, module.problem.reduction
    rate = lr * residual_factor(Y, reduction)
    path, losses = [], []
    for _ in range(0, steps, EVERY):
        path.append(ShallowBlock(block.W.clone(), block.H.clone()))
        losses.append(float(F.squared_loss(block, X, Y, reduction)))
        gradient_descent_(block, X, Y, rate, EVERY)
    return module, path, np.array(losses)


def labelled(problem: str, seed: int) -> tuple[ShallowBlock, torch.Tensor, Loss]:
    """A small network before the labels of a problem, the inputs with a constant 1, and the loss."""
    inputs, outputs = LABELLED[problem]
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(10, inputs, generator=draw, dtype=torch.float64)
    if problem.startswith("xor"):
        labels = (X[:, 0] * X[:, 1] > 0).long()
    elif problem.startswith("stripes"):
        labels = (X[:, 0].abs() > 0.7).long()
    elif problem.startswith("three"):
        labels = torch.bucketize(X.norm(dim=1), torch.tensor([0.9, 1.5]).double())
    else:
        labels = torch.randint(outputs, (len(X),), generator=draw)
    loss: Loss = F.BinaryCrossEntropy(labels.double()[:, None]) if outputs == 1 else F.CrossEntropy(labels)
    size = 10.0 ** -float(3 + 2 * torch.rand(1, generator=draw, dtype=torch.float64))
    W = size * torch.randn(LABELLED_WIDTH, inputs + 1, generator=draw, dtype=torch.float64)
    H = size * torch.randn(outputs, LABELLED_WIDTH, generator=draw, dtype=torch.float64)
    return ShallowBlock(W, H), torch.cat([X, torch.ones(len(X), 1).double()], dim=1), loss


def descend(block: ShallowBlock, X: torch.Tensor, loss: Loss) -> tuple[list[ShallowBlock], NDArray[np.float64]]:
    """The network and its loss under SGD, every few steps."""
    W, H = block.W, block.H
    path, losses = [], []
    for step in range(LABELLED_STEPS):
        Z = X @ W.T
        A = Z.relu()
        outputs = A @ H.T
        if step % EVERY == 0:
            path.append(ShallowBlock(W, H))
            losses.append(float(loss(outputs)))
        G = LABELLED_LR * loss.gradient(outputs)
        W, H = W - ((Z > 0) * (G @ H)).T @ X, H - G.T @ A
    return path, np.array(losses)


def labelled_errors(seeds: int) -> None:
    """Forecasts at 30 % of the plateaus under cross-entropy and the logistic loss."""
    every: list[float] = []
    seconds, undecided = [], 0
    print("errors in % of the plateau, at 30 % of it")
    print(f"{'problem':24}{'plateaus':>9}{'none':>6}{'undecided':>11}{'median':>8}{'worst':>8}")
    for problem in LABELLED:
        errors, none, open_ = [], 0, 0
        for seed in range(seeds):
            block, X, loss = labelled(problem, seed)
            path, losses = descend(block, X, loss)
            for plateau in plateaus(losses):
                if plateau.slide >= FLAT:
                    continue
                length = plateau.end - plateau.start
                now = round((plateau.start + 0.3 * length) / EVERY)
                begin = time.perf_counter()
                forecast = F.forecast_escape(path[now], X, loss, LABELLED_LR, DROP)
                seconds.append(time.perf_counter() - begin)
                if forecast is None or not forecast.decided:
                    none += forecast is None
                    open_ += forecast is not None
                    continue
                truth = EVERY * crossing(losses[now:], (1 - DROP) * losses[now])
                errors.append(100 * abs(forecast.steps - truth) / length)
        every += errors
        undecided += open_
        size = f"{statistics.median(errors):8.2f}{max(errors):8.2f}" if errors else ""
        print(f"{problem:24}{len(errors) + none + open_:9}{none:6}{open_:11}{size}", flush=True)
    print(
        f"all: median {statistics.median(every):.2f} %, worst {max(every):.2f} % of {len(every)}, undecided {undecided}"
    )
    print(f"one forecast: median {1e3 * statistics.median(seconds):.0f} ms, worst {1e3 * max(seconds):.0f} ms")


def plateaus(losses: NDArray[np.float64], window: int = 20) -> list[Plateau]:
    """The stretches within 1 % of a loss, slowest first, as long as they do not overlap."""
    fall = np.log(losses[: -2 * window] / losses[2 * window :])
    found: list[Plateau] = []
    for slowest in fall.argsort() + window:
        loss = losses[slowest]
        if losses[-1] > (1 - DROP) * loss:
            continue
        start, end = crossing(losses, (1 + DROP) * loss), crossing(losses, (1 - DROP) * loss)
        faster = fall[min(int(end), len(fall)) - window :].max(initial=0.0) > SPEEDUP * fall[slowest - window]
        if end - start < 2 * window or not faster:
            continue
        if any(start < other.end and other.start < end for other in found):
            continue
        quarter = (end - start) / 4
        slide = (losses[round(start + quarter)] - losses[round(end - quarter)]) / loss
        found.append(Plateau(start, end, loss, slide))
    scaled = [Plateau(EVERY * one.start, EVERY * one.end, one.loss, one.slide) for one in found]
    return sorted((one for one in scaled if one.slide < SLIDING), key=lambda one: one.start)


def crossing(losses: NDArray[np.float64], level: float) -> float:
    """Where the loss first falls to a level, between two looks."""
    first = int(np.argmax(losses <= level))
    if first == 0:
        return 0.0
    return first - (level - losses[first]) / (losses[first - 1] - losses[first])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--losses", action="store_true", help="cross-entropy and the logistic loss")
    args = parser.parse_args()
    seeds = args.seeds
    torch.set_num_threads(1)
    if args.losses:
        labelled_errors(seeds)
        return
    print(f"{'error in % of the plateau, at':44}" + "".join(f"{f'{share:.0%}':>22}" for share in SHARES))
    print(f"{'problem':22}{'loss':>8}{'runs':>6}{'':8}" + f"{'median   worst  none':>22}" * len(SHARES))
    seconds, flat = [], defaultdict(list)
    for problem, (lr, _) in RUNS.items():
        errors: dict[tuple[bool, str], dict[float, list[float | None]]] = defaultdict(lambda: defaultdict(list))
        for seed in range(seeds):
            module, path, losses = train(problem, seed)
            X, Y = module.problem.tensors()
            for plateau in plateaus(losses):
                length, is_flat = plateau.end - plateau.start, bool(plateau.slide < FLAT)
                for share in SHARES:
                    now = round((plateau.start + share * length) / EVERY)
                    begin = time.perf_counter()
                    forecast = F.forecast_escape(path[now], X, Y, lr, DROP, module.problem.reduction)
                    seconds.append(time.perf_counter() - begin)
                    error = None if forecast is None else (EVERY * now + forecast.steps - plateau.end) / length
                    errors[is_flat, f"{plateau.loss:.2g}"][share].append(error)
                    flat[is_flat, share].append(error)
        for (is_flat, loss), by_share in sorted(errors.items(), key=lambda item: (-item[0][0], -float(item[0][1]))):
            print(row(problem, loss, is_flat, by_share))
    for is_flat in (True, False):
        print(row("all", "", is_flat, {share: flat[is_flat, share] for share in SHARES}))
    print(f"one forecast: median {1e3 * statistics.median(seconds):.0f} ms, worst {1e3 * max(seconds):.0f} ms")


def row(problem: str, loss: str, is_flat: bool, errors: dict[float, list[float | None]]) -> str:
    text = f"{problem:22}{loss:>8}{len(errors[SHARES[0]]):6} {'flat' if is_flat else 'sliding':7}"
    for share in SHARES:
        sizes = [100 * abs(error) for error in errors[share] if error is not None]
        missing = len(errors[share]) - len(sizes)
        text += f"{statistics.median(sizes):8.2f}{max(sizes):8.2f}{missing:6}" if sizes else f"{'':16}{missing:6}"
    return text


if __name__ == "__main__":
    main()
