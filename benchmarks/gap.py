"""Attack the bound of `optimality_gap` by long runs of wide networks, and close it by adding its neuron.

    python benchmarks/gap.py                                # 50 problems of each loss, 20 runs each
    python benchmarks/gap.py --problems 10 --runs 4 --width 40

Problems of two inputs, half of them with a constant as the second; 10 to 40 samples, random targets or labels; decay
between 1e-3 and 1e-1 of all weights, the output bias of every other one free, of the others none. The runs minimise
the objective of wide random networks over all their weights by Adam, side by side; the best goes on by L-BFGS,
restarted where it stops. The bound is violated where it ends below.

For the rounds, a network of one neuron is trained; then the neuron of the gap is added, directions are kept and all
amplitudes fitted again, and so on until the gap, of the network's own gradient (``rounds=0``), is 1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import WeightDecay
from relu_diag.functional.block import rho
from relu_diag.functional.guarantee import Amplitudes, refit_amplitudes

CLOSED, MOST_ROUNDS, RESTARTS = 1e-4, 60, 5
STEPS, RATE = 2000, 0.03


def problem(seed: int, logistic: bool) -> tuple[ShallowBlock, Tensor, F.SquaredError | F.BinaryCrossEntropy, float]:
    """A random network of one neuron, inputs, a loss and a decay."""
    draw = np.random.default_rng(seed)
    samples = int(draw.integers(10, 41))
    X = torch.tensor(draw.standard_normal((samples, 2)))
    if seed % 2:
        X[:, 1] = 1.0
    Y = torch.tensor(draw.standard_normal((samples, 1)))
    loss = F.BinaryCrossEntropy((Y > 0).double()) if logistic else F.SquaredError(Y)
    bias = torch.zeros(1).double() if seed % 4 < 2 else None
    block = ShallowBlock(torch.tensor(draw.standard_normal((1, 2))), torch.ones(1, 1).double(), (0.0, 1.0), bias)
    return block, X, loss, float(10 ** draw.uniform(-3, -1))


def trained(block: ShallowBlock, X: Tensor, loss: F.SquaredError, mu: float) -> ShallowBlock:
    """The block after a search over all weights."""
    decay = WeightDecay(mu, mu)
    parts = [block.W, block.H] + ([] if block.output_bias is None else [block.output_bias])

    def unpacked(x: Tensor) -> ShallowBlock:
        pieces = x.split([part.numel() for part in parts])
        W, H, *bias = (piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True))
        return ShallowBlock(W, H, block.slopes, bias[0] if bias else None)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(x, requires_grad=True)
        network = unpacked(at)
        value = loss(network(X)) + decay.cost(network)
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.numpy()

    x = torch.cat([part.flatten() for part in parts]).numpy()
    for _ in range(RESTARTS):
        x = minimize(objective, x, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-15}).x
    return unpacked(torch.tensor(x))


def best_of_wide(like: ShallowBlock, X: Tensor, loss: F.SquaredError, mu: float, runs: int, width: int) -> float:
    """The lowest objective that runs of wide networks reach: all of them by Adam at once, the best by L-BFGS."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(runs, width, 2), (runs, 1, width), (runs, 1, 1)]
    W, H, b = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    weights = [0.5 * W, 0.1 * H, 0 * b] if like.output_bias is not None else [0.5 * W, 0.1 * H]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=RATE, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        objectives(weights, X, loss, mu).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        best = int(objectives(weights, X, loss, mu).argmin())
    W, H, *bias = (weight.detach()[best] for weight in weights)
    end = trained(ShallowBlock(W, H, like.slopes, bias[0][0] if bias else None), X, loss, mu)
    return float(loss(end(X)) + WeightDecay(mu, mu).cost(end))


def objectives(weights: list[Tensor], X: Tensor, loss: F.SquaredError, mu: float) -> Tensor:
    """The loss with its decay of every run, shape ``(runs,)``, from its definition."""
    W, H, *bias = weights
    outputs = (X @ W.mT).relu() @ H.mT + (bias[0] if bias else 0.0)
    if isinstance(loss, F.BinaryCrossEntropy):
        each = torch.nn.functional.softplus(outputs) - loss.Y * outputs
    else:
        each = (outputs - loss.Y).square()
    return each.mean((1, 2)) + mu / 2 * (W.square().sum((1, 2)) + H.square().sum((1, 2)))


def rounds_to_close(block: ShallowBlock, X: Tensor, loss: F.SquaredError, mu: float) -> int | None:
    """How many neurons are added until the gap is closed; None where it is not."""
    block = trained(block, X, loss, mu)
    for done in range(MOST_ROUNDS):
        gap = F.optimality_gap(block, X, loss, mu, rounds=0)
        if gap.gap <= CLOSED:
            return done
        W = torch.cat([block.W, 0.1 * gap.neuron[None]])
        H = torch.cat([block.H, 0.1 * gap.output[:, None]], dim=1)
        block = refitted(ShallowBlock(W, H, block.slopes, block.output_bias), X, loss, mu)
    return None


def refitted(block: ShallowBlock, X: Tensor, loss: F.SquaredError, mu: float) -> ShallowBlock:
    """The block with the best amplitudes of its neurons, those that are left out gone."""
    length = block.W.norm(dim=1)
    V = block.W / length[:, None]
    bias = torch.zeros_like(block.H[:, 0]) if block.output_bias is None else block.output_bias
    free = None if block.output_bias is None else 0.0
    best = refit_amplitudes(loss, rho(X @ V.T, block.slopes), Amplitudes(block.H * length, bias), mu, free)
    root = best.H.norm(dim=0).sqrt()
    there = root > 0
    W, H = root[there, None] * V[there], best.H[:, there] / root[there]
    return ShallowBlock(W, H, block.slopes, None if free is None else best.bias)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=50, help="of each loss")
    parser.add_argument("--runs", type=int, default=20, help="of wide networks, for each problem")
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--no-rounds", action="store_true", help="only attack the bound")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for logistic in (False, True):
        violated, above, took, rounds = 0, [], [], []
        for seed in range(args.problems):
            block, X, loss, mu = problem(seed, logistic)
            start = time.process_time()
            gap = F.optimality_gap(block, X, loss, mu)
            took.append(time.process_time() - start)
            best = best_of_wide(block, X, loss, mu, args.runs, args.width)
            violated += best < gap.dual - 1e-9 * abs(best)
            above.append((best - gap.dual) / best)
            rounds.append(None if args.no_rounds else rounds_to_close(block, X, loss, mu))
        closed = [one for one in rounds if one is not None]
        print(
            f"{'logistic' if logistic else 'squared error'}: {args.problems} problems, {args.runs} runs of {args.width}"
        )
        print(f"  bound violated: {violated}")
        print(f"  best run above the bound: median {statistics.median(above):.2g}, largest {max(above):.2g} of it")
        if closed:
            middle = statistics.median(closed)
            print(f"  gap closed to {CLOSED:g}: {len(closed)}, median {middle} rounds, most {max(closed)}")
        print(f"  time of one bound: median {statistics.median(took):.3g} s, largest {max(took):.3g} s", flush=True)


if __name__ == "__main__":
    main()
