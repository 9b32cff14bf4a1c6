"""Nodes and weights for integrals over boxes and Gaussian input densities, made on the device that uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.quasirandom import SobolEngine

from relu_diag.functional.budgets import BUDGETS

_BITS = SobolEngine.MAXBIT


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-parallel box; integrals over it are with respect to volume.

    Attributes:
        sides: ``(low, high)`` of each input.

    Raises:
        ValueError: If a side is empty, reversed or not finite, or there is none.

    Example:
        >>> Box(((0.0, 1.0), (-1.0, 1.0))).volume
        2.0
    """

    sides: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for side in self.sides or ((),):
            if len(side) != 2 or not all(map(math.isfinite, side)) or not side[0] < side[1]:
                raise ValueError(f"Each side of a box must be (low, high) with finite low < high; got {self.sides!r}.")

    @property
    def dimension(self) -> int:
        """Number of inputs."""
        return len(self.sides)

    @property
    def volume(self) -> float:
        """Product of the sides: the integral of 1."""
        return math.prod(high - low for low, high in self.sides)

    def place(self, u: Tensor) -> Tensor:
        """Points of the unit cube, carried into the box.

        Args:
            u: Points in (0, 1), shape ``(N, d)``.

        Returns:
            Points, shape ``(N, d)``.
        """
        columns = [low + (high - low) * column for (low, high), column in zip(self.sides, u.T, strict=True)]
        return torch.stack(columns, dim=1)

    def rule(self, order: int) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """Gauss-Legendre, input by input.

        Args:
            order: Number of nodes.

        Returns:
            Nodes of every input, shape ``(d, order)``, and weights, each ``(order,)``.
        """
        x, weight = np.polynomial.legendre.leggauss(order)
        nodes = np.stack([(low + high + (high - low) * x) / 2 for low, high in self.sides])
        return nodes, [weight * (high - low) / 2 for low, high in self.sides]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal inputs; integrals are expectations.

    Attributes:
        dimension: Number of inputs.
        mean: Mean of every input.
        std: Standard deviation of every input.

    Raises:
        ValueError: If there is no input, or the standard deviation is not positive and finite.

    Example:
        >>> X, weights = tensor_nodes(Gaussian(dimension=1, mean=2.0), order=3)
        >>> round((weights @ X.square()).item(), 12)  # mean^2 + std^2
        5.0
    """

    dimension: int
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(f"`dimension` must be at least 1; got {self.dimension!r}.")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"`mean` must be finite and `std` positive; got {self.mean!r}, {self.std!r}.")

    @property
    def volume(self) -> float:
        """1: the integral of 1."""
        return 1.0

    def place(self, u: Tensor) -> Tensor:
        """Points of the unit cube, carried over by the inverse distribution function.

        Args:
            u: Points in (0, 1), shape ``(N, d)``.

        Returns:
            Points, shape ``(N, d)``.
        """
        normal: Tensor = torch.special.ndtri(u)
        return self.mean + self.std * normal

    def rule(self, order: int) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """Gauss-Hermite, input by input.

        Args:
            order: Number of nodes.

        Returns:
            Nodes of every input, shape ``(d, order)``, and weights, each ``(order,)``.
        """
        x, weight = np.polynomial.hermite_e.hermegauss(order)
        nodes = np.broadcast_to(self.mean + self.std * x, (self.dimension, order))
        return nodes, [weight / math.sqrt(2 * math.pi)] * self.dimension


Domain = Box | Gaussian


def as_domain(domain: Domain | Sequence[Sequence[float]] | Sequence[float]) -> Domain:
    """A domain from what a user writes.

    Args:
        domain: A `Box` or `Gaussian`; ``(low, high)`` for one input; or a list of such pairs, a box.

    Returns:
        The domain.

    Raises:
        TypeError: If it is none of these.

    Example:
        >>> as_domain([(0, 1), (0, 2)])
        Box(sides=((0.0, 1.0), (0.0, 2.0)))
    """
    if isinstance(domain, Box | Gaussian):
        return domain
    try:
        sides = torch.tensor(domain, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        sides = torch.empty(0)
    if sides.ndim not in {1, 2} or not sides.numel() or sides.shape[-1] != 2:
        raise TypeError(f"`domain` must be a Box, a Gaussian, (low, high), or a list of such pairs; got {domain!r}.")
    return Box(tuple((low, high) for low, high in sides.reshape(-1, 2).tolist()))


def tensor_nodes(domain: Domain, order: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The tensor product of a Gauss rule in every input: exact for polynomials up to degree ``2 order - 1`` in each.

    Args:
        domain: Where to integrate.
        order: Nodes per input.
        device: Where to put them.

    Returns:
        Nodes, float64, shape ``(order^d, d)``, and weights, shape ``(order^d,)``.

    Raises:
        ValueError: If the order is not positive, or the grid would not fit in memory.

    Example:
        >>> X, weights = tensor_nodes(Box(((0.0, 1.0), (0.0, 1.0))), order=3)
        >>> X.shape, round((weights @ X.prod(dim=1)).item(), 12)
        (torch.Size([9, 2]), 0.25)
    """
    d = domain.dimension
    if order < 1:
        raise ValueError(f"`order` must be at least 1; got {order!r}.")
    if d * math.log2(order) + math.log2(d + 1) > math.log2(BUDGETS.grid_numbers):
        size = order**d * (d + 1) * 8
        raise ValueError(
            f"A tensor grid of {order} nodes in each of {d} inputs needs {size / 2**30:.3g} GiB, more than the "
            f"{BUDGETS.grid_numbers * 8 / 2**30:g} allowed. Lower `order`, or draw Sobol points: MonteCarloLoss."
        )
    rows, shares = domain.rule(order)
    axes = [torch.tensor(row, dtype=torch.float64, device=device) for row in rows]
    weights = torch.ones(1, dtype=torch.float64, device=device)
    for share in shares:
        weights = torch.outer(weights, torch.tensor(share, device=device)).flatten()
    return torch.cartesian_prod(*axes).reshape(-1, d), weights


def sobol_points(count: int, dimension: int, shift: Tensor, seed: int = 0) -> Tensor:
    """Scrambled Sobol points with a digital shift, computed on the shift's device.

    With a fresh uniform shift each point is uniform, so that integrals are unbiased and draws are independent of each
    other; the scrambling of the seed is kept.

    Args:
        count: Number of points; powers of two are best.
        dimension: Number of inputs.
        shift: Integers in ``[0, 2^30)``, long, shape ``(d,)``.
        seed: Of the scrambling.

    Returns:
        Points in (0, 1), float64, shape ``(count, d)``.

    Example:
        >>> points = sobol_points(4, 2, shift=torch.zeros(2, dtype=torch.long))
        >>> (4 * points).floor().sort(dim=0).values.T  # one in each quarter
        tensor([[0., 1., 2., 3.],
                [0., 1., 2., 3.]], dtype=torch.float64)
    """
    directions = _directions(dimension, seed, shift.device)
    index = torch.arange(count, device=shift.device)
    gray = index ^ (index >> 1)
    points = shift.expand(count, dimension)
    for bit in range(max(count - 1, 1).bit_length()):
        points = points ^ (((gray >> bit) & 1)[:, None] * directions[:, bit])
    out: Tensor = (points.double() + 0.5) / 2**_BITS
    return out


def random_shift(dimension: int, generator: torch.Generator) -> Tensor:
    """A uniform digital shift for `sobol_points`, drawn on the generator's device.

    Args:
        dimension: Number of inputs.
        generator: Source of randomness.

    Returns:
        Integers, long, shape ``(d,)``.

    Example:
        >>> random_shift(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    return torch.randint(2**_BITS, (dimension,), generator=generator, device=generator.device)


@lru_cache(maxsize=16)
def _directions(dimension: int, seed: int, device: torch.device) -> Tensor:
    """Scrambled direction numbers, shape ``(d, 30)``, kept on the device."""
    engine = SobolEngine(dimension, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    return engine.sobolstate.to(device)
