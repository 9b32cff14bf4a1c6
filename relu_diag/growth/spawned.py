"""Results of spawned processes: the weights that come back may be of a wider network than the one that was sent."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from relu_diag.growth.checkpoint import resize_on_load


def accept_grown_results() -> None:
    """Let Lightning load the weights of a module that has grown in processes of ``ddp_spawn`` or ``ddp_fork``.

    No hook of a callback runs in the main process before it loads them; so the launcher is told. Modules that have not
    grown are loaded as ever.

    Example:
        >>> accept_grown_results()
    """
    _accept(_MultiProcessingLauncher)
    other = sys.modules.get("pytorch_lightning.strategies.launchers.multiprocessing")
    if other is not None:
        _accept(other._MultiProcessingLauncher)


def _accept(launcher: type[_MultiProcessingLauncher]) -> None:
    """Let a launcher of one of Lightning's two packages load them; a second call changes nothing."""
    recover = launcher._recover_results_in_main_process
    if hasattr(recover, "__wrapped__"):
        return

    @wraps(recover)
    def resized(self: _MultiProcessingLauncher, worker_output: Any, trainer: Trainer) -> None:
        before = dict(trainer.lightning_module._load_state_dict_pre_hooks)
        resize_on_load(trainer.lightning_module)
        try:
            recover(self, worker_output, trainer)
        finally:
            trainer.lightning_module._load_state_dict_pre_hooks.clear()
            trainer.lightning_module._load_state_dict_pre_hooks.update(before)

    launcher._recover_results_in_main_process = resized  # type: ignore[method-assign]
