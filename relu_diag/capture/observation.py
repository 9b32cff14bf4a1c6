"""Run a user's module without changing it: buffers, attributes, random states, modes and metrics stay as they are."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric

from relu_diag.capture.namespace import of_lightning

# What every module has.
_OF_ALL = frozenset(vars(nn.Module()))
_CONTAINERS = (list, deque, dict, set, OrderedDict, defaultdict, Counter)
_LOGGING = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """A context in which the module may run its forward or training_step without a lasting effect.

    On exit these are restored: random states (torch, CUDA, numpy, Python), buffers, the train/eval mode of every
    submodule, and the states of torchmetrics; attributes of every submodule, and what is in those that are tensors,
    lists, dicts, sets, deques or random generators; modules, parameters and buffers that were put in or exchanged.
    Inside, the module's logging calls do nothing. What a forward writes to its parameters, to objects of the user's
    own, or outside of the module, stays.

    Args:
        module: The module to be run.

    Yields:
        Nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with undisturbed(net):
        ...     outputs = net.eval()(torch.eye(2))
        >>> net.training
        True
    """
    modes = [(m, m.training) for m in module.modules()]
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    restorers = [restore for m in module.modules() for restore in _restorers(m)]
    metrics = [(m, _lend_copies(m)) for m in module.modules() if isinstance(m, Metric)]
    with ExitStack() as stack:
        stack.enter_context(_same_random_numbers())
        if of_lightning(module, "LightningModule"):
            stack.enter_context(_silent(module))
        try:
            yield
        finally:
            with torch.no_grad():
                for restore in restorers:
                    restore()
            for submodule, training in modes:
                submodule.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for metric, state in metrics:
                metric.__dict__.update(state)


def _restorers(module: nn.Module) -> Iterator[Callable[[], object]]:
    """What puts a module's own attributes back, submodules left alone, and what they hold."""
    apart = _OF_ALL.union(_LOGGING)
    names = {name: value for name, value in vars(module).items() if name not in apart}
    for value in (module._modules, module._parameters, module._buffers, *names.values()):
        restore = _restorer(value)
        if restore is not None:
            yield restore

    def put_back() -> None:
        own = vars(module)
        for name in own.keys() - names.keys() - apart:
            del own[name]
        own.update(names)

    yield put_back


def _restorer(value: Any) -> Callable[[], object] | None:
    """What makes a value hold what it holds now; None for one that is not known to change."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, Tensor):
        return partial(_write_back, value, value.detach().clone())
    if type(value) not in _CONTAINERS:  # others may refuse to be written to
        return None
    return partial(_refill, value, value.copy(), value.extend if isinstance(value, list | deque) else value.update)


def _write_back(value: Tensor, was: Tensor) -> None:
    """Restore the numbers of a tensor that have changed."""
    now = value.detach()
    if now.shape == was.shape and not torch.equal(now, was):
        now.copy_(was)


def _refill(container: Any, content: Any, put: Callable[[Any], object]) -> None:
    """Restore the content of a container."""
    container.clear()
    put(content)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the random states of torch, CUDA, numpy and Python on exit."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def _silent(module: nn.Module) -> Iterator[None]:
    """Replace the module's logging methods with ones that do nothing."""
    saved = {name: module.__dict__[name] for name in _LOGGING if name in module.__dict__}
    module.__dict__.update(dict.fromkeys(_LOGGING, _nothing))
    try:
        yield
    finally:
        for name in _LOGGING:
            del module.__dict__[name]
        module.__dict__.update(saved)


def _nothing(*_: object, **__: object) -> None:
    """Takes the place of a method that must have no effect during an observation."""


def _lend_copies(metric: Metric) -> dict[str, Any]:
    """Give the metric copies of its states to work on; return the originals, graph included, to be put back."""
    names = {*metric._defaults, "_update_count", "_computed", "_forward_cache", "_is_synced", "_cache", "_to_sync"}
    held = {name: metric.__dict__[name] for name in names if name in metric.__dict__}
    metric.__dict__.update({name: _copied(value) for name, value in held.items()})
    return held


def _copied(value: Any) -> Any:
    """The value with every tensor in it detached and cloned."""
    return apply_to_collection(value, torch.Tensor, lambda tensor: tensor.detach().clone())
