"""Gives dead layers new neurons before a network grows."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer

from relu_diag.callbacks._growable import Growable
from relu_diag.capture import LiveBlock
from relu_diag.functional import ShallowBlock
from relu_diag.growth import forget_gradients, replace_in_training
from relu_diag.training import Examination, NewNeurons, at_blocks_of_now, tell


def revived_layers(
    trainer: Trainer, examinations: Sequence[Examination], found: Sequence[NewNeurons], growable: Growable
) -> list[Examination]:
    """The examinations with dead layers that have got new neurons.

    Args:
        trainer: The trainer, fitting.
        examinations: The blocks, examined.
        found: The neurons.
        growable: Knows which blocks can be changed.

    Returns:
        The examinations at the weights of then.
    """
    if not found:
        return list(examinations)
    for new in found:
        dead = [one for one in examinations if one.name in new.blocks]
        # All of them or none: neurons of one are made for what the others let through.
        if not all(growable.allows(trainer, one) for one in dead):
            continue
        for one in dead:
            _replace(trainer, one, new.blocks[one.name])
        silent = [parameter for one in examinations if one.name in new.chain for parameter in one.parameters]
        forget_gradients(trainer.optimizers, silent)
        tell(trainer, f"step {trainer.global_step:,} {new.line}")
    return at_blocks_of_now(examinations, {one.name: _now(trainer, one) for one in examinations})


def _replace(trainer: Trainer, examination: Examination, new: ShallowBlock) -> None:
    """Put the new neurons of a block in their places."""
    if examination.location is not None:
        live = LiveBlock.at(trainer.lightning_module, examination.location)
        replace_in_training(trainer, live, range(len(new.W)), lambda _: new)


def _now(trainer: Trainer, examination: Examination) -> ShallowBlock:
    """A block at the weights of now."""
    if examination.location is None:
        return examination.block
    return LiveBlock.at(trainer.lightning_module, examination.location)()
