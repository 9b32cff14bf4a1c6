"""What a parameter must be for its neurons to be changed in place."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer


def check_whole(name: str, parameter: Tensor) -> nn.Parameter:
    """The parameter, refused where it is computed from others or lies in parts on several processes.

    Args:
        name: Its name, for the message.
        parameter: What a layer has in its place.

    Returns:
        The parameter.

    Raises:
        ValueError: If it is computed by a parametrization.
        TypeError: If it is sharded over processes.
    """
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(f"The {name} is computed by a parametrization; remove it (remove_parametrizations) first.")
    # A DTensor, or a parameter of DeepSpeed.
    if type(parameter) is not nn.Parameter or hasattr(parameter, "ds_id"):
        raise TypeError(
            f"The {name} is a {type(parameter).__name__}, sharded over processes (FSDP, DeepSpeed, tensor "
            "parallel), and cannot grow in place. Train with DDP or on one device."
        )
    return parameter


def names_of(module: nn.Module, parameter: nn.Parameter) -> list[str]:
    """The names of a parameter; several where modules share it.

    Args:
        module: The module that holds it.
        parameter: The parameter.

    Returns:
        Qualified names.
    """
    return [name for name, other in module.named_parameters(remove_duplicate=False) if other is parameter]


def owns(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether an optimizer holds a parameter.

    Args:
        optimizer: The optimizer.
        parameter: The parameter.

    Returns:
        True if it is in one of its groups.
    """
    return any(parameter is own for group in optimizer.param_groups for own in group["params"])
