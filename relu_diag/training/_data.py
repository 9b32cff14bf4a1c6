"""The training data: a loader of our own, so that training's is left alone; how much is held, and what agrees."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sized
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler, Subset

from relu_diag.capture import Sighting
from relu_diag.training.lightning_internals import batches_done_in_epoch

# Relative deviation at which gradients, or losses, of a step are the same: they may have passed through 16 bits.
SAME = 1e-3
# Numbers of a data set that are held at once.
MAX_ELEMENTS = 2**26
TOO_MANY = "the data are too many to hold at once; give the monitor max_samples"
# Products of a sample, an input and a neuron that a verdict is made of at most, where the user has set no limit.
_PRODUCTS = 2**29
# Entries of a Jacobian, samples times outputs times weights, up to which the point nearby is searched: about a second.
SEARCHED = 2**21
# Samples that are kept of any network.
_FEWEST = 1024
# Numbers of a tensor that stand for it.
_SOME = 64


def affordable(seen: Sighting) -> int:
    """Number of samples whose verdict costs no more than a few steps.

    Args:
        seen: The block.

    Returns:
        The number.
    """
    return max(_PRODUCTS // (seen.neurons * (seen.inputs + seen.outputs)), _FEWEST)


def own_loader(trainer: Trainer, given: Iterable[Any] | None, max_samples: int | None, owner: str) -> Iterable[Any]:
    """A loader over the training data set, in order and in this process; each rank gets its share.

    Args:
        trainer: The trainer.
        given: The user's own loader, returned as it is; None: make one from the train dataloader's data set.
        max_samples: Largest number of samples, evenly spaced over the data set; None: all.
        owner: Name of the callback that asks, for messages.

    Returns:
        The loader.

    Raises:
        MisconfigurationException: If there is no data set to read, or it is empty.
    """
    if given is not None:
        return given
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise MisconfigurationException(
            f"The train dataloader is a {type(loader).__name__}, which cannot be read a second time while training "
            f"reads it. Give the callback data of its own: {owner}(dataloader=DataLoader(...))."
        )
    dataset = loader.dataset
    if not isinstance(dataset, IterableDataset):
        count = len(dataset)  # type: ignore[arg-type]
        if not count:
            raise MisconfigurationException("The training data set is empty: there is nothing to look at.")
        stride = 1 if max_samples is None else -(-count // max_samples)
        dataset = Subset(dataset, range(0, count, stride)[trainer.global_rank :: trainer.world_size])
    return DataLoader(dataset, batch_size=_batch_size(loader), collate_fn=loader.collate_fn)


def leaves_out(trainer: Trainer, given: Iterable[Any] | None, max_samples: int | None) -> bool:
    """Whether a look leaves samples out; True if the number of samples is unknown and limited.

    Args:
        trainer: The trainer.
        given: As in `own_loader`.
        max_samples: As in `own_loader`.

    Returns:
        Whether there may be more samples than are looked at.
    """
    data = getattr(trainer.train_dataloader if given is None else given, "dataset", None)
    return max_samples is not None and not (isinstance(data, Sized) and len(data) <= max_samples)


def samples_of(trainer: Trainer) -> int:
    """Number of training samples of this rank in an epoch.

    Args:
        trainer: The trainer, fitting.

    Returns:
        The number, 0 where it is unknown.

    Example:
        >>> samples_of(Trainer(barebones=True, accelerator="cpu"))  # without data
        0
    """
    data = getattr(trainer.train_dataloader, "dataset", None)
    return -(-len(data) // trainer.world_size) if isinstance(data, Sized) else 0


def some_numbers(values: Tensor) -> Tensor:
    """A copy of some numbers of a tensor, spread over all: they tell most tensors from each other.

    Args:
        values: The tensor.

    Returns:
        Numbers, 64 to 127, or as many as there are, one axis.

    Example:
        >>> len(some_numbers(torch.ones(100, 10)))
        67
    """
    flat = values.detach().reshape(-1)
    return flat[:: max(len(flat) // _SOME, 1)].clone()


def lately(trainer: Trainer) -> int:
    """The step from which on weights are nearly those of now: an epoch ago, or a tenth of the run where that is less.

    Args:
        trainer: The trainer, fitting.

    Returns:
        The step.

    Example:
        >>> lately(Trainer(barebones=True, accelerator="cpu"))  # nothing was trained yet
        0
    """
    step = trainer.global_step
    return step - int(min(trainer.num_training_batches, step / 10))


def is_at_the_end(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a step is one of the last two: the very last batch may be a smaller one.

    Args:
        trainer: The trainer, fitting.
        batch_idx: Number of its batch in the epoch.

    Returns:
        Whether it is, as far as the end is known.
    """
    last = trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.global_step + 1 == trainer.max_steps or (last and batch_idx + 2 >= trainer.num_training_batches)


class Draws:
    """Tells whether steps draw random numbers, of torch, numpy or Python: what goes into a block may then be noise.

    Attributes:
        any: Whether one of the steps did.
    """

    def __init__(self) -> None:
        self.any = False
        self._before: tuple[Any, ...] = ()

    def begin(self, device: torch.device) -> None:
        """Note the states at the beginning of a step.

        Args:
            device: Where the step computes.
        """
        self._before = _random_states(device)

    def end(self, device: torch.device) -> None:
        """Compare them at its end.

        Args:
            device: Where the step has computed.
        """
        self.any = self.any or self._before != _random_states(device)


def _random_states(device: torch.device) -> tuple[Any, ...]:
    """The states of all generators."""
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0)
    numpys: Any = np.random.get_state()
    torchs = bytes(torch.get_rng_state().numpy())
    return torchs, bytes(own.numpy()), bytes(numpys[1]), numpys[2], random.getstate()


def is_epoch_of_all(trainer: Trainer) -> bool:
    """Whether the epoch that ends here went over all of the training data, as far as the loader tells.

    Args:
        trainer: The trainer, fitting.

    Returns:
        False where it ended early, batches are left out, or samples are drawn with replacement.

    Example:
        >>> from lightning.pytorch import Callback
        >>> from relu_diag.experiments import PointsDataModule, ReferenceRegression
        >>> class Look(Callback):
        ...     def on_train_batch_end(self, trainer, *_):
        ...         print(is_epoch_of_all(trainer))
        >>> quiet = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
        >>> trainer = Trainer(accelerator="cpu", max_steps=2, callbacks=[Look()], logger=False, **quiet)
        >>> trainer.fit(ReferenceRegression("five_points"), PointsDataModule("five_points", batches_per_epoch=2))
        False
    """
    loader = trainer.train_dataloader
    # A step may say that its epoch ends here.
    batches = trainer.num_training_batches
    ended_early = batches_done_in_epoch(trainer) < batches < math.inf
    if not trainer.is_last_batch or ended_early or _leaves_out(loader):
        return False
    try:
        batches = len(loader)  # type: ignore[arg-type]
    except TypeError:  # all that there is, unless only so many batches are taken of it
        return not isinstance(trainer.limit_train_batches, int)
    return bool(trainer.num_training_batches >= batches or trainer.overfit_batches)  # type: ignore[attr-defined]


def _leaves_out(loader: Any) -> bool:
    """Whether a loader draws some of its samples, others in every epoch, and leaves the rest out."""
    sampler = getattr(loader, "sampler", None)
    if getattr(sampler, "replacement", False):
        return True
    data: Any = None
    drawn = 0
    if isinstance(sampler, RandomSampler):
        data, drawn = sampler.data_source, sampler.num_samples
    elif isinstance(sampler, DistributedSampler) and sampler.shuffle:
        data, drawn = sampler.dataset, sampler.total_size  # of all ranks, each of which gets as many
    if isinstance(data, Sized) and drawn < len(data):
        return True
    batches = getattr(loader, "batch_sampler", None)
    if not getattr(batches, "drop_last", False):
        return False
    inner = getattr(batches, "sampler", None)
    if isinstance(inner, SequentialSampler):  # the same ones in every epoch
        return False
    size = getattr(batches, "batch_size", None)  # of the user's own batches may have no one size
    return not isinstance(inner, Sized) or not isinstance(size, int) or len(inner) % size > 0


def _batch_size(loader: DataLoader[Any]) -> int | None:
    """The batch size of a loader; None if its data set yields whole batches."""
    if loader.batch_sampler is None:
        return None
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size or 1024


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors in a batch, in order.

    Args:
        batch: Whatever a loader yields.

    Returns:
        Its tensors.

    Example:
        >>> tensors_of({"x": torch.zeros(2), "targets": (torch.ones(1), "a name")})
        [tensor([0., 0.]), tensor([1.])]
    """
    found: list[Tensor] = []
    _collect(batch, found, set())
    return found


def _collect(part: Any, found: list[Tensor], passed: set[int]) -> None:
    """Add the tensors of a part of a batch: of a collection, or of an object of the user's own, such as a graph."""
    if isinstance(part, Tensor):
        found.extend(_dense(part))
        return
    if isinstance(part, list | tuple):  # among them named tuples, and packed sequences
        for one in part:
            _collect(one, found, passed)
        return
    held = part if isinstance(part, Mapping) else getattr(part, "__dict__", None)
    if held is None or isinstance(part, type | ModuleType) or id(part) in passed:
        return
    passed.add(id(part))
    for one in held.values():
        _collect(one, found, passed)


def _dense(tensor: Tensor) -> list[Tensor]:
    """What a tensor holds, as tensors that can be compared and cut: of sparse and nested ones these are parts."""
    if tensor.is_nested:
        return [tensor.detach().values()]
    if tensor.layout == torch.sparse_coo:
        return [tensor.detach()._indices(), tensor.detach()._values()]
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.detach().values()]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.detach().values()]
    return [tensor]


class Repeats:
    """Tells whether a batch is the one just before."""

    def __init__(self) -> None:
        self._batch: list[Tensor] = []
        self._number = 0

    def comes_again(self, batch: Any, number: int) -> bool:
        """Compare a batch with the last one, and remember it.

        Args:
            batch: The batch.
            number: Its number.

        Returns:
            Whether it is the same, and has the next number.
        """
        before = self._batch if number == self._number + 1 else []
        self._batch = [leaf.detach().clone() for leaf in tensors_of(batch)]
        self._number = number
        return (
            bool(before)
            and [leaf.shape for leaf in before] == [leaf.shape for leaf in self._batch]
            and all(torch.equal(*pair) for pair in zip(before, self._batch, strict=True))
        )
