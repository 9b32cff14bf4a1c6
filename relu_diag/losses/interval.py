"""The exact integral loss of a model that is a block of one input."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from relu_diag.capture import BlockLocation, choose_block, undisturbed
from relu_diag.functional import IntervalTarget, ShallowBlock, interval_l2_loss
from relu_diag.functional.integral import Box, Function1d, Interval, check_interval, evaluate
from relu_diag.losses.integral import IntegralLoss, NodeSet, first_parameter

_MIDPOINTS = 1024
# Relative difference up to which a model equals its block.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}


class IntervalL2Loss(IntegralLoss):
    """The exact integral of ``(N(x) - f(x))^2`` over an interval, for a model that is a block of one input.

    It needs no data and no nodes, but one sort of the breakpoints (`relu_diag.functional.interval_l2_loss`). The block
    is found at the first call with a model, and its parameters are read at every call.

    Args:
        target: Vectorised target, nodes ``(n,)`` to values ``(n,)``; an `IntervalTarget` if it has breakpoints or a
            density, or needs another order.
        interval: ``(A, B)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> loss = IntervalL2Loss(torch.sin, interval=(0.0, 3.0))
        >>> loss(model).backward()
        >>> model[0].weight.grad.shape
        torch.Size([8, 1])
    """

    def __init__(self, target: Function1d | IntervalTarget, interval: Interval) -> None:
        super().__init__(Box((check_interval(interval),)))
        self.interval = check_interval(interval)
        self.target = target if isinstance(target, IntervalTarget) else IntervalTarget(target)
        self._locations: WeakKeyDictionary[nn.Module, BlockLocation] = WeakKeyDictionary()
        A, B = self.interval
        # During training values on a GPU are not checked: check the target here, once.
        evaluate("target", self.target.function, torch.linspace(A, B, _MIDPOINTS + 1, dtype=torch.float64)[1:-1])

    def forward(self, model: nn.Module) -> Tensor:
        """The loss of a model at its current parameters, twice differentiable.

        Args:
            model: A module that is one Linear -> ReLU-like -> Linear block of one input and one output.

        Returns:
            Scalar.
        """
        return self._integral(model, self.target)

    def error(self, model: nn.Module) -> Tensor:
        """The difference to one node fewer per piece, or from one to two: above the error, 0 for low polynomials.

        Args:
            model: The model.

        Returns:
            Scalar.
        """
        given = self.target
        other = IntervalTarget(
            given.function, given.breakpoints, given.density, given.order - 1 or 2, max(1, given.cells - 1)
        )
        with torch.no_grad():
            return (self._integral(model, given) - self._integral(model, other)).abs()

    def nodes(self, model: nn.Module) -> NodeSet:
        """Midpoints of 1,024 cells, with equal weights if there is no density.

        Args:
            model: The model.

        Returns:
            Inputs, targets and weights.
        """
        A, B = self.interval
        like = first_parameter(model)
        x = A + (B - A) * (torch.arange(_MIDPOINTS, dtype=torch.float64, device=like.device) + 0.5) / _MIDPOINTS
        weight = torch.full_like(x, B - A)
        if self.target.density is not None:
            weight = weight * self.target.density(x)
        return x[:, None].to(like), self.target.function(x)[:, None].to(like), weight.to(like)

    def __getstate__(self) -> dict[str, Any]:
        # Locations belong to live modules; a copy finds them again.
        return {**self.__dict__, "_locations": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_locations": WeakKeyDictionary()})  # type: ignore[no-untyped-call]

    def _integral(self, model: nn.Module, target: IntervalTarget) -> Tensor:
        """The integral of the squared error of a model against a target, shape ``()``."""
        location = self._locations.get(model)
        if location is None:
            location = self._locations[model] = self._located(model)
        hidden, output = location.linears(model)
        b = hidden.weight.new_zeros(hidden.out_features) if hidden.bias is None else hidden.bias
        c = 0.0 if output.bias is None else output.bias
        return interval_l2_loss(
            hidden.weight.squeeze(1), b, output.weight.squeeze(0), c, target, self.interval, location.slopes
        )

    def _located(self, model: nn.Module) -> BlockLocation:
        """The block that a model consists of.

        Raises:
            ValueError: If the model is not a single block of one input and one output.
        """
        cure = "QuadratureLoss and MonteCarloLoss take any model."
        x = torch.linspace(*self.interval, 33, dtype=torch.float64)[:, None].to(first_parameter(model))
        try:
            location = choose_block(model, example=x)
        except ValueError as error:
            raise ValueError(f"IntervalL2Loss needs a model that is one block of one input. {error} {cure}") from error
        if location.prelu is not None:
            raise ValueError(f"The slope of {location.prelu!r} is trained, which the exact loss does not see. {cure}")
        hidden, output = location.linears(model)
        if hidden.in_features != 1 or output.out_features != 1:
            raise ValueError(f"The exact loss needs one input and one output; got block {location} of {model}. {cure}")
        # In mixed precision the outputs are too coarse to tell the model from its block.
        with undisturbed(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            outputs = model(x).reshape(len(x), -1)
            ones = torch.ones_like(x)
            b = torch.zeros_like(hidden.weight) if hidden.bias is None else hidden.bias[:, None]
            block = ShallowBlock(torch.cat([hidden.weight, b], 1), output.weight, location.slopes, output.bias)
            own = block(torch.cat([x, ones], dim=1))
        if outputs.shape != own.shape or (outputs - own).abs().max() > _SAME.get(x.dtype, 5e-2) * own.abs().max():
            raise ValueError(f"{type(model).__name__} computes more than its block {location}. {cure}")
        return location
