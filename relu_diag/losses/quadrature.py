"""The integral loss of any model of few inputs, by Gauss rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relu_diag.functional.integral import Domain, as_domain, tensor_nodes
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


class QuadratureLoss(IntegralLoss):
    """The integral of the squared error by a tensor product of Gauss rules: boxes and Gaussians of few inputs.

    Args:
        target: Vectorised target, inputs ``(N, d)`` to values ``(N,)`` or ``(N, J)``.
        domain: ``(low, high)``, a list of such pairs, a `Box` or a `Gaussian`.
        order: Nodes per input.

    Example:
        >>> loss = QuadratureLoss(lambda x: x.prod(dim=1), domain=[(0, 1), (0, 1)], order=4)
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> round(loss(model).item(), 6)  # the integral of (x y)^2
        0.111111
    """

    def __init__(
        self, target: Target, domain: Domain | Sequence[Sequence[float]] | Sequence[float], order: int = 16
    ) -> None:
        super().__init__(as_domain(domain))
        self.target = as_target(target)
        self.order = order
        self._kept: dict[tuple[torch.device, torch.dtype], NodeSet] = {}
        probe_target(self.target, self.domain, tensor_nodes(self.domain, order)[0])

    def forward(self, model: nn.Module) -> Tensor:
        """The loss of a model at its current parameters, differentiable.

        Args:
            model: A module that takes inputs ``(N, d)``.

        Returns:
            Scalar.
        """
        out: Tensor = weighted_squares(model, *self.nodes(model)).mean()
        return out

    def error(self, model: nn.Module) -> Tensor:
        """The difference to one node fewer per input, or from one to two.

        Args:
            model: The model.

        Returns:
            Scalar.
        """
        with torch.no_grad():
            other = self._made(first_parameter(model), self.order - 1 or 2)
            return (self.forward(model) - weighted_squares(model, *other).mean()).abs()

    def nodes(self, model: nn.Module) -> NodeSet:
        """The nodes of the rule, computed once for the model's device and dtype.

        Args:
            model: The model.

        Returns:
            Inputs, targets and weights.
        """
        like = first_parameter(model)
        key = (like.device, like.dtype)
        if key not in self._kept:
            self._kept = {key: self._made(like, self.order)}
        return self._kept[key]

    def _made(self, like: Tensor, order: int) -> NodeSet:
        """The nodes of a rule of an order, on the device and in the dtype of a tensor."""
        X, weights = tensor_nodes(self.domain, order, like.device)
        X = X.to(like.dtype)
        return X, targets_at(self.target, self.domain, X), (weights * len(weights)).to(wide_dtype(like))
