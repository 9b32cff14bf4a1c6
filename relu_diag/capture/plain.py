"""Whether a Linear layer computes what its weight and bias say."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from relu_diag.capture.observation import undisturbed

# Relative deviation at which two outputs are the same.
_SAME = {torch.float64: 1e-10, torch.float32: 1e-4}
_ROWS = 2


def check_plain(name: str, layer: nn.Linear) -> None:
    """Refuse a layer that computes something else than ``W x + b``: a low-rank update, a quantisation, a hook.

    A layer with a forward or hooks of its own is tried on two inputs; others are what they are.

    Args:
        name: Its name, for the message.
        layer: The layer.

    Raises:
        ValueError: If it computes something else.

    Example:
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> check_plain("net.0", Doubled(3, 2))
        Traceback (most recent call last):
            ...
        ValueError: 'net.0' is a Doubled that computes something else than W x + b...
    """
    own_forward = type(layer).forward is not nn.Linear.forward or "forward" in vars(layer)
    if is_sharded(layer) or not (own_forward or layer._forward_hooks):
        return
    numbers = torch.arange(1, 1 + _ROWS * layer.in_features, device=layer.weight.device)
    X = numbers.to(torch.float64).cos().reshape(_ROWS, -1).to(layer.weight.dtype)
    with undisturbed(layer), torch.no_grad():
        Z = layer(X)
        expected = functional.linear(X, layer.weight, layer.bias)
    alike = isinstance(Z, torch.Tensor) and Z.shape == expected.shape
    if alike and bool((Z - expected).norm() <= _SAME.get(X.dtype, 2e-2) * expected.norm()):
        return
    raise ValueError(
        f"{name!r} is a {type(layer).__name__} that computes something else than W x + b, by a forward or a hook of "
        "its own. Merge what it adds into its weight (LoRA: merge), or watch it in training: LandscapeMonitor and "
        "capture.riding read the weight that takes part."
    )


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP shards the parameters of a module, also while a forward pass has them whole.

    Args:
        module: The module.

    Returns:
        Whether FSDP holds it, of either version.

    Example:
        >>> is_sharded(nn.Linear(3, 2))
        False
    """
    return any(base.__name__ in {"FSDPModule", "FullyShardedDataParallel"} for base in type(module).__mro__)
