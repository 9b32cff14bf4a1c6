"""Where gradient descent ends against an affine target: many random starts, the exact integral loss, one table.

Cheridito et al., Theorems 1.2 and 4.7: no start ends at a strict saddle, and all that pass below the threshold reach
zero. All starts descend together, with the gradient in closed form; it is checked against the package's at the start,
and the package's `classify_affine` says where every one of them ended.

    python benchmarks/affine_convergence.py            # 200 starts, half a minute
    python benchmarks/affine_convergence.py --full     # 1,000 starts, eight times as many steps
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from torch import Tensor

from relu_diag import functional as F
from relu_diag.functional import integral

SLOPE, INTERCEPT, INTERVAL = 1.0, 0.0, (0.0, 1.0)
LEARNING_RATE = 0.05


def loss_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Loss ``(n,)`` and gradient ``(n, 3 I + 1)`` of many networks at once, from cumulated moments of the error."""
    A, B = INTERVAL
    (w, b, h), c = theta[:, :-1].reshape(len(theta), 3, -1).unbind(1), theta[:, -1:]
    at_A, at_B = w * A + b, w * B + b
    crosses = at_A * at_B < 0
    t = torch.where(crosses, -b / torch.where(crosses, w, 1.0), A)
    kink = torch.where(crosses, h * w.abs(), 0.0)
    on = ((at_A > 0) | ((at_A == 0) & (at_B > 0))).double()
    edges, order = t.sort(dim=1)
    ends = edges.new_full((len(theta), 1), A), edges.new_full((len(theta), 1), B)
    edges = torch.cat([ends[0], edges, ends[1]], dim=1)
    start = (on * h * w).sum(1, keepdim=True) - SLOPE
    slope = torch.cat([start, start + kink.gather(1, order).cumsum(1)], dim=1)
    value = (on * h * at_A).sum(1, keepdim=True) + c - SLOPE * A - INTERCEPT
    length = edges.diff(dim=1)
    error = torch.cat([value, value + (slope * length).cumsum(1)], dim=1)
    left, right = error[:, :-1], error[:, 1:]
    loss = (length * (left**2 + left * right + right**2) / 3).sum(1)
    zeroth = length * (left + right) / 2
    first = zeroth * edges[:, :-1] + length**2 * (left + 2 * right) / 6
    return loss, _by_neuron((w, b, h), (zeroth, first), (crosses, on, order))


def _by_neuron(
    neurons: tuple[Tensor, Tensor, Tensor], moments: tuple[Tensor, Tensor], where: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    (w, b, h), (crosses, on, order) = neurons, where
    place = order.argsort(dim=1)
    own = []
    for moment in moments:
        before, total = moment[:, :-1].cumsum(1).gather(1, place), moment.sum(1, keepdim=True)
        own.append(torch.where(crosses, torch.where(w > 0, total - before, before), on * total))
    rows = [2 * h * own[1], 2 * h * own[0], 2 * (w * own[1] + b * own[0]), 2 * moments[0].sum(1, keepdim=True)]
    return torch.cat(rows, dim=1)


def check(theta: Tensor) -> None:
    """The closed form against the package."""
    loss, gradient = loss_and_gradient(theta)
    for row, value, expected in zip(theta, loss, gradient, strict=True):
        w, b, h = row[:-1].reshape(3, -1)
        problem = integral.AffineProblem(w, b, h, row[-1], SLOPE, INTERCEPT, INTERVAL)
        torch.testing.assert_close(problem.loss(problem.neurons, problem.c), value)
        torch.testing.assert_close(integral.generalised_gradient(problem), expected)


def where_it_ended(row: Tensor, loss: float, threshold: float) -> str:
    w, b, h = row[:-1].reshape(3, -1)
    if loss < 1e-3 * threshold:
        return "global minimum"
    kind = F.classify_affine(w, b, h, row[-1], SLOPE, INTERCEPT, INTERVAL, tol=1e-4).kind
    return "still moving" if kind == "not stationary" else kind


def descend(width: int, starts: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(width)
    theta = torch.randn(starts, 3 * width + 1, generator=generator, dtype=torch.float64)
    check(theta[:5])
    threshold = F.convergence_threshold(SLOPE, INTERVAL, width).threshold
    # The step after which the loss was never at the threshold again.
    since = torch.zeros(starts)
    for step in range(steps):
        loss, gradient = loss_and_gradient(theta)
        since[loss >= threshold] = step + 1
        theta = theta - LEARNING_RATE * gradient
    loss = loss_and_gradient(theta)[0]
    # For two neurons the threshold is the loss of the local minima, up to rounding.
    passed = loss < (1 - 1e-9) * threshold
    ends = [where_it_ended(row, float(value), threshold) for row, value in zip(theta, loss, strict=True)]
    print(f"width {width}, {starts} starts, {steps} steps at learning rate {LEARNING_RATE}")
    zero = [kind == "global minimum" for kind, below in zip(ends, passed, strict=True) if below]
    print(
        f"  below the threshold {threshold:.3g} for good: {len(zero)}, median from step {int(since[passed].median())}"
    )
    print(f"    of these at zero loss: {sum(zero)}; the largest loss among them: {float(loss[passed].max()):.1e}")
    counts = Counter(ends)
    for kind in ("global minimum", "local minimum", "saddle", "still moving", "undecided"):
        print(f"  ended at: {kind:<16}{counts[kind]:>6}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="1,000 starts each, and long runs")
    full = parser.parse_args().full
    torch.set_num_threads(1)
    for width in (2, 4, 6):
        descend(width, *((1000, 40_000) if full else (200, 5_000)))


if __name__ == "__main__":
    main()
