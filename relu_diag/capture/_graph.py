"""The autograd graph of one loss, read as products with parameters and what stands between them.

Nothing runs for it: a graph is there as soon as the loss is, and it says what happened - in which order, with which
weights, through which activation - however the module was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from relu_diag.capture._nodes import (
    ELEMENTWISE,
    KINKED,
    OPAQUE,
    PRODUCTS,
    SUMS,
    below_dropout,
    below_layout,
    bends,
    is_layout,
    is_slope,
    operation,
    saved_tensor,
)
from relu_diag.capture._norm import NORMS, Fold, fold_of
from relu_diag.capture._weights import Factors, Weight

Edge = tuple[Node, int]
NOTHING_BETWEEN = "nothing between"
_REPEATED = "Expand between, as where several networks run at once with weights of their own"


@dataclass(slots=True, eq=False)
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
    def layer(self) -> str:
        """Name of the layer: of the module that holds the weight, or of the weight where that has another name."""
        module, _, parameter = self.weight.name.rpartition(".")
        if parameter == "weight" or (self.weight.derived and ("parametrizations" in module or "weight" in parameter)):
            return module.partition(".parametrizations")[0].removeprefix("parametrizations") or "module"
        return self.weight.name

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
        if saved is None or saved.numel() != saved.shape[-2:].numel():  # or one weight for each of a batch
            return None
        return saved.reshape(saved.shape[-2:]).mT

    def weight_gradient(self, below: tuple[Tensor | None, ...]) -> Tensor | None:
        """The gradient by the weight among those that the node sends down.

        Args:
            below: What a hook on the node is given.

        Returns:
            Gradient, shape of `W`; None for a weight that is not trained.
        """
        gradient = below[PRODUCTS[self.node.name()][1]]
        return None if gradient is None else gradient.reshape(gradient.shape[-2:]).mT


@dataclass(slots=True, eq=False)
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


class Graph:
    """The graph of a loss.

    Args:
        nodes: Its nodes, each once.
        module: The module whose parameters make products.
        layers: Linear layers that ran, by the nodes of their products: what they multiply by is a weight.
        gathered: Names of parameters that were the module's while their layer ran, by identity.
    """

    def __init__(
        self, nodes: Sequence[Node], module: nn.Module, layers: Mapping[Node, nn.Linear], gathered: Mapping[int, str]
    ) -> None:
        self._module = module
        self._factors = Factors(module, layers, gathered)
        self._nodes = nodes
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
            return NOTHING_BETWEEN
        found = self._passage(top, dropout, products)
        if isinstance(found, Passage):
            return found
        return found if self.sources(reader, products) and self._bends(top, products) else ""

    def sources(self, reader: Product, products: Mapping[Node, Product]) -> list[Product]:
        """The nearest products that a product reads.

        Args:
            reader: The later product.
            products: All products, by node.

        Returns:
            Those products.
        """
        below = [] if reader.input is None else _nodes_down_to(reader.input[0], products)
        return [products[node] for node in below if node in products]

    def _bends(self, top: Node, products: Mapping[Node, Product]) -> bool:
        """Whether an activation of any kind stands between a product and the nearest ones that it reads."""
        return any(bends(node) for node in _nodes_down_to(top, products))

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
                return f"the parameter {self._factors.names.get(id(node.variable))!r} between"
            elif node.name() in ELEMENTWISE or is_layout(node):
                nodes.add(node)
                waiting.extend(one for one, _ in node.next_functions if one is not None and not is_slope(node, one))
            else:
                return _REPEATED if operation(node) == "Expand" else f"{operation(node)} between"
        if len(ends) != 1:
            return self._several([products[end].layer for end, _ in ends if end in products])
        (((end, _), (bias, fold)),) = ends.items()
        product = products[end]
        return Passage(product, product.bias if bias is None else bias, top, frozenset(nodes), dropout, fold)

    def _several(self, layers: Sequence[str]) -> str:
        """That several layers meet before an activation, and in what module: LoRA adds to a layer, a residual path."""
        paths = [layer.split(".") for layer in layers]
        common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
        holder = ".".join(common)
        module = self._module.get_submodule(holder) if holder else None
        known = module is None or isinstance(module, nn.Sequential | nn.ModuleList)
        where = "" if known else f" in {holder}, a {type(module).__name__}"
        return (
            f"several layers meet{where}, and a block has one weight there (LoRA: merge it, or add it to the weight by "
            "nn.utils.parametrize)"
        )

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
                adds_bias = passage.bias is not None and self._factors.added_bias(consumer) is passage.bias
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
                return self._factors.added_bias(node)
        return None

    def _product(self, node: Node) -> Product | None:
        """A product of rows with a parameter on their right; others are none."""
        weight = self._factors.weight(node)
        if weight is None:
            return None
        if node.name() != "AddmmBackward0":
            return Product(node, weight, None)
        bias = self._factors.bias(node, weight)
        return Product(node, weight, bias, bias_is_made=bias is None)

    def _end(self, node: Node | None, products: Mapping[Node, Product]) -> tuple[Node, nn.Parameter | None] | None:
        """The product that a node is, or is the sum of with a bias."""
        if node is None:
            return None
        if node in products:
            return node, None
        bias = self._factors.added_bias(node)
        if bias is None:
            return None
        for one, _ in node.next_functions:
            below = below_layout(one)
            if below is not None and below in products:
                return below, bias
        return None


def _nodes_down_to(top: Node, products: Mapping[Node, Product]) -> Iterator[Node]:
    """A node and all below it, down to the nearest products and not past them."""
    waiting = [top]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        below = [] if node in products else [one for one, _ in node.next_functions if one is not None]
        waiting.extend(one for one in below if one not in seen)
        seen.update(below)


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


def adds_untrained(passage: Passage) -> bool:
    """Whether an activation begins with a sum of which one part is not trained.

    Args:
        passage: The activation.

    Returns:
        Whether there is such a sum.
    """
    sums = [node for node in passage.nodes if node.name() in SUMS]
    return any(below is None for node in sums for below, _ in node.next_functions)


def trained_slope(passage: Passage) -> nn.Parameter | None:
    """The parameter of a PReLU with one slope.

    Args:
        passage: The activation.

    Returns:
        The parameter; None for other activations.
    """
    for node in passage.nodes:
        below = node.next_functions[1][0] if node.name() == "PreluKernelBackward0" else None
        leaf = getattr(below_layout(below), "variable", None)
        if isinstance(leaf, nn.Parameter):
            return leaf
    return None
