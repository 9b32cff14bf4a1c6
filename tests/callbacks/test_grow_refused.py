"""What `grow` refuses, before anything has changed."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from support.small_net import LOCATION, data, net, with_replica
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrizations
from torch.optim import SGD, Adam

from relu_diag import ShallowBlock
from relu_diag.capture import read_block
from relu_diag.growth import grow


def refused(module: nn.Module, match: str, error: type[Exception] = ValueError, optimizers: tuple = ()) -> None:
    state = copy.deepcopy(module.state_dict())
    W, H, bias = (torch.ones(size, dtype=torch.float64) for size in ((7, 4), (2, 7), (2,)))
    with pytest.raises(error, match=match):
        grow(module, LOCATION, ShallowBlock(W, H, output_bias=bias), optimizers)
    assert state.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])


def test_growth_inside_a_forward_is_refused() -> None:
    module, (X, _) = net(), data()
    out = module(X)
    refused(module, "Grow after backward", RuntimeError)
    out.sum().backward()
    del out
    grow(module, LOCATION, with_replica(read_block(module)))


def test_a_weak_reference_is_refused_before_anything_changes() -> None:
    module = net()
    reference = weakref.ref(module[2].bias)  # torch would refuse it after the other parameters have been swapped
    refused(module, "refers weakly", RuntimeError)
    del reference
    grow(module, LOCATION, with_replica(read_block(module)))


def test_frozen_parameters_are_refused() -> None:
    module = net()
    module[0].requires_grad_(False)
    refused(module, r"hidden.weight \(0.weight\) is frozen.*requires_grad_")


def test_tied_weights_are_refused() -> None:
    module = nn.Sequential(*net(), nn.Linear(2, 6).double())
    module[3].weight = nn.Parameter(torch.ones(6, 3).double())
    module[3].weight = module[0].weight
    refused(module, "0.weight and 3.weight share their weights")


def test_an_optimizer_that_was_not_passed_is_named() -> None:
    module = net()
    optimizer = Adam(module.parameters())
    refused(module, "belongs to a Adam that was not given")
    del optimizer


def test_parameters_that_no_optimizer_owns_are_named() -> None:
    module = net()
    optimizer = SGD(module[0].parameters(), lr=0.1)
    refused(module, r"output.weight \(2.weight\) belongs to none", optimizers=(optimizer,))


def test_a_computed_weight_is_refused() -> None:
    module = net()
    parametrizations.weight_norm(module[0])
    refused(module, "parametrization")


def test_a_parameter_of_another_kind_is_refused() -> None:
    module = net()
    module[0].weight = UninitializedParameter()
    block = ShallowBlock(torch.ones(7, 4), torch.ones(2, 7), output_bias=torch.ones(2))
    with pytest.raises(TypeError, match=r"UninitializedParameter.*cannot grow in place"):
        grow(module, LOCATION, block)


@pytest.mark.parametrize(
    ("W", "H", "bias", "match"),
    [
        (torch.ones(7, 3), torch.ones(2, 7), torch.ones(2), "4 inputs"),
        (torch.ones(7, 4), torch.ones(1, 7), torch.ones(1), "2 outputs"),
        (torch.ones(7, 4), torch.ones(2, 7), None, "an output bias"),
        (torch.ones(5, 4), torch.ones(2, 5), torch.ones(2), "only grows"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(W: Tensor, H: Tensor, bias: Tensor | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        grow(net(), LOCATION, ShallowBlock(W, H, output_bias=bias))


def test_other_slopes_are_refused() -> None:
    block = ShallowBlock(torch.ones(7, 4), torch.ones(2, 7), (0.1, 1.0), torch.ones(2))
    with pytest.raises(ValueError, match="slopes"):
        grow(net(), LOCATION, block)
