"""Plateaus of a stream of losses, found while it runs: scale-free, robust to noise and spikes, in constant memory.

The stream is averaged over blocks of every size (`BlockMeans`). A plateau begins where, over a window of any size, the
loss falls so slowly that in all the time since the last plateau it would not have fallen by `drop`. It ends where the
loss is lower by `drop`, beyond the noise measured on the plateau, and fell faster towards the end than before.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from relu_diag.callbacks.block_means import FEWEST, KEPT, BlockMeans, PooledNoise, without_spike

How = Literal["start", "escape", "rise", "slide", "not finite"]

# A trend that can be seen must need this many times the time so far to lose `drop`; fewer times once the loss has
# fallen, on average since the last plateau, so many times faster than it does now.
_PATIENCE = 50.0
_CORNER_PATIENCE = 2.0
_CORNER = 10.0
_CORNER_FALL = 5.0  # in units of `drop`
_SEEN = 2.0  # standard errors that make a trend
_TOLERANT = 0.05  # relative noise of an observation that doubles the tolerance
_OBSERVATIONS = 3  # level whose blocks tell the noise of an observation
_SPREAD = 4.0  # standard deviations a block may be off its window
_BEHIND = 0.1  # fraction of a plateau's length for which its fall goes on
_CERTAIN = 6.0  # standard errors an end needs
_ACCELERATED = 1 / 3  # mean fall since the flattest window over the present one; 1/2 on a straight line
_LASTS = 8  # a rise ends a plateau once it has lasted for this fraction of it
_ZERO = 1e-12  # a loss this small beside the largest is zero
_HUGE = 1e150  # times the first loss: more is no number whose square is one


@dataclass(frozen=True, slots=True)
class PlateauChange:
    """Something that happened to the stream.

    Attributes:
        how: "start": a plateau began. It ended by "escape": the loss fell; "rise": the loss rose and stayed up; "not
            finite": the loss is NaN or infinite. "slide": there was none, the loss slides steadily.
        step: When it happened.
        loss: Loss of the plateau.
    """

    how: How
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class _Window:
    """A window in which nothing happens.

    Attributes:
        start: First step of the plateau.
        middle: Middle of the window.
        loss: Its mean.
        error: Standard error of that.
        rate: Largest rate of change that it allows, per step.
    """

    start: int
    middle: float
    loss: float
    error: float
    rate: float


class PlateauDetector:
    """Says when plateaus begin and end.

    Relative to the loss, in steps relative to the time since the last plateau: neither the unit of the loss nor that of
    time matters. Losses of both signs are measured by the range they have covered. Memory and time per observation are
    those of one block of each size.

    Args:
        drop: A plateau has ended when the loss is lower by this fraction.
        min_steps: No plateau is found in fewer steps, nor in fewer than eight observations.

    Raises:
        ValueError: If the drop is not in (0, 1), or there is not a step.

    Example:
        >>> detector = PlateauDetector()
        >>> losses = [0.5 + 0.5 * math.exp(-step / 50) for step in range(5000)] + [0.4] * 10
        >>> for step, loss in enumerate(losses):
        ...     change = detector.add(step, loss)
        ...     if change:
        ...         print(step, change)
        447 PlateauChange(how='start', step=224, loss=0.5003024400845691)
        5001 PlateauChange(how='escape', step=5000, loss=0.5)
    """

    def __init__(self, drop: float = 0.01, min_steps: int = 100) -> None:
        if not 0 < drop < 1 or min_steps < 1:
            raise ValueError(f"`drop` must be in (0, 1), `min_steps` at least 1; got {drop!r} and {min_steps!r}.")
        self.drop, self.min_steps = drop, min_steps
        self._means, self._noise = BlockMeans(), PooledNoise()
        self._recent: list[float] = []
        self._lowest, self._highest = math.inf, -math.inf
        # Where the last plateau ended, when its fall began for the clock, and the loss then; at first, the start.
        self._reference: tuple[int, float, float] | None = None
        self._window: _Window | None = None
        # A power of two near the first loss; every number kept is in this unit, and so is its square.
        self._unit: float | None = None

    @property
    def loss(self) -> float | None:
        """Loss of the plateau the stream is on, where it is flattest; None where it is on none."""
        return self._window.loss * (self._unit or 1.0) if self._window else None

    def add(self, step: int, loss: float) -> PlateauChange | None:
        """Take in a loss.

        Args:
            step: Its step, not before the last one.
            loss: The loss. NaN and infinity end a plateau, and nothing before them is remembered.

        Returns:
            What it changed, or None.
        """
        if not math.isfinite(loss):
            told = self.loss
            self._forget()
            return PlateauChange("not finite", step, told) if told is not None else None
        if self._unit is None and loss:
            self._unit = math.ldexp(1.0, max(math.frexp(loss)[1], -1000))
        loss = max(-_HUGE, min(loss / (self._unit or 1.0), _HUGE))
        loss = without_spike(self._recent, loss)
        self._lowest, self._highest = min(self._lowest, loss), max(self._highest, loss)
        if self._reference is None:
            self._reference = (step, float(step), loss)
        completed = self._means.add(step, loss)
        change = self._watch(step, completed) if self._window else self._search(step, completed)
        return replace(change, loss=change.loss * (self._unit or 1.0)) if change else None

    def interrupt(self, step: int) -> None:
        """End the plateau by hand: somebody has changed what the loss is of.

        Args:
            step: The present step.
        """
        if self._window:
            self._finished("escape", step)
            self._window, self._noise = None, PooledNoise()

    def state_dict(self) -> dict[str, Any]:
        """All it remembers.

        Returns:
            Plain numbers in lists.
        """
        return {
            "levels": [list(blocks) for blocks in self._means.levels],
            "counts": list(self._means.counts),
            "noise": list(self._noise.sums),
            "recent": list(self._recent),
            "unit": self._unit,
            "range": (self._lowest, self._highest),
            "reference": self._reference,
            "window": asdict(self._window) if self._window else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another detector stopped.

        Args:
            state: What its `state_dict` returned.
        """
        self._means.levels = [list(blocks) for blocks in state["levels"]]
        self._means.counts, self._recent = list(state["counts"]), list(state["recent"])
        self._noise.sums = list(state["noise"])
        self._lowest, self._highest = state["range"]
        self._reference, self._unit = state["reference"], state["unit"]
        self._window = _Window(**state["window"]) if state["window"] else None

    def _forget(self) -> None:
        self._means, self._noise, self._recent = BlockMeans(), PooledNoise(), []
        self._lowest, self._highest = math.inf, -math.inf
        self._reference = self._window = self._unit = None

    def _scale(self, loss: float) -> float:
        """What a loss is measured by."""
        if self._lowest < 0:
            return max(abs(loss), self._highest - self._lowest)
        return max(loss, _ZERO * self._highest)

    def _search(self, step: int, completed: int) -> PlateauChange | None:
        for level in range(completed):
            window = self._flat(step, level)
            if window:
                for size in range(len(self._means.levels)):
                    self._noise.add(self._means.since(window.start, size), size)
                self._window = replace(window, start=self._start_of(window, level))
                return PlateauChange("start", self._window.start, window.loss)
        return None

    def _flat(self, step: int, level: int) -> _Window | None:
        """The window of the last blocks of a size, if nothing happens in it."""
        assert self._reference is not None
        (behind, clock, loss_then), means = self._reference, self._means
        if means.counts[level] % 2 or means.counts[level] < FEWEST:
            return None
        kept = means.levels[level][-KEPT:]
        if kept[-1][1] - kept[0][0] + 1 < self.min_steps:
            return None
        blocks = means.since(behind, level)
        blocks = blocks[len(blocks) % 2 :]
        steps = blocks[-1][1] - blocks[0][0] + 1 if len(blocks) >= FEWEST else 0
        if steps < self.min_steps:
            return None
        values, half = [block[2] for block in blocks], len(blocks) // 2
        early, late = sum(values[:half]) / half, sum(values[half:]) / half
        loss, trend, elapsed = (early + late) / 2, abs(late - early), max(step + 1 - clock, float(steps))
        scale = self._scale(loss)
        fall = self.drop * scale
        noise = means.noise(behind, level)
        error = noise * math.sqrt(2 / half)
        rate = (trend + _SEEN * error) / (steps / 2)
        finest = min(level, _OBSERVATIONS)
        tolerance = fall + self.drop / _TOLERANT * means.noise(behind, finest) * math.sqrt(2**finest)
        if rate * elapsed > tolerance or max(abs(value - loss) for value in values) > fall + _SPREAD * noise:
            return None
        cornered = abs(loss_then - loss) > max(_CORNER * rate * elapsed, _CORNER_FALL * fall)
        patience = _CORNER_PATIENCE if cornered else _PATIENCE
        if max(0.0, trend - _SEEN * error) / (steps / 2) * elapsed * patience > fall:
            return None
        return _Window(blocks[0][0], (blocks[0][0] + blocks[-1][1]) / 2, loss, error / 2, rate)

    def _start_of(self, window: _Window, level: int) -> int:
        """The first step of the stretch within `drop` of the loss, as finely as the noise allows."""
        assert self._reference is not None
        reach, start = self.drop * self._scale(window.loss), window.start
        fine = next((k for k in range(level) if 4 * math.sqrt(self._noise.variance(k)) <= reach), level)
        reach += 3 * math.sqrt(self._noise.variance(fine))
        for first, _, mean in self._means.back(fine):
            if abs(mean - window.loss) > reach or first < self._reference[0]:
                break
            start = min(start, first)
        return start

    def _watch(self, step: int, completed: int) -> PlateauChange | None:
        for level in range(completed):
            change = self._left(step, level)
            if change:
                self._window, self._noise = None, PooledNoise()
                return change
        # The largest block of all is the first of a pair: the one below it completed a window.
        flat = self._flat(step, completed - 2) if completed > 1 else None
        assert self._window is not None
        if flat and flat.rate < self._window.rate and flat.start >= self._window.start:
            self._window = replace(flat, start=self._window.start)
        return None

    def _left(self, step: int, level: int) -> PlateauChange | None:
        """The end of the plateau, if the last two blocks of a size show it."""
        assert self._window is not None
        window, blocks = self._window, self._means.levels[level][-3:]
        if len(blocks) < 3 or blocks[0][0] < window.start:
            return None
        fall = self.drop * self._scale(window.loss)
        last, now = [block[2] - window.loss for block in blocks[1:]], (blocks[1][2] + blocks[2][2]) / 2 - window.loss
        if max(last) < -fall or min(last) > fall:
            doubt = _CERTAIN * math.sqrt(self._noise.variance(level) / 2 + window.error**2)
            if now < -fall - doubt:
                return self._fallen(step, level, -now)
            recent = self._means.levels[max(0, level - _OBSERVATIONS)][-1][2] - window.loss
            lasts = (step - blocks[1][0]) * _LASTS > step - window.start and recent > fall
            if now > fall + doubt and lasts:
                return self._finished("rise", blocks[1][0])
        self._noise.add(blocks, level)
        return None

    def _fallen(self, step: int, level: int, fall: float) -> PlateauChange:
        """An escape accelerates; on a straight line the mean fall is half the last one."""
        assert self._window is not None
        window, area = self._window, 0.0
        above = window.loss - self.drop * self._scale(window.loss)
        end, later = None, (float(step), window.loss - fall)
        for first, last, mean in self._means.back(level):
            middle = (first + last) / 2
            if middle < window.middle:
                break
            area += (later[0] - middle) * (window.loss - (mean + later[1]) / 2)
            if end is None and mean > above:
                end = middle + (later[0] - middle) * (mean - above) / (mean - later[1])
            later = (middle, mean)
        if end is None or area > _ACCELERATED * fall * (step - window.middle):
            return PlateauChange("slide", step, window.loss)
        return self._finished("escape", math.ceil(end))

    def _finished(self, how: How, step: int) -> PlateauChange:
        assert self._window is not None
        window = self._window
        self._reference = (step, step - _BEHIND * (step - window.start), window.loss)
        return PlateauChange(how, step, window.loss)
