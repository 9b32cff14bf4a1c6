"""Where a monitor's results go: loggers, callback metrics, figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from torch import Tensor

from relu_diag.callbacks.history import HistoryRecorder
from relu_diag.figures import function_figure, training_figure
from relu_diag.functional import NeuronGeometry, NeuronStates, ShallowBlock, dead_sector

_FIGURE_SECONDS = 30.0
_BINS = 30
_MAX_POINTS = 10_000


class Report:
    """Sends scalars, histograms and figures to whatever loggers a trainer has.

    Args:
        prefix: Put before every name.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._data: list[tuple[Tensor, Tensor]] = []
        self._last_figure = time.monotonic()

    def keep_data(self, block: ShallowBlock, X: Tensor, batch: Any) -> None:
        """Keep the data of a problem with two inputs, to draw the learned function over them.

        Args:
            block: The network.
            X: Block inputs of the batch.
            batch: The batch; its second part the targets.
        """
        targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        points = sum(len(x) for x, _ in self._data)
        if block.W.shape[1] != 2 or not isinstance(targets, Tensor) or points + len(X) > _MAX_POINTS:
            return
        Y = targets.detach().reshape(len(targets), -1).to(X.dtype)
        if Y.shape == (len(X), block.H.shape[0]) and not any(torch.equal(X, x) for x, _ in self._data):
            self._data.append((X.detach().clone(), Y.clone()))

    def log(
        self, trainer: Trainer, step: int, scalars: dict[str, float], geometry: NeuronGeometry, states: NeuronStates
    ) -> None:
        """Log the results of a look.

        Args:
            trainer: The trainer.
            step: Step of the look.
            scalars: Scalars by name.
            geometry: One-sided derivatives.
            states: Neuron states.
        """
        named = {self.prefix + name: value for name, value in scalars.items()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
        histograms = {"amplitude": states.amplitude, "angle": states.angle, "slope": geometry.steepest}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)
            for name, values in histograms.items():
                _log_histogram(logger, self.prefix + name, values, step)

    def draw_now_and_then(
        self, trainer: Trainer, history: HistoryRecorder, block: ShallowBlock, states: NeuronStates
    ) -> None:
        """Send the figures to the loggers if the last ones are older than half a minute.

        Args:
            trainer: The trainer.
            history: The run so far.
            block: The network.
            states: Neuron states.
        """
        if time.monotonic() - self._last_figure > _FIGURE_SECONDS and trainer.is_global_zero:
            self._send(trainer, self._figures(history, block, states), history.moments[-1][0])
            self._last_figure = time.monotonic()

    def write_figures(
        self, trainer: Trainer, history: HistoryRecorder, block: ShallowBlock, states: NeuronStates
    ) -> None:
        """Send the figures to the loggers, and write each as PNG beside the logs.

        Args:
            trainer: The trainer.
            history: The run.
            block: The network at the end.
            states: Neuron states at the end.
        """
        folder = trainer.log_dir  # asked on every rank: Lightning broadcasts it
        if not trainer.loggers or not trainer.is_global_zero or folder is None:
            return
        figures = self._figures(history, block, states)
        self._send(trainer, figures, history.moments[-1][0])
        for name, figure in figures.items():
            path = Path(folder, f"{self.prefix}{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)

    def _figures(self, history: HistoryRecorder, block: ShallowBlock, states: NeuronStates) -> dict[str, Figure]:
        if not self._data:
            return {"training": training_figure(history.finished(states, None))}
        X, Y = (torch.cat(parts) for parts in zip(*self._data, strict=True))
        return {
            "training": training_figure(history.finished(states, dead_sector(X, block.slopes))),
            "function": function_figure(block, X, Y),
        }

    def _send(self, trainer: Trainer, figures: dict[str, Figure], step: int) -> None:
        for logger in trainer.loggers:
            for name, figure in figures.items():
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(self.prefix + name, figure, step, close=False)
                elif isinstance(logger, WandbLogger):
                    logger.log_image(self.prefix + name, [figure], step=step)


def _log_histogram(logger: Logger, name: str, values: Tensor, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, values.cpu(), step, bins=_BINS)
    elif isinstance(logger, WandbLogger):
        import wandb

        counts, edges = torch.histogram(values.float().cpu(), bins=_BINS)
        logger.experiment.log({name: wandb.Histogram(np_histogram=(counts.numpy(), edges.numpy()))}, step=step)
