"""The parameters of a block where they are: read at their values of now, neuron by neuron where they are to be set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from relu_diag.capture._weights import Weight
from relu_diag.capture.location import BlockLocation
from relu_diag.functional import ShallowBlock


@dataclass(frozen=True, slots=True, eq=False)
class NeuronRows:
    """A parameter with an axis that counts neurons.

    Attributes:
        parameter: The parameter.
        axis: The axis.
        values: What a block has for it, of the parameter's shape but for the number of neurons.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> NeuronRows(layer.weight, axis=0, values=torch.zeros(1, 2)).axis
        0
    """

    parameter: nn.Parameter
    axis: int
    values: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LiveBlock:
    """A block's parameters, which stay the same objects while they are trained. Called, it reads them.

    Attributes:
        hidden: Input weights.
        readers: Output weights of every layer that reads the activations.
        hidden_bias: Bias before the activation, or None.
        reader_biases: Bias of every reader, or None.
        slopes: Returns ``(s-, s+)`` of now.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> block = LiveBlock.at(net, BlockLocation("0", "2", (0.0, 1.0)))
        >>> [(tuple(rows.parameter.shape), rows.axis) for rows in block.rows(block())]
        [((8, 3), 0), ((8,), 0), ((1, 8), 1)]
    """

    hidden: Weight
    readers: tuple[Weight, ...]
    hidden_bias: nn.Parameter | None
    reader_biases: tuple[nn.Parameter | None, ...]
    slopes: Callable[[], tuple[float, float]]

    @classmethod
    def at(cls, module: nn.Module, location: BlockLocation) -> LiveBlock:
        """The block of two Linear layers.

        Args:
            module: The module that holds it.
            location: Which block.

        Returns:
            The block.
        """
        hidden, output = location.linears(module)
        weights = [
            Weight(f"{name}.weight".removeprefix("."), cast(nn.Parameter, layer.weight), turned=True, derived=False)
            for name, layer in ((location.hidden, hidden), (location.output, output))
        ]
        return cls(weights[0], (weights[1],), hidden.bias, (output.bias,), partial(location.slopes_now, module))

    def within(self, module: nn.Module, copy: nn.Module) -> LiveBlock:
        """The same block of a copy of its module.

        Args:
            module: The module that holds this block.
            copy: A module with parameters of the same names.

        Returns:
            The block of the copy.
        """
        names = {id(parameter): name for name, parameter in module.named_parameters()}

        def theirs(parameter: nn.Parameter) -> nn.Parameter:
            return copy.get_parameter(names[id(parameter)])

        biases = [None if bias is None else theirs(bias) for bias in (self.hidden_bias, *self.reader_biases)]
        hidden, *readers = (replace(one, parameter=theirs(one.parameter)) for one in (self.hidden, *self.readers))
        return LiveBlock(hidden, tuple(readers), biases[0], tuple(biases[1:]), self.slopes)

    def stands_in(self, module: nn.Module) -> bool:
        """Whether the weights are where they were: no layer was replaced, and none has become computed, by pruning say.

        Args:
            module: The module that held the block.

        Returns:
            Whether it holds the same parameters by the same names.
        """
        held = {(name, id(one)) for name, one in module.named_parameters(remove_duplicate=False)}
        return all((one.name, id(one.parameter)) in held for one in (self.hidden, *self.readers))

    def __call__(self) -> ShallowBlock:
        """The block at the parameters of now.

        Returns:
            Copies of its weights, the outputs of several readers below each other.
        """
        heads = [reader.value().clone() for reader in self.readers]
        biases = [None if bias is None else bias.detach().clone() for bias in self.reader_biases]
        return stacked(with_bias(self.hidden.value().clone(), self.hidden_bias), heads, biases, self.slopes())

    def rows(self, block: ShallowBlock) -> Iterator[NeuronRows]:
        """What belongs to single neurons, parameter by parameter.

        Args:
            block: Values, of any number of neurons.

        Yields:
            Every parameter that has neurons along an axis, with its values.
        """
        W = block.W if self.hidden_bias is None else block.W[:, :-1]
        yield _rows(self.hidden, 0, W)
        if self.hidden_bias is not None:
            yield NeuronRows(self.hidden_bias, 0, block.W[:, -1])
        heads = torch.split(block.H, [len(reader.value()) for reader in self.readers])
        for reader, H in zip(self.readers, heads, strict=True):
            yield _rows(reader, 1, H)


def stacked(
    W: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor | None], slopes: tuple[float, float]
) -> ShallowBlock:
    """A block whose outputs are those of several heads, below each other.

    Args:
        W: Input weights, hidden bias as last column, shape ``(I, d)``.
        heads: Output weights, shapes ``(J_l, I)``.
        biases: Their biases, shapes ``(J_l,)``, or None.
        slopes: ``(s-, s+)``.

    Returns:
        The block.
    """
    H = torch.cat([head.to(W.dtype) for head in heads])
    if all(bias is None for bias in biases):
        return ShallowBlock(W, H, slopes)
    parts = [H.new_zeros(len(head)) if bias is None else bias.to(H) for head, bias in zip(heads, biases, strict=True)]
    return ShallowBlock(W, H, slopes, torch.cat(parts))


def with_bias(W: Tensor, bias: nn.Parameter | None) -> Tensor:
    """A copy of the input weights, the hidden bias as last column.

    Args:
        W: Input weights, shape ``(I, d)``.
        bias: Hidden bias, shape ``(I,)``, or None.

    Returns:
        Shape ``(I, d)`` or ``(I, d + 1)``.
    """
    return W.clone() if bias is None else torch.cat([W.to(bias.dtype), bias.detach()[:, None]], dim=1)


def _rows(weight: Weight, axis: int, values: Tensor) -> NeuronRows:
    """A weight stored either way, whose values ``(outputs, inputs)`` have neurons along an axis."""
    return NeuronRows(weight.parameter, axis if weight.turned else 1 - axis, values if weight.turned else values.mT)
