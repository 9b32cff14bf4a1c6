"""Prove that gradient descent will reach zero loss (Chatterjee, 2022): a toy problem and a network.

Draws the region of the toy with paths of descent, and the bound of a certificate over the loss of a network that starts
where Theorem 4.1 puts it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.figures import certificate_figure, toy_figure
from relu_diag.nn import SmoothLeakyReLU, certified_init_

FOLDER = Path("runs") / "certain_convergence"
STARTS = ((2.5, -1.0), (-2.0, 0.3), (0.2, 0.1), (-1.5, 1.2), (1.2, 2.4))


def toy_path(start: tuple[float, float], rate: float = 0.005, steps: int = 4000) -> np.ndarray:
    """Gradient descent on (x y - 1)^2."""
    points = [np.array(start)]
    for _ in range(steps):
        x, y = points[-1]
        points.append(points[-1] - rate * 2 * (x * y - 1) * np.array([y, x]))
    return np.array(points)


def certified_run() -> tuple[F.ConvergenceCertificate, list[float], list[float]]:
    """A smooth leaky network, its output weights doubled until convergence is certain, and its loss in training."""
    torch.manual_seed(0)
    X, Y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(6, 16, False), SmoothLeakyReLU(0.3, centred=True), nn.Linear(16, 1, False)).double()
    last = 1.0
    while True:
        certified_init_(net, last)
        block = ShallowBlock(net[0].weight.detach(), net[2].weight.detach(), slopes=(0.3, 1.0))
        certificate = F.smooth_convergence_certificate(block, X, Y, centred=True)
        if certificate.holds:
            break
        last *= 2
    lr = 0.9 * certificate.largest_lr
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=lr), []
    for _ in range(certificate.steps_to(1e-6, lr) or 0):
        loss = (net(X) - Y).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return certificate, [lr * step for step in range(len(losses))], losses


def main() -> None:
    torch.set_num_threads(1)
    console = Console()
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = [toy_path(start) for start in STARTS]
    toy_figure(paths).savefig(FOLDER / "toy.png", dpi=150)
    certificate, times, losses = certified_run()
    certificate_figure(certificate, times, losses).savefig(FOLDER / "certificate.png", dpi=150)
    console.print(f"{certificate}\n{len(losses)} steps to 1e-6 of the loss were enough", highlight=False)
    console.print(f"figures: {FOLDER}", soft_wrap=True)

    for start, path in zip(STARTS, paths, strict=True):
        certain = abs(start[0] * start[1] - 1) < (start[0] ** 2 + start[1] ** 2) / 4
        ended = abs(path[-1].prod() - 1) < 1e-6
        assert ended or not certain
    factor = certificate.step_factor(times[1])
    assert all(loss <= factor**step * certificate.loss * (1 + 1e-9) for step, loss in enumerate(losses))
    assert losses[-1] < 2e-6 * losses[0]


if __name__ == "__main__":
    main()
