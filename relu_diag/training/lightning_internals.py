"""The private names of Lightning that callbacks need, each behind one function: mend them here when they change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import TensorBoardLogger
from rich import get_console
from torch import Tensor

from relu_diag.capture import of_lightning

# Columns of a terminal from which Rich's bar has room for a sentence.
_WIDE = 120


def steps_logged(trainer: Trainer) -> int:
    """The step under which a loss of the current weights is logged: batches after which an optimizer has stepped.

    Args:
        trainer: The trainer, fitting.

    Returns:
        Number of such batches so far. With one optimizer it is ``trainer.global_step``.

    Example:
        >>> steps_logged(Trainer(barebones=True, accelerator="cpu"))
        0
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def batches_done_in_epoch(trainer: Trainer) -> int:
    """Number of batches of the current epoch that training has finished.

    Args:
        trainer: The trainer, fitting, after a batch.

    Returns:
        The number, as large as an epoch after its last batch.

    Example:
        >>> batches_done_in_epoch(Trainer(barebones=True, accelerator="cpu"))
        0
    """
    return trainer.fit_loop.epoch_loop.batch_idx + 1


def epochs_completed(trainer: Trainer) -> int:
    """Number of epochs that training has completed.

    Args:
        trainer: The trainer, fitting.

    Returns:
        The number.

    Example:
        >>> epochs_completed(Trainer(barebones=True, accelerator="cpu"))
        0
    """
    return trainer.fit_loop.epoch_progress.current.completed


def logged_metric(trainer: Trainer, name: str, on_step: bool) -> Tensor | None:
    """A metric as the module logs it, fresher than in ``trainer.callback_metrics``.

    Args:
        trainer: The trainer.
        name: Name of the metric.
        on_step: Whether to read the value of the last batch, or that of the epoch.

    Returns:
        The value, shape ``()``; None if no such metric was logged.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> logged_metric(trainer, "train_loss", on_step=True) is None  # nothing runs
        True
    """
    results = trainer._results
    metrics = results.metrics(on_step)["callback"] if results is not None else {}
    value = metrics.get(name)
    return value if isinstance(value, Tensor) else None


def show_in_bar(trainer: Trainer, name: str, text: str) -> None:
    """Show a text in the progress bar. Only here can one be put: `log` takes numbers.

    Args:
        trainer: The trainer.
        name: Name of the text.
        text: The text; empty where there is nothing to show. Of a narrow terminal Rich leaves so little that it gets
            the words before the first comma.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> show_in_bar(trainer, "plateau", "saddle")
        >>> trainer.progress_bar_metrics
        {'plateau': 'saddle'}
    """
    shown: dict[str, Any] = trainer._logger_connector._progress_bar_metrics
    shown.pop(name, None)
    if of_lightning(trainer.progress_bar_callback, "RichProgressBar") and get_console().width < _WIDE:
        text = text.partition(",")[0]
    if text:
        shown[name] = text


def device_batches(trainer: Trainer, module: LightningModule, loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, converted and moved to the device as for a training step.

    Args:
        trainer: The trainer.
        module: Its module.
        loader: The loader.

    Yields:
        Batches on the module's device.

    Example:
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> list(device_batches(trainer, LightningModule(), [1, 2]))
        [1, 2]
    """
    for batch in loader:
        converted = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        yield trainer.strategy.batch_to_device(converted, dataloader_idx=0)


def loss_scale(trainer: Trainer) -> float:
    """What a loss is multiplied by before its backward pass, so that small gradients survive 16 bits.

    Args:
        trainer: The trainer.

    Returns:
        The scale of the trainer's GradScaler; 1 where there is none.

    Example:
        >>> loss_scale(Trainer(barebones=True, accelerator="cpu"))
        1.0
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def shows_final_metric(logger: TensorBoardLogger) -> bool:
    """Whether a logger has the placeholder ``hp_metric``, for one number that says how good a run was.

    Args:
        logger: The logger.

    Returns:
        Whether it does.

    Example:
        >>> shows_final_metric(TensorBoardLogger("logs", default_hp_metric=False))
        False
    """
    return bool(logger._default_hp_metric)


def write_past_bar(line: str) -> None:
    """Print a line above every bar of tqdm, whether one is open or not.

    Args:
        line: The line.

    Example:
        >>> write_past_bar("step 9  saddle")
        step 9  saddle
    """
    Tqdm.write(line)
