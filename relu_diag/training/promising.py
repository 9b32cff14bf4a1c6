"""Which of several blocks to grow, once it is known what each would get."""

from __future__ import annotations

from collections.abc import Sequence

from relu_diag.functional.widening import LossThroughLayers
from relu_diag.training.examination import Examination
from relu_diag.training.felt import data_of
from relu_diag.training.widening import WideningChoice

# Share of the largest drop with which the growth of an earlier block is as good.
_AS_GOOD = 0.5


def most_promising(choices: Sequence[tuple[Examination, WideningChoice]]) -> tuple[Examination, WideningChoice]:
    """The block to grow, of several whose neurons are chosen.

    Early neurons have more to learn than late ones: their input weights are many, and all layers behind follow them,
    which a short fit does not show. So of those that gain as much, but for a factor, the earliest.

    Args:
        choices: Blocks, examined, with the neurons chosen for each; one at least.

    Returns:
        One of the pairs.

    Example:
        >>> import torch
        >>> from relu_diag.functional import ShallowBlock
        >>> from relu_diag.training import verdict_in_training
        >>> block, unknown = ShallowBlock(torch.eye(2), torch.ones(1, 2)), verdict_in_training(None, "")
        >>> one = Examination(0, "net.0", None, block, 0.5, unknown, None, None, None, "", dead=False)
        >>> fits = [WideningChoice((), "", 0.0, 0.0, measured_drop=drop) for drop in (0.1, 0.3)]
        >>> most_promising([(one, fit) for fit in fits])[1].measured_drop
        0.3
    """
    largest = max(choice.measured_drop for _, choice in choices)
    # Where functions are kept, drops are rounding and may be below zero.
    least = largest - (1 - _AS_GOOD) * abs(largest)
    able = [pair for pair in choices if pair[1].measured_drop >= least]
    return max(able, key=lambda pair: (_layers_behind(pair[0]), pair[1].measured_drop))


def _layers_behind(examination: Examination) -> int:
    """How many further layers are known to stand behind a block."""
    data = data_of(examination)
    return len(data.loss.layers) if data is not None and isinstance(data.loss, LossThroughLayers) else 0
