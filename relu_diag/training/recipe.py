"""Read the rows of a block off a batch, where its inputs and the targets are tensors of the batch as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from relu_diag.functional import NotFiniteError
from relu_diag.functional.output_loss import Loss
from relu_diag.training._data import SAME


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Where in a batch the inputs of a block and the targets of its loss are.

    Attributes:
        inputs: Number of the tensor that holds the inputs; None where the module computes them.
        columns: Number of inputs, without the constant one.
        constant: Whether a constant input follows, for the hidden bias.
        dtype: Of the inputs.
        loss: The loss of the batches by which it was found, a sum over rows.
        count: Number of rows of one of them.
        targets: For a field of the loss, the number of the tensor that holds it.
        factor: What the loss was multiplied by since the recipe was found.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> recipe = Recipe.of(X, SquaredError(Y), [X, Y], count=2)
        >>> recipe.inputs, recipe.targets
        (0, {'Y': 1})
        >>> rows, loss = recipe.rows([2 * X, 3 * Y])  # another batch
        >>> loss.name, float(loss(torch.zeros(2, 1)))
        ('squared error', 9.0)
        >>> parts = [recipe.part([2 * X, 3 * Y]), recipe.part([X, Y], torch.tensor([1]))]
        >>> rows, loss = recipe.rows(recipe.below(parts))
        >>> len(rows), round(float(loss(torch.zeros(3, 1))), 3)  # the mean over all rows
        (3, 6.333)
    """

    inputs: int | None
    columns: int
    constant: bool
    dtype: torch.dtype
    loss: Loss
    count: int
    targets: dict[str, int]
    factor: float = 1.0

    @classmethod
    def of(cls, X: Tensor, loss: Loss, leaves: Sequence[Tensor], count: int) -> Recipe | None:
        """The recipe by batches whose loss is known.

        Args:
            X: Their block inputs, shape ``(N, d)``.
            loss: Their loss.
            leaves: Their tensors, those of all batches below each other.
            count: Number of rows of one batch.

        Returns:
            The recipe; None where targets are not found as they are.
        """
        targets: dict[str, int] = {}
        for field in fields(loss):  # type: ignore[arg-type]
            value = getattr(loss, field.name)
            if isinstance(value, Tensor) and len(value) == len(X):
                place = _place(value, leaves)
                if place is None:
                    return None
                targets[field.name] = place
        constant = bool((X[:, -1] == 1).all())
        columns = X.shape[1] - constant
        inputs = _place(X[:, :columns], leaves) if columns else None
        if inputs is None and constant:  # a column of ones may be data
            constant = False
            columns = X.shape[1]
            inputs = _place(X, leaves)
        if not targets:
            return None
        # As a sum over rows, no row has a say in what another one weighs: batches may be put below each other.
        alone = loss.rows(torch.arange(len(X), device=X.device))
        return cls(inputs, columns, constant, X.dtype, alone, count, targets)

    def count_in(self, leaves: Sequence[Tensor]) -> int | None:
        """Number of rows in a batch.

        Args:
            leaves: The tensors of the batch.

        Returns:
            The number; None where the batch does not hold inputs and targets.
        """
        if self.inputs is None or self.inputs >= len(leaves) or leaves[self.inputs].numel() % self.columns:
            return None
        count = leaves[self.inputs].numel() // self.columns
        for name, place in self.targets.items():
            if place >= len(leaves) or leaves[place].numel() != count * self._row(name).numel():
                return None
        return count

    def part(self, leaves: Sequence[Tensor], some: Tensor | None = None) -> list[Tensor]:
        """Copies of rows of a batch, in a batch of their own: to be read later, once for many batches.

        Args:
            leaves: The tensors of a batch that `count_in` can read.
            some: Which rows, long; None: all.

        Returns:
            Its tensors; those that are not read are empty.
        """
        assert self.inputs is not None
        count = self.count_in(leaves)
        shapes = {place: (count, *self._row(name)) for name, place in self.targets.items()}
        shapes[self.inputs] = (count, self.columns)
        found = [leaves[0].new_empty(0)] * (1 + max(shapes))
        for place, shape in shapes.items():
            rows = leaves[place].detach().reshape(shape)
            found[place] = rows.clone() if some is None else rows.index_select(0, some)
        return found

    @staticmethod
    def below(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Parts of several batches as one batch.

        Args:
            parts: What `part` returned.

        Returns:
            Its tensors.
        """
        return [torch.cat(leaves) for leaves in zip(*parts, strict=True)]

    def is_finite(self, leaves: Sequence[Tensor]) -> bool:
        """Whether all inputs and targets of a batch are finite.

        Args:
            leaves: The tensors of a batch that `count_in` can read.

        Returns:
            Whether they are.
        """
        assert self.inputs is not None
        return all(_is_finite(leaves[place]) for place in (self.inputs, *self.targets.values()))

    def rows(self, leaves: Sequence[Tensor]) -> tuple[Tensor, Loss] | None:
        """Inputs and loss of a batch.

        Args:
            leaves: The tensors of the batch.

        Returns:
            Inputs, shape ``(N, d)``, and the loss; None where the batch does not hold them.

        Raises:
            NotFiniteError: If an input or a target is NaN or infinite.
        """
        if self.inputs is None or self.count_in(leaves) is None:
            return None
        if not self.is_finite(leaves):
            raise NotFiniteError("A batch has NaN or infinite entries: clean the data, or skip the batch.")
        X = leaves[self.inputs].detach().reshape(-1, self.columns).to(self.dtype)
        if self.constant:
            X = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
        loss = self.loss_of(leaves, len(X))
        return None if loss is None else (X, loss)

    def loss_of(self, leaves: Sequence[Tensor], count: int) -> Loss | None:
        """The loss of a batch of another size: its mean.

        Args:
            leaves: The tensors of the batch.
            count: Number of its rows.

        Returns:
            The loss; None where the batch does not hold its targets.
        """
        changed: dict[str, Any] = {}
        for name, place in self.targets.items():
            shape = torch.Size((count, *self._row(name)))
            if place >= len(leaves) or leaves[place].numel() != shape.numel():
                return None
            changed[name] = leaves[place].detach().reshape(shape).to(getattr(self.loss, name).dtype).clone()
        return replace(self.loss, **changed).scaled(self.count / count)  # type: ignore[type-var]

    def loss_with_gradient(self, leaves: Sequence[Tensor], outputs: Tensor, G: Tensor) -> Loss | None:
        """The loss of a batch, scaled to have a gradient.

        Args:
            leaves: The tensors of the batch.
            outputs: Outputs of the block, shape ``(N, J)``.
            G: Gradient of the loss at them, shape ``(N, J)``.

        Returns:
            The loss; None where it has no such gradient.
        """
        loss = self.loss_of(leaves, len(outputs))
        factor = 0.0 if loss is None else factor_between(loss, outputs, G)
        return loss.scaled(factor) if loss is not None and factor > 0 else None

    def scaled(self, factor: float) -> Recipe:
        """The recipe of a loss times a factor.

        Args:
            factor: The factor.

        Returns:
            The recipe.
        """
        return replace(self, loss=self.loss.scaled(factor), factor=self.factor * factor)

    def _row(self, name: str) -> torch.Size:
        """Shape of the targets of one row."""
        shape: torch.Size = getattr(self.loss, name).shape[1:]
        return shape


def factor_between(loss: Loss, outputs: Tensor, G: Tensor, rounding: float = 0.0) -> float:
    """By what a loss has to be multiplied to have a gradient.

    Args:
        loss: The loss.
        outputs: Outputs of a block, shape ``(N, J)``.
        G: Gradient of another loss at them, shape ``(N, J)``.
        rounding: Relative rounding of the outputs.

    Returns:
        The factor; 0 where no factor will do.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> loss = SquaredError(torch.zeros(2, 1))
        >>> factor_between(loss, torch.ones(2, 1), 3 * loss.gradient(torch.ones(2, 1)))
        3.0
    """
    own = loss.gradient(outputs)
    moved = (loss.gradient(outputs + rounding * (1 + outputs.abs())) - own).norm() if rounding else 0.0
    square = float(own.double().square().sum())
    factor = float((own.double() * G.double()).sum()) / square if square > 0 else 0.0
    fits = factor > 0 and bool((G - factor * own).norm() <= SAME * G.norm() + factor * moved)
    return factor if fits else 0.0


def _is_finite(values: Tensor) -> bool:
    """Whether all numbers are; a sum says so for less, unless it overflows."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _place(value: Tensor, leaves: Sequence[Tensor]) -> int | None:
    """Which tensor holds a value as it is, whatever its shape."""
    for place, leaf in enumerate(leaves):
        if leaf.numel() == value.numel() and torch.equal(leaf.detach().reshape(value.shape).to(value), value):
            return place
    return None
