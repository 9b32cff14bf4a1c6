"""Means of a stream over blocks of 1, 2, 4, 8, ... observations: every time scale at once, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

# First step, last step, mean.
Block = tuple[int, int, float]

# Blocks kept of every size, and the fewest that noise is read off.
KEPT = 16
FEWEST = 8
# Sizes below a block's own that say what its noise should be.
_FINER = 3
_FORGET = 256
_RECENT = 9  # observations a spike is compared with
_SPIKE = 6.0  # in units of their median deviation


class BlockMeans:
    """The last blocks of every size.

    Attributes:
        levels: By size, ``2**k`` observations for level ``k``: the last 16 blocks, oldest first, and up to 16 before.
        counts: Number of blocks completed, by level.

    Example:
        >>> means = BlockMeans()
        >>> [means.add(step, value) for step, value in enumerate([1.0, 3.0, 5.0, 7.0])]
        [1, 2, 1, 3]
        >>> means.levels[1:]
        [[(0, 1, 2.0), (2, 3, 6.0)], [(0, 3, 4.0)]]
    """

    def __init__(self) -> None:
        self.levels: list[list[Block]] = []
        self.counts: list[int] = []

    def add(self, step: int, value: float) -> int:
        """Take in an observation.

        Args:
            step: Its step.
            value: Its value.

        Returns:
            Number of levels that completed a block: the levels below it did.
        """
        first, last, level = step, step, 0
        while True:
            if level == len(self.levels):
                self.levels.append([])
                self.counts.append(0)
            blocks = self.levels[level]
            blocks.append((first, last, value))
            if len(blocks) > 2 * KEPT:
                del blocks[:-KEPT]
            self.counts[level] += 1
            level += 1
            if self.counts[level - 1] % 2:
                return level
            first, last, value = blocks[-2][0], blocks[-1][1], (blocks[-2][2] + blocks[-1][2]) / 2

    def since(self, step: int, level: int) -> list[Block]:
        """The last blocks of a size that lie behind a step.

        Args:
            step: They begin here or later.
            level: Their size.

        Returns:
            At most 16 blocks, oldest first.
        """
        return [block for block in self.levels[level][-KEPT:] if block[0] >= step]

    def back(self, level: int = 0) -> Iterator[Block]:
        """The stream from its end backwards, in blocks that get longer with their age.

        Args:
            level: Size of the newest.

        Yields:
            Blocks without overlap, the newest first; where sizes change, less than a block is left out.
        """
        covered = None
        for blocks in self.levels[level:]:
            for block in reversed(blocks[-KEPT:]):
                if covered is None or block[1] < covered:
                    covered = block[0]
                    yield block

    def noise(self, step: int, level: int) -> float:
        """Noise of the mean of a block, from how the last ones bend; a straight line has none.

        Args:
            step: Of blocks that begin here or later.
            level: Their size.

        Returns:
            Standard deviation: the largest that blocks of this size show or smaller ones let expect.
        """
        largest = 0.0
        for finer in range(max(0, level - _FINER), level + 1):
            bends = bends_of(self.since(step, finer))
            if len(bends) >= FEWEST - 2:
                deviation = math.sqrt(math.pi / 12) * sum(map(abs, bends)) / len(bends)
                largest = max(largest, deviation / math.sqrt(2 ** (level - finer)))
        return largest


class PooledNoise:
    """Variance of block means, by size, gathered over a stretch of the stream; the last few hundred blocks count.

    Attributes:
        sums: Sum of the variances that single bends show, and their number, by level.
    """

    def __init__(self) -> None:
        self.sums: list[tuple[float, int]] = []

    def add(self, blocks: list[Block], level: int) -> None:
        """Take in blocks of a size.

        Args:
            blocks: Neighbours, oldest first.
            level: Their size.
        """
        while level >= len(self.sums):
            self.sums.append((0.0, 0))
        total, count = self.sums[level]
        if count > _FORGET:
            total, count = total / 2, count // 2
        for bend in bends_of(blocks):
            total, count = total + bend * bend / 6, count + 1
        self.sums[level] = (total, count)

    def variance(self, level: int) -> float:
        """Variance of a block's mean.

        Args:
            level: Its size.

        Returns:
            Variance; where there are too few blocks to tell, that of the next smaller ones: more than it should be.
        """
        for total, count in reversed(self.sums[: level + 1]):
            if count >= FEWEST - 2:
                return total / count
        return 0.0


def bends_of(blocks: list[Block]) -> list[float]:
    """Second differences of block means.

    Args:
        blocks: Neighbours, oldest first.

    Returns:
        Two fewer than there are blocks; independent means of variance ``v`` give them the variance ``6 v``.
    """
    means = [block[2] for block in blocks]
    return [a - 2 * b + c for a, b, c in zip(means, means[1:], means[2:], strict=False)]


def without_spike(recent: list[float], value: float) -> float:
    """An observation; far above the last ones, only so far as their spread makes credible.

    Args:
        recent: The last observations, at most 9; changed in place.
        value: The next one.

    Returns:
        It, or the largest credible value.

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
