"""The sums over samples that everything about a neuron follows from: one pass over the data, then small algebra."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunk_rows, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local._lengths import column_lengths
from relu_diag.functional.local._pairs import CollectedPairs, joined, keep_pairs
from relu_diag.functional.local.chunks import Chunk, chunks
from relu_diag.functional.local.kink_samples import KinkSamples
from relu_diag.functional.tolerances import FLOAT64, kink_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSums:
    """Sums, minima and maxima over samples, per neuron. ``+`` adds the sums of other samples.

    Attributes:
        smooth: Smooth part ``g`` of the one-sided derivative, of the block's dtype (float32 at least) for one signal,
            float64 once added, shape ``(I, d)``.
        output_gradient: Loss gradient with respect to ``H``, of the dtype of ``smooth``, shape ``(J, I)``.
        kinks: Kink samples with nonzero gradient: all of a neuron's, or none where they were too many.
        lost: Number of kink samples with nonzero gradient that were too many to keep, long, shape ``(I,)``.
        kink_count: Number of samples on the kink of each neuron, long, shape ``(I,)``.
        z_min: Smallest pre-activation, zero on the kink, samples with ``x_k = 0`` left out, shape ``(I,)``.
        z_max: Largest one, shape ``(I,)``.
        activation: Sum of ``|rho(z_ki)|``, float64, shape ``(I,)``.
        terms: Sum of the absolute terms of the derivative by the input weights, over the samples the neuron sees:
            ``|s(z_ki)| ||x_k||`` times the larger of ``||h_i|| ||e_k||`` and ``|c_ki|``, with the larger slope on the
            kink. The natural scale of that derivative: it scales as the derivative does when ``(w, h)`` becomes
            ``(c w, h / c)``, and its rounding is a few ``eps`` of it. Loss per unit length, float64, shape ``(I,)``.
        terms_per_output: The same per unit of output weight, ``sum_k |s(z_ki)| ||e_k|| ||x_k||``: the scale of
            derivatives of the outputs' parts, float64, shape ``(I,)``.
        output_terms: Sum of the absolute terms of the derivative by the output weights, ``sum_k ||e_k|| |rho(z_ki)|``,
            float64, shape ``(I,)``.
        squares: Sum of the squared lengths of the samples' own derivatives by the input weights,
            ``(s(z_ki) c_ki ||x_k||)^2``, with the larger slope on the kink, float64, shape ``(I,)``.
        by_chance: Number of samples that chance alone would put on the kink, from how many are beside it, float64,
            shape ``(I,)``.
        samples: Number of samples, long, shape ``()``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0], [-1.0]]), H=torch.tensor([[1.0, 1.0]]))
        >>> sums = neuron_sums(block, BlockSignal(X=torch.tensor([[3.0]]), G=torch.tensor([[-1.0]])))
        >>> sums.terms.tolist(), sums.scaled(-2.0).terms.tolist()  # the second neuron does not see the sample
        ([3.0, 0.0], [6.0, 0.0])
    """

    smooth: Tensor
    output_gradient: Tensor
    kinks: KinkSamples
    lost: Tensor
    kink_count: Tensor
    z_min: Tensor
    z_max: Tensor
    activation: Tensor
    terms: Tensor
    terms_per_output: Tensor
    output_terms: Tensor
    squares: Tensor
    by_chance: Tensor
    samples: Tensor

    def __add__(self, other: NeuronSums) -> NeuronSums:
        kinks, lost = keep_pairs([self.kinks, other.kinks], self.lost + other.lost)
        return NeuronSums(
            smooth=self.smooth.double() + other.smooth,
            output_gradient=self.output_gradient.double() + other.output_gradient,
            kinks=kinks,
            lost=lost,
            kink_count=self.kink_count + other.kink_count,
            z_min=torch.minimum(self.z_min, other.z_min),
            z_max=torch.maximum(self.z_max, other.z_max),
            activation=self.activation + other.activation,
            terms=self.terms + other.terms,
            terms_per_output=self.terms_per_output + other.terms_per_output,
            output_terms=self.output_terms + other.output_terms,
            squares=self.squares + other.squares,
            by_chance=self.by_chance + other.by_chance,
            samples=self.samples + other.samples,
        )

    def scaled(self, factor: float) -> NeuronSums:
        """The same sums for the loss multiplied by a factor.

        Args:
            factor: The factor.

        Returns:
            Sums in which all that is linear in the loss gradient is multiplied, sizes by the factor's.
        """
        size = abs(factor)
        return replace(
            self,
            terms=self.terms * size,
            terms_per_output=self.terms_per_output * size,
            output_terms=self.output_terms * size,
            squares=self.squares * size**2,
            smooth=self.smooth * factor,
            output_gradient=self.output_gradient * factor,
            kinks=replace(self.kinks, c=self.kinks.c * factor),
        )


def neuron_sums(
    block: ShallowBlock,
    signal: BlockSignal,
    kink_tol: float | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
) -> NeuronSums:
    """All sums over the samples of a signal, in chunks; the big products stay in the caller's dtype (float32 for less).

    Args:
        block: The network.
        signal: Its signal, ``N`` samples.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        gradients: The gradients of the loss by ``W`` and ``H`` where a backward pass has computed them, ``(I, d)`` and
            ``(J, I)``; they save the two large products.

    Returns:
        The sums. Memory is ``O(I d + I J)`` plus a chunk, whatever ``N``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> batches = [BlockSignal(torch.full((2, 1), x), torch.ones(2, 1)) for x in (3.0, -1.0)]
        >>> sums = neuron_sums(block, batches[0]) + neuron_sums(block, batches[1])
        >>> sums.smooth.item(), sums.z_min.item(), sums.samples.item()
        (6.0, -1.0, 4)
    """
    running = RunningSums()
    running.add(block, signal, kink_tol=kink_tol, gradients=gradients)
    return running.sums()


def slopes_at(Z: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The slope of the activation, and the mean of the two on the kink.

    Args:
        Z: Pre-activations, any shape.
        slopes: ``(s-, s+)``.

    Returns:
        ``s+``, ``s-`` or ``a = (s+ + s-) / 2``, shape of ``Z``.

    Example:
        >>> slopes_at(torch.tensor([-2.0, 0.0, 3.0]), slopes=(0.0, 1.0))
        tensor([0.0000, 0.5000, 1.0000])
    """
    s_minus, s_plus = slopes
    return Z.sign().mul_((s_plus - s_minus) / 2).add_((s_plus + s_minus) / 2)


class RunningSums:
    """Sums that grow batch by batch, in place: watching a step of training must cost next to nothing.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> running = RunningSums()
        >>> for x in (3.0, 1.0):
        ...     running.add(block, BlockSignal(torch.full((2, 1), x), torch.ones(2, 1)), weight=2.0)
        >>> running.sums().smooth.item(), running.sums().samples.item()
        (16.0, 4)
    """

    def __init__(self) -> None:
        self._totals: _Totals | None = None

    def add(
        self,
        block: ShallowBlock,
        signal: BlockSignal,
        weight: float = 1.0,
        kink_tol: float | None = None,
        gradients: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Add the sums over the samples of a signal.

        Args:
            block: The network, of the shape of the first one.
            signal: Its signal.
            weight: Factor of the loss whose signal it is, positive.
            kink_tol: Relative distance that counts as on the kink; None: by dtype.
            gradients: The gradients of the loss by ``W`` and ``H`` where a backward pass has computed them.
        """
        if self._totals is None:
            self._totals = _Totals(block, given=gradients is not None)
        self._totals.begin(block, signal, weight, kink_tolerance(kink_tol, block.W.dtype))
        if gradients is not None:
            self._totals.add_gradients(*gradients)
        for chunk in chunks(block, signal, kink_tol):
            self._totals.add(chunk, given=gradients is not None)

    def sums(self) -> NeuronSums:
        """What was added so far; later additions change it.

        Returns:
            The sums.

        Raises:
            ValueError: If nothing was added.
        """
        if self._totals is None:
            raise ValueError("Nothing was added: there are no sums without a sample.")
        return self._totals.sums()


class _Totals:
    """What is added up, chunk by chunk: the large sums in the dtype of the products, the small ones in float64."""

    def __init__(self, block: ShallowBlock, given: bool) -> None:
        neurons, inputs = block.W.shape
        device = block.W.device
        wide = torch.promote_types(block.W.dtype, torch.float32)
        none = torch.zeros(neurons, dtype=wide, device=device)
        # The products are faster this way round; gradients that are given have the other one.
        self.smooth = none.new_zeros(neurons, inputs) if given else none.new_zeros(inputs, neurons).T
        self.output_gradient = none.new_zeros(len(block.H), neurons)
        # Rows: activation, terms, terms_per_output, output_terms, squares, by_chance.
        self.small = none.new_zeros(6, neurons, dtype=torch.float64)
        self.z_min = none + torch.inf
        self.z_max = none - torch.inf
        self.kink_count = none.long()
        self.pairs = CollectedPairs(neurons, inputs, device)
        self.memory = none.new_empty(0)
        self.samples = 0

    def begin(self, block: ShallowBlock, signal: BlockSignal, weight: float, kink_tol: float) -> None:
        """Turn to another signal."""
        self.slopes = block.slopes
        self.steep = (abs(block.slopes[0]), abs(block.slopes[1]))
        self.weight = weight
        self.kink_tol = kink_tol
        self.h_norm = column_lengths(block.H.detach().to(self.z_min.dtype))
        self.own_terms = signal.C is not None
        self.samples += len(signal.X)
        rows = min(chunk_rows(block), len(signal.X))
        if self.memory.numel() < 2 * rows * len(self.z_min):
            self.memory = self.z_min.new_empty(2, rows, len(self.z_min))

    def add_gradients(self, by_W: Tensor, by_H: Tensor) -> None:
        """Add gradients that are given, ``(I, d)`` and ``(J, I)``."""
        self.smooth.add_(by_W.detach(), alpha=self.weight)
        self.output_gradient.add_(by_H.detach(), alpha=self.weight)

    def add(self, chunk: Chunk, given: bool) -> None:
        """Add the sums of a chunk; of the gradients only what autograd leaves out, where they are given."""
        memory, other = self.memory[:, : len(chunk.Z)]
        torch.minimum(self.z_min, chunk.Z.amin(0), out=self.z_min)
        torch.maximum(self.z_max, chunk.Z.amax(0), out=self.z_max)
        if given:
            self._move_onto_kinks(chunk)
        else:
            pushed = _times_slopes(chunk.C, chunk, self.slopes, sum(self.slopes) / 2, memory)
            self.smooth.T.addmm_(chunk.X.T, pushed, alpha=self.weight)
        size = chunk.G.norm(dim=1)
        self._add_terms(chunk, size, memory, other)
        A = _activations(chunk.Z, self.slopes, memory)
        if not given:
            self.output_gradient.addmm_(chunk.G.T, A, alpha=self.weight)
        # With a zero slope all activations have one sign.
        sizes = torch.stack([torch.ones_like(size), self.weight * size])
        activation, output_terms = sizes @ (A.abs_() if 0 not in self.slopes else A)
        self.small[0] += activation.abs_()
        self.small[3] += output_terms.abs_()
        self._add_chance(chunk)
        if len(chunk.kinks):
            self.kink_count += torch.bincount(chunk.kinks[:, 1], minlength=len(self.kink_count))
            self.pairs.add(chunk, self.weight)

    def sums(self) -> NeuronSums:
        """The sums so far."""
        activation, terms, terms_per_output, output_terms, squares, by_chance = self.small
        return NeuronSums(
            smooth=self.smooth,
            output_gradient=self.output_gradient,
            kinks=joined(self.pairs.parts),
            lost=self.pairs.lost,
            kink_count=self.kink_count,
            z_min=self.z_min.double(),
            z_max=self.z_max.double(),
            activation=activation,
            terms=terms,
            terms_per_output=terms_per_output,
            output_terms=output_terms,
            squares=squares,
            by_chance=by_chance,
            samples=torch.tensor(self.samples, device=self.kink_count.device),
        )

    def _move_onto_kinks(self, chunk: Chunk) -> None:
        """Autograd took the pairs on the kink for one of its sides, at zero for the lower one: take the mean."""
        if not len(chunk.kinks):
            return
        s_minus, s_plus = self.slopes
        row, neuron = chunk.kinks.unbind(1)
        off = (s_plus + s_minus) / 2 - torch.where(chunk.beside > 0, s_plus, s_minus)
        missing = self.weight * off * chunk.C[row, neuron]
        self.smooth.index_add_(0, neuron, chunk.X[row] * missing[:, None].to(chunk.X))

    def _add_terms(self, chunk: Chunk, size: Tensor, memory: Tensor, other: Tensor) -> None:
        """Add the absolute terms of the derivatives by the input weights, and their squares."""
        one = chunk.Z.new_ones(1, 1).expand_as(chunk.Z)
        seen = _times_slopes(one, chunk, self.steep, max(self.steep), memory)
        per_output = (self.weight * size * chunk.length) @ seen
        self.small[2] += per_output
        felt = torch.mul(seen, chunk.C, out=other).abs_()
        self.small[4] += (self.weight * chunk.length).square_() @ felt.square()
        if not self.own_terms:
            self.small[1] += self.h_norm * per_output
            return
        # What arrives behind the activation may be more than ``G H``, and less where that cancels.
        through = seen.mul_(size[:, None]).mul_(self.h_norm.to(seen))
        self.small[1] += (self.weight * chunk.length) @ torch.maximum(felt, through, out=through)

    def _add_chance(self, chunk: Chunk) -> None:
        """Add the samples that chance puts on the kinks: those beside them, times how much narrower the kink is."""
        band = max(FLOAT64.beside, FLOAT64.wider * self.kink_tol)
        some = slice(None, None, -(-chunk.Z.numel() // BUDGETS.cached))  # spread out: data may be in order
        Z = chunk.Z[some]
        near = (Z.abs() <= torch.outer(chunk.length[some], (band * chunk.w_length).to(Z))).sum(0)
        if len(chunk.kinks):
            near -= (Z == 0).sum(0)
        narrower = self.kink_tol / (band - self.kink_tol)
        self.small[5].add_(near, alpha=narrower * len(chunk.Z) / len(Z))


def _activations(Z: Tensor, slopes: tuple[float, float], memory: Tensor) -> Tensor:
    """``rho(Z)`` in memory that may be overwritten, ``(n, I)``."""
    return rho(memory.copy_(Z), slopes, inplace=True)


def _times_slopes(value: Tensor, chunk: Chunk, slopes: tuple[float, float], on_kink: float, memory: Tensor) -> Tensor:
    """A value per pair times the slope of its activation, and times a given one on the kink, ``(n, I)``."""
    s_minus, s_plus = slopes
    if s_plus == 0:
        out = torch.mul(slopes_at(chunk.Z, slopes), value, out=memory)
    else:
        # The kernel behind autograd's leaky_relu: one pass over memory where sign, add and multiply take three.
        backward = torch.ops.aten.leaky_relu_backward.grad_input
        out = backward(value, chunk.Z, s_minus / s_plus, False, grad_input=memory)
        if s_plus != 1:
            out.mul_(s_plus)
    if len(chunk.kinks):
        at = chunk.kinks.unbind(1)
        out[at] = on_kink * value[at]
    return out
