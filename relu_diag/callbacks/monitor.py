"""LandscapeMonitor: watch a block while it trains, without changing anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import MeanMetric

from relu_diag.figures import TrainingHistory
from relu_diag.functional import NearbyStationaryPoint, NeuronGeometry, NeuronStates, ShallowBlock
from relu_diag.functional.local import geometry_from_sums, states_from_sums, target_scale
from relu_diag.metrics import BlockMetric, landscape_scalars
from relu_diag.training import HistoryRecorder, Judge, Look, LossFunction, Report, steps_logged, targets_of


class LandscapeMonitor(Callback):
    """Looks at a Linear -> ReLU-like -> Linear block every so often: counts, slopes, effective neurons, a figure.

    A look is one pass over the training data at fixed weights, in eval mode. The loss is the module's own
    ``training_step``, or ``module.batch_loss(batch)`` where it optimizes by hand; batch losses are averaged, weighted
    by batch size. Training goes on as if nobody had looked: weights, optimizer states, random numbers, buffers, and
    logged metrics are the same to the bit.

    Logged to every logger at each look and put into ``trainer.callback_metrics``, prefix ``landscape/`` (or
    ``landscape/<block>/``): ``loss``; the scalars of `relu_diag.metrics.landscape_scalars`: ``dead``, ``brink``,
    ``linear``, ``small_living``, ``dormant``, ``on_kink``, ``effective``, ``largest_amplitude``, ``total_amplitude``,
    ``steepest_slope``, ``largest_radial``, ``largest_output_gradient``; and ``balancedness_drift``, the largest change
    of ``||w_i||^2 - ||h_i||^2`` since the first look. Histograms where the logger has them (TensorBoard, W&B):
    ``amplitude``, ``angle``, ``slope``. Figures: ``training``, and ``function`` for two inputs.

    Args:
        every_n_steps: Look every so many optimizer steps; None: by epochs.
        every_n_epochs: Look at the start of every so many epochs, but no more often than ``log_every_n_steps``.
        block: Qualified name of the block's first Linear, where the module has several blocks.
        dataloader: Data to look at; None: the training data set, in order.
        max_samples: Look at no more than so many samples, evenly spaced; None: all.
        loss: Computes the loss of a batch, ``loss(module, batch)``; None: the module's own.
        verdict: "nearby": say at each look what stationary point is near, if the loss is the squared error of the
            block's output. Logged as text, as the integer ``verdict`` (`relu_diag.training.VERDICT_CODES`) and
            with its cost, ``verdict_seconds``; looks are skipped so that it takes at most a tenth of the time.

    Attributes:
        geometry: One-sided derivatives at the last look, `NeuronGeometry`, or None before the first.
        states: Neuron states at the last look, `NeuronStates`, or None.
        parameters: The block at the last look, `ShallowBlock`, or None.
        loss_value: Loss at the last look, or None.
        step: Step of the last look, or None.
        judged_step: Step of the last look that asked for a verdict, or None.

    Raises:
        MisconfigurationException: If an argument is not a positive number, or (at the start of training) no block or
            several are found, or the loss cannot be read.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LandscapeMonitor(every_n_steps=100)], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: int = 1,
        block: str | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
        verdict: Literal["nearby"] | None = None,
    ) -> None:
        super().__init__()
        for name, count in {"every_n_steps": every_n_steps, "every_n_epochs": every_n_epochs}.items():
            if count is not None and count < 1:
                raise MisconfigurationException(f"`{name}` must be a positive number; got {count!r}.")
        self.every_n_steps, self.every_n_epochs, self.block = every_n_steps, every_n_epochs, block
        if verdict not in {None, "nearby"}:
            raise MisconfigurationException(f"`verdict` must be 'nearby' or None; got {verdict!r}.")
        self.verdict = verdict
        self._looking = Look("LandscapeMonitor", block, dataloader, max_samples, loss)
        self.geometry: NeuronGeometry | None = None
        self.states: NeuronStates | None = None
        self.parameters: ShallowBlock | None = None
        self.loss_value: float | None = None
        self.step: int | None = None
        self.judged_step: int | None = None
        self._scale: float | None = None
        self._balancedness: Tensor | None = None
        self._history = HistoryRecorder()
        self._judge = Judge()
        self._report = Report(f"landscape/{block}/" if block else "landscape/")

    @property
    def state_key(self) -> str:
        """Two monitors of one run are told apart by their block.

        Returns:
            Key of this callback's state in checkpoints.
        """
        return self._generate_state_key(block=self.block)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the figure and the drift go on where they were.

        Returns:
            Plain numbers and tensors.
        """
        history = self._history
        return {
            "step": self.step,
            "balancedness": self._balancedness,
            "moments": history.moments,
            "stride": history.stride,
            "offered": history.offered,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self.step, self._balancedness = state_dict["step"], state_dict["balancedness"]
        moments = [tuple(moment) for moment in state_dict["moments"]]
        self._history = HistoryRecorder(moments, state_dict["stride"], state_dict["offered"])

    @property
    def nearby(self) -> NearbyStationaryPoint | None:
        """The stationary point near the parameters at the last look that asked for a verdict, at ``judged_step``.

        Returns:
            The point, with its verdict; None where there is none.
        """
        return self._judge.nearby

    @property
    def history(self) -> TrainingHistory:
        """The run so far, as `relu_diag.figures.training_figure` draws it.

        Returns:
            History, grouped as at the last look.

        Raises:
            MisconfigurationException: If nothing was looked at yet.
        """
        if self.states is None:
            raise MisconfigurationException("Nothing was looked at yet: fit with this callback first.")
        return self._history.finished(self.states, self._report.dead_sector(self.parameters))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block on the first batch.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._looking.find(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look, where a look is due. The weights are those of the step that is about to be made.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: Unused.
            batch_idx: Index of the batch in the epoch.
        """
        # The step that loggers use; what the module logs in this very step lands on the same one.
        step = steps_logged(trainer)
        if self._due(trainer, step, batch_idx):
            self._look(trainer, pl_module, step, judging=self.verdict is not None and self._judge.due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more, and write the figures.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        step = steps_logged(trainer)
        unjudged = self.verdict is not None and step != self.judged_step
        if self.parameters is None or step != self.step or unjudged:
            self._look(trainer, pl_module, step, judging=self.verdict is not None)
        self._report.write_figures(trainer, step, self._figures)

    def _due(self, trainer: Trainer, step: int, batch_idx: int) -> bool:
        if self.step is None:
            return True
        if self.every_n_steps is not None:
            return step // self.every_n_steps > self.step // self.every_n_steps
        first = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        return first and step - self.step >= trainer.log_every_n_steps  # type: ignore[attr-defined]

    def _look(self, trainer: Trainer, module: LightningModule, step: int, judging: bool) -> None:
        block = self._looking.parameters(module)
        outputs, neurons = block.H.shape
        metric = BlockMetric(neurons, block.W.shape[1], outputs, reduction="mean").to(block.W.device)
        loss, square = MeanMetric().to(block.W.device), MeanMetric().to(block.W.device)
        for signal, value, batch in self._looking.signals(trainer, module):
            metric.update(block, signal)
            loss.update(value, weight=len(signal.X))
            square.update(_target_scale(batch) ** 2, weight=len(signal.X))
            self._report.keep_data(block, signal.X, batch)
            if judging:
                self._judge.collect(signal, value, batch)
        sums = metric.sums()
        self.step, self.parameters, self.loss_value = step, block, float(loss.compute())
        self.geometry = geometry_from_sums(block, sums)
        self.states = states_from_sums(block, sums, float(square.compute()) ** 0.5)
        self._history.add(step, self.loss_value, block, self.states)
        if judging:
            self._judge.judge(block, self._looking.sampled)
            self.judged_step = step
            self._report.log_text(trainer, step, "verdict", str(self._judge))
        self._report.log(trainer, step, self._scalars(judging), self.geometry, self.states)
        if self._report.due():
            self._report.send_figures(trainer, step, self._figures)

    def _figures(self) -> dict[str, Figure]:
        assert self.parameters is not None
        return self._report.landscape_figures(self.history, self.parameters)

    def _scalars(self, judged: bool) -> dict[str, float]:
        assert self.geometry is not None
        assert self.states is not None
        now = self.states.balancedness
        if self._balancedness is None or self._balancedness.shape != now.shape:
            self._balancedness = now
        drift = (now - self._balancedness.to(now.device)).abs().max()
        scalars = {**landscape_scalars(self.geometry, self.states), "balancedness_drift": drift}
        numbers = torch.stack([value.double().to(now.device) for value in scalars.values()]).tolist()
        named = {"loss": float(self.loss_value or 0.0), **dict(zip(scalars, numbers, strict=True))}
        return {**named, "verdict": self._judge.code, "verdict_seconds": self._judge.seconds} if judged else named


def _target_scale(batch: Any) -> float:
    """Class labels have scale 1."""
    targets = targets_of(batch)
    return 1.0 if targets is None else target_scale(targets)
