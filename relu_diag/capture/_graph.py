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
    MIXING,
    OPAQUE,
    PRODUCTS,
    TURNED,
    below_dropout,
    is_layout,
    is_slope,
    nodes_below,
    operation,
    saved_tensor,
)
from relu_diag.capture._norm import NORMS, Fold, fold_of

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
        bias_is_made: Whether it adds one that is no parameter, but computed from some.
    """

    node: Node
    weight: Weight
    bias: nn.Parameter | None
    bias_is_made: bool = False

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
        fold: A batch norm in eval mode before the activation, or None.
    """

    product: Product
    bias: nn.Parameter | None
    top: Node
    nodes: frozenset[Node]
    dropout: bool
    fold: Fold | None

    @property
    def biased(self) -> bool:
        """Whether the input weights have a bias as last column."""
        return self.bias is not None or self.fold is not None


class Graph:
    """The graph below a tensor.

    Args:
        root: A tensor with a gradient path.
        module: The module whose parameters make products.
        layers: Linear layers that ran, by the nodes of their products.
    """

    def __init__(self, root: Tensor, module: nn.Module, layers: Mapping[Node, nn.Linear]) -> None:
        self._parameters = list(module.named_parameters(remove_duplicate=False))
        self._names = {id(p): name for name, p in self._parameters}
        self._frozen = {p.data_ptr(): (name, p) for name, p in self._parameters if not p.requires_grad and p.ndim == 2}
        self._module = module
        self._layers = layers
        self._constants = {buffer.data_ptr() for buffer in module.buffers()} | self._frozen.keys()
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
        found = self._passage(top, dropout, products)
        reads_a_product = isinstance(found, Passage) or any(node in products for node in nodes_below(top))
        return found if reads_a_product else ""

    def _passage(self, top: Node, dropout: bool, products: Mapping[Node, Product]) -> Passage | str:
        """What leads from a product to the last node of an activation; or what stands there instead."""
        nodes: set[Node] = set()
        ends: dict[tuple[Node, Node | None], tuple[nn.Parameter | None, Fold | None]] = {}
        waiting = [top]
        while waiting:
            node = waiting.pop()
            if node in nodes:
                continue
            fold = fold_of(node, self._module) if node.name() in NORMS else None
            if isinstance(fold, str):
                return fold
            found = self._end(node if fold is None else node.next_functions[0][0], products)
            if found is not None:
                end, bias = found
                ends[end, None if fold is None else node] = bias, fold
            elif hasattr(node, "variable"):
                return f"the parameter {self._names.get(id(node.variable))!r} between"
            elif node.name() in ELEMENTWISE or is_layout(node):
                nodes.add(node)
                waiting.extend(one for one, _ in node.next_functions if one is not None and not is_slope(node, one))
            else:
                return f"{operation(node)} between"
        if len(ends) != 1:
            return "several layers meet there"
        (((end, _), (bias, fold)),) = ends.items()
        product = products[end]
        return Passage(product, product.bias if bias is None else bias, top, frozenset(nodes), dropout, fold)

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
                folded = passage.fold is not None and consumer is passage.fold.node
                if not adds_bias and not folded and not is_layout(consumer):
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
        weight = self._layer_weight(node) or self._frozen_weight(node) if factor is None else self._weight(factor)
        if weight is None:
            return None
        if node.name() != "AddmmBackward0":
            return Product(node, weight, None)
        added = node.next_functions[0][0]
        bias = self._frozen_bias(weight) if added is None else self._vector(added)
        return Product(node, weight, bias, bias_is_made=bias is None)

    def _weight(self, node: Node) -> Weight | None:
        """The parameter below some turning and copying, or the parameters from which a weight is computed."""
        turned = False
        while is_layout(node) or node.name() in TURNED:
            turned ^= node.name() in TURNED
            below = node.next_functions[0][0]
            if below is None:
                return None
            node = below
        if not self._from_parameters(node):
            return None
        parameters = [leaf.variable for leaf in nodes_below(node) if hasattr(leaf, "variable")]
        derived = bool(node.next_functions)
        if all(parameter.ndim < 2 for parameter in parameters) or (not derived and parameters[0].ndim != 2):
            return None
        return Weight(self._names[id(parameters[0])], parameters[0], turned, derived)

    def _layer_weight(self, node: Node) -> Weight | None:
        """The weight of a Linear layer, where it is a parameter."""
        parameter = self._layers[node]._parameters.get("weight") if node in self._layers else None
        if parameter is None or id(parameter) not in self._names:
            return None
        return Weight(self._names[id(parameter)], parameter, turned=True, derived=False)

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

    def _from_parameters(self, node: Node) -> bool:
        """Whether a node is a parameter of the module, or computed from nothing but such and constants."""
        waiting, seen = [node], {node}
        while waiting:
            node = waiting.pop()
            if hasattr(node, "variable"):
                if id(node.variable) not in self._names:
                    return False
            elif self._mixes_in_data(node):
                return False
            below = {one for one, _ in node.next_functions if one is not None} - seen
            seen |= below
            waiting.extend(below)
        return True

    def _mixes_in_data(self, node: Node) -> bool:
        """Whether what is computed by a node is no weight; constants of the module may take part in a product."""
        name, constants = node.name(), [one is None for one, _ in node.next_functions]
        if name == "MmBackward0" and any(constants):
            factor = saved_tensor(node, "self" if constants[0] else "mat2")
            return factor is None or factor.data_ptr() not in self._constants
        # Of functions that somebody has added, and of compiled code, nobody knows what else goes in.
        return name in MIXING or (not name[-1].isdigit() and any(constants))

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

    def _end(self, node: Node | None, products: Mapping[Node, Product]) -> tuple[Node, nn.Parameter | None] | None:
        """The product that a node is, or is the sum of with a bias."""
        if node is None:
            return None
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
