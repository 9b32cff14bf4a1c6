"""Train against a function instead of a data set."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from relu_diag.losses import IntegralLoss, MonteCarloLoss
from relu_diag.nn import ShallowNet, small_init_

_DRAWS = "monte_carlo_draws"


class PopulationRegression(LightningModule):
    """A shallow network trained on a loss that is an integral over its inputs.

    A step computes the loss from the network alone, on the device of the network: it needs no batch. The batches of
    `PopulationNodes` serve the monitors, which look at fixed nodes through `batch_loss`. It logs ``train_loss`` and, as
    often as the Trainer logs, ``train_loss_error``, the estimated error of that loss.

    A checkpoint holds the network, the numbers below and the state of random nodes, but not the loss:
    ``load_from_checkpoint(path, loss=...)``.

    Args:
        loss: The loss, which determines the number of inputs.
        width: Number of hidden neurons.
        out_features: Number of outputs.
        slopes: ``(s-, s+)`` of the activation.
        output_bias: Whether the output layer has a bias.
        init_scale: Standard deviation of normal initial weights; None: torch's default.
        lr: Learning rate of plain gradient descent; a config may name another optimizer.
        seed: Seed of the initial weights. The global generator is left alone.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from relu_diag.experiments import Affine
        >>> from relu_diag.losses import IntervalL2Loss
        >>> module = PopulationRegression(IntervalL2Loss(Affine(), (0.0, 1.0)), width=4)
        >>> module.training_step(None).requires_grad
        True
    """

    def __init__(
        self,
        loss: IntegralLoss,
        width: int = 50,
        out_features: int = 1,
        slopes: tuple[float, float] = (0.0, 1.0),
        output_bias: bool = True,
        init_scale: float | None = None,
        lr: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width < 1 or out_features < 1:
            raise ValueError(f"`width` and `out_features` must be at least 1; got {width!r}, {out_features!r}.")
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"`lr` must be finite and >= 0; got {lr!r}.")
        self.save_hyperparameters(ignore=["loss"])
        self.loss = loss
        self.lr = lr
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = ShallowNet(loss.domain.dimension, width, out_features, slopes, True, output_bias)
        if init_scale is not None:
            small_init_(self.net, init_scale, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: Inputs, shape ``(N, d)``.

        Returns:
            Outputs, shape ``(N, J)``.
        """
        out: Tensor = self.net(x)
        return out

    def batch_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The loss on fixed nodes, differentiable, for callbacks that look at the block.

        Args:
            batch: Inputs ``(N, d)``, targets ``(N, J)`` and weights ``(N,)``.

        Returns:
            Scalar loss.
        """
        X, Y, weight = batch
        loss: Tensor = (weight * (self(X) - Y).square().sum(dim=1)).mean()
        return loss

    def on_train_start(self) -> None:
        """Start with the first nodes, unless the run is resumed."""
        if isinstance(self.loss, MonteCarloLoss) and self.global_step == 0:
            self.loss.draws = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of random nodes.

        Args:
            checkpoint: The checkpoint, changed in place.
        """
        if isinstance(self.loss, MonteCarloLoss):
            checkpoint[_DRAWS] = self.loss.draws

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of random nodes.

        Args:
            checkpoint: The checkpoint.
        """
        if isinstance(self.loss, MonteCarloLoss):
            self.loss.draws = checkpoint.get(_DRAWS, 0)

    def training_step(self, batch: Any) -> Tensor:
        """The loss of the network.

        Args:
            batch: Unused.

        Returns:
            Scalar loss.
        """
        loss: Tensor = self.loss(self.net)
        if self._trainer is not None:
            self.log("train_loss", loss.detach(), prog_bar=True)
            every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and (self.trainer.global_step + 1) % every == 0:
                self.log("train_loss_error", self.loss.error(self.net))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent.

        Returns:
            The optimizer.
        """
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PopulationNodes(LightningDataModule):
    """Fixed weighted nodes of the module's loss, for monitors to look at, and the number of steps in an epoch.

    The nodes are computed once on the training device. Every batch is all of them, so nothing is copied.

    Args:
        steps_per_epoch: Steps in an epoch.

    Raises:
        ValueError: If an epoch has no step.

    Example:
        >>> PopulationNodes(steps_per_epoch=50).steps_per_epoch
        50
    """

    def __init__(self, steps_per_epoch: int = 100) -> None:
        super().__init__()
        if steps_per_epoch < 1:
            raise ValueError(f"`steps_per_epoch` must be at least 1; got {steps_per_epoch!r}.")
        self.save_hyperparameters()
        self.steps_per_epoch = steps_per_epoch

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The loader.

        Returns:
            Loader that yields the same batch, all nodes, at every step.

        Raises:
            MisconfigurationException: If the module that is trained has no integral loss.
        """
        trainer = self.trainer
        module = None if trainer is None else trainer.lightning_module
        loss = getattr(module, "loss", None)
        if trainer is None or not isinstance(module, LightningModule) or not isinstance(loss, IntegralLoss):
            raise MisconfigurationException(
                "PopulationNodes takes its nodes from the module's integral loss, `module.loss`; got "
                f"{type(module).__name__}. Fit a PopulationRegression with it."
            )
        # Lightning divides the items and the steps among the ranks, but each must get all nodes and all steps.
        ranks = trainer.world_size
        batches = _WholeBatch(loss.nodes(module), ranks)
        return DataLoader(batches, batch_size=None, sampler=[0] * (self.steps_per_epoch * ranks))


class _WholeBatch(Dataset[tuple[Tensor, ...]]):
    """A data set whose items are all the same whole batch, on the device that uses it."""

    def __init__(self, batch: tuple[Tensor, ...], count: int) -> None:
        self.batch = batch
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.batch
