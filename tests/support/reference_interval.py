"""Networks with scalar input: the integral loss by adaptive quadrature, critical points of affine targets by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """``c + sum_j h_j rho(w_j x + b_j)`` on an interval."""

    w: Tensor
    b: Tensor
    h: Tensor
    c: float
    interval: tuple[float, float] = (-1.0, 2.0)
    slopes: tuple[float, float] = (0.0, 1.0)

    def __call__(self, x: float) -> float:
        z = self.w.numpy() * x + self.b.numpy()
        s_minus, s_plus = self.slopes
        return self.c + float(self.h.numpy() @ np.where(z >= 0, s_plus * z, s_minus * z))

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.w, self.b, self.h, torch.tensor(self.c, dtype=torch.float64)

    def with_neurons(self, *neurons: tuple[float, float, float]) -> Network:
        """Further neurons (w, b, h), at random places."""
        rows = torch.cat([torch.stack([self.w, self.b, self.h]), torch.tensor(neurons, dtype=torch.float64).T], dim=1)
        w, b, h = rows[:, torch.randperm(rows.shape[1])]
        return replace(self, w=w, b=b, h=h)


def random_network(seed: int, width: int, **options: object) -> Network:
    torch.manual_seed(seed)
    w, b, h = torch.randn(3, width, dtype=torch.float64)
    return Network(w, b, h / width**0.5, float(torch.randn(())), **options)  # type: ignore[arg-type]


def loss_by_quadrature(
    network: Network,
    target: Callable[[float], float],
    breakpoints: Iterable[float] = (),
    density: Callable[[float], float] = lambda x: 1.0,
) -> float:
    """Piece by piece, adaptively."""
    A, B = network.interval
    kinks = (-network.b / network.w).numpy()
    # Adaptive quadrature has nothing to adapt to in a sliver of rounding at an end.
    inside = kinks[(kinks > A + 1e-13) & (kinks < B - 1e-13)]
    edges = np.unique(np.concatenate([[A, B], inside, list(breakpoints)]))

    def integrand(x: float) -> float:
        return (network(x) - target(x)) ** 2 * density(x)

    return float(sum(quad(integrand, left, right, epsrel=1e-13, epsabs=1e-18)[0] for left, right in pairwise(edges)))


def zigzag(n: int, slope: float, intercept: float, interval: tuple[float, float], copies: int = 1) -> Network:
    """The level-``n`` critical point of Cheridito et al., Proposition 4.5 (iii b), each kink shared by some neurons."""
    A, B = interval
    i = torch.arange(1, n + 1, dtype=torch.float64).repeat_interleave(copies)
    sign = torch.where(i % 2 == 1, 1.0, -1.0).double()
    w = sign * (0.2 + torch.rand(n * copies, dtype=torch.float64))
    share = torch.rand(n, copies, dtype=torch.float64) + 0.1
    share = (share / share.sum(1, keepdim=True)).flatten()
    h = share * 2 * slope / (n + 1) / w
    return Network(w, -w * (A + i * (B - A) / (n + 1)), h, slope * (A + B) / 2 + intercept, interval)


def level_loss(n: int, slope: float, interval: tuple[float, float]) -> float:
    """Integral of the squares of ``n + 1`` sawteeth."""
    teeth, length = n + 1, (interval[1] - interval[0]) / (n + 1)
    return teeth * (slope / teeth) ** 2 * length**3 / 12
