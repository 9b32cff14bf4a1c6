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

_REPLICATES = 8
# Nodes of error estimates are apart from those of the loss.
_OF_LOSS, _OF_ERROR = 0, 1


class MonteCarloLoss(IntegralLoss):
    """The integral of the squared error from random nodes, drawn on the model's device: boxes and Gaussians of any d.

    Args:
        target: Vectorised target, inputs ``(N, d)`` to values ``(N,)`` or ``(N, J)``.
        domain: ``(low, high)``, a list of such pairs, a `Box` or a `Gaussian`.
        samples: Nodes per evaluation; powers of two suit Sobol points.
        sampler: "sobol": scrambled Sobol points, or "iid": independent ones.
        fresh: Whether every evaluation draws new nodes; False: always the same.
        seed: Of the nodes. torch's global generators are left alone.

    Attributes:
        draws: How many sets of nodes were drawn. The nodes are a function of seed, number and (fresh ones) the rank in
            a distributed run: set it to go back.

    Raises:
        ValueError: If there are less than two samples, the seed is negative, or the sampler unknown.

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
        self.target, self.samples, self.sampler = as_target(target), samples, sampler
        self.fresh, self.seed = fresh, seed
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
        """The standard error of one evaluation, from nodes of its own.

        Args:
            model: The model.

        Returns:
            Scalar: for iid nodes from the spread of one draw, for Sobol points from that of eight draws.
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
        X = self._points(like, purpose, number, rank)
        weight = torch.full((self.samples,), self.domain.volume, device=like.device, dtype=wide_dtype(like))
        return X, targets_at(self.target, self.domain, X), weight

    def _points(self, like: Tensor, purpose: int = _OF_LOSS, number: int = 0, rank: int = 0) -> Tensor:
        # torch's generator on a CPU reads 32 bits of its seed: all that tells draws apart must be mixed into them.
        mixed = np.random.SeedSequence(self.seed, spawn_key=(purpose, number, rank)).generate_state(1)
        generator = torch.Generator(like.device).manual_seed(int(mixed[0]))
        d = self.domain.dimension
        if self.sampler == "sobol":
            u = sobol_points(self.samples, d, random_shift(d, generator), self.seed)
        else:
            u = torch.rand(self.samples, d, generator=generator, device=like.device, dtype=torch.float64)
            u = u.clamp_min(torch.finfo(torch.float64).tiny)  # an exact 0 has no place under a Gaussian
        return self.domain.place(u).to(like.dtype)


def _rank() -> int:
    """Processes that add up their gradients have nodes of their own."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
