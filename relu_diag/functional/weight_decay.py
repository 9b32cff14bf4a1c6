"""Weight decay of the parts of a block: which of its parameters cost how much."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from relu_diag.functional._checks import is_number
from relu_diag.functional.block import ShallowBlock


@dataclass(frozen=True, slots=True)
class WeightDecay:
    """A penalty ``mu / 2`` times the squared weights, ``mu`` for each part of a block, as SGD's `weight_decay` has it.

    AdamW's decay is no gradient of a loss, and none of these.

    Attributes:
        W: ``mu`` of the input weights.
        H: ``mu`` of the output weights.
        hidden_bias: ``mu`` of the hidden bias, the last column of `W`; None: that of `W`, or there is no such bias.
        output_bias: ``mu`` of the output bias.

    Raises:
        ValueError: If a factor is negative or not finite.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 2.0]]), H=torch.tensor([[3.0]]))
        >>> WeightDecay(W=0.2, H=0.2).cost(block), WeightDecay(W=0.2, H=0.2, hidden_bias=0.0).cost(block)
        (tensor(1.4000), tensor(1.))
    """

    W: float = 0.0
    H: float = 0.0
    hidden_bias: float | None = None
    output_bias: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be a finite factor, 0 or more; got {value!r}.")

    @property
    def any(self) -> bool:
        """Whether anything decays."""
        return bool(self.W or self.H or self.hidden_bias or self.output_bias)

    @property
    def last_column(self) -> float:
        """``mu`` of the last column of `W`."""
        return self.W if self.hidden_bias is None else self.hidden_bias

    def by_column(self, block: ShallowBlock) -> Tensor:
        """``mu`` of every column of the input weights.

        Args:
            block: The network.

        Returns:
            Factors, shape ``(d,)``.
        """
        factors = torch.full_like(block.W[0], self.W)
        factors[-1] = self.last_column
        return factors

    def cost(self, block: ShallowBlock) -> Tensor:
        """What the decay adds to the loss.

        Args:
            block: The network.

        Returns:
            Cost, shape ``()``.
        """
        bias = 0.0 if block.output_bias is None else self.output_bias * block.output_bias.square().sum()
        inputs = self.W * block.W[:, :-1].square().sum() + self.last_column * block.W[:, -1].square().sum()
        return (inputs + self.H * block.H.square().sum() + bias) / 2


def as_weight_decay(weight_decay: float | WeightDecay) -> WeightDecay:
    """One factor, or one for each part, as factors of all parts.

    Args:
        weight_decay: ``mu`` of input and output weights, the hidden bias among them, the output bias being free of
            decay; or a factor for each part.

    Returns:
        The factors.

    Raises:
        TypeError: If it is neither.

    Example:
        >>> as_weight_decay(0.1)
        WeightDecay(W=0.1, H=0.1, hidden_bias=None, output_bias=0.0)
    """
    if isinstance(weight_decay, WeightDecay):
        return weight_decay
    if not is_number(weight_decay):
        raise TypeError(
            "`weight_decay` must be one number, or a factor for each part as WeightDecay(W=..., H=...); got "
            f"{weight_decay!r}."
        )
    return WeightDecay(W=float(weight_decay), H=float(weight_decay))
