"""What all losses over an input density share."""

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
NodeSet = tuple[Tensor, Tensor, Tensor]


class IntegralLoss(nn.Module):
    """A loss that is an integral over the inputs of a model.

    Args:
        domain: Where to integrate.
    """

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self.domain = domain

    @abstractmethod
    def forward(self, model: nn.Module) -> Tensor:
        """The loss of a model as it is now, differentiable.

        Args:
            model: The model.

        Returns:
            Scalar.
        """

    @abstractmethod
    def error(self, model: nn.Module) -> Tensor:
        """An estimate of the error of the loss itself.

        Args:
            model: The model.

        Returns:
            Scalar.
        """

    @abstractmethod
    def nodes(self, model: nn.Module) -> NodeSet:
        """A fixed weighted data set that stands for the integral, on the model's device and in its dtype.

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
    """A target that training leaves alone and module trees do not hold.

    Args:
        target: The target.

    Returns:
        Of a network a copy in eval mode, asked in its own dtype; else the target itself.
    """
    return _Network(target) if isinstance(target, nn.Module) else target


class _Network:
    """Not a part of the model: its parameters are not the optimizer's, its block is not the one to look at."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval()

    def __call__(self, X: Tensor) -> Any:
        own = next(self.network.to(X.device).parameters(), X)
        return self.network(X.to(own.dtype))


def targets_at(target: Target, domain: Domain, X: Tensor) -> Tensor:
    """Targets at nodes, shape ``(N, J)``, in float32 at least; values are read on a CPU only.

    Args:
        target: The target.
        domain: Where it is integrated, for the message.
        X: Nodes, shape ``(N, d)``.

    Returns:
        Targets.

    Raises:
        TypeError: If the target returns no tensor.
        ValueError: If the shape is another, or a value is not finite.
    """
    # Mixed precision is for the model: a target that is a network itself keeps its digits.
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
    """Evaluate a target once, so that one without values is found before training.

    Args:
        target: The target.
        domain: Where it is integrated, for the message.
        X: Nodes, float64, shape ``(N, d)``.
    """
    try:
        targets_at(target, domain, X)
    except RuntimeError:
        targets_at(target, domain, X.float())  # a network inside a function, most likely


def first_parameter(model: nn.Module) -> Tensor:
    """A parameter that tells device and dtype.

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
