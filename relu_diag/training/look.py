"""Look at a block in training: one pass over the data at fixed weights, which changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MeanMetric

from relu_diag.capture import (
    BlockLocation,
    LiveBlock,
    Sighting,
    choose_block,
    loss_at_outputs,
    read_block,
    read_signal,
    undisturbed,
)
from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.training._data import leaves_out, own_loader
from relu_diag.training.lightning_internals import device_batches

LossFunction = Callable[[LightningModule, Any], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class BatchSignal:
    """What a look reads off one batch.

    Attributes:
        signal: Signal of the block under the mean loss of the batch.
        loss: That loss, shape ``()``.
        batch: The batch.

    Example:
        >>> signal = BlockSignal(torch.eye(2), torch.ones(2, 1))
        >>> seen = BatchSignal(signal, loss=torch.tensor(0.5), batch=(torch.eye(2),))
        >>> len(seen.signal.X)
        2
    """

    signal: BlockSignal
    loss: Tensor
    batch: Any


class Look:
    """Finds the block of a module once, and reads its signals as often as needed.

    Args:
        owner: Name of the callback that looks, for messages.
        block: Qualified name of the block's first Linear, where the module has several blocks.
        dataloader: Data to look at; None: the training data set, in order.
        max_samples: Largest number of samples to look at, evenly spaced; None: all.
        loss: Computes the loss of a batch, ``loss(module, batch)``; None: ``module.batch_loss``.

    Attributes:
        sampled: Whether it may leave out samples; final once `find` was called.

    Raises:
        MisconfigurationException: If ``max_samples`` is not positive.

    Example:
        >>> class Tiny(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> data = [(torch.eye(2), torch.ones(2, 1))]
        >>> def loss_of(module, batch):
        ...     return (module.net(batch[0]) - batch[1]).square().mean()
        >>> look = Look("MyMonitor", None, data, None, loss_of)
        >>> module = Tiny()
        >>> look.find(trainer, module)
        >>> [one.signal.G.shape for one in look.signals(trainer, module)]
        [torch.Size([2, 1])]
    """

    def __init__(
        self,
        owner: str,
        block: str | None,
        dataloader: Iterable[Any] | None,
        max_samples: int | None,
        loss: LossFunction | None,
    ) -> None:
        if max_samples is not None and max_samples < 1:
            raise MisconfigurationException(f"`max_samples` must be a positive number; got {max_samples!r}.")
        self.owner = owner
        self.block = block
        self.dataloader = dataloader
        self.max_samples = max_samples
        self.loss = loss
        self.sampled = max_samples is not None
        self._location: BlockLocation | None = None
        self._loader: Iterable[Any] = ()

    @property
    def location(self) -> BlockLocation:
        """The place of the block, once `find` was called."""
        assert self._location is not None
        return self._location

    def find(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the block by running the first batch.

        Args:
            trainer: The trainer, about to train.
            module: Its module.

        Raises:
            MisconfigurationException: If the block, the data or the loss cannot be found.
        """
        if self.loss is None and not hasattr(module, "batch_loss"):
            raise MisconfigurationException(
                "A pass at fixed weights needs the loss of a batch, and training_step is never run for it: give "
                f"{type(module).__name__} a method batch_loss(batch), or {self.owner} loss=lambda module, batch: ..."
            )
        self._loader = own_loader(trainer, self.dataloader, self.max_samples, self.owner)
        self.sampled = leaves_out(trainer, self.dataloader, self.max_samples)
        with undisturbed(module):
            for batch in device_batches(trainer, module, self._loader):
                try:
                    self._location = choose_block(module, self.block, partial(self._loss, module, batch))
                except ValueError as error:
                    cure = f" ({self.owner}(block=...))" if "several blocks" in str(error) else ""
                    raise MisconfigurationException(f"{error}{cure}") from error
                return
        raise MisconfigurationException(f"The dataloader is empty: there is nothing for {self.owner} to look at.")

    def parameters(self, module: LightningModule) -> ShallowBlock:
        """The block with its current parameters.

        Args:
            module: The module.

        Returns:
            A copy of the parameters.
        """
        return read_block(module, self.location)

    def trained(self, module: LightningModule) -> tuple[nn.Parameter, ...]:
        """The parameters of the block.

        Args:
            module: The module.

        Returns:
            Those of its two layers.
        """
        return tuple(parameter for layer in self.location.linears(module) for parameter in layer.parameters())

    def alone(self, module: LightningModule) -> bool:
        """Whether nothing but the block is trained.

        Args:
            module: The module.

        Returns:
            Whether all other parameters are frozen.
        """
        own = {id(parameter) for parameter in self.trained(module)}
        return not any(parameter.requires_grad and id(parameter) not in own for parameter in module.parameters())

    def mean_loss(self, trainer: Trainer, module: LightningModule) -> float:
        """The mean loss of the module over all data, also those beyond ``max_samples`` if their number is known.

        Args:
            trainer: The trainer.
            module: Its module.

        Returns:
            Mean loss over the samples of all ranks.
        """
        mean = MeanMetric().to(module.device)
        source = trainer.train_dataloader if self.dataloader is None else self.dataloader
        counted = isinstance(getattr(source, "dataset", source), Sized)
        loader = own_loader(trainer, self.dataloader, None, self.owner) if counted else self._loader
        for one in self._pass(trainer, module, loader, None if counted else self.max_samples):
            mean.update(one.loss, weight=len(one.signal.X))
        return float(mean.compute())

    def signals(self, trainer: Trainer, module: LightningModule) -> Iterator[BatchSignal]:
        """One pass over the data in eval mode. Exhaust the iterator: only then is the module restored.

        Args:
            trainer: The trainer.
            module: Its module.

        Returns:
            The signals, batch by batch.
        """
        return self._pass(trainer, module, self._loader, self.max_samples)

    def sightings(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[Sighting, Tensor, Any]]:
        """The pass of `signals`, each batch as a ridden step would see it.

        Args:
            trainer: The trainer.
            module: Its module.

        Yields:
            The block on a batch, its loss, and the batch.
        """
        block = self.parameters(module)
        for one in self.signals(trainer, module):
            yield self.sighting(module, block, one), one.loss, one.batch

    def sighting(self, module: LightningModule, block: ShallowBlock, one: BatchSignal) -> Sighting:
        """A batch of a pass, as a ridden step would see it.

        Args:
            module: The module.
            block: The block, at the weights of the pass.
            one: What was read off the batch.

        Returns:
            The sighting.
        """
        names = (self.location.hidden, self.location.output)
        live = LiveBlock.at(module, self.location)
        return Sighting.of_pass(names, block, one.signal, live, self.trained(module), self.alone(module))

    def loss_at(self, module: LightningModule, batches: Sequence[Any], outputs: Tensor) -> Tensor:
        """The mean loss over batches with the block's outputs replaced.

        Args:
            module: The module.
            batches: Batches as `signals` yields them, ``N`` rows through the block in all.
            outputs: The new outputs, shape ``(N, J)``.

        Returns:
            The loss, once differentiable in the outputs, shape ``()``.
        """
        total = outputs.new_zeros(())
        seen = 0
        with undisturbed(module):
            module.eval()
            for batch in batches:
                loss = partial(self._loss, module, batch)
                given = outputs[seen:].detach().requires_grad_(outputs.requires_grad)
                value, rows = loss_at_outputs(module, self.location, given, loss)
                total = total + rows * value.detach()
                if outputs.requires_grad:
                    # Keep the gradient instead of the graph: the graphs of all batches would be as large as the data.
                    (G,) = torch.autograd.grad(value, given)
                    own = outputs[seen : seen + rows]
                    total = total + rows * (G[:rows] * (own - own.detach())).sum()
                seen += rows
        return total / seen

    def _pass(
        self, trainer: Trainer, module: LightningModule, loader: Iterable[Any], max_samples: int | None
    ) -> Iterator[BatchSignal]:
        """The signals of a loader's batches in eval mode, up to `max_samples` over all ranks."""
        seen = 0
        with undisturbed(module):
            module.eval()
            for batch in device_batches(trainer, module, loader):
                signal, value = read_signal(module, self.location, partial(self._loss, module, batch))
                yield BatchSignal(signal, value, batch)
                seen += len(signal.X) * trainer.world_size
                if max_samples is not None and seen >= max_samples:
                    break

    def _loss(self, module: LightningModule, batch: Any) -> Tensor:
        """The loss of a batch: by the user's function, or by ``module.batch_loss``."""
        if self.loss is not None:
            return self.loss(module, batch)
        value: Tensor = module.batch_loss(batch)  # type: ignore[operator]
        return value


def targets_of(batch: Any) -> Tensor | None:
    """The targets of a batch: its second part, if that is a tensor.

    Args:
        batch: The batch.

    Returns:
        Targets, or None.

    Example:
        >>> targets_of((torch.eye(2), torch.tensor([0, 1])))
        tensor([0, 1])
        >>> targets_of(torch.eye(2)) is None
        True
    """
    targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    return targets if isinstance(targets, Tensor) else None
