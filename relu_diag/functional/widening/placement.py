"""Where neurons that do nothing gain most: input weights, output weights, and by how much the loss falls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._amplitudes import (
    AmplitudeFit,
    Remainder,
    size_when_active,
    usual_size_when_active,
)
from relu_diag.functional.widening._candidates import (
    different_first,
    first_of_alike,
    placement_candidates,
    promise,
)
from relu_diag.functional.widening._weights import Frame, Lengths


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Neurons of a block, placed anew.

    Attributes:
        units: Which neurons, those that gain most first, long, shape ``(n,)``.
        W: Their input weights, shape ``(n, d)``.
        H: Their output weights, shape ``(J, n)``.
        gain: Rate at which the loss falls with the amplitude of each, of activations times the length of its output
            weights, less the price, shape ``(n,)``.
        drop: Drop of the loss as evaluated, on samples by which the neurons were not chosen where there are enough; 0
            where nothing was evaluated, output weights being zero.
        function_change: Largest change of an output on the samples.

    Example:
        >>> X = torch.eye(2)
        >>> block = ShallowBlock(W=-torch.ones(1, 2), H=torch.zeros(1, 1))
        >>> found = place_units(block, torch.tensor([0]), BlockSignal(X, G=-torch.ones(2, 1)), everything=True)
        >>> found.units.tolist(), found.drop, found.H.tolist()
        ([0], 0.0, [[0.0]])
    """

    units: Tensor
    W: Tensor
    H: Tensor
    gain: Tensor
    drop: float
    function_change: float

    def __str__(self) -> str:
        best = f", largest gain {self.gain[0]:.3g}" if len(self.gain) else ""
        return f"{counted(len(self.units), 'neuron')} placed anew{best}; the loss drops by {self.drop:.3g}"

    def first(self, count: int) -> Placement:
        """The first neurons alone.

        Args:
            count: How many.

        Returns:
            The placement; where some are left out, nothing of it has been evaluated, and its drop is 0.
        """
        if count >= len(self.units):
            return self
        W, H = self.W[:count], self.H[:, :count]
        return Placement(self.units[:count], W, H, self.gain[:count], drop=0.0, function_change=0.0)

    def applied_to(self, block: ShallowBlock) -> ShallowBlock:
        """A block with these neurons.

        Args:
            block: The block.

        Returns:
            The block with new weights in the places of the neurons.
        """
        W = block.W.clone()
        H = block.H.clone()
        units = self.units.to(W.device)
        W[units] = self.W.to(W)
        H[:, units] = self.H.to(H)
        return replace(block, W=W, H=H)


def place_units(
    block: ShallowBlock,
    units: Tensor,
    signal: BlockSignal,
    loss: Loss | None = None,
    price: float = 0.0,
    everything: bool = False,
    rest: Tensor | None = None,
    fill: bool = False,
) -> Placement:
    """Place neurons where they gain most: along different extremal directions, in a block in which they do nothing.

    Directions are climbed to from the samples that weigh most, in centred inputs where there is a bias. On every
    second sample they are chosen, on the others they must gain too, unless the samples are few or all there are. Where
    the loss is known, the neurons of a batch get the amplitudes at which it is lowest, none for some, batch after batch
    against what is left, and their drop is evaluated; else output weights of zero, so that the function stays. Where
    activity has a price, neurons are left out that would add little when they are active. Where all output weights have
    one length, as those of a dictionary that is kept normalised, theirs have it as well, and the usual one where
    activity has a price; without a loss the input weights are then small.

    Args:
        block: The block.
        units: The neurons, whose present output weights count as zero, long, shape ``(n,)``.
        signal: Inputs and loss gradients.
        loss: Loss of the outputs on these samples, in place of ``signal.G``.
        price: Loss per unit of mean activation of one neuron, as in `extremal_directions`.
        everything: Whether the samples are all there are.
        rest: Outputs of the block without the neurons, shape ``(N, J)``, where they are known.
        fill: Whether neurons that are left are placed by all samples, where their gain may be an accident. Their drop
            is not counted.

    Returns:
        As many of the neurons as gain something.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> X = torch.eye(2)
        >>> block = ShallowBlock(W=-torch.ones(2, 2), H=torch.zeros(1, 2))
        >>> Y = torch.tensor([[1.0], [-1.0]])
        >>> found = place_units(block, torch.tensor([0, 1]), BlockSignal(X, -Y), SquaredError(Y), everything=True)
        >>> print(found)
        2 neurons placed anew, largest gain 1; the loss drops by 1
    """
    check_fit(block, signal)
    if rest is None:
        H = block.H.detach().clone()
        H[:, units] = 0.0
        rest = chunked_outputs(replace(block, W=block.W.detach(), H=H), signal.X.detach())
    search = _Search(block, units, signal, rest, loss, price, everything, fill)
    for _ in range(BUDGETS.placements):
        if not search.place_some():
            break
    if fill:
        search.place_the_rest()
    return search.placement(signal.X)


def merge_units(block: ShallowBlock, units: Tensor, into: Tensor) -> ShallowBlock:
    """A block in which neurons hand their output weights to others along the same input weights.

    The function stays where the input weights point the same way exactly: the reverse of `replicate_unit`.

    Args:
        block: The block.
        units: Neurons that hand them over, long, shape ``(n,)``.
        into: Neurons that get them, none of them among ``units``, long, shape ``(n,)``.

    Returns:
        The block, with output weights of zero at ``units``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0], [2.0]]), H=torch.tensor([[3.0, 1.0]]))
        >>> merge_units(block, torch.tensor([1]), torch.tensor([0])).H
        tensor([[5., 0.]])
    """
    norm = block.W.norm(dim=1)
    H = block.H.clone()
    H.index_add_(1, into, H[:, units] * (norm[units] / norm[into]))
    H[:, units] = 0.0
    return replace(block, H=H)


class _Search:
    """Places neurons batch after batch."""

    def __init__(
        self,
        block: ShallowBlock,
        units: Tensor,
        signal: BlockSignal,
        outputs: Tensor,
        loss: Loss | None,
        price: float,
        everything: bool,
        fill: bool,
    ) -> None:
        self.block = block
        self.units = units
        self.everything = everything
        self.fill = fill
        X = signal.X.detach()
        self.frame = Frame.of(X)
        loss = None if loss is None else loss.prepared(outputs)
        G = signal.G.detach() if loss is None else loss.gradient(outputs)
        data = Remainder(self.frame.centred(X), outputs, G, loss, block.output_bias is not None)
        # Whether gradients without their mean, and as they are, are two things to place neurons by.
        self.off_centre = data.biased and data.is_off_centre
        self.whole = data
        self.split = not everything and len(X) >= BUDGETS.held_out
        self.data = data.part(0, 2) if self.split else data
        self.check = data.part(1, 2) if self.split else data
        self.lengths = Lengths.of(block, units, price > 0)
        # Of a unit of amplitude.
        self.price = price / self.lengths.fixed if self.lengths.fixed else price
        # A faint neuron that is often active is not what a price on activity is paid for.
        self.least_heard = FLOAT64.faint * usual_size_when_active(block, X, units) if price > 0 else 0.0
        self.in_vain = False
        self.known: list[tuple[Tensor, Tensor]] = []
        self.W: list[Tensor] = []
        self.H: list[Tensor] = []
        self.gains: list[Tensor] = []
        self.drop = 0.0
        self.placed = 0

    def place_some(self) -> bool:
        """Place a batch; whether there may be more to place."""
        room = min(len(self.units) - self.placed, BUDGETS.placed_at_once)
        if room < 1:
            return False
        v, o, expected, promised = self._directions(self.data, room)
        A = rho(self.check.X @ v.T, self.block.slopes)
        gain = self._gains(A, o)
        kept = self._no_accidents(A, o, gain, expected).nonzero().squeeze(1)
        # What few samples promise is often less on others.
        order = torch.minimum(promised, promise(gain, A))[kept].argsort(descending=True, stable=True)
        kept = kept[order]
        kept = kept[self._different(A[:, kept], o[kept])][:room]
        if not len(kept):
            return self._otherwise()
        v, o, A, gain = v[kept], o[kept], A[:, kept], gain[kept]
        if self.check.loss is None:
            self.known.append((v, o))
            self._add(v, o, gain, torch.zeros_like(gain))
            return self._on_the_other_half()
        amplitude = self._amplitudes(A, o, v)
        used = amplitude > 0
        if not bool(used.any()):
            return self._otherwise()
        v, o, A, gain, amplitude = v[used], o[used], A[:, used], gain[used], amplitude[used]
        self._add(v, o, gain, amplitude)
        drop = self._drop(A, o, amplitude)
        self.drop += drop
        self.check = self.check.moved((A * amplitude) @ o)
        self.data = self.data.moved((rho(self.data.X @ v.T, self.block.slopes) * amplitude) @ o)
        worth = FLOAT64.worth_before_rest if self.fill else FLOAT64.worth_another
        return self._on_the_other_half() and drop >= worth * self.drop

    def place_the_rest(self) -> None:
        """Place those that are left by all samples, where their gain may be an accident.

        Training tells: they find something, or are silent again at the next look.
        """
        room = min(len(self.units) - self.placed, BUDGETS.placed_at_once)
        if room < 1:
            return
        data = self.whole
        if self.W and data.loss is not None:
            new = ShallowBlock(torch.cat(self.W), torch.cat(self.H, dim=1), self.block.slopes)
            data = data.moved(chunked_outputs(new, data.X))
        v, o, gain, promised = self._directions(data, room)
        order = promised.argsort(descending=True, stable=True)
        if not len(order):
            return
        # What those placed before do is not done again, also where nothing shows that they do it.
        before = sum(len(known) for known, _ in self.known)
        inputs = torch.cat([*(known for known, _ in self.known), v[order]])
        outputs = torch.cat([*(known for _, known in self.known), o[order]])
        others = different_first(inputs, outputs)
        order = order[others[others >= before] - before][:room]
        v, o, gain = v[order], o[order], gain[order]
        amplitude = torch.zeros_like(gain)
        if data.loss is not None:
            fit = AmplitudeFit(data, rho(data.X @ v.T, self.block.slopes), o, self.price)
            amplitude = fit.best(torch.ones_like(gain, dtype=torch.bool))
        self._add(v, o, gain, amplitude)

    def _on_the_other_half(self) -> bool:
        """Go on with the samples held out as those to choose by, and the reverse: each half knows other neurons."""
        self.data, self.check = self.check, self.data
        self.in_vain = False
        return True

    def _otherwise(self) -> bool:
        """Go on where nothing was placed: on the other half; then with gradients as they are, or not at all.

        The output bias may be far from where it takes the mean of the gradients away.
        """
        if self.split and not (self.in_vain or self.placed):
            self._on_the_other_half()
            self.in_vain = True
            return True
        again = self.off_centre
        self.off_centre = False
        self.data, self.check = replace(self.data, biased=False), replace(self.check, biased=False)
        self.in_vain = False
        return again

    def _directions(self, data: Remainder, room: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Directions ``(n, d)``, outputs ``(n, J)``, gains ``(n,)``, and how much they promise to lower the loss."""
        found, promised = placement_candidates(data.X, data.felt, self.block.slopes, self.price, room)
        return found.v, found.o, found.gain, promised

    def _different(self, A: Tensor, o: Tensor) -> Tensor:
        """Neurons, the best first, without those that do much of what one before does: ``A (N, n)``, long."""
        before = sum(len(one) for _, one in self.known)
        A = torch.cat([*(rho(self.check.X @ known.T, self.block.slopes) for known, _ in self.known), A], dim=1)
        o = torch.cat([*(known for _, known in self.known), o])
        size = A.norm(dim=0)
        U = A / size.clamp(min=torch.finfo(A.dtype).tiny)
        # Without a loss nothing says how much of what one neuron does is left for the next.
        most = FLOAT64.overlap if self.check.loss is not None else FLOAT64.wide_overlap
        kept = first_of_alike(((U.T @ U) * (o @ o.T)).abs() > most) & (size > 0)
        chosen: Tensor = kept[before:].nonzero().squeeze(1)
        return chosen

    def _gains(self, A: Tensor, o: Tensor) -> Tensor:
        """Rates at which the loss falls on the samples held out, by activations there ``(N, n)``, ``(n,)``."""
        felt: Tensor = ((A.T @ self.check.felt) * o).sum(dim=1)
        return -felt - self.price * A.abs().mean(dim=0)

    def _no_accidents(self, A: Tensor, o: Tensor, gain: Tensor, expected: Tensor) -> Tensor:
        """Which gains are none of the samples held out, bool ``(n,)``: so many that chance would bring few of them."""
        if self.everything:
            return gain > 0
        noise: Tensor = (A * (self.check.felt @ o.T)).square().sum(dim=0).sqrt()
        noise = noise.clamp(min=torch.finfo(noise.dtype).tiny)
        # The price is no accident.
        errors = (gain + self.price * A.abs().mean(dim=0)) / noise
        order = errors.argsort(descending=True)
        by_chance = len(gain) * torch.special.ndtr(-errors[order])
        few = (by_chance <= FLOAT64.accidents * torch.arange(1, len(gain) + 1, device=gain.device)).nonzero()
        found = torch.zeros_like(gain, dtype=torch.bool)
        found[order[: int(few.max()) + 1 if len(few) else 0]] = True
        return found & (gain > torch.maximum(FLOAT64.agreement * expected, FLOAT64.sure * noise))

    def _amplitudes(self, A: Tensor, o: Tensor, v: Tensor) -> Tensor:
        """Amplitudes ``(n,)`` at which the loss of the samples that neurons were chosen by is lowest, some of them 0.

        The best length of that step is the one of the samples held out; all 0 where they are not sure of its drop.
        """
        chosen_by = rho(self.data.X @ v.T, self.block.slopes)
        fit = AmplitudeFit(self.data, chosen_by, o, self.price)
        fitted = fit.best(torch.ones_like(v[:, 0], dtype=torch.bool))
        loud = fitted * size_when_active(chosen_by) >= self.least_heard
        if not bool(loud.all()):
            fitted = fit.best(loud)
        best = torch.zeros_like(fitted)
        most = 0.0
        for halvings in range(BUDGETS.halvings):
            amplitude = fitted / 2**halvings
            drop = self._drop(A, o, amplitude)
            if 0 < most > drop:
                break
            if drop > most:
                best, most = amplitude, drop
        return best if self._is_sure(A, o, best) else torch.zeros_like(best)

    def _drop(self, A: Tensor, o: Tensor, amplitude: Tensor) -> float:
        """The drop of the loss on the samples held out, less the price."""
        assert self.check.loss is not None
        change = float(self.check.loss.change(self.check.outputs, (A * amplitude) @ o))
        return -change - self.price * float(A.abs().mean(dim=0) @ amplitude)

    def _is_sure(self, A: Tensor, o: Tensor, amplitude: Tensor) -> bool:
        """Whether the drop on the samples held out is beyond the spread of its parts."""
        if not self.split:
            return True
        loss = self.check.loss
        assert loss is not None
        step = (A * amplitude) @ o
        costs = self.price * (A.abs() @ amplitude) / len(A)
        parts = []
        for index in torch.arange(len(A), device=A.device).chunk(BUDGETS.parts_held_out):
            change = loss.rows(index).change(self.check.outputs[index], step[index])
            parts.append(-change - costs[index].sum())
        drops = torch.stack(parts)
        noise = float(drops.std()) * len(drops) ** 0.5
        return bool(drops.sum() > FLOAT64.sure * noise)

    def _add(self, v: Tensor, o: Tensor, gain: Tensor, amplitude: Tensor) -> None:
        """Note neurons of some amplitudes, zero for such as leave the function as it is."""
        W, H = self.lengths.weights(v, o, amplitude)
        self.W.append(W)
        self.H.append(H)
        self.gains.append(gain)
        self.placed += len(v)

    def placement(self, X: Tensor) -> Placement:
        """What was placed."""
        outputs, inputs = len(self.block.H), self.block.W.shape[1]
        if not self.W:
            empty = self.block.W.new_empty(0, inputs)
            return Placement(self.units[:0], empty, empty.new_empty(outputs, 0), empty[:, 0], 0.0, 0.0)
        W = self.frame.back(torch.cat(self.W))
        H = torch.cat(self.H, dim=1)
        new = ShallowBlock(W, H, self.block.slopes)
        change = float(chunked_outputs(new, X.detach()).abs().max())
        return Placement(self.units[: len(W)], W, H, torch.cat(self.gains), self.drop, change)
