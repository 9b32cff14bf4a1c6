"""The gap in training: how far a block is from the best of any width, the optimizer's decay being part of the loss."""

from __future__ import annotations

from dataclasses import replace

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, NAdam, Optimizer, RAdam, RMSprop

from relu_diag.functional import Gap, WeightDecay, optimality_gap
from relu_diag.training._sample import sampled
from relu_diag.training.examination import Examination

# These add the decay to the gradient, unless they are told to decouple it: it is that of a penalty.
_COUPLED = (SGD, Adam, Adagrad, NAdam, RAdam, RMSprop)
# Rows by which the gap is bounded.
_ROWS = 2048


def gap_in_training(trainer: Trainer, examination: Examination, rounds: int = 0) -> Gap | None:
    """How much less the loss with weight decay could be with a block of any width, the layers before it as they are.

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.
        rounds: Rounds of `relu_diag.functional.optimality_gap` in search of a better bound.

    Returns:
        The gap, certified only where it is that of all data; None where the loss is not known or not convex, or where
        the weights have no decay that is part of the loss, as under AdamW.
    """
    data = examination.data
    decay = coupled_decay(trainer, examination)
    if data is None or decay is None or not data.loss.convex or not (decay.W > 0 and decay.H > 0):
        return None
    some = sampled(data, _ROWS)
    try:
        gap = optimality_gap(examination.block, some.X, some.loss, decay, rounds=rounds)
    except (NotImplementedError, ValueError):  # a loss without conjugate, a bias free of decay that is no constant
        return None
    return replace(gap, certified=gap.certified and some.complete)


def coupled_decay(trainer: Trainer, examination: Examination) -> WeightDecay | None:
    """The weight decay of a block as a penalty on its parts.

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.

    Returns:
        The decay; None where it is no gradient of a loss, as under AdamW, or parts of the block are not decayed as they
        are: computed weights, raw parameters.
    """
    if examination.location is None:
        return None
    hidden, output = examination.location.linears(trainer.lightning_module)
    parts = [_decay_of(trainer, part) for part in (hidden.weight, output.weight, hidden.bias, output.bias)]
    W, H, hidden_bias, output_bias = parts
    if W is None or H is None:
        return None
    if (hidden.bias is not None and hidden_bias is None) or (output.bias is not None and output_bias is None):
        return None
    return WeightDecay(W, H, hidden_bias, output_bias or 0.0)


def _decay_of(trainer: Trainer, parameter: Tensor | None) -> float | None:
    """The decay of a parameter as the factor of a penalty; None where it is none, or the parameter is in no group."""
    if parameter is None:
        return None
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if any(one is parameter for one in group["params"]):
                decay = float(group.get("weight_decay", 0.0))
                return decay if decay == 0 or _is_coupled(optimizer, group) else None
    return None


def _is_coupled(optimizer: Optimizer, group: dict[str, object]) -> bool:
    return isinstance(optimizer, _COUPLED) and not group.get("decoupled_weight_decay")
