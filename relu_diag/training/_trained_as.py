"""What an optimizer does to a block besides lowering its loss, as far as a verdict depends on it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from torch import nn

from relu_diag.functional import ShallowBlock, WeightDecay
from relu_diag.training._training_data import TrainingData
from relu_diag.training.judge import Training
from relu_diag.training.penalty import climbing, decaying


def trained_as(
    trainer: Trainer,
    parameters: Sequence[nn.Parameter],
    block: ShallowBlock,
    data: TrainingData | None,
    penalty: WeightDecay | None,
    alone: bool,
    drop: float,
) -> Training:
    """How a block is trained, its decay named where it is not the penalty ``(mu / 2) ||w||^2`` that was judged with."""
    decay = decaying(trainer, parameters)
    penalised = penalty is not None and penalty.any
    return Training(
        decay="" if penalised else decay,
        climbs=climbing(trainer, parameters),
        penalised=penalised,
        alone=alone,
        whole=all(parameter.requires_grad for parameter in parameters),
        drop=drop,
        unit=0.0 if data is None else float(data.loss(data.X.new_zeros(len(data.X), len(block.H)))),
    )
