"""Train on a reference problem in a Trainer at the speed of numpy."""

from __future__ import annotations

import math

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.experiments.descent import gradient_descent_
from relu_diag.experiments.problems import ProblemName, reference_problem
from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import residual_factor
from relu_diag.nn import ShallowNet, small_init_


class ReferenceRegression(LightningModule):
    """A shallow network trained on a reference problem by plain full-batch gradient descent.

    Every batch is the whole data set, and training on it takes many gradient steps. ``max_steps``,
    ``log_every_n_steps``, ``global_step`` and the names of checkpoints still count gradient steps. A batch ends at the
    next multiple of `steps_per_batch`, or at ``max_steps``, so choose intervals that are multiples of it. It logs
    ``train_loss`` as Lightning does: at ``t``, the loss after ``t`` steps.

    Args:
        problem: Name of the problem.
        width: Number of hidden neurons.
        init_scale: Standard deviation of the initial weights; None: the problem's own.
        slopes: ``(s-, s+)`` of the activation.
        lr: Learning rate.
        steps_per_batch: Gradient steps in one batch.
        seed: Seed of the initial weights; 12 is the draw of Wu et al., section 4.1.1. The global generator is not used.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> module = ReferenceRegression("five_points", lr=2e-2, steps_per_batch=1000)
        >>> module.block.W.shape
        torch.Size([50, 2])
    """

    def __init__(
        self,
        problem: ProblemName = "five_points",
        width: int = 50,
        init_scale: float | None = None,
        slopes: tuple[float, float] = (0.0, 1.0),
        lr: float = 1e-3,
        steps_per_batch: int = 500,
        seed: int = 12,
    ) -> None:
        super().__init__()
        if width < 1 or steps_per_batch < 1:
            raise ValueError(f"`width` and `steps_per_batch` must be at least 1; got {width!r}, {steps_per_batch!r}.")
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"`lr` must be finite and >= 0; got {lr!r}.")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.lr = lr
        self.steps_per_batch = steps_per_batch
        self.problem = reference_problem(problem)
        X, Y = self.problem.tensors()
        scale = self.problem.init_scale if init_scale is None else init_scale
        with torch.random.fork_rng(devices=[]):  # torch's default initialisation draws from the global generator
            self.net = ShallowNet(X.shape[1], width, Y.shape[1], slopes).to(X.dtype)
        small_init_(self.net, scale, torch.Generator().manual_seed(seed))

    @property
    def block(self) -> ShallowBlock:
        """The network as a block; the two share memory."""
        slopes = (self.net.activation.s_minus, self.net.activation.s_plus)
        return ShallowBlock(self.net.hidden.weight.detach(), self.net.output.weight.detach(), slopes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: Inputs, shape ``(N, d)``.

        Returns:
            Outputs, shape ``(N, J)``.
        """
        out: Tensor = self.net(x)
        return out

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The training loss, differentiable, for callbacks: `training_step` takes steps and returns no graph.

        Args:
            batch: Inputs ``(N, d)`` and targets ``(N, J)``.

        Returns:
            Scalar loss.
        """
        X, Y = batch
        loss: Tensor = residual_factor(Y, self.problem.reduction) / 2 * (self(X) - Y).square().sum()
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Take the gradient steps of one batch.

        Args:
            batch: All inputs ``(N, d)`` and targets ``(N, J)``.

        Returns:
            Loss before the last step.

        Raises:
            ValueError: If the loss is not finite.
        """
        X, Y = batch
        block = self.block
        done = self.trainer.global_step
        steps = self.steps_per_batch - done % self.steps_per_batch
        if self.trainer.max_steps >= 0:
            steps = min(steps, self.trainer.max_steps - done)
        lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        factor = residual_factor(Y, self.problem.reduction)
        loss = factor / 2 * gradient_descent_(block, X, Y, lr * factor, steps).square().sum()
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {float(loss)} between gradient steps {done} and {done + steps} at lr={lr}: "
                "the training diverged. Lower `lr` or `init_scale`."
            )
        _count_steps(self.trainer, steps)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimizer that holds the learning rate, as other tools expect.

        Returns:
            Plain gradient descent; `training_step` takes the steps.
        """
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_fit_start(self) -> None:
        """Refuse a Trainer that asks for more than plain gradient descent in one process.

        Raises:
            MisconfigurationException: If there is another optimizer, a scheduler, or a second process.
        """
        trainer = self.trainer
        optimizer = trainer.optimizers[0]
        plain = isinstance(optimizer, torch.optim.SGD) and not any(
            group[extra] for group in optimizer.param_groups for extra in ("momentum", "weight_decay", "maximize")
        )
        if not plain or trainer.lr_scheduler_configs or trainer.world_size > 1:
            raise MisconfigurationException(
                "ReferenceRegression takes plain gradient steps of its own, in one process, at a constant rate; got "
                f"{optimizer}, {len(trainer.lr_scheduler_configs)} schedulers, {trainer.world_size} processes. "
                "Use devices=1 and torch.optim.SGD without momentum, weight decay and scheduler."
            )


def _count_steps(trainer: Trainer, steps: int) -> None:
    """Count the gradient steps of a batch in the Trainer's loops."""
    loop = trainer.fit_loop.epoch_loop
    loop.manual_optimization.optim_step_progress.increment_by(steps)
    # Values are logged under the step before; the epoch loop adds one at the end of the batch.
    loop._batches_that_stepped = trainer.global_step - 1
