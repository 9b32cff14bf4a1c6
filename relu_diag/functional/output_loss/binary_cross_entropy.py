"""The loss of yes and no, of its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from relu_diag.functional.output_loss._elementwise import Elementwise, slack, within


@dataclass(frozen=True, slots=True, eq=False)
class BinaryCrossEntropy(Elementwise):
    """The logistic loss of logits; torch's `binary_cross_entropy_with_logits`.

    Attributes:
        Y: Labels or probabilities in [0, 1], shape ``(N, J)``, or ``(N,)`` for one output.
        pos_weight: Factor of the positive part, one number or one per output, shape ``(J,)``; None: 1.
        weight: Weights as in torch: of the outputs, shape ``(J,)``, or of the samples, ``(N,)`` or ``(N, 1)``, or of
            single numbers, ``(N, J)``, not negative; None: 1.
        reduction: "mean" or "sum".
        factor: What the loss is multiplied by.

    Raises:
        ValueError: If labels are not in [0, 1], or there is not one positive weight per output.

    Example:
        >>> loss = BinaryCrossEntropy(torch.tensor([[1.0], [0.0]]))
        >>> loss(torch.zeros(2, 1)), loss.gradient(torch.zeros(2, 1)).tolist()
        (tensor(0.6931), [[-0.25], [0.25]])
    """

    Y: Tensor
    pos_weight: Tensor | None = None
    weight: Tensor | None = None
    reduction: str = "mean"
    factor: float = 1.0
    constants: ClassVar[tuple[str, ...]] = ("pos_weight",)
    of_numbers: ClassVar[bool] = False
    weight_by_output: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Elementwise.__post_init__(self)
        if bool(((self.Y < 0) | (self.Y > 1)).any()):
            raise ValueError("`Y` must lie in [0, 1]: labels or probabilities. Labels -1 and 1 become (Y + 1) / 2.")
        if self.pos_weight is not None:
            object.__setattr__(self, "pos_weight", _per_output("pos_weight", self.pos_weight, self.Y))

    @property
    def attained(self) -> bool:
        """False: of a label alone it is not."""
        return False

    @property
    def name(self) -> str:
        """Its name."""
        return "binary cross-entropy"

    def _masses(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the label 1 and of both: ``f = (p + q) softplus(z) - p z``."""
        positive = Y if self.pos_weight is None else self.pos_weight.to(Y) * Y
        return positive, positive + (1 - Y)

    def _value(self, outputs: Tensor, Y: Tensor) -> Tensor:
        positive, both = self._masses(Y)
        return -positive * functional.logsigmoid(outputs) - (both - positive) * functional.logsigmoid(-outputs)

    def _slope(self, outputs: Tensor, Y: Tensor) -> Tensor:
        positive, both = self._masses(Y)
        return (both - positive) * outputs.sigmoid() - positive * (-outputs).sigmoid()

    def _curvature(self, outputs: Tensor, Y: Tensor) -> Tensor:
        _, both = self._masses(Y)
        return both * outputs.sigmoid() * (-outputs).sigmoid()

    def _change(self, outputs: Tensor, Y: Tensor, step: Tensor) -> Tensor:
        _, both = self._masses(Y)
        p = outputs.sigmoid()
        small = torch.log1p(p * step.clamp(-1, 1).expm1())
        large = functional.logsigmoid(-outputs) - functional.logsigmoid(-outputs - step)
        bend = torch.where(step.abs() < 1, small, large) - p * step
        return self._slope(outputs, Y) * step + both * bend

    def _conjugate(self, slope: Tensor, Y: Tensor) -> Tensor:
        positive, both = self._masses(Y)
        rounding = slack(slope) * both
        share = slope + positive
        inside = (share >= -rounding) & (share <= both + rounding)
        share = torch.minimum(share.clamp(min=0), both)
        rest = both - share
        # Where no label weighs anything `both` is 0, and so is the value.
        size = torch.where(both > 0, both, 1.0)
        return within(inside, torch.xlogy(share, share / size) + torch.xlogy(rest, rest / size))

    def _recession(self, direction: Tensor, Y: Tensor) -> Tensor:
        positive, both = self._masses(Y)
        return (both - positive) * direction.clamp(min=0) - positive * direction.clamp(max=0)


def _per_output(name: str, value: Tensor | float, Y: Tensor) -> Tensor:
    """One number per output, not negative, shape ``(J,)``.

    Raises:
        ValueError: If there are more or fewer, or one is negative.
    """
    tensor = torch.as_tensor(value, dtype=Y.dtype, device=Y.device).detach()
    if tensor.ndim > 1 or tensor.numel() not in {1, Y.shape[1]} or bool((tensor < 0).any()):
        raise ValueError(
            f"`{name}` needs one number, not negative, or one per output, shape ({Y.shape[1]},); got "
            f"{tuple(tensor.shape)}."
        )
    return tensor.expand(Y.shape[1])
