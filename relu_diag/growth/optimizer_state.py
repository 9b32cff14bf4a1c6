"""The state that an optimizer keeps of a parameter, when the parameter gets more neurons, or new ones for old."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from lightning.fabric.utilities.types import Optimizable
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from relu_diag.capture import of_lightning

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
        The torch optimizer, or what Lightning takes for one.

    Raises:
        TypeError: If it is none.
    """
    inner: Any = optimizer
    if of_lightning(optimizer, "LightningOptimizer"):
        inner = inner._optimizer
    if not isinstance(inner, Optimizable):
        raise TypeError(f"`optimizers` must be torch optimizers; got {type(inner).__name__}. Pass a list of them.")
    return cast(Optimizer, inner)


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
            waiting.extend(plain(value) for value in vars(optimizer).values() if _is_optimizer(value))
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
    for held, is_copy in _beside_the_state(optimizer, parameter):
        if held.shape == before.shape:
            # The tensor itself: who holds it may be a tuple.
            held.data = _padded(held.detach(), axis, added, new if is_copy else None)
    for state, copies in _states_of(optimizer, parameter):
        along, misfits = _along(state, before, axis)
        if misfits := [*misfits, *_INDIVISIBLE.intersection(along)]:
            _start_again(optimizer, state, misfits, "cannot be carried over to a wider layer")
            continue
        for name, (value, place) in along.items():
            if name in _SCALES or name in _FACTORS:
                filling: Tensor | None = value.mean(dim=place, keepdim=True)
            else:
                filling = new if name in copies else None
            wider = _padded(value, place, added, filling)
            state[name] = wider if state[name].ndim == wider.ndim else wider.flatten()


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
    for held, is_copy in _beside_the_state(optimizer, parameter):
        if held.shape == parameter.shape:
            held.detach().index_copy_(axis, units, values.to(held) if is_copy else torch.zeros_like(values).to(held))
    for state, copies in _states_of(optimizer, parameter):
        along, misfits = _along(state, parameter, axis)
        if misfits:
            _start_again(optimizer, state, misfits, "is of all neurons together")
            continue
        for name, (value, place) in along.items():
            if name in _SCALES or name in _FACTORS:
                fresh = _mean_of_others(value, place, units).expand_as(value.index_select(place, units))
            elif name in copies:
                fresh = values.to(value)
            else:
                fresh = torch.zeros_like(value.index_select(place, units))
            value.index_copy_(place, units, fresh)


def forget_gradients(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Let optimizers that correct for their first steps, as Adam's family, begin anew with some parameters.

    Where a gradient has been zero for long, second moments are next to nothing: the steps after it has come back would
    be several times the rate.

    Args:
        optimizers: The optimizers in use, changed in place.
        parameters: The parameters.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.Adam([weight], lr=0.5)
        >>> for gradient in (0.0, 1.0):
        ...     weight.grad = torch.tensor([gradient])
        ...     forget_gradients([optimizer], [weight])
        ...     optimizer.step()
        >>> round(weight.item(), 6)
        0.5
    """
    members = list(parameters)
    for optimizer in all_within(optimizers):
        for state, copies in (pair for one in members for pair in _states_of(optimizer, one)):
            if not {"step", "exp_avg_sq"} <= set(state):
                continue
            state["step"] = 0 * state["step"]
            for name, value in state.items():
                if _has_entries(value) and name not in copies:
                    value.zero_()


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


def _along(state: dict[str, Any], like: Tensor, axis: int) -> tuple[dict[str, tuple[Tensor, int]], list[str]]:
    """The values of a state that have neurons along an axis, with it, and the names of those that do not show it.

    A value that is kept as one vector comes in the shape of its parameter.
    """
    along: dict[str, tuple[Tensor, int]] = {}
    misfits = []
    for name, value in state.items():
        if not _holds_tensors(value):
            continue
        if _has_entries(value) and value.ndim == 1 and value.numel() == like.numel():
            value = value.view(like.shape)
        place = _axis_in(name, value, like, axis) if _has_entries(value) else None
        if place is None:
            misfits.append(name)
        elif place >= 0:
            along[name] = (value, place)
    return along, misfits


def _axis_in(name: str, value: Tensor, like: Tensor, axis: int) -> int | None:
    """The axis of a state that counts neurons; -1 where it has none, None where it cannot be told."""
    if name in _FACTORS:
        return axis if _FACTORS[name] == axis else -1
    shared = [size == 1 and other > 1 for size, other in zip(value.shape, like.shape, strict=False)]
    fits = [size in {1, other} for size, other in zip(value.shape, like.shape, strict=False)]
    if value.ndim != like.ndim or not all(fits):
        return None
    return -1 if shared[axis] else axis


def _mean_of_others(value: Tensor, axis: int, units: Tensor) -> Tensor:
    """The mean over the neurons that are not among some, zero where there is none, of size 1 along the axis."""
    kept = torch.ones(value.shape[axis], dtype=torch.bool, device=value.device)
    kept[units] = False
    if not bool(kept.any()):
        return torch.zeros_like(value.narrow(axis, 0, 1))
    return value.index_select(axis, kept.nonzero().squeeze(1)).mean(dim=axis, keepdim=True)


def _states_of(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """What an optimizer keeps of a parameter by names, in its state or in a mapping beside, and which are copies."""
    known = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    # The states of optimizers that it wraps are theirs, also where it has them under a name of its own.
    done = _states_of_wrapped(optimizer)
    for mapping in (optimizer.state, *vars(optimizer).values()):
        if not isinstance(mapping, dict) or id(mapping) in done:
            continue
        done.add(id(mapping))
        owners = _by_owner(mapping, known)
        record = [(owner, state) for owner, state in owners if owner is not None and isinstance(state, dict)]
        yield from ((state, _copies(record)) for owner, state in record if owner is parameter)


def _states_of_wrapped(optimizer: Optimizer) -> set[int]:
    """Identities of the states of optimizers that one wraps."""
    return {id(one.state) for one in vars(optimizer).values() if _is_optimizer(one)}


def _copies(record: Sequence[tuple[nn.Parameter, dict[str, Any]]]) -> set[str]:
    """Names of the states that are copies of their parameters: known ones, and those whose values are close to them."""
    names = dict.fromkeys(name for _, state in record for name in state if name not in _SCALES)
    close = {name for name in names if are_close([(parameter, state.get(name)) for parameter, state in record])}
    return _COPIES | close


def are_close(pairs: Sequence[tuple[Tensor | None, Any]]) -> bool:
    """Whether values are near to their parameters, all of them together.

    Args:
        pairs: A parameter, or None, and a value each.

    Returns:
        Whether they are: copies, and no momentum.
    """
    miss = size = 0.0
    for parameter, value in pairs:
        if parameter is None or not _has_entries(value) or value.ndim != parameter.ndim:
            continue
        # Of a parameter that has just been widened, the part that it was.
        own = parameter.detach()[tuple(slice(count) for count in value.shape)]
        if own.shape == value.shape:
            miss += float((value.detach() - own).float().square().sum())
            size += float(own.float().square().sum())
    return miss < _CLOSE**2 * size


def _beside_the_state(optimizer: Optimizer, parameter: nn.Parameter) -> list[tuple[Tensor, bool]]:
    """Tensors outside ``state`` that an optimizer holds for a parameter, in lists say, and whether they are copies."""
    known = [one for group in optimizer.param_groups for one in group["params"]]
    within = _states_of_wrapped(optimizer)
    found: dict[int, tuple[Tensor, bool]] = {}
    for group in optimizer.param_groups:
        members = group["params"]
        if any(own is parameter for own in members):
            lists = {len(ones): ones for ones in (known, members)}
            own = [value for name, value in group.items() if name != "params"]
            others = [value for name, value in vars(optimizer).items() if name not in {"state", "param_groups"}]
            for value in (*own, *others):
                if id(value) not in within:
                    found.update((id(held[0]), held) for held in held_for(value, parameter, lists))
    return [held for held in found.values() if all(held[0] is not own for own in known)]


def held_for(
    value: Any, parameter: nn.Parameter, lists: dict[int, Sequence[Tensor]], depth: int = 0
) -> Iterator[tuple[Tensor, bool]]:
    """Tensors for a parameter in a mapping by parameters or their ids, or in a container as long as their list.

    Args:
        value: Where to look.
        parameter: The parameter.
        lists: All parameters, or a group of them, by how many they are.
        depth: Of containers within containers.

    Yields:
        The tensors, and whether they are copies of the parameter.
    """
    if isinstance(value, Optimizer | nn.Module | Tensor) or depth > _DEEPEST:
        return
    pairs: list[tuple[Tensor | None, Any]] = []
    if isinstance(value, dict):
        # A parameter's hash is its id: a look-up would compare the two.
        known = {id(one): one for ones in lists.values() for one in ones}
        pairs = _by_owner(value, known)
        value = list(value.values())
    elif hasattr(value, "__dict__") and not callable(value):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        if len(value) in lists and all(isinstance(one, Tensor) for one in value):
            pairs = [*zip(lists[len(value)], value, strict=True)]
        for one in value:
            yield from held_for(one, parameter, lists, depth + 1)
    own = [held for owner, held in pairs if owner is parameter and _has_entries(held)]
    yield from ((held, are_close(pairs)) for held in own)


def _by_owner(mapping: dict[Any, Any], known: dict[int, Any]) -> list[tuple[Any, Any]]:
    """The values of a mapping by parameters or their ids, each with its parameter, or None."""
    return [(known.get(id(key) if isinstance(key, Tensor) else key), held) for key, held in mapping.items()]


def _has_entries(value: Any) -> bool:
    """Whether a value of an optimizer's state is a tensor with axes."""
    return isinstance(value, Tensor) and value.ndim > 0


def _holds_tensors(value: Any) -> bool:
    """Whether a value of an optimizer's state is a tensor with axes, or a container of some."""
    return any(one.ndim > 0 for one in _tensors_within(value))


def _is_optimizer(value: Any) -> bool:
    """Whether it is an optimizer, or what Lightning takes for one."""
    if isinstance(value, Optimizer):
        return True
    # What Lightning takes for one is told attribute by attribute, and the first of them is missing nearly everywhere.
    return hasattr(value, "param_groups") and isinstance(value, Optimizable) and not isinstance(value, nn.Module)


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
