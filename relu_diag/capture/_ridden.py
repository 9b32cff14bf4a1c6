"""What hooks noted of a block in a step, as it was: nothing is computed from it before somebody asks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from relu_diag.capture.live import stacked
from relu_diag.functional import BlockSignal, ShallowBlock

_HALF = {torch.float16, torch.bfloat16}


@dataclass(slots=True, eq=False)
class Weights:
    """Copies of weights as they took part: ``W (I, d)`` without the bias ``(I,)``, heads ``(J_l, I)``, their biases."""

    W: Tensor
    bias: Tensor | None
    heads: tuple[Tensor, ...]
    head_biases: tuple[Tensor | None, ...]
    slopes: tuple[float, float]

    def block(self) -> ShallowBlock:
        """The block, heads below each other, in memory of its own."""
        bias = self.bias
        W = self.W.clone() if bias is None else torch.cat([self.W.to(bias.dtype), bias[:, None]], dim=1)
        return stacked(W, self.heads, self.head_biases, self.slopes)


@dataclass(slots=True, eq=False)
class Gradients:
    """Gradients by weights, as autograd has them: ``(I, d)`` without the bias, ``(I,)``, and ``(J_l, I)`` by heads."""

    W: Tensor
    bias: Tensor
    heads: tuple[Tensor, ...]


@dataclass(slots=True, eq=False)
class Rows:
    """Rows of a signal: ``X (N, d)`` without the constant column, ``Z (N, I)`` or None, ``C (N, I)``, ``G (N, J)``."""

    X: Tensor
    Z: Tensor | None
    C: Tensor
    G: Tensor

    def part(self, start: int, end: int) -> Rows:
        """Some of them, in the same memory."""
        Z = None if self.Z is None else self.Z[start:end]
        return Rows(self.X[start:end], Z, self.C[start:end], self.G[start:end])


@dataclass(slots=True, eq=False)
class Application:
    """One application of a block, rows in the shapes and dtypes they passed by in.

    Attributes:
        X: Inputs.
        Z: Pre-activations, or None.
        A: What a ReLU made of them where they are not known themselves, or None.
        C: Gradient at the activations.
        heads: Gradient at the output of every head.
        factor: What gradients are to be multiplied by.
        gradients: Gradients by the weights, of this application; None where autograd computed none.
        totals: Sums of ``C`` and of the heads over all rows at least, taken while they were in the cache.
        looked: Extremes of the pre-activations, if they were taken while they were there.
    """

    X: Tensor
    Z: Tensor | None
    A: Tensor | None
    C: Tensor
    heads: tuple[Tensor, ...]
    factor: float
    gradients: Gradients | None
    totals: tuple[Tensor, ...]
    looked: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.X)

    def rows(self, dtype: torch.dtype) -> Rows:
        """All rows, of a dtype; pre-activations of another one have too few digits."""
        heads = [head.reshape(self.count, -1) for head in self.heads]
        G = heads[0] if len(heads) == 1 else torch.cat(heads, dim=1)
        return Rows(
            X=self.X.to(dtype),
            Z=self.Z if self.has_Z(dtype) else None,
            C=_times(self.factor, self.C.reshape(self.count, -1).to(dtype)),
            G=_times(self.factor, G.to(dtype)),
        )

    def has_Z(self, dtype: torch.dtype) -> bool:
        """Whether the pre-activations are known, of a dtype."""
        return self.Z is not None and self.Z.dtype == dtype

    def copy_rows(self, some: Tensor, into: Rows) -> None:
        """Copy some rows to where they belong."""
        _select(self.X, some, into.X)
        _select(self.C.reshape(self.count, -1), some, into.C)
        if into.Z is not None and self.Z is not None:
            _select(self.Z, some, into.Z)  # with the digits that the network saw
        start = 0
        for head in self.heads:
            G = head.reshape(self.count, -1)
            _select(G, some, into.G if len(self.heads) == 1 else into.G[:, start : start + G.shape[1]])
            start += G.shape[1]
        if self.factor != 1:
            into.C.mul_(self.factor)
            into.G.mul_(self.factor)

    @property
    def extremes_known(self) -> bool:
        """Whether the extremes of the pre-activations are at hand."""
        return self.looked is not None or self.Z is not None or self.A is not None

    @property
    def by_activations(self) -> bool:
        """Whether an extreme of 0 stands for all pre-activations that are not more."""
        return self.looked is None and self.Z is None

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Least and largest pre-activation of every neuron, shapes ``(I,)``."""
        known = self.A if self.Z is None else self.Z
        if self.looked is not None or known is None:
            assert self.looked is not None
            return self.looked
        return known.amin(0), known.amax(0)

    def shown(self) -> list[Tensor]:
        """Numbers that are finite only where all numbers are, float32 at least."""
        if self.looked is not None:
            return [*self.totals, self.looked[0]]
        # A product shows what is not finite in either factor; what is too large in it comes back in the gradients.
        return [*self.totals, sum_of(self.X if self.Z is None else self.Z)]


@dataclass(slots=True, eq=False)
class Ridden:
    """A block in a step: its weights, and every application of them."""

    weights: Weights
    applications: tuple[Application, ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(one.count for one in self.applications)

    def signal(self) -> BlockSignal:
        """The signal, rows of repeated applications below each other."""
        rows = joined_rows(self.rows())
        X = rows.X if self.weights.bias is None else torch.cat([rows.X, rows.X.new_ones(len(rows.X), 1)], dim=1)
        return BlockSignal(X, rows.G, rows.C, rows.Z)

    def rows(self) -> list[Rows]:
        """All rows of every application."""
        return [one.rows(self._dtype) for one in self.applications]

    def room(self, rows: int) -> Rows:
        """Memory for so many rows."""
        none = self.weights.W.new_empty(0, dtype=self._dtype)
        neurons, inputs = self.weights.W.shape
        return Rows(
            X=none.new_empty(rows, inputs),
            Z=none.new_empty(rows, neurons),
            C=none.new_empty(rows, neurons),
            G=none.new_empty(rows, sum(len(head) for head in self.weights.heads)),
        )

    def copy_rows(self, into: Rows) -> None:
        """Fill memory with rows of all applications together, the same ones in every step of so many rows."""
        counts = tuple([one.count for one in self.applications])
        start = 0
        for one, some in zip(self.applications, _spread(counts, len(into.X), into.X.device), strict=True):
            part = into if len(counts) == 1 else into.part(start, start + len(some))
            one.copy_rows(some, part)
            if one.Z is None and part.Z is not None:  # at the weights of this step
                torch.mm(part.X, self.weights.W.mT.to(self._dtype), out=part.Z)
                part.Z.add_(0.0 if self.weights.bias is None else self.weights.bias)
            start += len(some)

    @property
    def _dtype(self) -> torch.dtype:
        return self.weights.W.dtype if self.weights.bias is None else self.weights.bias.dtype

    def gradients(self) -> tuple[Tensor, Tensor] | None:
        """Gradients by input weights, bias included, and by output weights, ``(I, d)`` and ``(J, I)``."""
        parts: list[tuple[Tensor, Tensor]] = []
        for one in self.applications:
            if one.gradients is None:
                return None
            W, heads = one.gradients.W, one.gradients.heads
            by_W = W if self.weights.bias is None else torch.cat([W, one.gradients.bias.to(W)[:, None]], dim=1)
            parts.append((_times(one.factor, by_W), _times(one.factor, torch.cat(heads))))
        by_W, by_H = (sum(others, first) for first, *others in zip(*parts, strict=True))
        return by_W, by_H


def finite(passed: Iterable[Application]) -> bool:
    """Whether all numbers are finite, or at least their sums."""
    shown: dict[torch.device, list[Tensor]] = {}
    for one in passed:
        for numbers in one.shown():
            shown.setdefault(numbers.device, []).append(numbers.reshape(-1))
    return all(math.isfinite(torch.cat(there).sum()) for there in shown.values())


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """Rows below each other; one part as it is, without a copy."""
    if len(parts) == 1:
        return parts[0]
    Z = [part.Z for part in parts if part.Z is not None]
    return Rows(
        torch.cat([part.X for part in parts]),
        torch.cat(Z) if len(Z) == len(parts) else None,
        torch.cat([part.C for part in parts]),
        torch.cat([part.G for part in parts]),
    )


@lru_cache(maxsize=64)
def _spread(counts: tuple[int, ...], most: int, device: torch.device) -> tuple[Tensor, ...]:
    """Rows drawn from several parts together, long, ``(most,)`` in all: data may be in order, tokens always are."""
    drawn = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))[:most].sort().values
    starts = torch.tensor([0, *counts]).cumsum(0)
    return tuple(drawn[(first <= drawn) & (drawn < end)].sub(first).to(device) for first, end in pairwise(starts))


def sum_of(value: Tensor) -> Tensor:
    """A sum, float32 at least, shape ``()``."""
    return value.sum(dtype=torch.float32) if value.dtype in _HALF else value.sum()


def sum_of_rows(value: Tensor) -> Tensor:
    """Sums over all axes but the last, float32 at least, one number a column."""
    rows = value if value.ndim == 2 else value.reshape(-1, value.shape[-1])
    return rows.sum(0, dtype=torch.float32) if rows.dtype in _HALF else rows.sum(0)


def _select(rows: Tensor, some: Tensor, into: Tensor) -> None:
    """Copy some rows."""
    if rows.dtype == into.dtype:
        torch.index_select(rows, 0, some, out=into)
    else:
        into.copy_(rows.index_select(0, some))


def _times(factor: float, gradient: Tensor) -> Tensor:
    """A gradient times a factor: no copy where that is 1."""
    return gradient if factor == 1 else factor * gradient
