"""Neurons to replace may be named by a mask, as neuron states have them."""

import pytest
import torch
from torch import nn

from relu_diag import ShallowBlock
from relu_diag.capture import find_blocks, read_block
from relu_diag.growth import replace_units


def test_a_mask_names_its_neurons() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    (location,) = find_blocks(net)
    old = read_block(net, location)
    new = ShallowBlock(torch.randn(4, 4), torch.randn(2, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    replace_units(net, location, torch.tensor([False, True, False, True]), new, [optimizer])
    now = read_block(net, location)
    assert torch.equal(now.W[[1, 3]], new.W[[1, 3]])
    assert torch.equal(now.W[[0, 2]], old.W[[0, 2]])


@pytest.mark.parametrize("units", [[True, False], [1.5], torch.tensor([0.0])])
def test_what_is_no_neuron_is_refused(units: object) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    (location,) = find_blocks(net)
    with pytest.raises(ValueError, match="`units` must be indices of neurons, or a mask of all 4"):
        replace_units(net, location, units, read_block(net, location))  # type: ignore[arg-type]


def test_weights_that_are_no_block_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    (location,) = find_blocks(net)
    with pytest.raises(TypeError, match="`block` must be a ShallowBlock"):
        replace_units(net, location, [0], net)  # type: ignore[arg-type]
