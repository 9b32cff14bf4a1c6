"""What optimizers remember of a parameter, when it gets more neurons."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

# Adafactor's moments of a matrix, and the axis along which each runs. A mean added leaves their mean as it is, and so
# what they say of the old neurons.
_FACTORS = {"row_var": 0, "col_var": 1}
# What sets the size of a step, by the names of torch.optim: a new neuron gets the mean over the old ones.
_SCALES = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta", "variance", "step_size"}
# ASGD's averages: nothing in them can be made up for a new neuron.
_INDIVISIBLE = {"ax"}


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, without Lightning's wrapper.

    Args:
        optimizer: An optimizer, as `Trainer` or as torch knows it.

    Returns:
        The torch optimizer.
    """
    inner = getattr(optimizer, "_optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    return inner


def widen_state(optimizer: Optimizer, parameter: nn.Parameter, axis: int, added: int) -> None:
    """Carry the state of a parameter that has grown by some neurons; does nothing where there is none.

    Args:
        optimizer: The optimizer, changed in place.
        parameter: The parameter, grown.
        axis: The axis that counts neurons.
        added: Number of new neurons, at the end.
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
            f"What {type(optimizer).__name__} remembers as {', '.join(misfits)} cannot be carried to a wider layer: "
            "its state of that layer starts again.",
            stacklevel=3,
        )
        state.clear()
        return
    along = whole | {name: state[name] for name in state if _FACTORS.get(name) == axis}
    for name, value in along.items():
        mean = value.mean(dim=axis, keepdim=True) if name in _SCALES or name in _FACTORS else None
        state[name] = _padded(value, axis, added, mean)


def _has_entries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _padded(value: Tensor, axis: int, added: int, filling: Tensor | None) -> Tensor:
    shape = list(value.shape)
    shape[axis] = added
    new = value.new_zeros(shape) if filling is None else filling.expand(shape)
    return torch.cat([value, new], dim=axis)


def _forget_curvature(optimizer: LBFGS) -> None:
    if optimizer.state:
        warnings.warn("LBFGS remembers gradients of the narrower network: its history starts again.", stacklevel=4)
    optimizer.state.clear()
    optimizer._numel_cache = None
