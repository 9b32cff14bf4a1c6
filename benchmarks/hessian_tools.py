"""Saddles that Hessian tools cannot see: the smallest eigenvalue they report against a descent that is evaluated.

A base neuron fits the data by least squares; one extra neuron with output weight 0 makes the point a saddle. Where the
extra neuron is zero, or rests on the kink of one sample and is silent on the others, autograd's relu'(0) = 0 leaves
nothing in the Hessian. Where it lies in the open, all tools agree. Same points, one run, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from relu_diag import ShallowBlock
from relu_diag.functional import classify
from relu_diag.nn import ShallowNet

SAMPLES, INPUTS = 8, 3
NEGATIVE = -1e-8


def problem(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Data with a constant column, targets near a positive plane, and the weights of the least-squares fit."""
    X = rounded(torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64))
    X[:, -1] = 1.0
    Y = 10 + X.sum(1, keepdim=True) + torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
    return X, Y, torch.linalg.lstsq(X, Y).solution[:, 0]


def rounded(values: Tensor) -> Tensor:
    """To 1/64, so that inner products are exact and a sample on the kink is there in every tool's arithmetic."""
    return (64 * values).round() / 64


def zero_neuron(X: Tensor, residual: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros(INPUTS, dtype=X.dtype)


def neuron_on_a_kink(X: Tensor, residual: Tensor, generator: torch.Generator) -> Tensor:
    """Zero on the sample furthest out in a random direction, negative on all others."""
    while True:
        w = rounded(torch.randn(INPUTS, generator=generator, dtype=X.dtype))
        w[-1] = 0.0
        w[-1] = -(X @ w).max()
        if int((X @ w > -1e-6).sum()) == 1:
            return w


def neuron_in_the_open(X: Tensor, residual: Tensor, generator: torch.Generator) -> Tensor:
    """Off every kink, orthogonal to the pull of the residual in its cell, so that the output weight is stationary."""
    while True:
        w = torch.randn(INPUTS, generator=generator, dtype=X.dtype)
        active = X @ w > 0
        pull = (residual * active) @ X
        if not 0 < int(active.sum()) < SAMPLES or pull.norm() < 1e-3:
            continue
        w = w - (w @ pull) / (pull @ pull) * pull
        if torch.equal(X @ w > 0, active) and bool(((X @ w).abs() > 1e-3).all()):
            return w


POINTS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "extra neuron zero": zero_neuron,
    "extra neuron on a kink": neuron_on_a_kink,
    "extra neuron in the open": neuron_in_the_open,
}


def dense(net: ShallowNet, X: Tensor, Y: Tensor) -> float:
    names = [name for name, _ in net.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    sizes, shapes = [p.numel() for p in net.parameters()], [p.shape for p in net.parameters()]

    def loss(theta: Tensor) -> Tensor:
        parts = [part.reshape(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        return mse_loss(torch.func.functional_call(net, dict(zip(names, parts, strict=True)), (X,)), Y)

    return float(torch.linalg.eigvalsh(torch.func.hessian(loss)(flat)).min())


def with_curvlinops(net: ShallowNet, X: Tensor, Y: Tensor) -> float:
    from curvlinops import HessianLinearOperator

    H = HessianLinearOperator(net, nn.MSELoss(), list(net.parameters()), [(X, Y)], check_deterministic=False)
    return float(torch.linalg.eigvalsh(H @ torch.eye(H.shape[1], dtype=X.dtype)).min())


def with_eigenthings(net: ShallowNet, X: Tensor, Y: Tensor) -> float:
    from hessian_eigenthings import HessianOperator, lanczos

    H = HessianOperator(net, [(X, Y)], lambda model, batch: mse_loss(model(batch[0]), batch[1]))
    count = sum(p.numel() for p in net.parameters())
    return float(lanczos(H, k=1, which="SA", max_iter=count, seed=0).eigenvalues.min())


TOOLS = {"autograd's dense Hessian": dense, "curvlinops": with_curvlinops, "hessian-eigenthings": with_eigenthings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50, help="points of each kind")
    points = parser.parse_args().points
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"{'point':<26}{'tool':<28}{'sees a way down':>16}{'smallest (median)':>20}{'time, median':>15}")
    for name, extra in POINTS.items():
        generator = torch.Generator().manual_seed(0)
        rows: dict[str, list[tuple[bool, float, float]]] = {tool: [] for tool in [*TOOLS, "relu_diag"]}
        for _ in range(points):
            X, Y, fit = problem(generator)
            W = torch.stack([fit, extra(X, (X @ fit) - Y[:, 0], generator)])
            net = ShallowNet(INPUTS, 2).double()
            net.hidden.weight.data, net.output.weight.data = W, torch.tensor([[1.0, 0.0]], dtype=X.dtype)
            assert bool((X @ fit > 0).all())
            for tool, smallest in TOOLS.items():
                start = time.perf_counter()
                try:
                    value = smallest(net, X, Y)
                except ImportError:
                    continue
                rows[tool].append((value < NEGATIVE, value, time.perf_counter() - start))
            start = time.perf_counter()
            verdict = classify(ShallowBlock(W, net.output.weight.detach()), X, Y)
            fall = verdict.direction.loss_change if verdict.kind == "saddle" and verdict.direction else float("nan")
            rows["relu_diag"].append((fall < 0, fall, time.perf_counter() - start))
        for tool, seen in rows.items():
            if not seen:
                print(f"{name:<26}{tool:<28}{'not installed':>16}")
                continue
            found, values, times = zip(*seen, strict=True)
            share = f"{sum(found)} of {len(found)}"
            print(
                f"{name:<26}{tool:<28}{share:>16}{statistics.median(values):>20.3g}"
                f"{1e3 * statistics.median(times):>12.2f} ms"
            )


if __name__ == "__main__":
    main()
