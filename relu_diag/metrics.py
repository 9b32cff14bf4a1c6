"""Accumulate the sums of a block over batches and ranks, as a torchmetrics Metric."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from relu_diag.functional import BlockSignal, NeuronGeometry, NeuronStates, ShallowBlock
from relu_diag.functional.local import (
    KinkSamples,
    NeuronSlopes,
    NeuronSums,
    geometry_from_sums,
    neuron_sums,
    states_from_sums,
)

_KINKS = [field.name for field in fields(KinkSamples)]
_SUMS = [field.name for field in fields(NeuronSums) if field.name != "kinks"]
_PARTS = 32
_REDUCTIONS = {"z_min": "min", "z_max": "max"}


class BlockMetric(Metric):
    """Geometry and states of a block over a data set at fixed weights; the result does not depend on how it is split.

    Args:
        neurons: Number ``I`` of hidden neurons.
        inputs: Number ``d`` of inputs, the hidden bias counted.
        outputs: Number ``J`` of outputs.
        reduction: "sum": the loss is the sum over the batches. "mean": each signal is that of its batch's mean loss,
            and the result is that of the mean loss over all samples.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        kwargs: Further arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If the reduction is unknown.

    Example:
        >>> block = ShallowBlock(W=torch.eye(2), H=torch.ones(1, 2))
        >>> metric = BlockMetric(neurons=2, inputs=2, outputs=1)
        >>> for x in (torch.eye(2), -torch.eye(2)):
        ...     metric.update(block, BlockSignal(x, torch.ones(2, 1)))
        >>> int(metric.sums().samples), int(metric.compute()["on_kink"])
        (4, 2)
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(
        self,
        neurons: int,
        inputs: int,
        outputs: int,
        reduction: Literal["sum", "mean"] = "sum",
        kink_tol: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reduction not in {"sum", "mean"}:
            raise ValueError(f"`reduction` must be 'sum' or 'mean'; got {reduction!r}.")
        self.reduction = reduction
        self.kink_tol = kink_tol
        self._block: ShallowBlock | None = None
        none = torch.zeros(0, dtype=torch.float64)
        initial = {
            "smooth": none.new_zeros(neurons, inputs),
            "output_gradient": none.new_zeros(outputs, neurons),
            "kink_count": torch.zeros(neurons, dtype=torch.long),
            "lost": torch.zeros(neurons, dtype=torch.long),
            "z_min": none.new_full((neurons,), torch.inf),
            "z_max": none.new_full((neurons,), -torch.inf),
            "activation": none.new_zeros(neurons),
            "terms": none.new_zeros(neurons),
            "terms_per_output": none.new_zeros(neurons),
            "output_terms": none.new_zeros(neurons),
            "squares": none.new_zeros(neurons),
            "by_chance": none.new_zeros(neurons),
            "samples": torch.tensor(0),
        }
        for name in _SUMS:
            self.add_state(name, initial[name], dist_reduce_fx=_REDUCTIONS.get(name, "sum"))
        for name in _KINKS:
            self.add_state(name, [], dist_reduce_fx="cat")
        self._empty = KinkSamples(none.long(), none.new_zeros(0, inputs), none)
        self.reset()

    def update(self, block: ShallowBlock, signal: BlockSignal, gradients: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            block: The network; the same weights at every update, or those of a path.
            signal: Its signal on the batch.
            gradients: The gradients by ``W`` and ``H`` where a backward pass has them already (`neuron_sums`).
        """
        self._block = block
        sums = neuron_sums(block, signal, self.kink_tol, gradients)
        weight = len(signal.X) if self.reduction == "mean" else 1
        # The one large part is added in place and in its own dtype; it takes no part in the sum below.
        if self.update_count == 1:
            self.smooth = torch.zeros_like(sums.smooth)
        self.smooth.add_(sums.smooth, alpha=weight)
        batch = replace(sums, smooth=sums.smooth[:0]).scaled(weight)
        # Joining the kinks at every batch would copy the first ones each time.
        join = len(getattr(self, _KINKS[0])) >= _PARTS
        held = self._local(None if join else self._no_kinks)
        total = replace(held, smooth=held.smooth[:0]) + (batch if join else replace(batch, kinks=self._no_kinks))
        for name in _SUMS:
            if name != "smooth":
                setattr(self, name, getattr(total, name))
        for name in _KINKS:
            parts = [getattr(total.kinks, name)] if join else [*getattr(self, name), getattr(batch.kinks, name)]
            setattr(self, name, parts)

    def compute(self) -> dict[str, Tensor]:
        """The scalars of `landscape_scalars`, with a target scale of 1.

        Returns:
            Scalars by name.

        Raises:
            ValueError: If no sample was added.
        """
        sums = self._finished()
        if self._block is None or not int(sums.samples):
            raise ValueError("No sample was added: update the metric first.")
        return landscape_scalars(geometry_from_sums(self._block, sums), states_from_sums(self._block, sums, scale=1.0))

    def sums(self) -> NeuronSums:
        """The sums over all samples of all ranks, the input of `geometry_from_sums` and `states_from_sums`.

        Returns:
            Sums.
        """
        self.smooth = self.smooth.double()  # A rank without samples has another dtype.
        with self.sync_context(dist_sync_fn=gather_all_tensors):
            return self._finished()

    def reset(self) -> None:
        """Forget everything added."""
        super().reset()
        for name in _KINKS:  # A rank without kinks gathers empty tensors: an empty list cannot be gathered.
            setattr(self, name, [getattr(self._no_kinks, name)])

    @property
    def _no_kinks(self) -> KinkSamples:
        """No kink samples, on the metric's device."""
        return KinkSamples(*(getattr(self._empty, name).to(self.device) for name in _KINKS))

    def _local(self, kinks: KinkSamples | None = None) -> NeuronSums:
        """The sums on this rank, with the kinks given or, without any, its own."""
        kinks = kinks or KinkSamples(*(dim_zero_cat(getattr(self, name)) for name in _KINKS))
        return NeuronSums(kinks=kinks, **{name: getattr(self, name) for name in _SUMS})

    def _finished(self) -> NeuronSums:
        """The sums, divided by the number of samples if the reduction is "mean"."""
        sums = self._local()
        return sums.scaled(1 / max(int(sums.samples), 1)) if self.reduction == "mean" else sums


def sums_of_all_ranks(sums: NeuronSums, repeated: bool = False) -> NeuronSums:
    """The sums of every rank, added up; a collective, where there are several.

    Args:
        sums: Sums over this rank's samples.
        repeated: Whether another rank has these samples too, so that those of this one do not count.

    Returns:
        Sums over all samples.

    Example:
        >>> block = ShallowBlock(W=torch.eye(2), H=torch.ones(1, 2))
        >>> sums = neuron_sums(block, BlockSignal(torch.eye(2), torch.ones(2, 1)))
        >>> sums_of_all_ranks(sums) is sums  # one rank
        True
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    neurons, inputs = sums.smooth.shape
    metric = BlockMetric(neurons, inputs, len(sums.output_gradient)).to(sums.smooth.device)
    if not repeated:
        for name in _SUMS:
            setattr(metric, name, getattr(sums, name))
        for name in _KINKS:
            setattr(metric, name, [getattr(sums.kinks, name)])
    metric.output_gradient = metric.output_gradient.double()
    return metric.sums()


def landscape_scalars(geometry: NeuronGeometry | NeuronSlopes, states: NeuronStates) -> dict[str, Tensor]:
    """Scalars that describe a block while it trains.

    Args:
        geometry: One-sided derivatives.
        states: Neuron states.

    Returns:
        Scalars: ``dead``, ``brink``, ``linear``, ``small_living``, ``dormant`` (numbers of neurons), ``on_kink``
        (neurons with more samples on their kink than by chance), ``effective`` (number of groups),
        ``largest_amplitude`` and ``total_amplitude`` (of the effective neurons), ``steepest_slope`` (<= 0),
        ``slope_to_noise`` (median over the neurons that feel the loss: about 1 where at least half of them see nothing
        but noise), ``largest_radial`` and ``largest_output_gradient`` (absolute derivatives), ``pull`` (growth rate of
        the small living neuron that is pulled most; where there is none, of a small neuron that would point where some
        neuron does).

    Example:
        >>> from relu_diag import functional as F
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> block = ShallowBlock(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(1, 2))
        >>> geometry = F.neuron_geometry(block, F.squared_error_signal(block, X, Y))
        >>> scalars = landscape_scalars(geometry, F.neuron_states(block, X, Y))
        >>> int(scalars["dead"]), int(scalars["effective"])
        (1, 1)
    """
    amplitude = states.group_amplitude
    feeling = geometry.noise > 0
    pull = torch.where(states.small_living, geometry.pull, 0.0).max()
    return {
        "dead": states.dead.sum(),
        "brink": states.brink.sum(),
        "linear": states.linear.sum(),
        "small_living": states.small_living.sum(),
        "dormant": states.dormant().sum(),
        "on_kink": (geometry.kink_count > 0).sum(),
        "effective": torch.tensor(len(amplitude)),
        "largest_amplitude": amplitude.max() if len(amplitude) else amplitude.sum(),
        "total_amplitude": amplitude.sum(),
        "steepest_slope": geometry.steepest.min(),
        "slope_to_noise": geometry.slope_to_noise[feeling].median() if bool(feeling.any()) else geometry.noise.max(),
        "largest_radial": geometry.radial.abs().max(),
        "largest_output_gradient": geometry.output_gradient.abs().max(),
        "pull": torch.where(pull > 0, pull, geometry.pull.max()),
    }
