"""Shared by all losses that are integrals: the interface, targets at nodes, dtypes."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relu_diag.functional.integral import Domain

# As relu_diag.functional.integral._pieces.Function1d, for several inputs.
Target = Callable[[Tensor], Any]
# Inputs ``(N, d)``, targets ``(N, J)`` and weights ``(N,)``.
NodeSet = tuple[Tensor, Tensor, Tensor]


class IntegralLoss(nn.Module):
    """A loss that is an integral over the inputs of a model.

    Args:
        domain: Where to integrate.

    Example:
        >>> from relu_diag.losses import IntervalL2Loss
        >>> from relu_diag.nn import ShallowNet
        >>> loss = IntervalL2Loss(torch.sin, (0.0, 1.0))
        >>> isinstance(loss, IntegralLoss), loss(ShallowNet(1, 3)).shape
        (True, torch.Size([]))
    """

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self.domain = domain

    @abstractmethod
    def forward(self, model: nn.Module) -> Tensor:
        """The loss of a model at its current parameters, differentiable.

        Args:
            model: The model.

        Returns:
            Loss, shape ``()``.
        """

    @abstractmethod
    def error(self, model: nn.Module) -> Tensor:
        """An estimate of the numerical error of the loss.

        Args:
            model: The model.

        Returns:
            Error in units of the loss, shape ``()``.
        """

    @abstractmethod
    def nodes(self, model: nn.Module) -> NodeSet:
        """A fixed weighted data set in place of the integral, on the model's device and in its dtype.

        Args:
            model: The model.

        Returns:
            Inputs ``(N, d)``, targets ``(N, J)``, and weights ``(N,)`` with which the *mean* of ``weight * error^2``
            is the loss.
        """

    def extra_repr(self) -> str:
        """Arguments, for ``repr``.

        Returns:
            The domain.
        """
        return str(self.domain)


def weighted_squares(model: nn.Module, X: Tensor, Y: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared errors, shape ``(N,)``, in float64: their mean is a sum of many small numbers.

    Args:
        model: The model.
        X: Nodes, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        weight: Weights, shape ``(N,)``.

    Returns:
        Weighted squares.

    Raises:
        ValueError: If the model's outputs do not have the targets' shape.
    """
    out = model(X)
    if out.ndim == 1 and Y.shape[1] == 1:  # a model that drops its single output's dimension
        out = out[:, None]
    if out.shape != Y.shape:
        raise ValueError(f"The model returns {tuple(out.shape)} where the target returns {tuple(Y.shape)}.")
    squares: Tensor = (out.to(Y.dtype) - Y).square().double().sum(dim=1)
    return weight.double() * squares


def as_target(target: Target) -> Target:
    """A target that does not become a submodule, and that training does not change.

    Args:
        target: The target.

    Returns:
        For a network, a copy in eval mode, evaluated in its own dtype; otherwise the target itself.
    """
    return _Network(target) if isinstance(target, nn.Module) else target


class _Network:
    """Hides a network from the module tree, so that its parameters are not trained and its blocks not looked at."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval()

    def __call__(self, X: Tensor) -> Any:
        own = next(self.network.to(X.device).parameters(), X)
        return self.network(X.to(own.dtype))


def targets_at(target: Target, domain: Domain, X: Tensor) -> Tensor:
    """Targets at nodes, in float32 at least; on a GPU their values are not checked, which would wait for the device.

    Args:
        target: The target.
        domain: Where it is integrated, for the message.
        X: Nodes, shape ``(N, d)``.

    Returns:
        Targets, shape ``(N, J)``.

    Raises:
        TypeError: If the target returns no tensor.
        ValueError: If their shape does not fit, or a value is not finite.
    """
    # Mixed precision is for the model. A target that is itself a network keeps its precision.
    with torch.no_grad(), torch.autocast(X.device.type, enabled=False):
        values = target(X.to(wide_dtype(X)))
    if not isinstance(values, Tensor):
        raise TypeError(f"`target` must return a torch.Tensor; got {type(values).__name__}. Use torch's functions.")
    if values.ndim not in {1, 2} or len(values) != len(X):
        raise ValueError(
            f"`target` must return one row per node, shape ({len(X)},) or ({len(X)}, J), for inputs {tuple(X.shape)} "
            f"of {domain}; got {tuple(values.shape)}."
        )
    if values.device.type == "cpu" and not bool(torch.isfinite(values).all()):
        where = X[~torch.isfinite(values.reshape(len(X), -1)).all(dim=1)][0].tolist()
        raise ValueError(f"`target` is not finite at x = {where}; integrate where it is defined.")
    return values.reshape(len(X), -1).to(wide_dtype(X))


def probe_target(target: Target, domain: Domain, X: Tensor) -> None:
    """Evaluate a target once, so that an error in it shows before training.

    Args:
        target: The target.
        domain: Where it is integrated, for the message.
        X: Nodes, float64, shape ``(N, d)``.
    """
    try:
        targets_at(target, domain, X)
    except RuntimeError:
        targets_at(target, domain, X.float())  # Most likely a function that evaluates a float32 network.


def first_parameter(model: nn.Module) -> Tensor:
    """A parameter that has the model's device and dtype.

    Args:
        model: The model.

    Returns:
        Its first floating-point parameter.

    Raises:
        ValueError: If there is none.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise ValueError(f"{type(model).__name__} has no floating-point parameter to tell where to put the nodes.")
    return parameter


def wide_dtype(like: Tensor) -> torch.dtype:
    """The dtype of targets and errors: that of the model, float32 at least.

    Args:
        like: A tensor of the model's dtype.

    Returns:
        The dtype.
    """
    return torch.promote_types(like.dtype, torch.float32)
