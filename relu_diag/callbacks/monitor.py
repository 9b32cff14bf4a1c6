"""LandscapeMonitor: watch a block while it trains, without changing the training."""

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
from relu_diag.training import HistoryRecorder, Judge, Look, LossFunction, Moment, Report, steps_logged, targets_of


class LandscapeMonitor(Callback):
    """Looks at a Linear -> ReLU-like -> Linear block at intervals: neuron states, slopes, effective neurons, a figure.

    A look is one pass over the training data in eval mode at fixed weights. It takes the loss of the module's own
    ``training_step``, or of ``module.batch_loss(batch)`` if the module optimizes by hand, averaged over all samples.
    Looks do not change the training: weights, optimizer states, random numbers, buffers and logged metrics are the same
    to the bit.

    Each look logs to every logger, and adds to ``trainer.callback_metrics``, under the prefix ``landscape/`` (or
    ``landscape/<block>/``): ``loss``; the scalars of `relu_diag.metrics.landscape_scalars`: ``dead``, ``brink``,
    ``linear``, ``small_living``, ``dormant``, ``on_kink``, ``effective``, ``largest_amplitude``, ``total_amplitude``,
    ``steepest_slope``, ``largest_radial``, ``largest_output_gradient``; and ``balancedness_drift``, the largest change
    of ``||w_i||^2 - ||h_i||^2`` since the first look. TensorBoard and W&B also get histograms ``amplitude``, ``angle``
    and ``slope``, and the figures ``training`` and, with two inputs, ``function``.

    Args:
        every_n_steps: Number of optimizer steps between looks; None: look by epochs.
        every_n_epochs: Number of epochs between looks, which are made at their start, but at least
            ``log_every_n_steps`` steps apart.
        block: Qualified name of the block's first Linear, if the module has several blocks.
        dataloader: Data to look at; None: the training data set, in order.
        max_samples: Largest number of samples to look at, evenly spaced; None: all.
        loss: Computes the loss of a batch, ``loss(module, batch)``; None: the module's own.
        verdict: "nearby": also judge the stationary point nearby, if the loss is the squared error of the block's
            output. The verdict is logged as text, as the integer ``verdict`` (`relu_diag.training.VERDICT_CODES`) and
            with its cost ``verdict_seconds``. It is left out of looks so that it takes at most a tenth of the time.

    Attributes:
        geometry: One-sided derivatives at the last look, `NeuronGeometry`; None before the first.
        states: Neuron states at the last look, `NeuronStates`; None before the first.
        parameters: The block at the last look, `ShallowBlock`; None before the first.
        loss_value: Loss at the last look; None before the first.
        step: Step of the last look; None before the first.
        judged_step: Step of the last look with a verdict; None before the first.

    Raises:
        MisconfigurationException: If an argument is not a positive number; or, at the start of training, if no block or
            several are found, or the loss cannot be computed.

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
        if verdict not in {None, "nearby"}:
            raise MisconfigurationException(f"`verdict` must be 'nearby' or None; got {verdict!r}.")
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.block = block
        self.verdict = verdict
        self._looking = Look("LandscapeMonitor", block, dataloader, max_samples, loss)
        self.geometry: NeuronGeometry | None = None
        self.states: NeuronStates | None = None
        self.parameters: ShallowBlock | None = None
        self.loss_value: float | None = None
        self.step: int | None = None
        self.judged_step: int | None = None
        # At the first look.
        self._balancedness: Tensor | None = None
        self._history = HistoryRecorder()
        self._judge = Judge()
        self._report = Report(f"landscape/{block}/" if block else "landscape/")

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints, different for every block.

        Returns:
            The key.
        """
        return self._generate_state_key(block=self.block)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, from which the figure and the drift continue.

        Returns:
            Plain numbers and tensors.
        """
        history = self._history
        return {
            "step": self.step,
            "balancedness": self._balancedness,
            "moments": [tuple(moment) for moment in history.moments],
            "stride": history.stride,
            "offered": history.offered,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state_dict: Result of `state_dict`.
        """
        self.step = state_dict["step"]
        self._balancedness = state_dict["balancedness"]
        moments = [Moment(*moment) for moment in state_dict["moments"]]
        self._history = HistoryRecorder(moments, state_dict["stride"], state_dict["offered"])

    @property
    def nearby(self) -> NearbyStationaryPoint | None:
        """The stationary point near the parameters at ``judged_step``.

        Returns:
            The point with its verdict; None if there is no verdict.
        """
        return self._judge.nearby

    @property
    def history(self) -> TrainingHistory:
        """The run so far, for `relu_diag.figures.training_figure`.

        Returns:
            History, with the groups of the last look.

        Raises:
            MisconfigurationException: If there was no look yet.
        """
        if self.states is None:
            raise MisconfigurationException("Nothing was looked at yet: fit with this callback first.")
        return self._history.finished(self.states, self._report.dead_sector(self.parameters))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block by running the first batch.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self._looking.find(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look if a look is due, at the weights before the step.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: Unused.
            batch_idx: Index of the batch in the epoch.
        """
        # The module logs the loss of these weights under the same step.
        step = steps_logged(trainer)
        if self._due(trainer, step, batch_idx):
            self._look(trainer, pl_module, step, judging=self.verdict is not None and self._judge.due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the final weights, and write the figures.

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
        """Whether to look before this step."""
        if self.step is None:
            return True
        if self.every_n_steps is not None:
            return step // self.every_n_steps > self.step // self.every_n_steps
        first = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        return first and step - self.step >= trainer.log_every_n_steps  # type: ignore[attr-defined]

    def _look(self, trainer: Trainer, module: LightningModule, step: int, judging: bool) -> None:
        """Look at the block, and log the results; with a verdict if `judging`."""
        block = self._looking.parameters(module)
        outputs, neurons = block.H.shape
        metric = BlockMetric(neurons, block.W.shape[1], outputs, reduction="mean").to(block.W.device)
        loss = MeanMetric().to(block.W.device)
        square = MeanMetric().to(block.W.device)
        for one in self._looking.signals(trainer, module):
            metric.update(block, one.signal)
            loss.update(one.loss, weight=len(one.signal.X))
            square.update(_target_scale(one.batch) ** 2, weight=len(one.signal.X))
            self._report.keep_data(block, one.signal.X, one.batch)
            if judging:
                self._judge.collect(one.signal, one.loss, one.batch)
        sums = metric.sums()
        self.step = step
        self.parameters = block
        self.loss_value = float(loss.compute())
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
        """The figures of the run so far, by name."""
        assert self.parameters is not None
        return self._report.landscape_figures(self.history, self.parameters)

    def _scalars(self, judged: bool) -> dict[str, float]:
        """The scalars of the last look, by name."""
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
    """Scale of the targets in a batch; 1 for class labels."""
    targets = targets_of(batch)
    return 1.0 if targets is None else target_scale(targets)
