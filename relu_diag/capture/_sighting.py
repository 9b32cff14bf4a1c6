"""What hooks on the nodes of a block note during a backward pass, and the sighting they make together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from relu_diag.capture._graph import Passage, Product, trained_slope
from relu_diag.capture._kinks import LaterKink, later_kinks
from relu_diag.capture._nodes import operation
from relu_diag.capture._reading import Facts
from relu_diag.capture._ridden import Application, Gradients, Ridden, Weights, sum_of
from relu_diag.capture.live import LiveBlock
from relu_diag.capture.sighting import Sighting

# Runs a hook with its arguments.
Guard = Callable[..., None]


@dataclass(slots=True, eq=False)
class Reader:
    """A layer that reads the activations: copies of its weight and bias as they took part, and what its hook noted."""

    product: Product
    H: Tensor
    bias: Tensor | None
    bias_parameter: nn.Parameter | None
    G: Tensor | None = None
    total: Tensor | None = None
    by_weight: Tensor | None = None

    def listen(self, guard: Guard, lent: bool) -> RemovableHandle:
        """The hook on its node."""
        return self.product.node.register_hook(partial(guard, self._note, lent))

    def _note(self, lent: bool, below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
        if above[0] is None:
            return
        self.G = _added(self.G, above[0])
        self.total = sum_of(self.G)
        self.by_weight = _by_weight(self.product, self.by_weight, below, lent)


@dataclass(slots=True, eq=False)
class Block:
    """One application of a block in one forward pass, and what the hooks on its nodes noted.

    Attributes:
        hidden: The first layer.
        passage: The activation.
        readers: The layers that read it.
        W: Copy of the input weights, without the bias, shape ``(I, d)``.
        bias: Copy of the hidden bias, shape ``(I,)``, or None.
        slopes: The slopes of the activation.
        X: Inputs, shape ``(N, d)``.
        Z: Pre-activations, shape ``(N, I)``; None where they were overwritten, or not seen.
        A: What a ReLU made of them in that case, or None.
        kinks: Kinks between the block and the loss.
        lent: Whether gradients by weights are asked for before anybody changes them.
        facts: What is the same in every step, by which of the readers had a gradient.
        extremes: Least and largest pre-activations, if they were looked at.
    """

    hidden: Product
    passage: Passage
    readers: list[Reader]
    W: Tensor
    bias: Tensor | None
    slopes: tuple[float, float]
    X: Tensor
    Z: Tensor | None
    A: Tensor | None
    kinks: dict[Node, LaterKink]
    lent: bool
    facts: dict[tuple[int, ...], Facts]
    to_the_loss: bool = False
    factor: float = 1.0
    extremes: tuple[Tensor, Tensor] | None = None
    C: Tensor | None = None
    total: Tensor | None = None
    by_weight: Tensor | None = None
    by_bias: Tensor | None = None

    def listen(self, guard: Guard) -> Iterator[RemovableHandle]:
        """Hooks on the nodes, each run by the guard."""
        yield self.passage.top.register_prehook(partial(guard, self._note_activation))
        yield self.hidden.node.register_hook(partial(guard, self._note_hidden))
        for reader in self.readers:
            yield reader.listen(guard, self.lent)

    def has(self, product: Product) -> bool:
        """Whether a layer is known to read the activations."""
        return any(reader.product.node is product.node for reader in self.readers)

    def take_in(self, readers: list[Reader], guard: Guard) -> Iterator[RemovableHandle]:
        """Further readers, and their hooks."""
        self.readers.extend(readers)
        self.facts = {}
        for reader in readers:
            yield reader.listen(guard, self.lent)

    def forget(self) -> None:
        """Forget what the hooks have noted."""
        self.C = self.total = self.by_weight = self.by_bias = None
        for reader in self.readers:
            reader.G = reader.total = reader.by_weight = None

    @property
    def complete(self) -> bool:
        """Whether a gradient came to the activation, and from some reader."""
        return self.C is not None and any(reader.G is not None for reader in self.readers)

    def sighting(self) -> Sighting:
        """What was noted."""
        assert self.C is not None
        assert self.total is not None
        heads = [reader for reader in self.readers if reader.G is not None]
        weights = Weights(
            self.W, self.bias, tuple([one.H for one in heads]), tuple([one.bias for one in heads]), self.slopes
        )
        rows = Application(
            X=self.X,
            Z=self.Z,
            A=self.A,
            C=self.C,
            heads=tuple([one.G for one in heads if one.G is not None]),
            factor=self.factor,
            gradients=self._gradients(heads),
            gradients_total=sum((one.total for one in heads if one.total is not None), self.total),
            looked=self.extremes,
        )
        facts = self._facts(heads)
        return Sighting(
            hidden=facts.hidden,
            readers=facts.readers,
            ridden=Ridden(weights, (rows,)),
            dropout=self.passage.dropout,
            tied=facts.tied,
            from_data=self.hidden.input is None,
            kinks_after=tuple(sorted({operation(node) for node in self.kinks})),
            to_the_loss=self.to_the_loss,
            live=self._live(heads, facts),
            later_kinks=later_kinks(self.kinks.values(), self.W),
            uncounted=tuple(sorted({operation(node) for node, kink in self.kinks.items() if not kink.counted})),
            parameters=facts.parameters,
        )

    def _facts(self, heads: list[Reader]) -> Facts:
        """What is the same in every step with these heads."""
        key = tuple([place for place, reader in enumerate(self.readers) if reader.G is not None])
        if key not in self.facts:
            products = [reader.product for reader in heads]
            weights = [self.hidden.weight.parameter, *(product.weight.parameter for product in products)]
            trained = trained_slope(self.passage)
            others = [self.passage.bias, *(reader.bias_parameter for reader in heads), trained]
            found = [*weights, *(parameter for parameter in others if parameter is not None)]
            self.facts[key] = Facts(
                hidden=self.hidden.layer,
                readers=tuple(product.layer for product in products),
                tied=len({id(weight) for weight in weights}) <= len(heads),
                parameters=tuple({id(parameter): parameter for parameter in found}.values()),
                trained=trained,
            )
        return self.facts[key]

    def _live(self, heads: list[Reader], facts: Facts) -> LiveBlock | None:
        """A way back to the parameters, which stay the same objects while they are trained; it holds on to no graph."""
        readers = tuple([reader.product.weight for reader in heads])
        if self.passage.fold is not None or any(weight.derived for weight in (self.hidden.weight, *readers)):
            return None
        slopes, trained = self.slopes, facts.trained
        return LiveBlock(
            hidden=self.hidden.weight,
            readers=readers,
            hidden_bias=self.passage.bias,
            reader_biases=tuple([reader.bias_parameter for reader in heads]),
            slopes=lambda: slopes if trained is None else (float(trained.detach()), 1.0),
        )

    def _gradients(self, heads: list[Reader]) -> Gradients | None:
        """Gradients by the weights, as autograd has them."""
        by_heads = tuple([reader.by_weight for reader in heads if reader.by_weight is not None])
        unknown = self.by_weight is None or self.by_bias is None or len(by_heads) < len(heads)
        if unknown or self.passage.fold is not None:
            return None
        assert self.by_weight is not None
        assert self.by_bias is not None
        return Gradients(self.by_weight, self.by_bias, by_heads)

    def _note_activation(self, grads: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None:
            self.C = _added(self.C, grads[0])
            self.total = sum_of(self.C)

    def _note_hidden(self, below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
        if above[0] is None:
            return
        self.by_bias = _added(self.by_bias, above[0].reshape(-1, above[0].shape[-1]).sum(0))
        self.by_weight = _by_weight(self.hidden, self.by_weight, below, self.lent)


def _by_weight(product: Product, total: Tensor | None, below: tuple[Tensor | None, ...], lent: bool) -> Tensor | None:
    """The gradient by a weight, added to that of an earlier backward pass; lent where it is the parameter's own."""
    gradient = product.weight_gradient(below)
    if gradient is None:
        return total
    parameter = product.weight.parameter
    changed = parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # by a hook of the user's
    return _added(total, gradient if lent and not changed else gradient.clone())


def _added(total: Tensor | None, gradient: Tensor) -> Tensor:
    """A retained graph runs more than once: its gradients add up."""
    gradient = gradient.detach() if gradient.requires_grad else gradient
    return gradient if total is None else total + gradient
