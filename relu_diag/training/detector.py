"""Find the plateaus of a stream of losses while it runs: scale-free, robust to noise and spikes, in constant memory.

The stream is averaged over blocks of every size. A plateau begins when, over a window of some size, the loss falls so
slowly that at this rate it would not have fallen by `drop` in all the time since the last plateau. It ends when the
loss is lower by `drop`, by more than the noise measured on the plateau, and fell faster towards the end than before.
"""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Literal

from relu_diag.training._block_means import FEWEST, KEPT, BlockMean, BlockMeans, PooledNoise, without_spike

HowChanged = Literal["start", "escape", "rise", "slide", "not finite"]

# A visible trend is flat if it would need this many times the time so far to lower the loss by `drop`.
_PATIENCE = 50.0
# Fewer times suffice at a corner: where the loss, since the last plateau, fell this many times faster than it does now,
# and by this many times `drop`.
_CORNER_PATIENCE = 2.0
_CORNER = 10.0
_CORNER_FALL = 5.0
# Standard errors beyond which a trend is visible.
_SEEN = 2.0
# Standard errors by which a fall may be larger than it looks, one time in twenty.
_SURE = 1.65
# What has slid is a plateau only where the loss falls this many times slower than it did.
_AFTER_SLIDE = 4.0
# Relative noise of one observation that doubles the tolerance, and the level of the blocks it is measured on.
_TOLERANT = 0.05
_OBSERVATIONS = 3
# Standard deviations by which a block may lie off its window.
_SPREAD = 4.0
# Fraction of a plateau's length for which the fall after it is expected to go on.
_BEHIND = 0.1
# Standard errors by which the loss must have changed to end a plateau.
_CERTAIN = 6.0
# Mean fall since the flattest window, over the last fall: below this an escape accelerates. A straight line has 1/2.
_ACCELERATED = 1 / 3
# A rise ends a plateau once it has lasted for one part in this many of it.
_LASTS = 8
# A loss this small beside the largest one counts as zero.
_ZERO = 1e-12
# Losses are cut at this multiple of the first one, so that their squares stay finite.
_HUGE = 1e150


@dataclass(frozen=True, slots=True)
class PlateauChange:
    """A change in the stream of losses.

    Attributes:
        how: "start": a plateau began. Or it ended: "escape", the loss fell; "rise", the loss rose and stayed up;
            "not finite", the loss is NaN or infinite. "slide": it was no plateau, the loss slides steadily.
        step: Step of the change.
        loss: Loss of the plateau.

    Example:
        >>> PlateauChange("escape", step=5000, loss=0.5)
        PlateauChange(how='escape', step=5000, loss=0.5)
    """

    how: HowChanged
    step: int
    loss: float


class PlateauDetector:
    """Says when plateaus of a stream of losses begin and end.

    Changes count relative to the loss, and times relative to the time since the last plateau, so neither the unit of
    the loss nor that of time matters. Losses of both signs are measured against the range they have covered. Memory,
    and the time for an observation, are those of one block of each size.

    Args:
        drop: A plateau has ended when the loss is lower by this fraction.
        min_steps: Shortest plateau, in steps; it also takes at least eight observations.

    Raises:
        ValueError: If the drop is not in (0, 1), or `min_steps` is below 1.

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
        self.drop = drop
        self.min_steps = min_steps
        self._forget()

    def _forget(self) -> None:
        """Start with an empty stream."""
        self._means = BlockMeans()
        self._noise = PooledNoise()
        self._recent: list[float] = []
        self._lowest = math.inf
        self._highest = -math.inf
        self._reference: _Reference | None = None
        self._window: _Window | None = None
        # A power of two near the first loss. All numbers are kept in this unit, so that their squares stay finite.
        self._unit: float | None = None

    @property
    def loss(self) -> float | None:
        """Loss of the current plateau where it is flattest; None between plateaus."""
        return self._window.loss * (self._unit or 1.0) if self._window else None

    def add(self, step: int, loss: float) -> PlateauChange | None:
        """Add a loss.

        Args:
            step: Its step, not before the last one.
            loss: The loss. NaN and infinity end a plateau, and everything before them is forgotten.

        Returns:
            The change it shows, or None.
        """
        if not math.isfinite(loss):
            plateau_loss = self.loss
            self._forget()
            return None if plateau_loss is None else PlateauChange("not finite", step, plateau_loss)
        if self._unit is None and loss:
            self._unit = math.ldexp(1.0, max(math.frexp(loss)[1], -1000))
        loss = max(-_HUGE, min(loss / (self._unit or 1.0), _HUGE))
        loss = without_spike(self._recent, loss)
        self._lowest = min(self._lowest, loss)
        self._highest = max(self._highest, loss)
        if self._reference is None:
            self._reference = _Reference(step, float(step), loss)
        completed = self._means.add(step, loss)
        change = self._watch(step, completed) if self._window else self._search(step, completed)
        return replace(change, loss=change.loss * (self._unit or 1.0)) if change else None

    def interrupt(self, step: int) -> None:
        """End the current plateau from outside, because the network has changed.

        Args:
            step: The current step.
        """
        if self._window:
            self._end("escape", step, self._window)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, for a checkpoint.

        Returns:
            Plain numbers in lists and tuples.
        """
        return {
            "levels": [[tuple(block) for block in blocks] for blocks in self._means.levels],
            "counts": list(self._means.counts),
            "noise": list(zip(self._noise.totals, self._noise.counts, strict=True)),
            "recent": list(self._recent),
            "unit": self._unit,
            "range": (self._lowest, self._highest),
            "reference": astuple(self._reference) if self._reference else None,
            "window": asdict(self._window) if self._window else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another detector stopped.

        Args:
            state: Result of its `state_dict`.
        """
        self._means.levels = [[BlockMean(*block) for block in blocks] for blocks in state["levels"]]
        self._means.counts = list(state["counts"])
        self._noise.totals = [total for total, _ in state["noise"]]
        self._noise.counts = [count for _, count in state["noise"]]
        self._recent = list(state["recent"])
        self._unit = state["unit"]
        self._lowest, self._highest = state["range"]
        self._reference = _Reference(*state["reference"]) if state["reference"] else None
        self._window = _Window(**state["window"]) if state["window"] else None

    def _scale(self, loss: float) -> float:
        """The size that a change is compared with: the loss, or the range covered where losses have both signs."""
        if self._lowest < 0:
            return max(abs(loss), self._highest - self._lowest)
        return max(loss, _ZERO * self._highest)

    def _search(self, step: int, completed: int) -> PlateauChange | None:
        """The start of a plateau, if one of the levels that just completed a block shows a flat window."""
        for level in range(completed - 1):  # the largest block just completed is the first of a pair
            window = self._flat(step, level)
            if window:
                for size in range(len(self._means.levels)):
                    self._noise.add(self._means.since(window.start, size), size)
                self._window = replace(window, start=self._start_of(window, level))
                return PlateauChange("start", self._window.start, window.loss)
        return None

    def _flat(self, step: int, level: int) -> _Window | None:
        """The window of the last blocks of one size, if the loss is flat over it."""
        assert self._reference is not None
        blocks = self._window_blocks(level)
        if not blocks:
            return None
        steps = blocks[-1].last - blocks[0].first + 1
        half = len(blocks) // 2
        early = sum(block.mean for block in blocks[:half]) / half
        late = sum(block.mean for block in blocks[half:]) / half
        loss = (early + late) / 2
        trend = late - early
        elapsed = max(step + 1 - self._reference.clock, float(steps))
        fall = self.drop * self._scale(loss)
        noise = self._means.noise(self._reference.end, level)
        error = noise * math.sqrt(2 / half)
        rate = max(_SURE * error - trend, trend) / (steps / 2)
        finest = min(level, _OBSERVATIONS)
        noise_of_one = self._means.noise(self._reference.end, finest) * math.sqrt(2**finest)
        if rate * elapsed > fall + self.drop / _TOLERANT * noise_of_one or _AFTER_SLIDE * rate > self._reference.slide:
            return None
        if max(abs(block.mean - loss) for block in blocks) > fall + _SPREAD * noise:
            return None
        cornered = abs(self._reference.loss - loss) > max(_CORNER * rate * elapsed, _CORNER_FALL * fall)
        patience = _CORNER_PATIENCE if cornered else _PATIENCE
        visible_rate = max(0.0, abs(trend) - _SEEN * error) / (steps / 2)
        if visible_rate * elapsed * patience > fall:
            return None
        middle = (blocks[0].first + blocks[-1].last) / 2
        return _Window(blocks[0].first, middle, loss, error / 2, rate)

    def _window_blocks(self, level: int) -> list[BlockMean]:
        """An even number of the last blocks of one size since the last plateau; empty if they are too few or short."""
        assert self._reference is not None
        count = self._means.counts[level]
        if count % 2 or count < FEWEST:
            return []
        kept = self._means.levels[level]
        if kept[-1].last - kept[max(0, len(kept) - KEPT)].first + 1 < self.min_steps:
            return []
        blocks = self._means.since(self._reference.end, level)
        blocks = blocks[len(blocks) % 2 :]
        if len(blocks) < FEWEST or blocks[-1].last - blocks[0].first + 1 < self.min_steps:
            return []
        return blocks

    def _start_of(self, window: _Window, level: int) -> int:
        """The first step of the stretch that stays within `drop` of the window's loss, as finely as noise allows."""
        assert self._reference is not None
        start = window.start
        reach = self.drop * self._scale(window.loss)
        fine = next((k for k in range(level) if 4 * math.sqrt(self._noise.variance(k)) <= reach), level)
        reach += 3 * math.sqrt(self._noise.variance(fine))
        for block in self._means.back(fine):
            if abs(block.mean - window.loss) > reach or block.first < self._reference.end:
                break
            start = min(start, block.first)
        return start

    def _watch(self, step: int, completed: int) -> PlateauChange | None:
        """The end of the plateau, if a level that just completed a block shows it; else take over a flatter window."""
        assert self._window is not None
        for level in range(completed):
            change = self._left(step, level, self._window)
            if change:
                return change
        # The largest block just completed is the first of a pair; the level below it has completed a window.
        flat = self._flat(step, completed - 2) if completed > 1 else None
        if flat and flat.rate < self._window.rate and flat.start >= self._window.start:
            self._window = replace(flat, start=self._window.start)
        return None

    def _left(self, step: int, level: int, window: _Window) -> PlateauChange | None:
        """The end of the plateau, if the last two blocks of one size show it."""
        blocks = self._means.levels[level][-3:]
        if len(blocks) < 3 or blocks[0].first < window.start:
            return None
        fall = self.drop * self._scale(window.loss)
        last_two = [block.mean - window.loss for block in blocks[1:]]
        now = (blocks[1].mean + blocks[2].mean) / 2 - window.loss
        if max(last_two) < -fall or min(last_two) > fall:
            doubt = _CERTAIN * math.sqrt(self._noise.variance(level) / 2 + window.error**2)
            if now < -fall - doubt:
                return self._fallen(step, level, window, -now)
            recent = self._means.levels[max(0, level - _OBSERVATIONS)][-1].mean - window.loss
            lasts = (step - blocks[1].first) * _LASTS > step - window.start and recent > fall
            if now > fall + doubt and lasts:
                return self._end("rise", blocks[1].first, window)
        self._noise.add(blocks, level)
        return None

    def _fallen(self, step: int, level: int, window: _Window, fall: float) -> PlateauChange | None:
        """Escape where the fall accelerates, a slide, or neither yet; of a straight line its mean is half the last."""
        above = window.loss - self.drop * self._scale(window.loss)
        end = None
        area = 0.0
        later = float(step)
        later_mean = window.loss - fall
        for block in self._means.back(level):
            middle = (block.first + block.last) / 2
            if middle < window.middle:
                break
            area += (later - middle) * (window.loss - (block.mean + later_mean) / 2)
            if end is None and block.mean > above:
                end = middle + (later - middle) * (block.mean - above) / (block.mean - later_mean)
            later = middle
            later_mean = block.mean
        lasted = step - window.middle
        # How far the mean fall is off where the loss of the plateau is off by its error.
        doubt = _SEEN * window.error
        if end is None or area / lasted - doubt > _ACCELERATED * fall:
            assert self._reference is not None
            self._reference = replace(self._reference, slide=fall / lasted)
            self._leave_window()
            return PlateauChange("slide", step, window.loss)
        if area / lasted + doubt > _ACCELERATED * (fall + doubt):
            return None  # it may be either: a larger fall tells
        return self._end("escape", math.ceil(end), window)

    def _end(self, how: HowChanged, step: int, window: _Window) -> PlateauChange:
        """End the plateau at a step; the next one is measured from there."""
        self._reference = _Reference(step, step - _BEHIND * (step - window.start), window.loss)
        self._leave_window()
        return PlateauChange(how, step, window.loss)

    def _leave_window(self) -> None:
        """Be on no plateau; the noise of the next one is measured anew."""
        self._window = None
        self._noise = PooledNoise()


@dataclass(frozen=True, slots=True)
class _Window:
    """A window over which the loss is flat.

    Attributes:
        start: First step of the plateau.
        middle: Middle of the window.
        loss: Mean loss over it.
        error: Standard error of that mean.
        rate: Largest rate of change that its noise allows, loss per step.
    """

    start: int
    middle: float
    loss: float
    error: float
    rate: float


@dataclass(frozen=True, slots=True)
class _Reference:
    """The end of the last plateau, or the start of the stream.

    Attributes:
        end: Step at which it ended.
        clock: Step from which the time since then is counted.
        loss: Loss of that plateau.
        slide: How fast the loss fell in the last slide since then, loss per step; inf if there was none.
    """

    end: int
    clock: float
    loss: float
    slide: float = math.inf
