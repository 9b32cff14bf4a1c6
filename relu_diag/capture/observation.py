"""Run a user's module without changing it: buffers, random states, modes and metrics stay as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torchmetrics import Metric

from relu_diag.capture.namespace import of_lightning

_LOGGING = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """A context in which the module may run its forward or training_step without a lasting effect.

    On exit these are restored: random states (torch, CUDA, numpy, Python), buffers, the train/eval mode of every
    submodule, and the states of torchmetrics. Inside, the module's logging calls do nothing.

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
    metrics = [(m, _lend_copies(m)) for m in module.modules() if isinstance(m, Metric)]
    with ExitStack() as stack:
        stack.enter_context(_same_random_numbers())
        if of_lightning(module, "LightningModule"):
            stack.enter_context(_silent(module))
        try:
            yield
        finally:
            for submodule, training in modes:
                submodule.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for metric, state in metrics:
                metric.__dict__.update(state)


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
