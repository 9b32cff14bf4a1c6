"""A block as a backward pass saw it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from relu_diag.capture._ridden import Application, Ridden, Weights
from relu_diag.capture.live import LiveBlock
from relu_diag.functional import BlockSignal, ShallowBlock


@dataclass(frozen=True, eq=False)
class Sighting:
    """A block as a backward pass saw it. What it is made of is kept as it passed by; the rest is computed when asked.

    Attributes:
        hidden: Qualified name of the first layer.
        readers: Qualified names of the layers that read it.
        ridden: The weights and rows as they passed by.
        dropout: Whether dropout or a factor stands behind the activation: it is in ``C``, and not in ``block``.
        tied: Whether both layers, or two readers, are the same parameter.
        from_data: Whether the inputs are data, with nothing trained below.
        kinks_after: Operations with a kink that the loss is computed through behind the block. Where an input sits on
            one, ``G`` is one of many gradients, and the slopes of the block are not exact.
        to_the_loss: Whether all that stands between the block and the loss was seen.
        live: The block at the parameters of now; None for weights that are computed from others, and with a batch norm.
        parameters: The parameters that took part: weights, biases, the slope of a PReLU.
        later_kinks: Number of inputs of those operations that sit on their kinks and get a gradient, shape ``()``, on
            the block's device; None where nobody counted.
        uncounted: Those operations whose inputs are not known: their kinks are missing from the count.
        choosing: Those operations that make a single number, as the larger one of two losses; the loss is then another
            function elsewhere.
        elsewhere: Whether the first layer had another gradient in the step: its weights are used beside the block too.
        reruns: Whether it ran beside the block, with gradient or without: inputs may be computed with its weights.
        sharded: Whether its parameters are sharded over processes (FSDP2, tensor parallelism).
        repeated: Whether another process saw the same rows, and counts them, as under tensor parallelism.

    Example:
        >>> import torch
        >>> from relu_diag.capture import riding
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with riding(net) as ride:
        ...     loss = net(torch.eye(2)).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> seen.name, seen.from_data, seen.exactness
        ('0 -> 2', True, 'exact')
    """

    hidden: str
    readers: tuple[str, ...]
    ridden: Ridden
    dropout: bool
    tied: bool
    from_data: bool
    kinks_after: tuple[str, ...]
    to_the_loss: bool
    live: LiveBlock | None
    parameters: tuple[nn.Parameter, ...] = ()
    later_kinks: Tensor | None = None
    uncounted: tuple[str, ...] = ()
    choosing: tuple[str, ...] = ()
    elsewhere: bool = False
    reruns: bool = False
    sharded: bool = False
    repeated: bool = False

    @classmethod
    def of_pass(
        cls,
        names: tuple[str, str],
        block: ShallowBlock,
        signal: BlockSignal,
        live: LiveBlock,
        parameters: tuple[nn.Parameter, ...] = (),
        from_data: bool = False,
    ) -> Sighting:
        """What a ride would have seen of a pass.

        Args:
            names: Qualified names of the two layers.
            block: The block, at the weights of the pass.
            signal: Its signal, with ``C``.
            live: A way to its parameters.
            parameters: Its parameters.
            from_data: Whether nothing below it is trained.

        Returns:
            The sighting.
        """
        assert signal.C is not None
        weights = Weights(block.W, None, (block.H,), (block.output_bias,), block.slopes)
        rows = Application(signal.X, signal.Z, None, signal.C, (signal.G,), 1.0, None, (signal.G.sum(), signal.C.sum()))
        return cls(
            hidden=names[0],
            readers=names[1:],
            ridden=Ridden(weights, (rows,)),
            dropout=False,
            tied=False,
            from_data=from_data,
            kinks_after=(),
            to_the_loss=True,
            live=live,
            parameters=parameters,
        )

    @property
    def name(self) -> str:
        """The block in a few words: ``net.0 -> net.2``."""
        return f"{self.hidden} -> {', '.join(self.readers)}"

    @property
    def count(self) -> int:
        """Number of rows that went through the block."""
        return self.ridden.count

    @property
    def inputs(self) -> int:
        """Number of inputs of the block, the constant one counted."""
        weights = self.ridden.weights
        return weights.W.shape[1] + (weights.bias is not None)

    @property
    def neurons(self) -> int:
        """Number of hidden neurons."""
        return len(self.ridden.weights.W)

    @property
    def outputs(self) -> int:
        """Number of outputs, of all readers together."""
        return sum(len(head) for head in self.ridden.weights.heads)

    @property
    def outgrown(self) -> bool:
        """Whether its weights have other shapes by now, as a layer was widened since."""
        if self.live is None:
            return False
        weights = self.ridden.weights
        now = [one.value().shape for one in (self.live.hidden, *self.live.readers)]
        return now != [one.shape for one in (weights.W, *weights.heads)]

    @property
    def rounding(self) -> float:
        """Relative rounding of the gradients as they passed by, which under autocast is not that of the weights."""
        dtypes = {head.dtype for one in self.ridden.applications for head in (one.C, *one.heads)}
        return max(torch.finfo(dtype).eps for dtype in {self.block.W.dtype, *dtypes})

    @cached_property
    def block(self) -> ShallowBlock:
        """The weights that took part; the outputs of several readers below each other."""
        return self.ridden.weights.block()

    @cached_property
    def signal(self) -> BlockSignal:
        """Inputs and loss gradients, one row per row that went through the block."""
        return self.ridden.signal()

    @cached_property
    def passed(self) -> Tensor:
        """Outputs of the block for its rows, shape ``(N, J)``."""
        return self.block(self.signal.X)

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor] | None:
        """Gradients by the weights of this use, as autograd has them, ``(I, d)`` and ``(J, I)``; or None."""
        return self.ridden.gradients()

    @property
    def exactness(self) -> str:
        """Whether the slopes of the block are those of the loss, in a few words: it waits for the device."""
        count = None if self.later_kinks is None else int(self.later_kinks)
        return exactness(count, self.uncounted, self.to_the_loss)


def exactness(later_kinks: int | None, uncounted: tuple[str, ...] = (), to_the_loss: bool = True) -> str:
    """Whether slopes of a block are exactly those of the loss, in a few words.

    Args:
        later_kinks: Number of inputs behind the block that sit on a kink of a later operation; None: not counted.
        uncounted: Later operations whose kinks are missing from the count.
        to_the_loss: Whether all that stands between the block and the loss was seen.

    Returns:
        "exact", "not exact: 3 later kinks", or why that is not known.

    Example:
        >>> exactness(0), exactness(3)
        ('exact', 'not exact: 3 later kinks')
        >>> exactness(0, ("MaxPool2DWithIndices",))
        'perhaps not exact: kinks of a later MaxPool2DWithIndices were not counted'
    """
    if later_kinks:
        return f"not exact: {later_kinks:,} later kink{'s' if later_kinks > 1 else ''}"
    if later_kinks is None or not to_the_loss:
        return "perhaps not exact: later kinks were not counted"
    if uncounted:
        return f"perhaps not exact: kinks of a later {' and '.join(uncounted)} were not counted"
    return "exact"
