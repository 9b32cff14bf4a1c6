"""What hooks on the nodes of a block note during a backward pass, and the sighting they make together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from relu_diag.capture._graph import Passage, Product, trained_slope
from relu_diag.capture._kinks import LaterKink, later_kinks
from relu_diag.capture._nodes import operation
from relu_diag.capture.live import LiveBlock, stacked
from relu_diag.functional import BlockSignal, ShallowBlock

# Runs a hook with its arguments.
Guard = Callable[..., None]


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A block as a backward pass saw it.

    Attributes:
        hidden: Qualified name of the first layer.
        readers: Qualified names of the layers that read it.
        block: The weights that took part; the outputs of several readers below each other.
        signal: Inputs and loss gradients, one row per row that went through the block.
        gradients: Gradients by the weights of this use, as autograd has them, ``(I, d)`` and ``(J, I)``; None where it
            computed none.
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
    block: ShallowBlock
    signal: BlockSignal
    gradients: tuple[Tensor, Tensor] | None
    dropout: bool
    tied: bool
    from_data: bool
    kinks_after: tuple[str, ...]
    to_the_loss: bool
    live: LiveBlock | None
    parameters: tuple[nn.Parameter, ...] = ()
    later_kinks: Tensor | None = None
    uncounted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The block in a few words: ``net.0 -> net.2``."""
        return f"{self.hidden} -> {', '.join(self.readers)}"

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


@dataclass(slots=True, eq=False)
class Reader:
    """A layer that reads the activations: its weight and bias as they took part, and what its hook noted."""

    product: Product
    H: Tensor
    bias: Tensor | None
    bias_parameter: nn.Parameter | None
    G: Tensor | None = None
    by_weight: Tensor | None = None

    def listen(self, guard: Guard) -> RemovableHandle:
        """The hook on its node."""
        return self.product.node.register_hook(partial(guard, self._note))

    def _note(self, below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
        if above[0] is None:
            return
        self.G = _added(self.G, above[0])
        by_weight = self.product.weight_gradient(below)
        if by_weight is not None:
            self.by_weight = _added(self.by_weight, by_weight)


@dataclass(slots=True, eq=False)
class Block:
    """One application of a block in one forward pass, and what the hooks on its nodes noted."""

    hidden: Product
    passage: Passage
    readers: list[Reader]
    W: Tensor
    slopes: tuple[float, float]
    X: Tensor
    Z: Tensor | None
    kinks: dict[Node, LaterKink]
    to_the_loss: bool = False
    factor: float = 1.0
    C: Tensor | None = None
    by_weight: Tensor | None = None
    by_bias: Tensor | None = None

    def listen(self, guard: Guard) -> Iterator[RemovableHandle]:
        """Hooks on the nodes, each run by the guard."""
        yield self.passage.top.register_prehook(partial(guard, self._note_activation))
        yield self.hidden.node.register_hook(partial(guard, self._note_hidden))
        for reader in self.readers:
            yield reader.listen(guard)

    def has(self, product: Product) -> bool:
        """Whether a layer is known to read the activations."""
        return any(reader.product.node is product.node for reader in self.readers)

    def take_in(self, readers: list[Reader], guard: Guard) -> Iterator[RemovableHandle]:
        """Further readers, and their hooks."""
        self.readers.extend(readers)
        for reader in readers:
            yield reader.listen(guard)

    @property
    def complete(self) -> bool:
        """Whether a gradient came to the activation, and from some reader."""
        return self.C is not None and any(reader.G is not None for reader in self.readers)

    def sighting(self) -> Sighting:
        """What was noted."""
        assert self.C is not None
        dtype, count = self.W.dtype, len(self.X)
        X = self.X.to(dtype)
        if self.passage.biased:
            X = torch.cat([X, X.new_ones(count, 1)], dim=1)
        heads = [reader for reader in self.readers if reader.G is not None]
        G = _joined([reader.G.reshape(count, -1) for reader in heads if reader.G is not None], dim=1)
        Z = self.Z if self.Z is not None and self.Z.dtype == dtype else None
        return Sighting(
            hidden=layer_of(self.hidden),
            readers=tuple(layer_of(reader.product) for reader in heads),
            block=self._weights(heads),
            signal=BlockSignal(X, self._times(G.to(dtype)), self._times(self.C.reshape(count, -1).to(dtype)), Z),
            gradients=self._gradients(heads),
            dropout=self.passage.dropout,
            tied=len({id(one.weight.parameter) for one in (self.hidden, *(r.product for r in heads))}) <= len(heads),
            from_data=self.hidden.input is None,
            kinks_after=tuple(sorted({operation(node) for node in self.kinks})),
            to_the_loss=self.to_the_loss,
            live=self._live(heads),
            later_kinks=later_kinks(self.kinks.values(), self.W),
            uncounted=tuple(sorted({operation(node) for node, kink in self.kinks.items() if not kink.counted})),
            parameters=self._parameters(heads),
        )

    def _parameters(self, heads: list[Reader]) -> tuple[nn.Parameter, ...]:
        """The parameters that took part, each once."""
        weights = [self.hidden.weight.parameter, *(reader.product.weight.parameter for reader in heads)]
        others = [self.passage.bias, *(reader.bias_parameter for reader in heads), trained_slope(self.passage)]
        found = [*weights, *(parameter for parameter in others if parameter is not None)]
        return tuple({id(parameter): parameter for parameter in found}.values())

    def _live(self, heads: list[Reader]) -> LiveBlock | None:
        """A way back to the parameters, which stay the same objects while they are trained."""
        readers = tuple(reader.product.weight for reader in heads)
        if self.passage.fold is not None or any(weight.derived for weight in (self.hidden.weight, *readers)):
            return None
        biases = tuple(reader.bias_parameter for reader in heads)
        return LiveBlock(self.hidden.weight, readers, self.passage.bias, biases, self._slopes_now())

    def _slopes_now(self) -> Callable[[], tuple[float, float]]:
        """A way to the slopes that holds on to no graph."""
        trained = trained_slope(self.passage)
        slopes = self.slopes
        return lambda: slopes if trained is None else (float(trained.detach()), 1.0)

    def _weights(self, heads: list[Reader]) -> ShallowBlock:
        """The weights that took part, heads below each other."""
        return stacked(self.W, [reader.H for reader in heads], [reader.bias for reader in heads], self.slopes)

    def _gradients(self, heads: list[Reader]) -> tuple[Tensor, Tensor] | None:
        """Gradients by the weights, as autograd has them."""
        by_heads = [reader.by_weight for reader in heads if reader.by_weight is not None]
        if (
            self.by_weight is None
            or self.by_bias is None
            or len(by_heads) < len(heads)
            or self.passage.fold is not None
        ):
            return None
        dW = self.by_weight.to(self.W.dtype)
        if self.passage.bias is not None:
            dW = torch.cat([dW, self.by_bias.to(dW)[:, None]], dim=1)
        return self._times(dW), self._times(_joined(by_heads).to(dW))

    def _times(self, gradient: Tensor) -> Tensor:
        """A gradient times the factor: no copy where that is 1."""
        return gradient if self.factor == 1 else self.factor * gradient

    def _note_activation(self, grads: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None:
            self.C = _added(self.C, grads[0])

    def _note_hidden(self, below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
        if above[0] is None:
            return
        self.by_bias = _added(self.by_bias, above[0].reshape(-1, above[0].shape[-1]).sum(0))
        by_weight = self.hidden.weight_gradient(below)
        if by_weight is not None:
            self.by_weight = _added(self.by_weight, by_weight)


def reader_of(product: Product, H: Tensor, bias: nn.Parameter | None) -> Reader:
    """A reader with copies of its weights: the optimizer will have moved them when they are asked for."""
    return Reader(product, H.clone(), _copy(bias), bias)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Parts below or beside each other; one alone as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def layer_of(product: Product) -> str:
    """Name of a layer: of the module that holds its weight, or of the weight where that has another name."""
    module, _, parameter = product.weight.name.rpartition(".")
    if parameter == "weight" or product.weight.derived:
        return module.partition(".parametrizations")[0].removeprefix("parametrizations") or "module"
    return product.weight.name


def _added(total: Tensor | None, gradient: Tensor) -> Tensor:
    """A retained graph runs more than once: its gradients add up."""
    gradient = gradient.detach()
    return gradient if total is None else total + gradient
