"""GuaranteeMonitor: the step from which training against an affine function can only end in a global minimum."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from relu_diag.capture import BlockLocation, choose_block, read_block
from relu_diag.figures import interval_figure, ladder_figure
from relu_diag.functional import convergence_threshold
from relu_diag.functional.assumptions import Assumptions, State, checked
from relu_diag.functional.guarantee import lojasiewicz_ratio
from relu_diag.functional.integral import (
    AffineProblem,
    CriticalLevel,
    Guarantee,
    affine_coefficients,
    invariant,
    nearest_level,
)
from relu_diag.losses import IntervalL2Loss
from relu_diag.training import CallbackOfBoth, Report, check_count, is_plain_descent, is_tensorboard, steps_logged

_PREFIX = "guarantee/"
# Looks kept for the figure; beyond them every other one is dropped.
_MOST_MOMENTS = 4096
_ALL_TRAINED = "all weights and biases are trained"
_FROM_DENSITY = "the start is drawn from a density"
# A rise by more than this fraction of the threshold is not rounding.
_RISE = 1e-6


class GuaranteeMonitor(CallbackOfBoth):
    """Follows the loss of a module with an `IntervalL2Loss` and an affine target past the critical levels.

    Gradient descent that converges below a threshold of the loss has reached a global minimum, for almost every start
    and learning rate. The monitor says from which step the loss has been below the threshold, and under which
    assumptions, which it checks as far as possible. If the loss rises again or the network grows, it starts anew.

    Each look logs to every logger, and adds to ``trainer.callback_metrics``, under the prefix ``guarantee/``: ``loss``;
    ``threshold_ratio``, the loss over the threshold; ``certain``, 1 or 0; for ReLU units ``level``, the number ``n`` of
    the critical level next to the loss, and ``level_ratio``, the loss over the loss of that level;
    ``invariant_drift``, the largest change of ``w^2 + b^2 - h^2`` since the first look; ``smallest_invariant``, above 0
    if no neuron can degenerate under gradient flow; ``lojasiewicz``, the rate at which gradient flow would lower the
    loss now. At the end it draws the figures ``ladder`` and ``function``.

    Source: Cheridito et al., Theorem 1.2, Propositions 4.5 and 4.8.

    Args:
        every_n_steps: Number of steps between looks; None: as often as the Trainer logs.

    Attributes:
        guarantee: Threshold, statement and theorem, `Guarantee`; None before the start of training.
        assumptions: Assumptions of the guarantee: "holds" or "broken" if checked, "assumed" if that is not possible.
        certain_from: Step from which the end is certain, or None.
        level: The critical level next to the loss, `CriticalLevel`; None before the first look, and for leaky units.
        steps: Steps of the looks, thinned out in long runs.
        losses: Losses at these steps.

    Raises:
        MisconfigurationException: If `every_n_steps` is not positive; or, at the start of training, if ``module.loss``
            is no `IntervalL2Loss` with an affine target that is not constant.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GuaranteeMonitor(every_n_steps=100)], logger=False)
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__()
        self.every_n_steps = None if every_n_steps is None else check_count("every_n_steps", every_n_steps)
        self.guarantee: Guarantee | None = None
        self.assumptions = Assumptions({})
        self.certain_from: int | None = None
        self.level: CriticalLevel | None = None
        self.steps: list[int] = []
        self.losses: list[float] = []
        self._affine = (0.0, 0.0)
        self._location: BlockLocation | None = None
        self._first_invariant: Tensor | None = None
        self._first_width: int | None = None
        self._report = Report(_PREFIX)

    def __str__(self) -> str:
        if self.guarantee is None:
            return "nothing was looked at yet"
        if self.certain_from is None:
            broken = ", ".join(self.assumptions.broken)
            return f"not certain ({self.guarantee}" + (f"; broken: {broken})" if broken else ")")
        assumed = ", ".join(self.assumptions.assumed)
        return f"from step {self.certain_from} {self.guarantee.statement}, assuming that {assumed}"

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            Steps, losses, the certain step, the first invariant and width.
        """
        names = ("steps", "losses", "certain_from", "_first_invariant", "_first_width")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state_dict: Result of `state_dict`.
        """
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block and the coefficients of the target, and compute the threshold.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Raises:
            MisconfigurationException: If the module's loss is not the exact one against an affine target.
        """
        loss = _loss_of(pl_module)
        try:
            self._affine = affine_coefficients(loss.target.function, loss.interval)
            self._location = choose_block(pl_module, example=loss.nodes(pl_module)[0])
            self._check_assumptions(trainer, pl_module)
        except ValueError as error:
            raise MisconfigurationException(f"GuaranteeMonitor: {error}") from error
        if self._affine[0] == 0:
            raise MisconfigurationException("The target is constant: every critical point is a global minimum already.")
        if self.steps and steps_logged(trainer) < self.steps[-1]:
            # Another run has started.
            self.steps = []
            self.losses = []
            self.certain_from = None
            self._first_invariant = self._first_width = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look if a look is due, at the weights before the step.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: Unused.
            batch_idx: Unused.
        """
        step = steps_logged(trainer)
        every = self.every_n_steps or trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        if not self.steps or step // every > self.steps[-1] // every:
            self._look(trainer, pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the final weights, and write the figures.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        step = steps_logged(trainer)
        if not self.steps or step > self.steps[-1]:
            self._look(trainer, pl_module, step)
        self._report.write_figures(trainer, step, lambda: self._figures(pl_module))
        for logger in trainer.loggers:
            if is_tensorboard(logger):
                logger.experiment.add_text(_PREFIX + "statement", str(self), step)

    def _check_assumptions(self, trainer: Trainer, module: LightningModule) -> None:
        """Compute the guarantee for the current width, and check its assumptions."""
        problem = self._problem(module)
        width = len(problem.w)
        self.guarantee = convergence_threshold(problem.slope, problem.interval, width, problem.slopes)
        assert self._location is not None
        known: dict[str, State] = {
            "the exact gradient of the integral loss": checked(is_plain_descent(trainer)),
            _ALL_TRAINED: checked(_all_trained(self._location, module)),
            "the loss goes on falling": "assumed",
        }
        # A network that has grown starts in a set of measure zero: it is drawn from no density.
        if _FROM_DENSITY in self.guarantee.assumptions and self._first_width not in {None, width}:
            known[_FROM_DENSITY] = "broken"
        self.assumptions = self.guarantee.assumptions | known

    def _figures(self, module: LightningModule) -> dict[str, Figure]:
        """The figures of the run, by name."""
        assert self.guarantee is not None
        problem = self._problem(module)
        loss = _loss_of(module)
        return {
            "function": interval_figure(problem.neurons, problem.c, loss.target, loss.interval, problem.slopes),
            "ladder": ladder_figure(self.steps, self.losses, problem, self.guarantee, self.certain_from),
        }

    def _problem(self, module: LightningModule) -> AffineProblem:
        """The current network with its target and interval."""
        assert self._location is not None
        block = read_block(module, self._location)
        loss = _loss_of(module)
        hidden = self._location.linears(module)[0]
        w = block.W[:, 0]
        b = torch.zeros_like(w) if hidden.bias is None else block.W[:, 1]
        c = torch.zeros((), device=w.device) if block.output_bias is None else block.output_bias[0]
        return AffineProblem(w, b, block.H[0], c, *self._affine, loss.interval, block.slopes)

    def _look(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Compute the loss and the other numbers at the current weights, and log them."""
        assert self.guarantee is not None
        problem = self._problem(module)
        neurons = problem.neurons.requires_grad_()
        c = problem.c.requires_grad_()
        with torch.enable_grad():
            value = problem.loss(neurons, c)
            loss = float(value.detach())
            ratio = float(lojasiewicz_ratio(value, [neurons, c])) if loss > 0 else 0.0
        now = invariant(problem.w, problem.b, problem.h)
        if self._first_width is None:
            self._first_width = len(now)
        if self._first_invariant is None:
            self._first_invariant = now
        elif self._first_invariant.shape != now.shape:
            self._first_invariant = now
            self.certain_from = None
            self._check_assumptions(trainer, module)
        self._decide(step, loss)
        scalars = {}
        if problem.slopes[0] == 0:
            self.level = nearest_level(loss, problem.slope, problem.interval, len(problem.w))
            scalars = {"level": float(self.level.n), "level_ratio": self.level.ratio}
        self._report.log_scalars(
            trainer,
            step,
            {
                "loss": loss,
                "threshold_ratio": loss / self.guarantee.threshold,
                "certain": float(self.certain_from is not None),
                **scalars,
                "invariant_drift": float((now - self._first_invariant.to(now)).abs().max()),
                "smallest_invariant": float(now.min()),
                "lojasiewicz": ratio,
            },
        )

    def _decide(self, step: int, loss: float) -> None:
        """Note a loss, and from which step on the end is certain."""
        assert self.guarantee is not None
        threshold = self.guarantee.threshold
        scale = threshold if math.isfinite(threshold) else loss
        if self.losses and loss > self.losses[-1] + _RISE * scale:
            self.certain_from = None  # A loss that rises may not stay below the threshold.
        if not loss < threshold or self.assumptions.broken:
            self.certain_from = None
        elif self.certain_from is None:
            self.certain_from = step
        self.steps.append(step)
        self.losses.append(loss)
        if len(self.steps) > _MOST_MOMENTS:
            self.steps = self.steps[::2]
            self.losses = self.losses[::2]


def _loss_of(module: LightningModule) -> IntervalL2Loss:
    """The exact loss of a module.

    Raises:
        MisconfigurationException: If it has none.
    """
    loss = getattr(module, "loss", None)
    if not isinstance(loss, IntervalL2Loss) or loss.target.density is not None:
        raise MisconfigurationException(
            "GuaranteeMonitor needs the exact loss, an IntervalL2Loss without density in `module.loss`; "
            f"{type(module).__name__} has {type(loss).__name__}. The theorems say nothing about samples."
        )
    return loss


def _all_trained(location: BlockLocation, module: LightningModule) -> bool:
    """Whether all weights and both biases exist and are trained: without one there are other critical points."""
    return all(
        parameter is not None and parameter.requires_grad
        for layer in location.linears(module)
        for parameter in (layer.weight, layer.bias)
    )
