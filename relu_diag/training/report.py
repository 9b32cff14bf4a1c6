"""Send results of a monitor to the loggers, to the callback metrics, and to figures on disk."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from relu_diag.figures import TrainingHistory, function_figure, png_of, training_figure
from relu_diag.functional import NeuronStates, ShallowBlock
from relu_diag.functional.integral import Box
from relu_diag.functional.local import dead_sector
from relu_diag.losses import IntegralLoss
from relu_diag.training._dashboard import dashboard_of
from relu_diag.training.loggers import is_mlflow, is_tensorboard, is_wandb
from relu_diag.training.look import targets_of
from relu_diag.training.story import tell

# Figures in the loggers are drawn again after this time, s.
_FIGURE_SECONDS = 30.0
_BINS = 30
# Pixels per inch of figures.
_DPI = 150.0
# Histograms that TensorBoard does without: the figure of the run shows as much, and a block has 20 tags at most.
_NO_BOARD = ("/angle", "/amplitude")
# Samples beyond which the learned function is not drawn over the data.
_MAX_POINTS = 10_000


class Report:
    """Sends scalars, texts, histograms and figures to the loggers of a trainer.

    Args:
        prefix: Prefix of every name.
        first: Name of the figure that TensorBoard shows before all others.

    Attributes:
        pictures: The figures that were drawn last, as contents of PNG files.

    Example:
        >>> report = Report("landscape/")
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> report.log_scalars(trainer, 10, {"dead": 3.0})  # to every logger: here none
    """

    def __init__(self, prefix: str, first: str = "") -> None:
        self.prefix = prefix
        self.first = first
        self._data: tuple[Tensor, Tensor] | None = None
        self._interval: tuple[float, float] | None = None
        self.pictures: Mapping[str, bytes] = {}
        self._last_figure = time.monotonic()
        # The last run, step and value by name.
        self._logged: dict[str, tuple[int, int, float]] = {}

    def keep_data(self, block: ShallowBlock, X: Tensor, batch: Any) -> None:
        """Keep the last batch, if the block has two inputs, to draw the learned function over it.

        Args:
            block: The network.
            X: Block inputs of the batch, shape ``(N, 2)`` to be kept.
            batch: The batch, with the targets as its second part.
        """
        targets = targets_of(batch)
        if block.W.shape[1] != 2 or targets is None or len(X) > _MAX_POINTS:
            return
        Y = targets.detach().reshape(len(targets), -1)
        if Y.shape == (len(X), block.H.shape[0]) and Y.is_floating_point():
            self._data = (X.detach().clone(), Y.to(X.dtype))

    def log(
        self, trainer: Trainer, step: int, scalars: dict[str, float], steepest: Tensor, states: NeuronStates
    ) -> None:
        """Log the results of a look.

        Args:
            trainer: The trainer.
            step: Step of the look.
            scalars: Scalars by name.
            steepest: Steepest slopes, shape ``(I,)``.
            states: Neuron states.
        """
        self._interval = _interval_of(trainer)
        self.log_scalars(trainer, step, scalars)
        histograms = {"amplitude": states.amplitude, "angle": states.angle, "slope": steepest}
        for logger in trainer.loggers:
            if is_tensorboard(logger):
                dashboard_of(logger, trainer).add_states(self.prefix, states, step)
            for name, values in histograms.items():
                _log_histogram(logger, self.prefix + name, values, step)

    def log_scalars(self, trainer: Trainer, step: int, scalars: dict[str, float]) -> None:
        """Log scalars, and add them to ``trainer.callback_metrics``, where other callbacks can watch them.

        Args:
            trainer: The trainer.
            step: Their step.
            scalars: Scalars by name.
        """
        # What was logged at this very step, by the last verdict of a run say, is not written a second time.
        now = {name: (id(trainer), step, value) for name, value in scalars.items()}
        named = {self.prefix + name: value for name, value in scalars.items() if self._logged.get(name) != now[name]}
        self._logged |= now
        if not named:
            return
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
        for logger in trainer.loggers:
            if is_tensorboard(logger):
                dashboard_of(logger, trainer).add_scalars(named, step)
            else:
                logger.log_metrics(named, step=step)

    def log_text(self, trainer: Trainer, step: int, name: str, text: str, verdict: str = "") -> None:
        """Add a row to the table of a name.

        Args:
            trainer: The trainer.
            step: Step of the row.
            name: Name of the table.
            text: What happened.
            verdict: The verdict, if there is one; the same one again replaces the row before.
        """
        for logger in trainer.loggers:
            if is_tensorboard(logger):
                dashboard_of(logger, trainer).add_event(self.prefix + name, step, text, verdict)

    def log_table(self, trainer: Trainer, name: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
        """Log a table in place of the one before.

        Args:
            trainer: The trainer.
            name: Its name.
            heads: Head of each column.
            rows: The rows.
        """
        for logger in trainer.loggers:
            if is_tensorboard(logger):
                dashboard_of(logger, trainer).write_table(self.prefix + name, heads, rows)

    def log_final_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Show the loss at the end of a run as TensorBoard's ``hp_metric``.

        Args:
            trainer: The trainer.
            step: Steps done.
            loss: The loss.
        """
        for logger in trainer.loggers:
            if is_tensorboard(logger):
                dashboard_of(logger, trainer).add_final_loss(loss, step, trainer.logged_metrics)

    def dead_sector(self, block: ShallowBlock | None) -> tuple[float, float] | None:
        """The arc of dead orientations on the data kept.

        Args:
            block: The network.

        Returns:
            Start and end of the arc, rad; None if no data are kept, or if no orientation is dead.
        """
        return dead_sector(self._data[0], block.slopes) if self._data and block else None

    def due(self) -> bool:
        """Whether the figures in the loggers are older than half a minute.

        Returns:
            True if they should be drawn again.
        """
        return time.monotonic() - self._last_figure > _FIGURE_SECONDS

    def landscape_figures(self, history: TrainingHistory, block: ShallowBlock) -> dict[str, Figure]:
        """The figures of a block in training.

        Args:
            history: The run so far.
            block: The network.

        Returns:
            Figures "training" and, if data are kept, "function".
        """
        figures = {"training": training_figure(history)}
        if self._data:
            figures["function"] = function_figure(block, *self._data, interval=self._interval)
        return figures

    def send_figures(self, trainer: Trainer, step: int, draw: Callable[[], dict[str, Figure]]) -> Mapping[str, bytes]:
        """Draw figures and send them to the loggers that take figures.

        Args:
            trainer: The trainer.
            step: Their step.
            draw: Makes the figures by name; called only if there is a logger.

        Returns:
            The contents of their PNG files, each drawn once; none without a logger, and on other ranks than the first.
        """
        self.pictures = {}
        if not trainer.loggers or not trainer.is_global_zero:
            return {}
        with _no_collection():
            figures = draw()
            self.pictures = {name: png_of(figure, _DPI) for name, figure in figures.items()}
        for logger in trainer.loggers:
            for name, figure in figures.items():
                if is_tensorboard(logger):
                    # TensorBoard sorts by name, digits first.
                    tag = f"{'0_' if name == self.first else ''}{self.prefix}{name}"
                    dashboard_of(logger, trainer).add_picture(tag, self.pictures[name], step)
                elif is_wandb(logger):
                    logger.log_image(self.prefix + name, [figure], step=step)
        self._last_figure = time.monotonic()
        return self.pictures

    def write_figures(self, trainer: Trainer, step: int, draw: Callable[[], dict[str, Figure]]) -> None:
        """Send figures to the loggers, and write each as PNG into the folder of the logs.

        Args:
            trainer: The trainer.
            step: Their step.
            draw: Makes the figures by name.
        """
        folder = trainer.log_dir  # Lightning broadcasts it: every rank must ask.
        pictures = self.send_figures(trainer, step, draw)
        if folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for name, picture in pictures.items():
            path = Path(folder, f"{self.prefix}{name}.png")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture)
            except OSError as error:
                rank_zero_warn(f"The figure {path} could not be written ({error}); the run goes on.")
                return


def say(trainer: Trainer, name: str, line: str) -> None:
    """Say a line in the terminal, and in every logger that takes texts.

    Args:
        trainer: The trainer.
        name: Its name in the loggers, ``folder/name``; in TensorBoard it is a row of the folder's timeline.
        line: The line.

    Example:
        >>> say(Trainer(barebones=True, accelerator="cpu"), "plateau/event", "step 9  saddle")
    """
    tell(trainer, line)
    for logger in trainer.loggers:
        if is_tensorboard(logger):
            timeline = f"{name.rpartition('/')[0]}/timeline"
            dashboard_of(logger, trainer).add_event(timeline, trainer.global_step, line)
        elif is_wandb(logger):
            logger.experiment.summary[name] = line
        elif is_mlflow(logger):
            logger.experiment.set_tag(logger.run_id, name, line)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Draw without Python's garbage collector, which goes through all modules whenever thousands of lines are made."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _interval_of(trainer: Trainer) -> tuple[float, float] | None:
    """The interval over which the loss of the module integrates, if it does over one input."""
    loss = getattr(trainer.lightning_module, "loss", None)
    if not isinstance(loss, IntegralLoss) or not isinstance(loss.domain, Box) or len(loss.domain.sides) != 1:
        return None
    return loss.domain.sides[0]


def _log_histogram(logger: Logger, name: str, values: Tensor, step: int) -> None:
    """Log a histogram of values, if the logger is one that has histograms."""
    if is_tensorboard(logger):
        if not name.endswith(_NO_BOARD):
            logger.experiment.add_histogram(name, values.cpu(), step, bins=_BINS)
    elif is_wandb(logger):
        import wandb

        counts, edges = torch.histogram(values.float().cpu(), bins=_BINS)
        histogram: Any = wandb.Histogram(np_histogram=(counts.numpy(), edges.numpy()))
        # Through the logger: its step is a metric of its own, while what is behind W&B's own counter is dropped.
        logger.log_metrics({name: histogram}, step=step)
