"""The autograd graph of one loss, read as products with parameters and what stands between them.

Nothing runs for it: a graph is there as soon as the loss is, and it says what happened - in which order, with which
weights, through which activation - however the module was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from relu_diag.capture._nodes import (
    ELEMENTWISE,
    KINKED,
    OPAQUE,
    PRODUCTS,
    TURNED,
    WEIGHT_MAKERS,
    below_dropout,
    is_layout,
    is_slope,
    nodes_below,
    operation,
    saved_tensor,
)

Edge = tuple[Node, int]


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A parameter as a factor of a product.

    Attributes:
        name: Qualified name of the parameter, the first one for a weight that is computed from several.
        parameter: The parameter.
        turned: Whether it is stored as ``(outputs, inputs)``, nn.Linear's way.
        derived: Whether something is computed from parameters first (weight_norm, spectral_norm, pruning).
    """

    name: str
    parameter: nn.Parameter
    turned: bool
    derived: bool

    def value(self) -> Tensor:
        """The parameter as ``(outputs, inputs)``, sharing its memory.

        Returns:
            Weight, shape ``(I, d)``.
        """
        parameter = self.parameter.detach()
        return parameter if self.turned else parameter.mT


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Rows times a parameter: ``X W^T``, plus a bias where the node adds one.

    Attributes:
        node: Its node.
        weight: The weight.
        bias: The bias the node adds, or None.
    """

    node: Node
    weight: Weight
    bias: nn.Parameter | None

    @property
    def input(self) -> Edge | None:
        """Where the rows come from; None for data, which need no gradient."""
        node, index = self.node.next_functions[PRODUCTS[self.node.name()][0]]
        return None if node is None else (node, index)

    def X(self) -> Tensor | None:
        """The rows that went in.

        Returns:
            Rows, shape ``(N, d)``; None where the graph did not keep them.
        """
        saved = saved_tensor(self.node, "mat1" if self.node.name() == "AddmmBackward0" else "self")
        return None if saved is None else saved.reshape(-1, saved.shape[-1])

    def W(self) -> Tensor | None:
        """The weight that took part, as ``(outputs, inputs)``.

        Returns:
            Weight, shape ``(I, d)``; None where it was computed and the graph did not keep it.
        """
        if not self.weight.derived:
            return self.weight.value()
        saved = saved_tensor(self.node, "mat2")
        return None if saved is None else saved.reshape(saved.shape[-2:]).mT

    def weight_gradient(self, below: tuple[Tensor | None, ...]) -> Tensor | None:
        """The gradient by the weight among those that the node sends down.

        Args:
            below: What a hook on the node is given.

        Returns:
            Gradient, shape of `W`; None for a weight that is not trained.
        """
        gradient = below[PRODUCTS[self.node.name()][1]]
        return None if gradient is None else gradient.reshape(gradient.shape[-2:]).mT


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """What leads from a product to the rows of another one.

    Attributes:
        product: The first product.
        bias: The bias added to it, or None.
        top: The activation's last node: the gradient it receives is the one at ``rho(Z)``, dropout's mask included.
        nodes: All nodes of the activation.
        dropout: Whether dropout or a constant factor stands behind the activation.
    """

    product: Product
    bias: nn.Parameter | None
    top: Node
    nodes: frozenset[Node]
    dropout: bool


class Graph:
    """The graph below a tensor.

    Args:
        root: A tensor with a gradient path.
        module: The module whose parameters make products.
    """

    def __init__(self, root: Tensor, module: nn.Module) -> None:
        self._parameters = list(module.named_parameters(remove_duplicate=False))
        self._names = {id(p): name for name, p in self._parameters}
        self._frozen = {p.data_ptr(): (name, p) for name, p in self._parameters if not p.requires_grad and p.ndim == 2}
        self._nodes = list(nodes_below(root.grad_fn))
        self._consumers: dict[Node, list[Node]] = {}
        for node in self._nodes:
            for below, _ in node.next_functions:
                if below is not None:
                    self._consumers.setdefault(below, []).append(node)

    def products(self) -> list[Product]:
        """The products of rows with one parameter.

        Returns:
            Products, in the order in which they ran.
        """
        found = [self._product(node) for node in self._nodes if node.name() in PRODUCTS]
        return sorted((one for one in found if one is not None), key=lambda one: one.node._sequence_nr())

    def opaque(self) -> dict[str, str]:
        """What of the graph cannot be read.

        Returns:
            Names of nodes, and what they hide.
        """
        return {name: OPAQUE[name] for node in self._nodes if (name := node.name()) in OPAQUE}

    @property
    def holds_derivatives(self) -> bool:
        """Whether the loss is computed from derivatives of the network, as a gradient penalty is."""
        return any("BackwardBackward" in node.name() for node in self._nodes)

    def passage(self, reader: Product, products: Mapping[Node, Product]) -> Passage | str:
        """What stands between a product and the one that it reads.

        Args:
            reader: The later product.
            products: All products, by node.

        Returns:
            The passage; or in a few words what it reads instead, empty for data.
        """
        if reader.input is None:
            return ""
        top, dropout = below_dropout(reader.input[0])
        if top in products:
            return "nothing between"
        nodes: set[Node] = set()
        ends: dict[Node, nn.Parameter | None] = {}
        waiting = [top]
        while waiting:
            node = waiting.pop()
            if node in nodes:
                continue
            end = self._end(node, products)
            if end is not None:
                ends[end[0]] = end[1]
            elif hasattr(node, "variable"):
                return ""
            elif node.name() in ELEMENTWISE or is_layout(node):
                nodes.add(node)
                waiting.extend(one for one, _ in node.next_functions if one is not None and not is_slope(node, one))
            else:
                return f"{operation(node)} between" if any(one in products for one in nodes_below(node)) else ""
        if len(ends) != 1:
            return "several layers meet there"
        ((node, bias),) = ends.items()
        bias = products[node].bias if bias is None else bias
        return Passage(products[node], bias, top, frozenset(nodes), dropout)

    def kinks_behind(self, product: Product) -> list[Node]:
        """Operations with a kink that the loss is computed through behind a product.

        Args:
            product: The product.

        Returns:
            Their nodes.
        """
        waiting = list(self._consumers.get(product.node, []))
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(self._consumers.get(node, []))
        return [node for node in seen if node.name() in KINKED]

    def read_before(self, passage: Passage) -> bool:
        """Whether something besides the activation reads the pre-activations.

        Args:
            passage: The activation.

        Returns:
            Whether there is such a reader.
        """
        waiting = [passage.product.node]
        while waiting:
            for consumer in self._consumers.get(waiting.pop(), []):
                if consumer in passage.nodes:
                    continue
                adds_bias = passage.bias is not None and self._added_bias(consumer) is passage.bias
                if not adds_bias and not is_layout(consumer):
                    return True
                waiting.append(consumer)
        return False

    def bias_behind(self, product: Product) -> nn.Parameter | None:
        """The bias of a product, added by its node or right behind it.

        Args:
            product: The product.

        Returns:
            The bias, or None.
        """
        node = product.node
        if product.bias is not None:
            return product.bias
        while len(consumers := self._consumers.get(node, [])) == 1:
            (node,) = consumers
            if not is_layout(node):
                return self._added_bias(node)
        return None

    def _product(self, node: Node) -> Product | None:
        """A product of rows with a parameter on their right; others are none."""
        factor = node.next_functions[PRODUCTS[node.name()][1]][0]
        weight = self._frozen_weight(node) if factor is None else self._weight(factor)
        if weight is None:
            return None
        if node.name() != "AddmmBackward0":
            return Product(node, weight, None)
        bias = node.next_functions[0][0]
        return Product(node, weight, self._frozen_bias(weight) if bias is None else self._vector(bias))

    def _weight(self, node: Node) -> Weight | None:
        """The parameter below some turning and copying, or the parameters from which a weight is computed."""
        turned = False
        while is_layout(node) or node.name() in TURNED:
            turned ^= node.name() in TURNED
            below = node.next_functions[0][0]
            if below is None:
                return None
            node = below
        parts = list(nodes_below(node))
        parameters = [leaf.variable for leaf in parts if hasattr(leaf, "variable")]
        if not parameters or not all(self._makes_weights(one) for one in parts):
            return None
        derived = bool(node.next_functions)
        if not derived and parameters[0].ndim != 2:
            return None
        return Weight(self._names[id(parameters[0])], parameters[0], turned, derived)

    def _frozen_weight(self, node: Node) -> Weight | None:
        """A parameter that is not trained leaves no node, but its memory."""
        saved = saved_tensor(node, "mat2")
        if saved is None or saved.data_ptr() not in self._frozen:
            return None
        name, parameter = self._frozen[saved.data_ptr()]
        shape = saved.shape[-2:]
        if shape not in {parameter.shape, parameter.mT.shape}:
            return None
        return Weight(name, parameter, turned=saved.stride()[-2:] == parameter.mT.stride(), derived=False)

    def _frozen_bias(self, weight: Weight) -> nn.Parameter | None:
        """The bias beside a weight, where it is not trained: it leaves nothing in the graph."""
        name = f"{weight.name.rpartition('.')[0]}.bias".removeprefix(".")
        return next((p for other, p in self._parameters if other == name), None)

    def _makes_weights(self, node: Node) -> bool:
        """Whether a node is a parameter of the module, or computes with nothing but such."""
        if hasattr(node, "variable"):
            return id(node.variable) in self._names
        thin_factors = node.name() == "MmBackward0" and all(one is not None for one, _ in node.next_functions)
        return thin_factors or node.name() in WEIGHT_MAKERS

    def _vector(self, node: Node | None) -> nn.Parameter | None:
        """A parameter with one number a column."""
        while node is not None and is_layout(node):
            node = node.next_functions[0][0]
        leaf = getattr(node, "variable", None)
        return leaf if isinstance(leaf, nn.Parameter) and id(leaf) in self._names and leaf.ndim == 1 else None

    def _added_bias(self, node: Node) -> nn.Parameter | None:
        """The parameter that a node adds to every row."""
        if node.name() != "AddBackward0":
            return None
        return next((bias for one, _ in node.next_functions if (bias := self._vector(one)) is not None), None)

    def _end(self, node: Node, products: Mapping[Node, Product]) -> tuple[Node, nn.Parameter | None] | None:
        """The product that a node is, or is the sum of with a bias."""
        if node in products:
            return node, None
        bias = self._added_bias(node)
        if bias is None:
            return None
        for one, _ in node.next_functions:
            below = one
            while below is not None and is_layout(below):
                below = below.next_functions[0][0]
            if below is not None and below in products:
                return below, bias
        return None


def product_of(Z: Tensor) -> Node | None:
    """The node of the product that a layer's output is.

    Args:
        Z: Output of a layer.

    Returns:
        The node, below shapes and a bias; None where the output needs no gradient or is something else.
    """
    node = Z.grad_fn
    while node is not None and node.name() not in PRODUCTS:
        if not is_layout(node) and node.name() != "AddBackward0":
            return None
        node = node.next_functions[0][0]
    return node


def slopes_of(passage: Passage) -> tuple[float, float] | Tensor | None:
    """The slopes an activation has by its name.

    Args:
        passage: The activation.

    Returns:
        ``(s-, s+)``; one pair a neuron, shape ``(I, 2)``, for a PReLU with several; None where numbers must tell.
    """
    named = [node for node in passage.nodes if not is_layout(node)]
    if len(named) != 1:
        return None
    (node,) = named
    if node.name() == "ReluBackward0":
        return 0.0, 1.0
    if node.name() in {"LeakyReluBackward0", "LeakyReluBackward1"}:
        return float(node._saved_negative_slope), 1.0  # type: ignore[attr-defined]
    if node.name() == "PreluKernelBackward0":
        weight = node._saved_weight.detach().flatten()  # type: ignore[attr-defined]
        return (float(weight[0]), 1.0) if len(weight) == 1 else torch.stack([weight, torch.ones_like(weight)], dim=1)
    return None


def trained_slope(passage: Passage) -> nn.Parameter | None:
    """The parameter of a PReLU with one slope.

    Args:
        passage: The activation.

    Returns:
        The parameter; None for other activations.
    """
    for node in passage.nodes:
        below = node.next_functions[1][0] if node.name() == "PreluKernelBackward0" else None
        while below is not None and is_layout(below):
            below = below.next_functions[0][0]
        leaf = getattr(below, "variable", None)
        if isinstance(leaf, nn.Parameter):
            return leaf
    return None
