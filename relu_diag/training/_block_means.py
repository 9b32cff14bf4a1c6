"""Means of a stream over blocks of 1, 2, 4, 8, ... observations: every time scale at once, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

# Blocks kept of every size, and the fewest from which noise is estimated.
KEPT = 16
FEWEST = 8
# Number of smaller sizes that also bound the noise of a block.
_FINER = 3
# Bends of one size after which the older ones count half.
_FORGET = 256
# Observations that a spike is compared with, and how far it may stand out, in units of their median deviation.
_RECENT = 9
_SPIKE = 6.0


class BlockMean(NamedTuple):
    """The mean of neighbouring observations.

    Attributes:
        first: Step of the first one.
        last: Step of the last one.
        mean: Their mean.
    """

    first: int
    last: int
    mean: float


class BlockMeans:
    """The last blocks of every size.

    Attributes:
        levels: By size, ``2**k`` observations for level ``k``: the last 16 blocks, oldest first, and up to 16 before.
        counts: Number of blocks completed, by level.

    Example:
        >>> means = BlockMeans()
        >>> [means.add(step, value) for step, value in enumerate([1.0, 3.0, 5.0, 7.0])]
        [1, 2, 1, 3]
        >>> [tuple(block) for block in means.levels[1]]
        [(0, 1, 2.0), (2, 3, 6.0)]
    """

    def __init__(self) -> None:
        self.levels: list[list[BlockMean]] = []
        self.counts: list[int] = []

    def add(self, step: int, value: float) -> int:
        """Add an observation.

        Args:
            step: Its step.
            value: Its value.

        Returns:
            Number of levels, from 0 up, in which it completed a block.
        """
        block = BlockMean(step, step, value)
        level = 0
        while True:
            if level == len(self.levels):
                self.levels.append([])
                self.counts.append(0)
            blocks = self.levels[level]
            blocks.append(block)
            if len(blocks) > 2 * KEPT:
                del blocks[:-KEPT]
            self.counts[level] += 1
            if self.counts[level] % 2:
                return level + 1
            before, block = blocks[-2:]
            block = BlockMean(before.first, block.last, (before.mean + block.mean) / 2)
            level += 1

    def since(self, step: int, level: int) -> list[BlockMean]:
        """The last blocks of one size that begin at a step or later.

        Args:
            step: The step.
            level: Level of their size.

        Returns:
            At most 16 blocks, oldest first.
        """
        return [block for block in self.levels[level][-KEPT:] if block.first >= step]

    def back(self, level: int = 0) -> Iterator[BlockMean]:
        """The stream from its end backwards, in blocks that get longer with their age.

        Args:
            level: Level of the newest blocks.

        Yields:
            Blocks without overlap, the newest first. Where the size changes, less than one block is skipped.
        """
        covered = None
        for blocks in self.levels[level:]:
            for block in reversed(blocks[-KEPT:]):
                if covered is None or block.last < covered:
                    covered = block.first
                    yield block

    def noise(self, step: int, level: int) -> float:
        """Noise of a block's mean, estimated from second differences: a straight line has none.

        Args:
            step: Only blocks that begin here or later count.
            level: Level of the block's size.

        Returns:
            Standard deviation: the largest that blocks of this size show, or that smaller ones predict for it.
        """
        largest = 0.0
        for finer in range(max(0, level - _FINER), level + 1):
            bends = _bends(self.since(step, finer))
            if len(bends) >= FEWEST - 2:
                deviation = math.sqrt(math.pi / 12) * sum(map(abs, bends)) / len(bends)
                largest = max(largest, deviation / math.sqrt(2 ** (level - finer)))
        return largest


class PooledNoise:
    """Variance of block means, by size, pooled over a stretch of the stream; the last few hundred blocks count.

    Attributes:
        totals: By level, the sum of the variances that single bends show.
        counts: By level, the number of these bends.
    """

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.counts: list[int] = []

    def add(self, blocks: list[BlockMean], level: int) -> None:
        """Add blocks of one size.

        Args:
            blocks: Neighbours, oldest first.
            level: Level of their size.
        """
        while level >= len(self.totals):
            self.totals.append(0.0)
            self.counts.append(0)
        if self.counts[level] > _FORGET:
            self.totals[level] /= 2
            self.counts[level] //= 2
        for bend in _bends(blocks):
            self.totals[level] += bend * bend / 6
            self.counts[level] += 1

    def variance(self, level: int) -> float:
        """Variance of a block's mean.

        Args:
            level: Level of the block's size.

        Returns:
            Variance. With too few blocks of this size it is that of the next smaller one, which is an upper bound.
        """
        for total, count in reversed([*zip(self.totals, self.counts, strict=True)][: level + 1]):
            if count >= FEWEST - 2:
                return total / count
        return 0.0


def without_spike(recent: list[float], value: float) -> float:
    """An observation, cut down to what the spread of the last ones makes credible if it lies far above them.

    Args:
        recent: The last observations, at most 9; changed in place.
        value: The next one.

    Returns:
        The observation, or the largest credible value if that is smaller.

    Example:
        >>> recent = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 1.1, 0.9]
        >>> without_spike(recent, 1.2), round(without_spike(recent, 50.0), 6)
        (1.2, 1.6)
    """
    recent.append(value)
    if len(recent) <= _RECENT:
        return value
    del recent[0]
    ordered = sorted(recent)
    if value <= ordered[-3]:
        return value
    middle = ordered[_RECENT // 2]
    deviation = sorted([abs(one - middle) for one in recent])[_RECENT // 2]
    return min(value, middle + _SPIKE * deviation)


def _bends(blocks: list[BlockMean]) -> list[float]:
    """Second differences of ``n`` neighbouring means, ``n - 2``; independent means of variance v give variance 6 v."""
    means = [block.mean for block in blocks]
    return [a - 2 * b + c for a, b, c in zip(means, means[1:], means[2:], strict=False)]
