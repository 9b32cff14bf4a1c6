"""What every loss of a block's outputs can say, and what turns targets into one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor


class Loss(ABC):
    """A loss as a function of the outputs ``(N, J)`` of a block, its targets inside.

    Its reduction and weights are part of it: value, gradient and curvature are those of the number that is trained.

    Example:
        >>> from relu_diag.functional import Huber
        >>> isinstance(Huber(torch.zeros(2, 1)), Loss)
        True
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, outputs: Tensor) -> Tensor:
        """The loss.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.

        Returns:
            Loss, shape ``()``.
        """

    @abstractmethod
    def gradient(self, outputs: Tensor) -> Tensor:
        """The gradient at the outputs, one of the subgradients where the loss has a kink.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.

        Returns:
            Gradient, loss per unit of output, shape ``(N, J)``.
        """

    @abstractmethod
    def curvature(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """The product of the Hessian at the outputs with a direction.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.
            direction: What the outputs move by, shape ``(N, J)``.

        Returns:
            Product, shape ``(N, J)``.
        """

    def at(self, outputs: Tensor) -> LossAt:
        """The loss at some outputs, where several of its derivatives are asked for: what they share is computed once.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.

        Returns:
            Value, gradient and curvature there.
        """
        return LossAt(self, outputs)

    def prepared(self, like: Tensor) -> Loss:
        """The same loss for many evaluations: what depends on its targets alone is computed once.

        Args:
            like: Outputs of the block, shape ``(N, J)``, of the dtype and on the device of those to come.

        Returns:
            The loss; itself where there is nothing to be done.
        """
        return self

    def at_the_end(self, outputs: Tensor) -> Tensor:
        """The outputs of the whole network, where layers stand between the block and the loss.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.

        Returns:
            What the loss is computed from, shape ``(N, K)``.
        """
        return outputs

    def of_the_end(self, end: Tensor) -> Tensor:
        """The loss by the outputs of the whole network.

        Args:
            end: Those, see `at_the_end`, shape ``(N, K)``.

        Returns:
            Loss, shape ``()``.
        """
        return self(end)

    @abstractmethod
    def change(self, outputs: Tensor, step: Tensor) -> Tensor:
        """What the loss changes by when the outputs take a step: small changes keep their digits.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.
            step: What they move by, shape ``(N, J)``.

        Returns:
            Change of the loss, shape ``()``.
        """

    @abstractmethod
    def conjugate(self, G: Tensor) -> Tensor:
        """The Fenchel conjugate of the loss: the largest ``sum(G * outputs) - loss(outputs)`` over all outputs.

        Args:
            G: Where it is evaluated, shape ``(N, J)``.

        Returns:
            Value, shape ``()``; infinite outside the conjugate's domain, which is met to rounding.

        Raises:
            NotImplementedError: If nothing is known of it.
        """

    @abstractmethod
    def recession(self, direction: Tensor) -> Tensor:
        """The slope of the loss far out in a direction: where it is not positive, there is no lowest point that way.

        Args:
            direction: What the outputs move by, shape ``(N, J)``.

        Returns:
            The part of every sample, shape ``(N,)``; infinite where the loss grows faster than in proportion, or where
            nothing is known.
        """

    def slopes_within(self, outputs: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest slope of every output within a distance: different ones around a kink.

        Args:
            outputs: Outputs of the block, shape ``(N, J)``.
            reach: The distance, one for each sample, shape ``(N,)``.

        Returns:
            Both of shape ``(N, J)``: twice the gradient, but for a loss that bends so sharply.
        """
        G = self.gradient(outputs)
        return G, G

    @property
    @abstractmethod
    def convex(self) -> bool:
        """Whether the loss is a convex function of the outputs."""

    @property
    @abstractmethod
    def smooth(self) -> bool:
        """Whether it has a gradient everywhere, and near every point a bounded curvature."""

    @property
    def output_scale(self) -> float:
        """Size of outputs that make a difference: that of the targets, or 1 for logits and logarithms of rates."""
        return 1.0

    @property
    def attained(self) -> bool:
        """Whether its lowest value is one of finite outputs; that of a label is not, and logits may grow for ever."""
        return True

    @property
    @abstractmethod
    def samples(self) -> int | None:
        """Number of samples ``N``; None: any."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The loss in plain words, for messages."""

    @abstractmethod
    def double(self) -> Self:
        """The loss in float64.

        Returns:
            The same loss.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The loss on another device.

        Args:
            device: The device.

        Returns:
            The same loss.
        """

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """A multiple of the loss.

        Args:
            factor: What it is multiplied by, 0 or more.

        Returns:
            The multiple.
        """

    @abstractmethod
    def rows(self, index: Any) -> Self:
        """The part of the loss that some samples make; divisors stay those of all samples.

        Args:
            index: Anything that indexes the first dimension of a tensor and keeps it.

        Returns:
            Their part of the sum.

        Raises:
            NotImplementedError: If the loss is not known as a sum over samples.
        """

    @abstractmethod
    def joined_with(self, others: list[Any], weights: list[float]) -> Self:
        """See `joined`.

        Args:
            others: Losses of the same kind.
            weights: Factor of every loss, this one's first.

        Returns:
            The loss of all their rows.
        """


class LossAt:
    """A loss at some outputs.

    Args:
        loss: The loss.
        outputs: Outputs of the block, shape ``(N, J)``.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> here = SquaredError(torch.zeros(2, 1)).at(torch.ones(2, 1))
        >>> here.value(), here.gradient().tolist(), here.curvature(torch.ones(2, 1)).tolist()
        (tensor(1.), [[1.0], [1.0]], [[1.0], [1.0]])
    """

    def __init__(self, loss: Loss, outputs: Tensor) -> None:
        self.loss = loss
        self.outputs = outputs

    def value(self) -> Tensor:
        """The loss.

        Returns:
            Loss, shape ``()``.
        """
        return self.loss(self.outputs)

    def gradient(self) -> Tensor:
        """The gradient.

        Returns:
            Shape ``(N, J)``.
        """
        return self.loss.gradient(self.outputs)

    def curvature(self, direction: Tensor) -> Tensor:
        """The product of the Hessian with a direction.

        Args:
            direction: What the outputs move by, shape ``(N, J)``.

        Returns:
            Shape ``(N, J)``.
        """
        return self.loss.curvature(self.outputs, direction)

    @property
    def stands_for_others(self) -> bool:
        """Whether the Hessian here has to do at outputs near by, as one there would take long."""
        return False

    def prepared(self) -> Self:
        """The same for many products with the Hessian, where something can be computed once for all of them.

        Returns:
            It.
        """
        return self


class LossByPoint(Loss):
    """A loss given by what it is `at` some outputs, where value, gradient and curvature share most of their work.

    Example:
        >>> from relu_diag.functional import CrossEntropy
        >>> isinstance(CrossEntropy(torch.tensor([0, 1])), LossByPoint)
        True
    """

    __slots__ = ()

    @abstractmethod
    def at(self, outputs: Tensor) -> LossAt:
        """The loss at some outputs, see `Loss.at`."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """The loss, shape ``()``."""
        return self.at(outputs).value()

    def gradient(self, outputs: Tensor) -> Tensor:
        """The gradient, shape ``(N, J)``."""
        return self.at(outputs).gradient()

    def curvature(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """The product of the Hessian with a direction, shape ``(N, J)``."""
        return self.at(outputs).curvature(direction)


def joined(losses: list[Loss], weights: list[float] | None = None) -> Loss:
    """The losses of several batches as one loss of all their rows.

    Args:
        losses: Losses of one kind with the same constants.
        weights: What each is multiplied by; None: 1.

    Returns:
        Their weighted sum, as a loss of the outputs of all batches below each other.

    Raises:
        ValueError: If there is no loss, or they are of different kinds.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> batches = [SquaredError(torch.zeros(2, 1)), SquaredError(torch.ones(1, 1))]
        >>> loss = joined(batches, [2 / 3, 1 / 3])
        >>> loss(torch.tensor([[3.0], [0.0], [1.0]])), loss.samples
        (tensor(3.), 3)
    """
    if not losses:
        raise ValueError("`losses` must hold at least one loss; got none.")
    weights = [1.0] * len(losses) if weights is None else weights
    first, *others = losses
    different = {other.name for other in others if type(other) is not type(first)}
    if different:
        raise ValueError(f"`losses` must be of one kind; got {first.name} and {', '.join(sorted(different))}.")
    if len(weights) != len(losses):
        raise ValueError(f"`weights` needs one number per loss, {len(losses)}; got {len(weights)}.")
    return first.joined_with(others, weights)
