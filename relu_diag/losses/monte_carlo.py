"""The integral loss of any model, from random nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, distributed, nn

from relu_diag.functional.integral import Domain, as_domain, random_shift, sobol_points
from relu_diag.losses.integral import (
    IntegralLoss,
    NodeSet,
    Target,
    as_target,
    first_parameter,
    probe_target,
    targets_at,
    weighted_squares,
    wide_dtype,
)

# Draws of Sobol points from which their error is estimated.
_REPLICATES = 8
# Streams of random numbers: error estimates use other nodes than the loss.
_OF_LOSS = 0
_OF_ERROR = 1


class MonteCarloLoss(IntegralLoss):
    """The integral of the squared error from random nodes, drawn on the model's device: boxes and Gaussians of any d.

    Args:
        target: Vectorised target, inputs ``(N, d)`` to values ``(N,)`` or ``(N, J)``.
        domain: ``(low, high)``, a list of such pairs, a `Box` or a `Gaussian`.
        samples: Nodes per evaluation; powers of two suit Sobol points.
        sampler: "sobol": scrambled Sobol points, or "iid": independent ones.
        fresh: Whether every evaluation draws new nodes; False: always the same.
        seed: Seed of the nodes. torch's global generators are left alone.

    Attributes:
        draws: Number of sets of nodes drawn so far. Seed, number and, for fresh nodes, the rank determine the nodes:
            set it to repeat them.

    Raises:
        ValueError: If there are fewer than two samples, the seed is negative, or the sampler is unknown.

    Example:
        >>> loss = MonteCarloLoss(lambda x: x.norm(dim=1), domain=[(-1, 1)] * 10, samples=256)
        >>> model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> loss(model) == loss(model)  # fresh nodes
        tensor(False)
    """

    def __init__(
        self,
        target: Target,
        domain: Domain | Sequence[Sequence[float]] | Sequence[float],
        samples: int = 1024,
        sampler: Literal["sobol", "iid"] = "sobol",
        fresh: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(as_domain(domain))
        if samples < 2:
            raise ValueError(f"`samples` must be at least 2; got {samples!r}.")
        if sampler not in {"sobol", "iid"}:
            raise ValueError(f"`sampler` must be 'sobol' or 'iid'; got {sampler!r}.")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0; got {seed!r}.")
        self.target = as_target(target)
        self.samples = samples
        self.sampler = sampler
        self.fresh = fresh
        self.seed = seed
        self.draws = 0
        probe_target(self.target, self.domain, self._points(torch.empty(0, dtype=torch.float64)))

    def forward(self, model: nn.Module) -> Tensor:
        """The loss of a model on the next nodes, differentiable.

        Args:
            model: A module that takes inputs ``(N, d)``.

        Returns:
            Scalar.
        """
        if self.fresh:
            self.draws += 1
        nodes = self._draw(first_parameter(model), _OF_LOSS, self.draws, _rank() if self.fresh else 0)
        out: Tensor = weighted_squares(model, *nodes).mean()
        return out

    def error(self, model: nn.Module) -> Tensor:
        """The standard error of one evaluation, estimated from other nodes.

        Args:
            model: The model.

        Returns:
            Standard error, shape ``()``: from the spread within one draw of iid nodes, or over eight of Sobol points.
        """
        like = first_parameter(model)
        with torch.no_grad():
            if self.sampler == "iid":
                return weighted_squares(model, *self._draw(like, _OF_ERROR)).std() / math.sqrt(self.samples)
            draws = [weighted_squares(model, *self._draw(like, _OF_ERROR, k)).mean() for k in range(_REPLICATES)]
            return torch.stack(draws).std()

    def nodes(self, model: nn.Module) -> NodeSet:
        """The first nodes of the seed, equally weighted.

        Args:
            model: The model.

        Returns:
            Inputs, targets and weights.
        """
        return self._draw(first_parameter(model))

    def _draw(self, like: Tensor, purpose: int = _OF_LOSS, number: int = 0, rank: int = 0) -> NodeSet:
        """The nodes of one draw, equally weighted."""
        X = self._points(like, purpose, number, rank)
        weight = torch.full((self.samples,), self.domain.volume, device=like.device, dtype=wide_dtype(like))
        return X, targets_at(self.target, self.domain, X), weight

    def _points(self, like: Tensor, purpose: int = _OF_LOSS, number: int = 0, rank: int = 0) -> Tensor:
        """The inputs of one draw, shape ``(N, d)``."""
        # torch's generator on a CPU uses 32 bits of its seed: whatever distinguishes draws must be mixed into them.
        mixed = np.random.SeedSequence(self.seed, spawn_key=(purpose, number, rank)).generate_state(1)
        generator = torch.Generator(like.device).manual_seed(int(mixed[0]))
        d = self.domain.dimension
        if self.sampler == "sobol":
            u = sobol_points(self.samples, d, random_shift(d, generator), self.seed)
        else:
            u = torch.rand(self.samples, d, generator=generator, device=like.device, dtype=torch.float64)
            u = u.clamp_min(torch.finfo(torch.float64).tiny)  # The quantile of a Gaussian at 0 is infinite.
        return self.domain.place(u).to(like.dtype)


def _rank() -> int:
    """The rank: processes that average their gradients draw different nodes."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
