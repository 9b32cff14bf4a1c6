"""What a step that was ridden tells of a block whose neurons may be placed anew."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from relu_diag.capture import Sighting
from relu_diag.functional import rho
from relu_diag.functional.block import chunk_rows

# Rows whose gradients tell the price of an activation.
_ROWS = 256
# A price over the gradients at the activations that is none, and its largest spread.
_NO_PRICE = 1e-3
_SPREAD = 0.1


def obstacle_to_revival(seen: Sighting) -> str:
    """What keeps the neurons of a block from being placed anew.

    Args:
        seen: The block.

    Returns:
        Words; empty where nothing does.
    """
    if named := _masked_activation(seen):
        return named
    if seen.tied:
        return "its layers share a weight: no neuron can be given other output weights than input weights; untie them"
    if seen.live is None:
        return "its weights are computed from others (weight_norm, spectral_norm): remove the parametrization first"
    return ""


def _masked_activation(seen: Sighting) -> str:
    """The name of an activation that lets the largest pre-activations pass, where the mask behind it says so."""
    Z, C = seen.signal.Z, seen.signal.C
    if not seen.dropout or Z is None or C is None:
        return ""
    Z, C = Z[:_ROWS], C[:_ROWS]
    positive = Z > 0
    cut, kept = positive & (C == 0), positive & (C != 0)
    if not bool(cut.any()) or not bool(kept.any()):
        return ""
    for axis, name in ((0, "JumpReLU"), (1, "TopK")):
        highest_cut = torch.where(cut, Z, -torch.inf).amax(dim=axis)
        lowest_kept = torch.where(kept, Z, torch.inf).amin(dim=axis)
        if bool((highest_cut <= lowest_kept).all()):
            return f"{name} stands behind it: an activation that is no ReLU"
    return ""


def active_neurons(seen: Sighting) -> Tensor:
    """Which neurons were active on some row.

    Args:
        seen: The block.

    Returns:
        bool, shape ``(I,)``.
    """
    if seen.signal.Z is not None:
        return rho(seen.signal.Z, seen.ridden.weights.slopes).any(dim=0)
    block = seen.block
    parts = torch.split(seen.signal.X, chunk_rows(block))
    active = [(rho(part @ block.W.T, block.slopes) != 0).any(dim=0) for part in parts]
    return torch.stack(active).any(dim=0)


def outputs_on_rows(seen: Sighting, rows: Tensor | slice) -> Tensor:
    """Outputs of a block on some rows, at the weights of the step, which are not copied.

    Args:
        seen: The block.
        rows: Which rows.

    Returns:
        Outputs, shape ``(n, J)``.
    """
    weights = seen.ridden.weights
    X = seen.signal.X[rows]
    own = X if weights.bias is None else X[:, :-1]
    Z = functional.linear(own, weights.W.to(X), None if weights.bias is None else weights.bias.to(X))
    A = rho(Z, weights.slopes)
    outputs = []
    for head, bias in zip(weights.heads, weights.head_biases, strict=True):
        outputs.append(functional.linear(A, head.to(X), None if bias is None else bias.to(X)))
    return torch.cat(outputs, dim=1)


def price_of_activity(seen: Sighting) -> float:
    """What a unit of mean activation costs, read off the gradients at the activations that do not come from outputs.

    Args:
        seen: The block.

    Returns:
        Loss per unit; 0 where there is no price.
    """
    signal = seen.signal
    if signal.C is None:
        return 0.0
    X, G, C = signal.X[:_ROWS], signal.G[:_ROWS], signal.C[:_ROWS]
    active = rho(X @ seen.block.W.T, seen.block.slopes) != 0
    own = (C - G @ seen.block.H)[active & (C != 0)]
    if not len(own):
        return 0.0
    price = float(own.median())
    spread = float((own - price).abs().median())
    real = price > _NO_PRICE * float(C.abs().max()) and spread <= _SPREAD * price
    return price * len(signal.X) if real else 0.0
