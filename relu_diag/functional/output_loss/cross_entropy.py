"""The loss of one of several classes, of its logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from relu_diag.functional._checks import check_values, is_number
from relu_diag.functional.output_loss._elementwise import slack, within
from relu_diag.functional.output_loss._targets import (
    as_targets,
    as_weights,
    check_constants,
    check_not_negative,
    check_outputs,
    check_same,
    joined_weights,
    one_over_whole,
)
from relu_diag.functional.output_loss.loss import LossAt, LossByPoint


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy(LossByPoint):
    """The cross-entropy of softmax probabilities; torch's `cross_entropy`.

    Attributes:
        labels: Classes, integers of shape ``(N,)``, or probabilities of shape ``(N, J)``.
        weight: Weights of the classes, shape ``(J,)``, not negative; None: 1.
        label_smoothing: Part of every label that is spread over all classes, in [0, 1].
        reduction: "mean" (over labels that are not ignored, by weight; over samples where labels are probabilities) or
            "sum".
        ignore_index: Label of samples without a say.
        sample_weight: A further weight of every sample, shape ``(N,)``, no part of a mean's divisor; None: 1.
        factor: What the loss is multiplied by.

    Raises:
        ValueError: If shapes do not fit, probabilities or weights are negative, or a mean is over no sample.

    Example:
        >>> loss = CrossEntropy(torch.tensor([0, 1]))
        >>> loss(torch.zeros(2, 2)), loss.gradient(torch.zeros(2, 2)).tolist()
        (tensor(0.6931), [[-0.25, 0.25], [0.25, -0.25]])
    """

    labels: Tensor
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    reduction: str = "mean"
    ignore_index: int = -100
    sample_weight: Tensor | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_constants(self.reduction, ("mean", "sum"), self.factor)
        if not (is_number(self.label_smoothing) and 0 <= self.label_smoothing <= 1):
            raise ValueError(f"`label_smoothing` must lie in [0, 1]; got {self.label_smoothing!r}.")
        object.__setattr__(self, "labels", _as_labels(self.labels))
        if self.weight is not None:
            check_values("weight", self.weight)
            check_not_negative("weight", self.weight)
            object.__setattr__(self, "weight", self.weight.detach())
            classes = self.labels.shape[1] if self.soft else self.weight.numel()
            if self.weight.shape != (classes,):
                raise ValueError(f"`weight` needs one number per class; got {tuple(self.weight.shape)}.")
        if self.sample_weight is not None:
            like = self.labels.new_zeros(len(self.labels), 1, dtype=torch.get_default_dtype())
            weight = as_weights("sample_weight", self.sample_weight, like, by_output=False)
            object.__setattr__(self, "sample_weight", weight[:, 0])
        self._check_classes()
        if self.reduction == "mean" and not self._divisor() > 0:
            raise ValueError("a mean over no sample: every label is `ignore_index`, or of weight 0.")

    def at(self, outputs: Tensor) -> _CrossEntropyAt:
        """The loss at some outputs: their probabilities are computed once."""
        return _CrossEntropyAt(self, outputs)

    def prepared(self, like: Tensor) -> CrossEntropy:
        """The loss by the shares that classes have in every sample."""
        return CrossEntropy(
            self._targets(like),
            reduction="sum",
            sample_weight=self.sample_weight,
            factor=self.factor / self._divisor(),
        )

    def change(self, outputs: Tensor, step: Tensor) -> Tensor:
        """What the loss changes by, shape ``()``."""
        targets = self._targets(outputs)
        mass = targets.sum(1, keepdim=True)
        p = _softmax(outputs)
        rise = torch.log1p((p * step.clamp(-1, 1).expm1()).sum(1, keepdim=True))
        near = step.abs().amax(1, keepdim=True) < 1
        if not bool(near.all()):
            large = (outputs + step).logsumexp(1, keepdim=True) - outputs.logsumexp(1, keepdim=True)
            rise = torch.where(near, rise, large)
        bend = rise - (p * step).sum(1, keepdim=True)
        first = (self._slope(p, targets) * step).sum(1, keepdim=True)
        return (self._coefficients(outputs) * (first + mass * bend)).sum()

    def conjugate(self, G: Tensor) -> Tensor:
        """The Fenchel conjugate, shape ``()``."""
        targets = self._targets(G)
        mass = targets.sum(1, keepdim=True)
        coefficient = self._coefficients(G).expand_as(mass)
        present = (coefficient > 0) & (mass > 0)
        slope = torch.where(present, G / torch.where(present, coefficient, 1.0), 0.0)
        share = slope + targets
        rounding = slack(G) * G.shape[1] * (mass + slope.abs().amax(1, keepdim=True))
        inside = (share >= -rounding).all(1, keepdim=True) & ((share.sum(1, keepdim=True) - mass).abs() <= rounding)
        share = share.clamp(min=0)
        entropy = torch.xlogy(share, share / torch.where(present, mass, 1.0)).sum(1, keepdim=True)
        absent = within((G == 0).all(1, keepdim=True), torch.zeros_like(mass))
        return torch.where(present, within(inside, coefficient * entropy), absent).sum()

    def recession(self, direction: Tensor) -> Tensor:
        """The slope far out in a direction, by samples, shape ``(N,)``."""
        targets = self._targets(direction)
        ahead = direction.amax(1, keepdim=True) - direction
        return self._coefficients(direction)[:, 0] * (targets * ahead).sum(1)

    @property
    def soft(self) -> bool:
        """Whether labels are probabilities."""
        return self.labels.is_floating_point()

    @property
    def convex(self) -> bool:
        """True: labels and weights are not negative."""
        return True

    @property
    def smooth(self) -> bool:
        """True."""
        return True

    @property
    def attained(self) -> bool:
        """False: of a label alone it is not."""
        return False

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def name(self) -> str:
        """Its name."""
        return "cross-entropy"

    def double(self) -> CrossEntropy:
        """The loss in float64."""
        return self._changed(lambda part: part.double() if part.is_floating_point() else part)

    def to(self, device: torch.device | str) -> CrossEntropy:
        """The loss on a device."""
        return self._changed(lambda part: part.to(device))

    def scaled(self, factor: float) -> CrossEntropy:
        """A multiple of the loss."""
        return replace(self, factor=self.factor * factor)

    def rows(self, index: Any) -> CrossEntropy:
        """The part of some samples."""
        weight = None if self.sample_weight is None else self.sample_weight[index]
        return replace(
            self, labels=self.labels[index], sample_weight=weight, reduction="sum", factor=self.factor / self._divisor()
        )

    def joined_with(self, others: list[Self], weights: list[float]) -> CrossEntropy:
        """The loss of all rows."""
        losses: list[CrossEntropy] = [self, *others]
        for name in ("weight", "label_smoothing", "ignore_index", "soft"):
            check_same(name, [getattr(loss, name) for loss in losses])
        scales = [
            one_over_whole(weight * loss.factor / loss._divisor()) for weight, loss in zip(weights, losses, strict=True)
        ]
        factor = max(scales) or 1.0
        parts = [None if loss.sample_weight is None else loss.sample_weight[:, None] for loss in losses]
        like = [loss.labels.new_ones(len(loss.labels), 1, dtype=torch.float64) for loss in losses]
        weight = joined_weights(parts, [scale / factor for scale in scales], like)
        return replace(
            self,
            labels=torch.cat([loss.labels for loss in losses]),
            sample_weight=None if weight is None else weight[:, 0],
            reduction="sum",
            factor=factor,
        )

    def _changed(self, change: Any) -> CrossEntropy:
        tensors = {name: getattr(self, name) for name in ("labels", "weight", "sample_weight")}
        return replace(self, **{name: change(value) for name, value in tensors.items() if value is not None})

    def _check_classes(self) -> None:
        """Refuse classes that are none.

        Raises:
            ValueError: If there is one.
        """
        if self.soft:
            return
        classes = self.labels[self.labels != self.ignore_index]
        most = None if self.weight is None else len(self.weight)
        if len(classes) and (int(classes.min()) < 0 or (most is not None and int(classes.max()) >= most)):
            raise ValueError(
                f"`labels` must be classes from 0 on, or `ignore_index` ({self.ignore_index}); got "
                f"{int(classes.min())} to {int(classes.max())}" + (f" with {most} weights." if most else ".")
            )

    def _divisor(self) -> float:
        """What the reduction divides by."""
        if self.reduction == "sum":
            return 1.0
        if self.soft:
            return float(len(self.labels))
        classes = self.labels[self.labels != self.ignore_index]
        return float(len(classes) if self.weight is None else self.weight.double()[classes].sum())

    def _coefficients(self, like: Tensor) -> Tensor:
        """What multiplies the loss of every sample, shape ``(N, 1)``."""
        scale = self.factor / self._divisor()
        if self.sample_weight is None:
            return like.new_full((len(like), 1), scale)
        return scale * self.sample_weight.to(like)[:, None]

    def _targets(self, outputs: Tensor) -> Tensor:
        """Share of every class in the loss of a sample, smoothed and weighted, zero where ignored, shape ``(N, J)``."""
        columns = outputs.shape[-1] if self.weight is None else len(self.weight)
        check_outputs(outputs, tuple(self.labels.shape) if self.soft else (len(self.labels), columns))
        present = None if self.soft else (self.labels != self.ignore_index)[:, None]
        shares = self.labels.to(outputs) if present is None else _one_hot(self.labels, present, outputs)
        if self.label_smoothing > 0:
            shares = (1 - self.label_smoothing) * shares + self.label_smoothing / outputs.shape[1]
        if self.weight is not None:
            shares = shares * self.weight.to(outputs)
        return shares if present is None else shares * present

    @staticmethod
    def _slope(p: Tensor, targets: Tensor) -> Tensor:
        """Derivative of the loss of a sample by its outputs, given their softmax, shape ``(N, J)``."""
        slope = targets.sum(1, keepdim=True) * p - targets
        # The slopes of a sample add up to zero: of the likeliest class this keeps the digits that the others have.
        top = targets.argmax(1, keepdim=True)
        others = slope.scatter_(1, top, 0.0)
        return others.scatter_(1, top, -others.sum(1, keepdim=True))


class _CrossEntropyAt(LossAt):
    """The cross-entropy at some outputs."""

    loss: CrossEntropy

    def __init__(self, loss: CrossEntropy, outputs: Tensor) -> None:
        super().__init__(loss, outputs)
        self._targets = loss._targets(outputs)
        self._coefficients = loss._coefficients(outputs)
        self._below = outputs - outputs.amax(1, keepdim=True)
        self._odds = self._below.exp()
        self._sum = self._odds.sum(1, keepdim=True)

    def value(self) -> Tensor:
        """The loss, shape ``()``."""
        log = self._below - self._sum.log()
        total = -(self._coefficients * (self._targets * log)).sum()
        if bool(total.isfinite()):
            return total
        # A class without a share has no say, however unlikely it is.
        return -(self._coefficients * torch.where(self._targets > 0, self._targets * log, 0.0)).sum()

    def gradient(self) -> Tensor:
        """The gradient, shape ``(N, J)``."""
        return self._coefficients * self.loss._slope(self._p, self._targets)

    def curvature(self, direction: Tensor) -> Tensor:
        """The product of the Hessian with a direction, shape ``(N, J)``."""
        return self._bend * (direction - (self._p * direction).sum(1, keepdim=True))

    @cached_property
    def _p(self) -> Tensor:
        """Probabilities, shape ``(N, J)``."""
        return self._odds / self._sum

    @cached_property
    def _bend(self) -> Tensor:
        """Probabilities times what multiplies the loss of a sample, shape ``(N, J)``."""
        return self._coefficients * self._targets.sum(1, keepdim=True) * self._p


def _as_labels(labels: Tensor) -> Tensor:
    """Classes ``(N,)`` as long, or probabilities ``(N, J)``.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If they are neither.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"`labels` must be a torch.Tensor; got {type(labels).__name__}. Use torch.as_tensor.")
    if labels.is_floating_point():
        if labels.ndim != 2:
            raise ValueError(
                f"`labels` must be classes, integers of shape (N,), or probabilities, shape (N, J); got "
                f"{labels.dtype} of shape {tuple(labels.shape)}. Convert classes with labels.long()."
            )
        labels = as_targets("labels", labels)
        if bool((labels < 0).any()):
            raise ValueError("`labels` that are probabilities must not be negative.")
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"`labels` needs one class per sample, shape (N,); got {tuple(labels.shape)}.")
    return labels.detach().long()


def _softmax(outputs: Tensor) -> Tensor:
    """Probabilities ``(N, J)``: over a few columns torch's own takes several times as long on a CPU."""
    odds = (outputs - outputs.amax(1, keepdim=True)).exp()
    return odds / odds.sum(1, keepdim=True)


def _one_hot(labels: Tensor, present: Tensor, outputs: Tensor) -> Tensor:
    """Rows of zeros with a one at the class, shape ``(N, J)``.

    Raises:
        ValueError: If there are fewer outputs than classes.
    """
    classes = torch.where(present[:, 0], labels, 0)
    if int(classes.max()) >= outputs.shape[1]:
        raise ValueError(f"`labels` go up to {int(classes.max())}, but there are {outputs.shape[1]} outputs.")
    return torch.zeros_like(outputs).scatter_(1, classes[:, None], 1.0)
