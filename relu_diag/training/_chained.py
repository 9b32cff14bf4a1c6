"""Blocks that follow one another up to the loss, as a step saw them: which they are, and all of them as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.functional.block import rho
from relu_diag.training._data import SAME
from relu_diag.training.obstacle import obstacle_of, reads_activations


@dataclass(frozen=True, eq=False)
class Chained(Sighting):
    """Blocks that follow one another, as one: the inputs of the first, the outputs of the last.

    Attributes:
        first: The first of them.
        last: The last.
    """

    first: Sighting = field(kw_only=True)
    last: Sighting = field(kw_only=True)

    @property
    def inputs(self) -> int:
        """Number of inputs of the first block, the constant one counted."""
        return self.first.inputs

    @cached_property
    def signal(self) -> BlockSignal:
        """Inputs of the first block, and loss gradients at the outputs of the last."""
        return BlockSignal(self.first.signal.X, self.last.signal.G)

    @cached_property
    def passed(self) -> Tensor:
        """Outputs of the last block, shape ``(N, J)``."""
        return self.last.passed


def as_one(seen: Sequence[Sighting], known: Collection[str] = ()) -> Chained | None:
    """All blocks of a step as one, where they follow one another and nothing else stands behind one of them.

    Args:
        seen: The blocks, in the order in which they ran.
        known: Names of chains of which steps before have shown that they are: only their order is looked at.

    Returns:
        All of them as one; None where they are not all one chain, or something about one of them is in the way.
    """
    names = [one.hidden for one in seen]
    if len(seen) < 2 or names[1:] != [reader for one in seen[:-1] for reader in one.readers]:
        return None
    name = name_of_chain(names)
    shown = name in known or names == chain_from(names[0], followers_of({one.hidden: one for one in seen}))
    if not shown or (name not in known and any(map(obstacle_of, seen))):
        return None
    first, last = seen[0], seen[-1]
    own = {one.name: getattr(last, one.name) for one in fields(Sighting)}
    changed = {
        "hidden": name,
        "from_data": first.from_data,
        "parameters": tuple(parameter for one in seen for parameter in one.parameters),
        "reruns": any(one.reruns for one in seen),
    }
    return Chained(**(own | changed), first=first, last=last)


def name_of_chain(names: Sequence[str]) -> str:
    """The name of all blocks of a chain together, which no layer has."""
    return " > ".join(names)


def followers_of(seen: Mapping[str, Sighting]) -> dict[str, str]:
    """By name of a block, the one that reads its activations, where only that does."""
    return {
        name: one.readers[0]
        for name, one in seen.items()
        if len(one.readers) == 1 and one.readers[0] in seen and _follows(seen[one.readers[0]], one)
    }


def _follows(after: Sighting, before: Sighting) -> bool:
    """Whether the inputs of a block are the activations of another one, which only it reads."""
    X = _activations(before.block, before.signal.X, after.block)
    own = after.signal.X
    same = X.shape == own.shape and bool((X - own).norm() <= SAME * own.norm())
    return same and not before.dropout and not reads_activations(before.block, before.signal)


def _activations(before: ShallowBlock, X: Tensor, after: ShallowBlock) -> Tensor:
    """The activations of a block as inputs of the next one, shape ``(N, d)``."""
    A = rho(X.to(before.W) @ before.W.T, before.slopes)
    return torch.cat([A, A.new_ones(len(A), 1)], dim=1) if after.W.shape[1] == A.shape[1] + 1 else A


def chain_from(name: str, followers: Mapping[str, str]) -> list[str]:
    """A block and those behind it, in their order."""
    names = [name]
    while names[-1] in followers:
        names.append(followers[names[-1]])
    return names
