"""The state that an optimizer keeps of a parameter, carried over when the parameter gets more neurons."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

# Adafactor's factored moments of a matrix, and the axis along which each runs. New neurons get the mean of the old
# ones: the mean of all, and with it the scaling of the old neurons, stays.
_FACTORS = {"row_var": 0, "col_var": 1}
# State that scales the step, by the names of torch.optim: a new neuron gets the mean over the old ones.
_SCALES = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta", "variance", "step_size"}
# ASGD's averages: no value for a new neuron makes sense.
_INDIVISIBLE = {"ax"}


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, without Lightning's wrapper.

    Args:
        optimizer: A torch optimizer, or Lightning's wrapper of one.

    Returns:
        The torch optimizer.
    """
    inner = getattr(optimizer, "_optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    return inner


def widen_state(optimizer: Optimizer, parameter: nn.Parameter, axis: int, added: int) -> None:
    """Extend the state of a parameter that has been widened, in place; do nothing if it has no state.

    Args:
        optimizer: The optimizer, changed in place.
        parameter: The parameter, after the widening.
        axis: Axis of the parameter that counts neurons.
        added: Number of new neurons; they are the last ones along the axis.
    """
    if isinstance(optimizer, LBFGS):
        _forget_curvature(optimizer)
        return
    state = optimizer.state.get(parameter)
    if not state:
        return
    old_shape = list(parameter.shape)
    old_shape[axis] -= added
    whole = {name: value for name, value in state.items() if _has_entries(value) and name not in _FACTORS}
    misfits = [name for name, value in whole.items() if name in _INDIVISIBLE or list(value.shape) != old_shape]
    if misfits:
        warnings.warn(
            f"The state {', '.join(misfits)} of {type(optimizer).__name__} cannot be carried over to a wider layer: "
            "the state of that layer starts again.",
            stacklevel=3,
        )
        state.clear()
        return
    along = whole | {name: state[name] for name in state if _FACTORS.get(name) == axis}
    for name, value in along.items():
        mean = value.mean(dim=axis, keepdim=True) if name in _SCALES or name in _FACTORS else None
        state[name] = _padded(value, axis, added, mean)


def _has_entries(value: Any) -> bool:
    """Whether a value of an optimizer's state is a tensor with axes."""
    return isinstance(value, Tensor) and value.ndim > 0


def _padded(value: Tensor, axis: int, added: int, filling: Tensor | None) -> Tensor:
    """The value with new entries at the end of an axis, zero or as in `filling`, which has size 1 there."""
    shape = list(value.shape)
    shape[axis] = added
    new = value.new_zeros(shape) if filling is None else filling.expand(shape)
    return torch.cat([value, new], dim=axis)


def _forget_curvature(optimizer: LBFGS) -> None:
    """Reset the history of LBFGS, which holds gradients of the narrower network."""
    if optimizer.state:
        warnings.warn("LBFGS remembers gradients of the narrower network: its history starts again.", stacklevel=4)
    optimizer.state.clear()
    optimizer._numel_cache = None
