"""Running a user's module without leaving a trace: buffers, random states, modes and metrics stay as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torchmetrics import Metric

_LOGGING = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """A context in which the module may run forward and its own training_step, and after which nothing is different.

    Restored: random states (torch, CUDA, numpy, Python), buffers, train/eval mode of every submodule, torchmetrics
    states. What the module logs inside goes nowhere.

    Args:
        module: The module to be run.

    Yields:
        Nothing.
    """
    modes = [(m, m.training) for m in module.modules()]
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    metrics = [(m, _lend_copies(m)) for m in module.modules() if isinstance(m, Metric)]
    with ExitStack() as stack:
        stack.enter_context(_same_random_numbers())
        if isinstance(module, LightningModule):
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
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    saved = {name: module.__dict__[name] for name in _LOGGING if name in module.__dict__}
    module.__dict__.update(dict.fromkeys(_LOGGING, _nothing))
    try:
        yield
    finally:
        for name in _LOGGING:
            del module.__dict__[name]
        module.__dict__.update(saved)


def _nothing(*_: object, **__: object) -> None:
    """Stands in for what must not happen during an observation."""


def _lend_copies(metric: Metric) -> dict[str, Any]:
    """Give the metric copies to work on; what it holds now, graph included, is returned to be put back."""
    names = {*metric._defaults, "_update_count", "_computed", "_forward_cache", "_is_synced", "_cache", "_to_sync"}
    held = {name: metric.__dict__[name] for name in names if name in metric.__dict__}
    metric.__dict__.update({name: _copied(value) for name, value in held.items()})
    return held


def _copied(value: Any) -> Any:
    return apply_to_collection(value, torch.Tensor, lambda tensor: tensor.detach().clone())
