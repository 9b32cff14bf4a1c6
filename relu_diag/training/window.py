"""What the ridden steps since the last report add up to, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from relu_diag.capture import Glimpse, SampledSums, Sighting, exactness, samples_cheaply
from relu_diag.functional import NeuronGeometry, NeuronStates, ShallowBlock
from relu_diag.functional.local import (
    NeuronSlopes,
    NeuronSums,
    RunningSums,
    geometry_from_sums,
    slopes_from_sums,
    states_from_sums,
    without_chance_kinks,
)
from relu_diag.metrics import sums_of_all_ranks
from relu_diag.training._data import some_numbers

# Rows whose gradients are read before steps are glanced at, and how many of the steps are still read.
_ENOUGH = 128
_READ = 6


@dataclass(frozen=True, eq=False)
class BlockReport:
    """A block over the samples of a window.

    Attributes:
        name: The block, ``net.0 -> net.2``.
        step: Step of the last sample.
        block: Its weights at the last step whose gradients were read.
        slopes: One-sided derivatives, means over the samples; exact where the weights stood still.
        states: Neuron states: dead is silent on every sample seen.
        samples: Number of samples, of all ranks: silent on all of them is dead. Slopes are means over ``sums.samples``
            of these, as of some steps nothing else is looked at.
        exact: Whether the window is one batch that is the whole data set.
        sums: What all of that is made of.
        caveats: What keeps the slopes from being those of the loss along the block's weights, in words.
        exactness: Whether units behind the block sat on a kink, where the loss has other slopes: "exact", "not exact:
            3 later kinks", or why that is not known.

    Example:
        >>> from torch import nn
        >>> from relu_diag.capture import riding
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> with riding(net) as ride:
        ...     loss = (net(X) - Y).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> window = Window(seen.name)
        >>> window.add(seen, step=0, scale=1.0)
        >>> report = window.report()
        >>> report.dead_share, report.geometry.steepest.shape
        (0.0, torch.Size([3]))
    """

    name: str
    step: int
    block: ShallowBlock
    slopes: NeuronSlopes
    states: NeuronStates
    samples: int
    exact: bool
    sums: NeuronSums
    caveats: tuple[str, ...]
    exactness: str = "exact"

    @cached_property
    def geometry(self) -> NeuronGeometry:
        """The slopes with their directions, which cost more than all the rest: computed when they are asked for."""
        return geometry_from_sums(self.block, self.sums)

    @property
    def dead_share(self) -> float:
        """Share of the neurons that are dead."""
        return float(self.states.dead.double().mean())


class Window:
    """Adds up the sightings of one block.

    Args:
        name: The block.
        one_pass: Whether the sightings are those of a pass at fixed weights, each sample once.

    Attributes:
        sightings: Number of steps since the last report.
        whole: Whether the batch of the last one is the whole data set.
        suspects: Whether that may be, and the step after it would tell.

    Example:
        >>> Window("encoder -> decoder").sightings
        0
    """

    def __init__(self, name: str, one_pass: bool = False) -> None:
        self.name = name
        self.one_pass = one_pass
        self.sightings = 0
        self.whole = False
        self.suspects = False
        self._sums = _Sums()
        self._own: NeuronSums | None = None
        self._gathered: NeuronSums | None = None
        self._last: Sighting | None = None
        self._inputs: list[Tensor] = []
        self._prints: list[Tensor] = []
        self._scale = (0.0, 0)
        self._glanced = 0
        self._step = -2
        # Later kinks of every sighting, None where nobody counted, and operations that were not counted.
        self._later: list[Tensor | None] = []
        self._uncounted: set[str] = set()

    def add(self, seen: Sighting, step: int, scale: float, alone: bool = False, batch: Sequence[Tensor] = ()) -> None:
        """Add a step. A batch that is the whole data set begins a window of its own.

        That is one with the inputs of the step before, and the same batch. A batch that comes again later may be one of
        many, each in its place in every epoch.

        Args:
            seen: The block, as the step saw it.
            step: The step.
            scale: Scale of the targets of its batch.
            alone: Whether its epoch has no other batch.
            batch: The tensors of its batch, on which a loss depends whatever goes into the block.
        """
        same = self._comes_again([one.X for one in seen.ridden.applications], batch) and not self.one_pass
        self.whole = same and (self.whole or alone or step <= self._step + 1)
        self.suspects = same and not self.whole
        if self.whole or not self.sightings or self._grown(seen):
            self._sums.clear()
            self.sightings = 0
            self._scale = (0.0, 0)
            self._glanced = 0
            self._later = []
            self._uncounted = set()
        self._later.append(seen.later_kinks)
        self._uncounted.update(seen.uncounted)
        self._sums.add(seen, exactly=self.whole or self.one_pass)
        self._last, self._step = seen, step
        self.sightings += 1
        squares, rows = self._scale
        self._scale = squares + seen.count * scale**2, rows + seen.count

    @property
    def glances(self) -> bool:
        """Whether a glance at the step to come is enough: gradients of many rows were read since the last report."""
        read = self._scale[1]
        at_fixed_weights = self.whole or self.suspects or self.one_pass
        due = (self.sightings + 1) % _READ == 0
        return self.sightings > 0 and read >= _ENOUGH and self._sums.takes_glimpses and not (due or at_fixed_weights)

    def glance(self, seen: Glimpse, step: int, batch: Sequence[Tensor] = ()) -> None:
        """Add a step of which nothing but extremes of pre-activations is known.

        Args:
            seen: What a glance at it has shown.
            step: The step.
            batch: The tensors of its batch.
        """
        assert self._last is not None
        # The step to come is read where it may be the same batch again, or a layer has grown.
        self.suspects = self._comes_again(list(seen.X), batch) or len(seen.lows[0]) != self._last.neurons
        self._step = step
        if not self.suspects:
            self._sums.add_extremes(seen)
            self._glanced += seen.count
            self.sightings += 1

    def prepare(self) -> None:
        """Add up what this rank has seen, so that nothing can fail where ranks wait for each other.

        Raises:
            ValueError: If nothing was seen since the last report.
        """
        if not self.sightings or self._last is None:
            raise ValueError("Nothing was seen since the last report: add a sighting first.")
        self._own = self._sums.sums(self._last.block)

    def gather(self) -> None:
        """Add up what all ranks have prepared. A collective: every rank must call it."""
        if self._own is None:
            self.prepare()
        assert self._own is not None
        assert self._last is not None
        self._gathered = sums_of_all_ranks(self._own, self._last.repeated)
        self._own = None

    def report(self) -> BlockReport:
        """What the window holds, of all ranks; the next sample begins another one. A collective, unless gathered.

        Returns:
            The report.
        """
        if self._gathered is None:
            self.gather()
        assert self._gathered is not None
        assert self._last is not None
        sums = self._gathered
        self._gathered = None
        sums = sums.scaled(1 / int(sums.samples))
        if not self.whole:
            sums = without_chance_kinks(sums)
        block = self._last.block
        squares, rows = self._scale
        report = BlockReport(
            name=self.name,
            step=self._step,
            block=block,
            slopes=slopes_from_sums(block, sums),
            states=states_from_sums(block, sums, (squares / rows) ** 0.5),
            samples=int(sums.samples) + self._glanced,
            exact=self.whole,
            sums=sums,
            caveats=_caveats(self._last),
            exactness=self._exactness(self._last),
        )
        self.sightings = 0
        return report

    def _comes_again(self, inputs: list[Tensor], batch: Sequence[Tensor]) -> bool:
        """Whether inputs and batch of a step are those of the one before, which may have been written over since."""
        before, prints = self._inputs, self._prints
        self._inputs = inputs
        self._prints = [some_numbers(one) for one in (*inputs, *batch)]
        if [one.shape for one in inputs] != [one.shape for one in before] or len(self._prints) != len(prints):
            return False
        pairs = [*zip(self._prints, prints, strict=True), *zip(inputs, before, strict=True)]
        return all(torch.equal(*pair) for pair in pairs)

    def _exactness(self, last: Sighting) -> str:
        """Whether later units sat on a kink in any of the sightings."""
        counts = [count for count in self._later if count is not None]
        total = int(torch.stack(counts).sum()) if counts and len(counts) == len(self._later) else None
        return exactness(total, tuple(sorted(self._uncounted)), last.to_the_loss)

    def _grown(self, seen: Sighting) -> bool:
        last = self._last
        return last is None or (last.inputs, last.neurons, last.outputs) != (seen.inputs, seen.neurons, seen.outputs)


class _Sums:
    """Sums over steps: exact ones of all rows, and of all rows too where a step has nothing to sample them from."""

    def __init__(self) -> None:
        self._exact: RunningSums | None = None
        self._sampled = SampledSums()

    def clear(self) -> None:
        """Begin anew."""
        self._exact = None
        self._sampled.clear()

    def add(self, seen: Sighting, exactly: bool) -> None:
        """Add a step. A signal is that of its batch's mean loss, and the sums are those of the sum over all samples."""
        if not exactly and samples_cheaply(seen):
            self._sampled.add(seen)
            return
        self._exact = self._exact or RunningSums()
        self._exact.add(seen.block, seen.signal, weight=seen.count, gradients=seen.gradients)

    @property
    def takes_glimpses(self) -> bool:
        """Whether a glance shows all there is to know of silent neurons."""
        return self._sampled.takes_glimpses

    def add_extremes(self, seen: Glimpse) -> None:
        """Add what a glance at a step has shown."""
        self._sampled.add_extremes(seen.lows, seen.highs)

    def sums(self, block: ShallowBlock) -> NeuronSums:
        """The sums of all steps, the last of which had the weights of a block."""
        exact = None if self._exact is None else self._exact.sums()
        if exact is not None and self._sampled.empty:
            return exact
        sampled = self._sampled.sums(block)
        return sampled if exact is None else sampled + exact


def _caveats(seen: Sighting) -> tuple[str, ...]:
    """What keeps first-order numbers from being exact."""
    caveats = []
    if seen.kinks_after:
        caveats.append(f"a later {' and '.join(seen.kinks_after)} has kinks of its own")
    if not seen.to_the_loss:
        caveats.append("what stands between it and the loss was not seen: a kink there would have slopes of its own")
    if seen.dropout:
        caveats.append("dropout: of the network that its masks left")
    if seen.tied:
        caveats.append("its layers share a weight, and move together")
    if seen.elsewhere:
        caveats.append("its first layer ran elsewhere in the step too, which these slopes leave out")
    return tuple(caveats)
