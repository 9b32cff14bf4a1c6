"""Time of a verdict as a multiple of one full-batch gradient: N = 10,000, d = 100, I = 1,000, J = 10, float64.

    python benchmarks/classify_cost.py
    python benchmarks/classify_cost.py --loss cross_entropy  # beside the squared error's at the same points

Under the other loss the same gradient stands at the outputs, so that every verdict is of the same kind.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F

SAMPLES, INPUTS, NEURONS, OUTPUTS, FITTED = 10_000, 100, 1_000, 10, 20
REPEATS = 5


def seconds(call: Callable[[], object]) -> list[float]:
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
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


def cross_entropy(block: ShallowBlock, X: Tensor, Y: Tensor) -> F.CrossEntropy:
    """Probabilities as labels, and weights of the samples, with the gradient of half the squares at these weights."""
    outputs = block(X)
    E = outputs - Y
    E = E - E.mean(dim=1, keepdim=True)
    p = outputs.softmax(1)
    weight = 2 * (E / p).amax(dim=1)
    return F.CrossEntropy(p - E / weight[:, None], reduction="sum", sample_weight=weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=["squared_error", "cross_entropy"], default="squared_error")
    other = parser.parse_args().loss == "cross_entropy"
    X, cases = points()
    against = f"{'of squared error':>18}" if other else ""
    print(f"{'point':<32}{'verdict':<16}{'gradients, minimum':>20}{'median':>10}{against}")
    for name, (block, Y) in cases.items():
        W, H = block.W.clone().requires_grad_(), block.H.clone().requires_grad_()

        def gradient(W: Tensor = W, H: Tensor = H, Y: Tensor = Y) -> object:
            return torch.autograd.grad(torch.nn.functional.mse_loss(torch.relu(X @ W.T) @ H.T, Y), (W, H))

        loss = cross_entropy(block, X, Y) if other else Y
        unit = seconds(gradient)
        took = seconds(lambda block=block, loss=loss: F.classify(block, X, loss))
        ratios = min(took) / min(unit), statistics.median(took) / statistics.median(unit)
        share = ""
        if other:
            share = f"{min(took) / min(seconds(lambda block=block, Y=Y: F.classify(block, X, Y))):>18.2f}"
        print(f"{name:<32}{F.classify(block, X, loss).kind:<16}{ratios[0]:>20.1f}{ratios[1]:>10.1f}{share}", flush=True)


if __name__ == "__main__":
    main()
