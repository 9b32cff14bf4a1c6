"""Time of a verdict as a multiple of one full-batch gradient: N = 10,000, d = 100, I = 1,000, J = 10, float64.

    python benchmarks/classify_cost.py
    python benchmarks/classify_cost.py --loss all  # others beside the squared error at the same points, in turn

Under the other losses the same gradient stands at the outputs, so that every verdict is of the same kind; Huber's
cuts it off, and with weight decay points that are stationary without are none.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss

SAMPLES, INPUTS, NEURONS, OUTPUTS, FITTED = 10_000, 100, 1_000, 10, 20
REPEATS = 5


def seconds(calls: list[Callable[[], object]]) -> list[list[float]]:
    """Times of several calls, measured in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if repeat:  # the first one warms up
                taken.append(time.perf_counter() - start)
    return times


def points() -> tuple[Tensor, dict[str, tuple[ShallowBlock, Tensor]]]:
    """Parameters and targets for every kind of answer."""
    torch.manual_seed(0)
    X = torch.randn(SAMPLES, INPUTS, dtype=torch.float64)
    W = torch.randn(NEURONS, INPUTS, dtype=torch.float64) / 10
    H = torch.randn(OUTPUTS, NEURONS, dtype=torch.float64) / 30
    # A residual to which none of the fitted neurons responds, in any direction.
    features = torch.cat([(X @ w > 0)[:, None] * X for w in W[:FITTED]], dim=1)
    basis = torch.linalg.qr(features)[0]
    residual = torch.randn(SAMPLES, OUTPUTS, dtype=torch.float64)
    residual -= residual.mean(dim=1, keepdim=True)  # as the gradient of a cross-entropy is
    for _ in range(2):
        residual = residual - basis @ (basis.T @ residual)
    fitted = ShallowBlock(W[:FITTED], H[:, :FITTED])
    targets = fitted(X) - residual
    copies = NEURONS // FITTED
    spare = torch.zeros_like(W[FITTED:]), torch.zeros_like(H[:, FITTED:])
    return X, {
        "random weights": (ShallowBlock(W, H), targets),
        "origin": (ShallowBlock(0 * W, 0 * H), targets),
        "980 spare neurons at zero": (
            ShallowBlock(torch.cat([W[:FITTED], spare[0]]), torch.cat([H[:, :FITTED], spare[1]], dim=1)),
            targets,
        ),
        "50 copies of 20 fitted neurons": (
            ShallowBlock(W[:FITTED].repeat(copies, 1), H[:, :FITTED].repeat(1, copies) / copies),
            targets,
        ),
    }


def losses(block: ShallowBlock, X: Tensor, Y: Tensor) -> dict[str, Loss]:
    """Losses with the gradient of half the squares at these weights, where labels or targets allow it."""
    outputs = block(X)
    E = outputs - Y
    even = E - E.mean(dim=1, keepdim=True)
    p = outputs.softmax(1)
    weight = 2 * (even / p).amax(dim=1)
    shares = p - even / weight[:, None]
    by_class = torch.linspace(0.5, 2.0, OUTPUTS, dtype=torch.float64)
    heavy = 8 * weight[:, None]
    mass = (1 + (even / heavy / by_class).sum(1, keepdim=True)) / (p / by_class).sum(1, keepdim=True)
    weighted = (mass * p - even / heavy) / by_class
    logit = outputs.sigmoid()
    steep = 2 * torch.maximum(E / logit, -E / (1 - logit)).clamp(min=1e-3)
    return {
        "cross_entropy": F.CrossEntropy(shares, reduction="sum", sample_weight=weight),
        "class_weights": F.CrossEntropy(weighted, by_class, reduction="sum", sample_weight=heavy[:, 0]),
        "logistic": F.BinaryCrossEntropy(logit - E / steep, weight=steep, reduction="sum"),
        "huber": F.Huber(Y, delta=1.0, reduction="sum"),
        "poisson": F.Poisson(outputs.exp() - E, reduction="sum"),
        "absolute": F.AbsoluteError(Y, weight=E.abs(), reduction="sum"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["cross_entropy", "class_weights", "logistic", "huber", "poisson", "absolute"]
    parser.add_argument("--loss", nargs="*", choices=[*names, "all"], default=[])
    parser.add_argument("--weight-decay", type=float, default=0.0)
    arguments = parser.parse_args()
    asked = names if "all" in arguments.loss else arguments.loss
    X, cases = points()
    beside = f"{'gradients, minimum':>20}{'median':>8}{'of squared error':>18}{'median':>8}"
    print(f"{'point':<32}{'loss':<15}{'verdict':<16}{beside}")
    for point, (block, Y) in cases.items():
        W, H = block.W.clone().requires_grad_(), block.H.clone().requires_grad_()

        def gradient(W: Tensor = W, H: Tensor = H, Y: Tensor = Y) -> object:
            return torch.autograd.grad(torch.nn.functional.mse_loss(torch.relu(X @ W.T) @ H.T, Y), (W, H))

        def verdict(loss: Tensor | Loss, block: ShallowBlock = block, decay: float = 0.0) -> Callable[[], F.Verdict]:
            return partial(F.classify, block, X, loss, weight_decay=decay)

        others = {name: loss for name, loss in losses(block, X, Y).items() if name in asked}
        calls = [verdict(loss, decay=arguments.weight_decay) for loss in others.values()]
        unit, squared, *times = seconds([gradient, verdict(Y), *calls])
        for name, call, taken in zip(["squared_error", *others], [verdict(Y), *calls], [squared, *times], strict=True):
            ratios = [f(taken) / f(by) for by in (unit, squared) for f in (min, statistics.median)]
            beside = f"{ratios[0]:>20.1f}{ratios[1]:>8.1f}{ratios[2]:>18.2f}{ratios[3]:>8.2f}"
            print(f"{point:<32}{name:<15}{call().kind:<16}{beside}", flush=True)


if __name__ == "__main__":
    main()
