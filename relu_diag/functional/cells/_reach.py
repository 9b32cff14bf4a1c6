"""Which strata weights in training are in, or beside: where a stationary point is searched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from relu_diag.functional._arrays import Index, Mask
from relu_diag.functional.cells._stratum import Sign
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A stratum: signs of all neurons, and which of them are in it.

    Attributes:
        sign: Side from which each neuron sees each sample, shape ``(N, I)``.
        kept: Neurons that may move, shape ``(I,)``.
        idle: Whether small neurons that nothing pulls at the point found are kept after all.
    """

    sign: Sign
    kept: Mask
    idle: bool = False

    @property
    def key(self) -> bytes:
        """Equal for equal choices."""
        return self.sign[:, self.kept].tobytes() + self.kept.tobytes() + bytes([self.idle])


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """What is within reach of weights.

    Attributes:
        own: Their signs to rounding, shape ``(N, I)``.
        near: Their signs with the samples within reach on the kink, shape ``(N, I)``.
        wide: The same with a wider reach, for one kink at a time, shape ``(N, I)``.
        small: Neurons that contribute little, shape ``(I,)``.
        group: Effective neuron of each, -1 for none, shape ``(I,)``.
    """

    own: Sign
    near: Sign
    wide: Sign
    small: Mask
    group: Index

    @property
    def usual(self) -> Choice:
        """All samples within reach on their kinks, small neurons at zero unless nothing pulls them."""
        return Choice(self.near, ~self.small, idle=True)

    @property
    def present(self) -> Choice:
        """The stratum that the weights are in, nothing put to zero."""
        return Choice(self.own, np.ones_like(self.small))

    @property
    def held(self) -> Mask:
        """Pairs within reach where several neurons of one direction are beside the kink, shape ``(N, M)``."""
        held = np.zeros(self.near.shape, dtype=bool)
        for kink in self._kinks(self.near, self.own):
            held |= kink & (kink.sum() >= FLOAT64.held)
        return held

    @property
    def on_held_kinks(self) -> list[Choice]:
        """The present and the usual choice, but only on the kinks that are held."""
        held = self.held
        if not held.any():
            return []
        sign = np.where(held, 0, self.own).astype(np.int8)
        return [Choice(sign, np.ones_like(self.small)), Choice(sign, ~self.small, idle=True)]

    def choices(self, limit: int) -> Iterator[Choice]:
        """The two and the combinations of them: kinks by effective neuron and sample, small neurons by direction."""
        yield self.present
        yield self.usual
        yield Choice(self.near, np.ones_like(self.small))
        yield Choice(self.own, ~self.small, idle=True)
        yield from self.on_held_kinks
        kinks = self._kinks(self.near, self.own)
        groups = [self.small & (self.group == g) for g in np.unique(self.group[self.small])]
        few = 2 ** (len(kinks) + len(groups)) <= limit // 2
        every = itertools.product((False, True), repeat=len(kinks) + len(groups))
        for bits in every if few else _one_apart(len(kinks), len(groups)):
            sign = self.own.copy()
            for kink, on in zip(kinks, bits[: len(kinks)], strict=True):
                sign[kink & on] = 0
            kept = np.ones_like(self.small)
            for group, on in zip(groups, bits[len(kinks) :], strict=True):
                kept &= on | ~group
            yield Choice(sign, kept)
        for kink in self._kinks(self.wide, self.near):
            yield Choice(np.where(kink, 0, self.own).astype(np.int8), np.ones_like(self.small))
            yield Choice(np.where(kink, 0, self.near).astype(np.int8), ~self.small, idle=True)

    def _kinks(self, on: Sign, off: Sign) -> list[Mask]:
        """The pairs on the kink in one and not in the other, those of one effective neuron and sample together."""
        pairs = (on == 0) & (off != 0)
        labels = np.where(self.group >= 0, self.group, -1 - np.arange(len(self.group)))
        found = []
        for sample in np.flatnonzero(pairs.any(axis=1)):
            for label in np.unique(labels[pairs[sample]]):
                mask = np.zeros_like(pairs)
                mask[sample] = pairs[sample] & (labels == label)
                found.append(mask)
        return found


def _one_apart(kinks: int, groups: int) -> Iterator[tuple[bool, ...]]:
    """All kinks on and no small neuron kept, or the other way round, but for one of them."""
    for usual in (True, False):
        for odd in range(kinks + groups):
            bits = [usual] * kinks + [not usual] * groups
            bits[odd] = not bits[odd]
            yield tuple(bits)
