"""New neurons that are settled all at once are where each would be alone, to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from relu_diag import ShallowBlock
from relu_diag.functional.tolerances import tolerances
from relu_diag.training._settled import settled


def one_by_one(block: ShallowBlock, units: int, X: Tensor, drop_digits: bool) -> ShallowBlock:
    """Neuron by neuron: few digits, and a turn off the kink of a sample."""
    W, H = block.W.clone(), block.H.clone()
    draw = torch.Generator().manual_seed(0)
    kink = tolerances(W.dtype).kink
    for unit in range(len(W) - units, len(W)):
        if drop_digits:
            W[unit], H[:, unit] = rounded(W[unit]), rounded(H[:, unit])
        reach = kink * float(W[unit].norm()) * X.norm(dim=1)
        if bool((((X @ W[unit]).abs() <= reach) & (reach > 0)).any()):
            W[unit] += 100 * kink * W[unit].norm() * torch.randn(W.shape[1], generator=draw, dtype=torch.float64).to(W)
    return replace(block, W=W, H=H)


def rounded(values: Tensor) -> Tensor:
    largest = float(values.abs().max())
    unit = 2.0 ** (math.frexp(largest)[1] - 12)
    return (values / unit).round() * unit if largest else values


@pytest.mark.parametrize("drop_digits", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are(dtype: torch.dtype, drop_digits: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    X, W, H = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((40, 5), (9, 5), (3, 9)))
    for unit, sample in ((-1, 0), (-3, 1)):  # on a kink
        W[unit] -= (W[unit] @ X[sample]) / (X[sample] @ X[sample]) * X[sample]
    H[:, -2] = 0
    block = ShallowBlock(W, H)
    found, expected = settled(block, 6, X, drop_digits), one_by_one(block, 6, X, drop_digits)
    assert torch.equal(found.W, expected.W)
    assert torch.equal(found.H, expected.H)
    assert torch.equal(found.W[:3], W[:3])
