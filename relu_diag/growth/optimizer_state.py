"""The state that an optimizer keeps of a parameter, when the parameter gets more neurons, or new ones for old."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
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
# Copies of the parameter, by the names of schedule-free optimizers, Prodigy, and several versions of Lookahead.
_COPIES = {"ax", "z", "p0", "slow_param", "slow_params", "slow_weights", "slow_buffer", "cached_params"}
# Containers within containers of an optimizer in which copies are looked for.
_DEEPEST = 3
# A state this close to the parameters, over their length, is a copy of them whatever its name.
_CLOSE = 0.5


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


def all_within(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Optimizers and those that they wrap, as Lookahead wraps another one.

    Args:
        optimizers: Optimizers, or Lightning's wrappers of them.

    Returns:
        All of them, each once.
    """
    found: dict[int, Optimizer] = {}
    waiting = [plain(optimizer) for optimizer in optimizers]
    while waiting:
        optimizer = waiting.pop(0)
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            waiting.extend(plain(value) for value in vars(optimizer).values() if isinstance(value, Optimizer))
    return [*found.values()]


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
    width = parameter.shape[axis] - added
    new = parameter.detach().narrow(axis, width, added)
    before = parameter.detach().narrow(axis, 0, width)
    for copy in _beside_the_state(optimizer, parameter):
        if copy.shape == before.shape:
            # The tensor itself: who holds it may be a tuple.
            copy.data = torch.cat([copy.detach(), new.to(copy)], dim=axis)
    state = optimizer.state.get(parameter)
    if not state:
        return
    whole = {name: value for name, value in state.items() if _has_entries(value) and name not in _FACTORS}
    misfits = [name for name, value in whole.items() if name in _INDIVISIBLE or value.shape != before.shape]
    if misfits:
        _start_again(optimizer, state, misfits, "cannot be carried over to a wider layer")
        return
    along = whole | {name: state[name] for name in state if _FACTORS.get(name) == axis}
    copies = _copies(optimizer)
    for name, value in along.items():
        if name in _SCALES or name in _FACTORS:
            filling: Tensor | None = value.mean(dim=axis, keepdim=True)
        else:
            filling = new if name in copies else None
        state[name] = _padded(value, axis, added, filling)


def restart_rows(optimizer: Optimizer, parameter: nn.Parameter, axis: int, units: Tensor, values: Tensor) -> None:
    """Let neurons of a parameter start again: no momentum, the mean second moment of the others, in place.

    Args:
        optimizer: The optimizer, changed in place.
        parameter: The parameter, before the neurons get their values.
        axis: Axis of the parameter that counts neurons.
        units: The neurons, long, shape ``(n,)``.
        values: Their new values, ``n`` along the axis, which copies of the parameter take.
    """
    if isinstance(optimizer, LBFGS):
        _forget_curvature(optimizer)
        return
    for copy in _beside_the_state(optimizer, parameter):
        if copy.shape == parameter.shape:
            copy.detach().index_copy_(axis, units, values.to(copy))
    state = optimizer.state.get(parameter)
    if not state:
        return
    tensors = {name: value for name, value in state.items() if _has_entries(value)}
    along = {name: _axis_in(name, value, parameter, axis) for name, value in tensors.items()}
    if misfits := [name for name, place in along.items() if place is None]:
        _start_again(optimizer, state, misfits, "is of all neurons together")
        return
    copies = _copies(optimizer)
    for name, place in along.items():
        if place is None or place < 0:
            continue
        value = tensors[name]
        if name in _SCALES or name in _FACTORS:
            fresh = _mean_of_others(value, place, units).expand_as(value.index_select(place, units))
        elif name in copies:
            fresh = values.to(value)
        else:
            fresh = torch.zeros_like(value.index_select(place, units))
        value.index_copy_(place, units, fresh)


def flat_vectors(optimizer: Optimizer) -> list[str]:
    """Names of the vectors of all parameters together that an optimizer keeps; no growth can be carried over to them.

    Args:
        optimizer: The optimizer; not LBFGS, whose history starts again.

    Returns:
        Names of attributes, entries of groups and of states.
    """
    if isinstance(optimizer, LBFGS):
        return []
    members = [group["params"] for group in optimizer.param_groups]
    everything = [one for some in members for one in some]
    sizes = {sum(one.numel() for one in some) for some in (*members, everything) if len(some) > 1}
    known = {id(one) for one in everything}
    held = [(name, value) for name, value in vars(optimizer).items() if name not in {"state", "param_groups"}]
    for group in optimizer.param_groups:
        held += [(name, value) for name, value in group.items() if name != "params"]
    for key, entries in optimizer.state.items():
        some = entries if isinstance(entries, dict) else {str(key): entries}
        # What has the shape of its parameter is of that alone, however many weights a group has.
        held += [pair for pair in some.items() if getattr(pair[1], "shape", None) != getattr(key, "shape", ())]
    return [
        str(name)
        for name, value in held
        if any(one.ndim == 1 and one.numel() in sizes and id(one) not in known for one in _tensors_within(value))
    ]


def _tensors_within(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Tensors in containers and objects of an optimizer, but for those of other optimizers and modules."""
    if isinstance(value, Tensor):
        yield value
    if isinstance(value, Tensor | Optimizer | nn.Module) or depth > _DEEPEST:
        return
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dict__") and not callable(value):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_within(one, depth + 1)


def _axis_in(name: str, value: Tensor, parameter: nn.Parameter, axis: int) -> int | None:
    """The axis of a state that counts neurons; -1 where it has none, None where it cannot be told."""
    if name in _FACTORS:
        return axis if _FACTORS[name] == axis else -1
    shared = [size == 1 and other > 1 for size, other in zip(value.shape, parameter.shape, strict=False)]
    fits = [size in {1, other} for size, other in zip(value.shape, parameter.shape, strict=False)]
    if value.ndim != parameter.ndim or not all(fits):
        return None
    return -1 if shared[axis] else axis


def _mean_of_others(value: Tensor, axis: int, units: Tensor) -> Tensor:
    """The mean over the neurons that are not among some, zero where there is none, of size 1 along the axis."""
    kept = torch.ones(value.shape[axis], dtype=torch.bool, device=value.device)
    kept[units] = False
    if not bool(kept.any()):
        return torch.zeros_like(value.narrow(axis, 0, 1))
    return value.index_select(axis, kept.nonzero().squeeze(1)).mean(dim=axis, keepdim=True)


def _copies(optimizer: Optimizer) -> set[str]:
    """Names of the states that are copies of their parameters: known ones, and those whose values are close to them."""
    miss: dict[str, float] = {}
    size: dict[str, float] = {}
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name in _SCALES or not _has_entries(value) or value.ndim != parameter.ndim:
                continue
            # Of a parameter that has just been widened, the part that it was.
            own = parameter.detach()[tuple(slice(count) for count in value.shape)]
            if own.shape == value.shape:
                miss[name] = miss.get(name, 0.0) + float((value - own).float().square().sum())
                size[name] = size.get(name, 0.0) + float(own.float().square().sum())
    return _COPIES | {name for name in miss if miss[name] < _CLOSE**2 * size[name]}


def _beside_the_state(optimizer: Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """Tensors outside ``state`` that an optimizer holds for a parameter, as copies kept in lists."""
    known = [one for group in optimizer.param_groups for one in group["params"]]
    found: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        members = group["params"]
        if any(own is parameter for own in members):
            places = {len(ones): _place_of(parameter, ones) for ones in (known, members)}
            own = [value for name, value in group.items() if name != "params"]
            others = [value for name, value in vars(optimizer).items() if name not in {"state", "param_groups"}]
            for value in (*own, *others):
                found.update((id(one), one) for one in _held_for(value, parameter, places))
    return [one for one in found.values() if all(one is not own for own in known)]


def _place_of(parameter: nn.Parameter, among: Sequence[Tensor]) -> int:
    """Which of some tensors a parameter is."""
    return next(i for i, own in enumerate(among) if own is parameter)


def _held_for(value: Any, parameter: nn.Parameter, places: dict[int, int], depth: int = 0) -> Iterator[Tensor]:
    """Tensors for a parameter in a mapping by parameters or their ids, or in a container as long as their list."""
    if isinstance(value, Optimizer | nn.Module | Tensor) or depth > _DEEPEST:
        return
    if isinstance(value, dict):
        # A parameter's hash is its id: a look-up would compare the two.
        for held in [held for key, held in value.items() if key is parameter or key == id(parameter)]:
            parts = held.values() if isinstance(held, dict) else [held]
            yield from (one for one in parts if _has_entries(one))
        value = list(value.values())
    elif hasattr(value, "__dict__") and not callable(value):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        if len(value) in places and all(isinstance(one, Tensor) for one in value):
            yield value[places[len(value)]]
        for one in value:
            yield from _held_for(one, parameter, places, depth + 1)


def _has_entries(value: Any) -> bool:
    """Whether a value of an optimizer's state is a tensor with axes."""
    return isinstance(value, Tensor) and value.ndim > 0


def _start_again(optimizer: Optimizer, state: dict[str, Any], misfits: Sequence[str], why: str) -> None:
    """Drop the state of a parameter, and say so."""
    warnings.warn(
        f"The state {', '.join(misfits)} of {type(optimizer).__name__} {why}: the state of that layer starts again.",
        stacklevel=4,
    )
    state.clear()


def _padded(value: Tensor, axis: int, added: int, filling: Tensor | None) -> Tensor:
    """The value with new entries at the end of an axis, zero or as in `filling`, which has size 1 there."""
    shape = list(value.shape)
    shape[axis] = added
    new = value.new_zeros(shape) if filling is None else filling.to(value).expand(shape)
    return torch.cat([value, new], dim=axis)


def _forget_curvature(optimizer: LBFGS) -> None:
    """Reset the history of LBFGS, which holds gradients of the network before."""
    if optimizer.state:
        warnings.warn("LBFGS remembers gradients of the network before: its history starts again.", stacklevel=4)
    optimizer.state.clear()
    optimizer._numel_cache = None
