"""What hooks on the nodes of a block note during a backward pass, and the sighting they make together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from relu_diag.capture._graph import Passage, Product, trained_slope
from relu_diag.capture._kinks import LaterKink, later_kinks
from relu_diag.capture._nodes import makes_one_number, operation
from relu_diag.capture._reading import Facts
from relu_diag.capture._ridden import Application, Gradients, Ridden, Weights, sum_of, sum_of_rows
from relu_diag.capture.live import LiveBlock
from relu_diag.capture.local import local_part
from relu_diag.capture.sighting import Sighting

# Runs a hook with its arguments.
Guard = Callable[..., None]


@dataclass(slots=True, eq=False)
class Noted:
    """What the hook on a product noted, once for all blocks that the product is part of.

    Attributes:
        product: The product.
        lent: Whether gradients by weights are asked for before anybody changes them.
        read: Whether its output is that of a block, whose gradient is kept.
        G: Gradient at its output, in the shape in which it passed by; None where it is not kept, or none came.
        by_bias: The same summed over all rows, float32 at least, shape ``(J,)``.
        by_weight: Gradient by its weight, shape ``(J, d)``.
    """

    product: Product
    lent: bool
    read: bool = False
    G: Tensor | None = None
    by_bias: Tensor | None = None
    by_weight: Tensor | None = None

    def listen(self, guard: Guard) -> RemovableHandle:
        """The hook on the node, run by the guard."""
        return self.product.node.register_hook(partial(guard, self._note))

    def forget(self) -> None:
        """Forget what was noted."""
        self.G = self.by_bias = self.by_weight = None

    def _note(self, below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
        if above[0] is None:
            return
        G = local_part(above[0])
        if self.read:
            self.G = _added(self.G, G)
        self.by_bias = _added(self.by_bias, sum_of_rows(G))
        self.by_weight = _by_weight(self.product, self.by_weight, below, self.lent)


@dataclass(slots=True, eq=False)
class Reader:
    """A layer that reads the activations: copies of its weight and bias as they took part, and what its hook noted."""

    noted: Noted
    H: Tensor
    bias: Tensor | None
    bias_parameter: nn.Parameter | None

    def __post_init__(self) -> None:
        self.noted.read = True

    @property
    def product(self) -> Product:
        """The layer's product."""
        return self.noted.product


@dataclass(slots=True, eq=False)
class Block:
    """One application of a block in one forward pass, and what the hooks on its nodes noted.

    Attributes:
        hidden: The first layer, and what its hook noted.
        passage: The activation.
        readers: The layers that read it.
        W: Copy of the input weights, without the bias, shape ``(I, d)``.
        bias: Copy of the hidden bias, shape ``(I,)``, or None.
        slopes: The slopes of the activation.
        X: Inputs, shape ``(N, d)``.
        Z: Pre-activations, shape ``(N, I)``; None where they were overwritten, or not seen.
        A: What a ReLU made of them in that case, or None.
        kinks: Kinks between the block and the loss.
        facts: What is the same in every step, by which of the readers had a gradient.
        extremes: Least and largest pre-activations, if they were looked at.
        elsewhere: Whether the first layer had another gradient in the step, which is no part of the block's.
        reruns: Whether it ran beside its blocks in the step, with gradient or without.
    """

    hidden: Noted
    passage: Passage
    readers: list[Reader]
    W: Tensor
    bias: Tensor | None
    slopes: tuple[float, float]
    X: Tensor
    Z: Tensor | None
    A: Tensor | None
    kinks: dict[Node, LaterKink]
    facts: dict[tuple[int, ...], Facts]
    to_the_loss: bool = False
    factor: float = 1.0
    extremes: tuple[Tensor, Tensor] | None = None
    elsewhere: bool = False
    reruns: bool = False
    C: Tensor | None = None
    total: Tensor | None = None

    def listen(self, guard: Guard) -> RemovableHandle:
        """The hook on the activation, run by the guard."""
        return self.passage.top.register_prehook(partial(guard, self._note_activation))

    def has(self, product: Product) -> bool:
        """Whether a layer is known to read the activations."""
        return any(reader.product.node is product.node for reader in self.readers)

    def take_in(self, readers: list[Reader]) -> None:
        """Further readers."""
        self.readers.extend(readers)
        self.facts = {}

    @property
    def noted(self) -> list[Noted]:
        """What the hooks on its layers noted."""
        return [self.hidden, *(reader.noted for reader in self.readers)]

    def forget(self, but: Collection[int]) -> None:
        """Forget what the hooks have noted, but for some layers, by identity."""
        self.C = self.total = None
        for noted in self.noted:
            if id(noted) not in but:
                noted.forget()

    @property
    def complete(self) -> bool:
        """Whether a gradient came to the activation, and from some reader."""
        return self.C is not None and any(reader.noted.G is not None for reader in self.readers)

    def sighting(self) -> Sighting:
        """What was noted."""
        assert self.C is not None
        assert self.total is not None
        heads = [reader for reader in self.readers if reader.noted.G is not None]
        weights = Weights(
            self.W, self.bias, tuple([one.H for one in heads]), tuple([one.bias for one in heads]), self.slopes
        )
        rows = Application(
            X=self.X,
            Z=self.Z,
            A=self.A,
            C=self.C,
            heads=tuple([one.noted.G for one in heads if one.noted.G is not None]),
            factor=self.factor,
            gradients=self._gradients(heads),
            totals=(self.total, *[one.noted.by_bias for one in heads if one.noted.by_bias is not None]),
            looked=self.extremes,
        )
        facts = self._facts(heads)
        return Sighting(
            hidden=facts.hidden,
            readers=facts.readers,
            ridden=Ridden(weights, (rows,)),
            dropout=self.passage.dropout,
            tied=facts.tied,
            from_data=self.hidden.product.input is None,
            kinks_after=tuple(sorted({operation(node) for node in self.kinks})),
            to_the_loss=self.to_the_loss,
            live=self._live(heads, facts),
            later_kinks=later_kinks(self.kinks.values(), self.W),
            uncounted=tuple(sorted({operation(node) for node, kink in self.kinks.items() if not kink.counted})),
            choosing=self._choosing(),
            parameters=facts.parameters,
            elsewhere=self.elsewhere,
            reruns=self.reruns,
        )

    def _choosing(self) -> tuple[str, ...]:
        """Operations with a kink that make one number of many."""
        if len(self.X) == 1:
            return ()
        return tuple(sorted({operation(node) for node in self.kinks if makes_one_number(node)}))

    def _facts(self, heads: list[Reader]) -> Facts:
        """What is the same in every step with these heads."""
        key = tuple([place for place, reader in enumerate(self.readers) if reader.noted.G is not None])
        if key not in self.facts:
            products = [reader.product for reader in heads]
            weights = [self.hidden.product.weight.parameter, *(product.weight.parameter for product in products)]
            trained = trained_slope(self.passage)
            others = [self.passage.bias, *(reader.bias_parameter for reader in heads), trained]
            found = [*weights, *(parameter for parameter in others if parameter is not None)]
            self.facts[key] = Facts(
                hidden=self.hidden.product.layer,
                readers=tuple(product.layer for product in products),
                tied=len({id(weight) for weight in weights}) <= len(heads),
                parameters=tuple({id(parameter): parameter for parameter in found}.values()),
                trained=trained,
            )
        return self.facts[key]

    def _live(self, heads: list[Reader], facts: Facts) -> LiveBlock | None:
        """A way back to the parameters, which stay the same objects while they are trained; it holds on to no graph."""
        readers = tuple([reader.product.weight for reader in heads])
        if self.passage.fold is not None or any(weight.derived for weight in (self.hidden.product.weight, *readers)):
            return None
        return LiveBlock(
            hidden=self.hidden.product.weight,
            readers=readers,
            hidden_bias=self.passage.bias,
            reader_biases=tuple([reader.bias_parameter for reader in heads]),
            slopes=partial(_slopes_now, self.slopes, facts.trained),
        )

    def _gradients(self, heads: list[Reader]) -> Gradients | None:
        """Gradients by the weights, as autograd has them."""
        by_heads = tuple([one.noted.by_weight for one in heads if one.noted.by_weight is not None])
        by_W, by_bias = self.hidden.by_weight, self.hidden.by_bias
        if by_W is None or by_bias is None or len(by_heads) < len(heads) or self.passage.fold is not None:
            return None
        return Gradients(by_W, by_bias, by_heads)

    def _note_activation(self, grads: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None:
            self.C = _added(self.C, local_part(grads[0]))
            self.total = sum_of(self.C)


def _slopes_now(slopes: tuple[float, float], trained: nn.Parameter | None) -> tuple[float, float]:
    """The slopes of an activation, one of which may be trained."""
    return slopes if trained is None else (float(trained.detach()), 1.0)


def _by_weight(product: Product, total: Tensor | None, below: tuple[Tensor | None, ...], lent: bool) -> Tensor | None:
    """The gradient by a weight, added to that of an earlier backward pass; lent where it is the parameter's own."""
    gradient = product.weight_gradient(below)
    if gradient is None:
        return total
    gradient = local_part(gradient)
    parameter = product.weight.parameter
    changed = parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # by a hook of the user's
    return _added(total, gradient if lent and not changed else gradient.clone())


def _added(total: Tensor | None, gradient: Tensor) -> Tensor:
    """A retained graph runs more than once: its gradients add up."""
    gradient = gradient.detach() if gradient.requires_grad else gradient
    return gradient if total is None else total + gradient
