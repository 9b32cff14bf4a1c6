"""Widen a block in the middle of `Trainer.fit`, with its optimizers, averaged copies and wrappers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel

from relu_diag.capture import BlockLocation, of_lightning, read_block
from relu_diag.functional import ShallowBlock
from relu_diag.growth._copies import prepared_copies
from relu_diag.growth.live import OtherOptimizers, prepared_growth

# Growths that are checked, and done when called.
_Growths = list[Callable[[], None]]


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that shard the parameters, so that no process holds a whole layer.

    Args:
        trainer: The trainer.

    Raises:
        MisconfigurationException: If the parameters are sharded.

    Example:
        >>> check_strategy(Trainer(barebones=True, accelerator="cpu"))  # one device holds whole layers
    """
    if of_lightning(trainer.strategy, "FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        raise MisconfigurationException(
            f"{type(trainer.strategy).__name__} shards the parameters over processes, and a sharded layer cannot grow "
            "in place. Use strategy='ddp' or one device."
        )


def _alone(task: Callable[[], _Growths]) -> _Growths:
    """On one process."""
    return task()


def grow_in_training(
    trainer: Trainer,
    location: BlockLocation,
    embed: Callable[[ShallowBlock], ShallowBlock],
    others: OtherOptimizers | None = None,
    on_all: Callable[[Callable[[], _Growths]], _Growths] = _alone,
) -> None:
    """Widen a block of the module in training, and its averaged copies (EMA, SWA) in the same way.

    Copies of the block that the module or other callbacks keep - target networks, averages of one's own, as modules or
    as tensors - get neurons without output, so that they follow the block and compute what they did.

    Call it between steps, on every process with the same embedding. Under DDP the module is taken out of its wrapper
    and wrapped again.

    Args:
        trainer: The trainer, fitting.
        location: Which block of its module.
        embed: Maps a block to the wider one that replaces it.
        others: Optimizers besides those of the trainer, looked for before; None: they are looked for now.
        on_all: Calls what prepares the growth so that an error on one process is one on all of them, before anything
            has changed.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from relu_diag.functional import replicate_unit
        >>> from relu_diag.nn import ShallowNet
        >>> module = LightningModule()
        >>> module.net = ShallowNet(2, 3)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> trainer.strategy.connect(module)
        >>> trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
        >>> place = BlockLocation("net.hidden", "net.output", (0.0, 1.0))
        >>> grow_in_training(trainer, place, lambda block: replicate_unit(block, 0, (1.0, 1.0), (0.5, 0.5)))
        >>> len(module.net.hidden.weight)
        4
    """
    check_strategy(trainer)
    module = trainer.lightning_module

    def prepared() -> _Growths:
        wider = embed(read_block(module, location))
        averaged = averaged_copies(trainer)
        # The module last: its hyper-parameters are those with which all that it holds has its shape.
        growths = prepared_copies(trainer, location, wider, averaged)
        for copy in averaged:
            growths.append(prepared_growth(copy, location, embed(read_block(copy, location)), others=others))
        return [*growths, prepared_growth(module, location, wider, trainer.optimizers, others)]

    with unwrapped(trainer):
        for growth in on_all(prepared):
            growth()


def averaged_copies(trainer: Trainer) -> list[nn.Module]:
    """The averaged copies of the module that callbacks of the trainer keep.

    Args:
        trainer: The trainer.

    Returns:
        The copies, with the same structure as the trainer's module.

    Example:
        >>> averaged_copies(Trainer(barebones=True, accelerator="cpu"))
        []
    """
    held = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    copies = [copy.module if isinstance(copy, AveragedModel) else copy for copy in held]
    return [copy for copy in copies if isinstance(copy, nn.Module)]


@contextmanager
def unwrapped(trainer: Trainer) -> Iterator[None]:
    """Take the module out of DDP's wrapper, which holds on to its parameters as a graph does, and wrap it again.

    Args:
        trainer: The trainer.

    Yields:
        Nothing; inside, parameters may change their shape, and `in_a_graph` sees graphs alone.

    Example:
        >>> with unwrapped(Trainer(barebones=True, accelerator="cpu")):
        ...     pass  # under DDP, parameters may change their shape here
    """
    strategy: Any = trainer.strategy
    if not of_lightning(strategy, "DDPStrategy"):
        yield
        return
    strategy.model = strategy.lightning_module
    try:
        yield
    finally:
        strategy.configure_ddp()
