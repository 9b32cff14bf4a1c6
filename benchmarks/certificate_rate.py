"""How often convergence to zero loss is certain as the width grows, and whether the loss keeps to the bound.

Random data, random weights of size 1, the smooth leaky ReLU and, inside its cell, the ReLU. Where the certificate
holds, gradient descent runs at 0.9 of the largest learning rate it allows, and every loss is compared with the bound.

    python benchmarks/certificate_rate.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from relu_diag import ShallowBlock
from relu_diag import functional as F

SAMPLES, INPUTS, PROBLEMS, STEPS, LEAK = 4, 8, 20, 200, 0.2
WIDTHS = (10, 30, 100, 300, 1000, 3000)


def smooth(Z: Tensor) -> Tensor:
    return LEAK * Z - (1 - LEAK) * logsigmoid(-Z)


def problem(seed: int, width: int, near: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random inputs, weights and targets; with `near`, targets that a ReLU network misses by so much."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((SAMPLES, INPUTS), (width, INPUTS), (1, width), (SAMPLES, 1))
    X, W, H, Y = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    X = X / X.norm(dim=1, keepdim=True)
    return X, W, H, Y if near is None else relu(X @ W.T) @ H.T + near * Y


def keeps_to_bound(
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    certificate: F.ConvergenceCertificate,
    activation: Callable[[Tensor], Tensor],
) -> bool:
    X, W, H, Y = data
    W, H, lr = W.clone().requires_grad_(), H.clone().requires_grad_(), 0.9 * certificate.largest_lr
    bound = certificate.loss
    # An output is only as accurate as the terms it sums.
    terms = activation(X @ W.T).detach().abs() @ H.detach().abs().T
    rounding = float((4 * torch.finfo(X.dtype).eps * terms).square().mean())
    for _ in range(STEPS):
        loss = (activation(X @ W.T) @ H.T - Y).square().mean()
        if float(loss.detach()) > bound * (1 + 1e-9) + rounding:
            return False
        gradients = torch.autograd.grad(loss, (W, H))
        with torch.no_grad():
            W -= lr * gradients[0]
            H -= lr * gradients[1]
        bound *= certificate.step_factor(lr)
    return True


def main() -> None:
    torch.set_num_threads(1)
    print(f"{SAMPLES} samples, {INPUTS} inputs, {PROBLEMS} problems each: certain / below the bound for {STEPS} steps")
    print(f"{'width':>6}  smooth leaky ReLU  ReLU, error 1e-3 off a solution")
    for width in WIDTHS:
        cells = []
        for relu_like in (False, True):
            held = kept = 0
            for seed in range(PROBLEMS):
                X, W, H, Y = problem(seed, width, near=1e-3 if relu_like else None)
                if relu_like:
                    certificate = F.convergence_certificate(ShallowBlock(W, H), X, Y)
                else:
                    certificate = F.smooth_convergence_certificate(ShallowBlock(W, H, (LEAK, 1.0)), X, Y)
                if certificate.holds:
                    held += 1
                    kept += keeps_to_bound((X, W, H, Y), certificate, relu if relu_like else smooth)
            cells.append(f"{held:>8} / {kept:<8}")
        print(f"{width:>6}  " + "  ".join(cells))


if __name__ == "__main__":
    main()
