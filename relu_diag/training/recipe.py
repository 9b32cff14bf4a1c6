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
        loss: The loss of the batches by which it was found.
        count: Number of rows of one of them.
        targets: For a field of the loss, the number of the tensor that holds it.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> recipe = Recipe.of(X, SquaredError(Y), [X, Y], count=2)
        >>> recipe.inputs, recipe.targets
        (0, {'Y': 1})
        >>> rows, loss = recipe.rows([2 * X, 3 * Y])  # another batch
        >>> loss.name, float(loss(torch.zeros(2, 1)))
        ('squared error', 9.0)
    """

    inputs: int | None
    columns: int
    constant: bool
    dtype: torch.dtype
    loss: Loss
    count: int
    targets: dict[str, int]

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
        return cls(inputs, columns, constant, X.dtype, loss, count, targets) if targets else None

    def rows(self, leaves: Sequence[Tensor]) -> tuple[Tensor, Loss] | None:
        """Inputs and loss of a batch.

        Args:
            leaves: The tensors of the batch.

        Returns:
            Inputs, shape ``(N, d)``, and the loss; None where the batch does not hold them.

        Raises:
            NotFiniteError: If an input or a target is NaN or infinite.
        """
        if self.inputs is None or self.inputs >= len(leaves):
            return None
        leaf = leaves[self.inputs]
        if leaf.numel() % self.columns:
            return None
        used = [leaf, *(leaves[place] for place in self.targets.values() if place < len(leaves))]
        if not all(bool(one.isfinite().all()) for one in used):
            raise NotFiniteError("A batch has NaN or infinite entries: clean the data, or skip the batch.")
        X = leaf.detach().reshape(-1, self.columns).to(self.dtype)
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
            value = getattr(self.loss, name)
            shape = torch.Size((count, *value.shape[1:]))
            if place >= len(leaves) or leaves[place].numel() != shape.numel():
                return None
            changed[name] = leaves[place].detach().reshape(shape).to(value.dtype).clone()
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
        if loss is None:
            return None
        own = loss.gradient(outputs)
        square = float(own.double().square().sum())
        factor = float((own.double() * G.double()).sum()) / square if square > 0 else 0.0
        fits = factor > 0 and bool((G - factor * own).norm() <= SAME * G.norm())
        return loss.scaled(factor) if fits else None


def _place(value: Tensor, leaves: Sequence[Tensor]) -> int | None:
    """Which tensor holds a value as it is, whatever its shape."""
    for place, leaf in enumerate(leaves):
        if leaf.numel() == value.numel() and torch.equal(leaf.detach().reshape(value.shape).to(value), value):
            return place
    return None
