"""The parameters of a module as factors of products: which weights and biases take part in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node

from relu_diag.capture._nodes import (
    FACTORS,
    MIXING,
    PRODUCTS,
    SUMS,
    TURNED,
    below_layout,
    is_layout,
    nodes_below,
    saved_tensor,
)


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


class Factors:
    """Recognises weights and biases in a graph.

    Args:
        module: The module whose parameters they are.
        layers: Linear layers that ran, by the nodes of their products: what they multiply by is a weight.
        gathered: Names of parameters that were the module's while their layer ran, by identity.

    Attributes:
        names: Qualified names of the parameters, by their identities.
    """

    def __init__(self, module: nn.Module, layers: Mapping[Node, nn.Linear], gathered: Mapping[int, str]) -> None:
        self._parameters = list(module.named_parameters(remove_duplicate=False))
        # Of several names of one parameter, the first, as of modules.
        self.names = {**gathered, **{id(p): name for name, p in reversed(self._parameters)}}
        self._of_layers = {
            (id(layer), id(p)): f"{name}.{own}".removeprefix(".")
            for name, layer in module.named_modules()
            for own, p in layer._parameters.items()
        }
        self._frozen = {p.data_ptr(): (name, p) for name, p in self._parameters if not p.requires_grad and p.ndim == 2}
        self._constants = {buffer.data_ptr() for buffer in module.buffers()} | self._frozen.keys()
        self._layers = layers

    def weight(self, node: Node) -> Weight | None:
        """The weight that a product multiplies by.

        Args:
            node: A product.

        Returns:
            The weight; None where the right factor is none.
        """
        factor = node.next_functions[PRODUCTS[node.name()][1]][0]
        if factor is None:
            return self._layer_weight(node) or self._frozen_weight(node)
        return self._trained_weight(factor, node)

    def bias(self, node: Node, weight: Weight) -> nn.Parameter | None:
        """The bias that a product adds.

        Args:
            node: A product that adds one.
            weight: Its weight.

        Returns:
            The bias; None where it is no parameter.
        """
        added = node.next_functions[0][0]
        if added is not None:
            return self._vector(added)
        layer = self._plain_layer(node)
        if layer is not None and layer._parameters.get("bias") is not None:
            return layer.bias
        name = f"{weight.name.rpartition('.')[0]}.bias".removeprefix(".")
        return next((p for other, p in self._parameters if other == name), None)

    def added_bias(self, node: Node) -> nn.Parameter | None:
        """The bias that a sum adds to every row.

        Args:
            node: A node.

        Returns:
            The bias; None where the node is no sum, or adds something else.
        """
        if node.name() != "AddBackward0":
            return None
        return next((bias for one, _ in node.next_functions if (bias := self._vector(one)) is not None), None)

    def _plain_layer(self, node: Node) -> nn.Linear | None:
        """The Linear layer of a product, where it computes as all do."""
        layer = self._layers.get(node)
        return layer if layer is not None and type(layer).forward is nn.Linear.forward else None

    def _name(self, product: Node, parameter: Tensor) -> str:
        """The name of a parameter: of several, the one in the layer that a product is of, or else the first."""
        layer = self._layers.get(product)
        return self._of_layers.get((id(layer), id(parameter)), self.names[id(parameter)])

    def _trained_weight(self, node: Node, product: Node) -> Weight | None:
        """The parameter below some turning and copying, or the parameters from which a weight is computed."""
        turned = False
        while is_layout(node) or node.name() in TURNED:
            turned ^= not is_layout(node)
            below = node.next_functions[0][0]
            if below is None:
                return None
            node = below
        if not self._from_parameters(node, product in self._layers):
            return None
        parameters = [leaf.variable for leaf in nodes_below(node) if hasattr(leaf, "variable")]
        derived = bool(node.next_functions)
        if all(parameter.ndim < 2 for parameter in parameters) or (not derived and parameters[0].ndim != 2):
            return None
        return Weight(self._name(product, parameters[0]), parameters[0], turned, derived)

    def _layer_weight(self, node: Node) -> Weight | None:
        """The weight of a Linear layer, where it is a parameter."""
        layer = self._plain_layer(node)
        parameter = None if layer is None else layer._parameters.get("weight")
        if parameter is None or id(parameter) not in self.names:
            return None
        return Weight(self._name(node, parameter), parameter, turned=True, derived=False)

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

    def _from_parameters(self, node: Node, by_layer: bool) -> bool:
        """Whether a node is computed from parameters of the module: by a Linear layer, or from nothing else."""
        waiting, seen = [node], {node}
        while waiting:
            node = waiting.pop()
            if hasattr(node, "variable"):
                if id(node.variable) not in self.names:
                    return False
            elif not by_layer and self._mixes_in_data(node):
                return False
            below = {one for one, _ in node.next_functions if one is not None} - seen
            seen |= below
            waiting.extend(below)
        return True

    def _mixes_in_data(self, node: Node) -> bool:
        """Whether data may take part in what a node computes, besides parameters and constants of the module."""
        name, constant = node.name(), [one is None for one, _ in node.next_functions]
        if name in MIXING or not any(constant):
            return name in MIXING
        if name in FACTORS:
            factor = saved_tensor(node, "self" if constant[0] else FACTORS[name])
            return factor is None or (factor.numel() > 1 and factor.data_ptr() not in self._constants)
        # A sum does not keep what was added; compiled code and functions of the user's do not say what went in.
        return name in SUMS or not name[-1].isdigit()

    def _vector(self, node: Node | None) -> nn.Parameter | None:
        """A parameter with one number a column."""
        leaf = getattr(below_layout(node), "variable", None)
        return leaf if isinstance(leaf, nn.Parameter) and id(leaf) in self.names and leaf.ndim == 1 else None
