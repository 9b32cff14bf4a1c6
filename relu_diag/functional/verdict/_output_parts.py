"""What every output by itself feels of the input weights of a neuron: the parts that derivatives are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.local import chunks, radial_directions, slopes_at, tangential_part


def output_parts(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None) -> tuple[Tensor, ...]:
    """Tangential smooth parts ``(I, J, d)``, and the kink pairs: neuron, loss gradients at output and unit, input."""
    neurons, inputs = block.W.shape
    outputs = len(block.H)
    parts = block.W.new_zeros(neurons, outputs, inputs, dtype=torch.float64)
    none = parts.new_zeros(0, inputs)
    pairs = [(none[:, 0].long(), none.new_zeros(0, outputs), none[:, 0], none)]
    for chunk in chunks(block, signal, kink_tol):
        slopes = slopes_at(chunk.Z, block.slopes)
        for output in range(outputs):
            parts[:, output] += ((slopes * chunk.G[:, output, None]).T @ chunk.X).double()
        row, neuron = chunk.kinks.unbind(1)
        c = chunk.C[row, neuron].double()
        felt = chunk.G[row].any(dim=1) | (c != 0)
        row, neuron = row[felt], neuron[felt]
        pairs.append((neuron, chunk.G[row].double(), c[felt], chunk.X[row].double()))
    U = radial_directions(block.W.double())[:, None].expand_as(parts).flatten(0, 1)
    parts = tangential_part(U, parts.flatten(0, 1)).view_as(parts)
    return parts, *(torch.cat(part) for part in zip(*pairs, strict=True))
