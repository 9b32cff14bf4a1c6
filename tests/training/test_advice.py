"""What is said of dead neurons at the end of a run rests on enough samples."""

import torch
from torch import Tensor, nn

from relu_diag.capture import riding
from relu_diag.training import BlockWatch


def watched(samples: list[Tensor]) -> BlockWatch:
    """A block of four neurons on one input, one report a batch: neurons 0 to 2 see positive inputs, 3 negative ones."""
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [-1.0]]))
        net[0].bias.zero_()
    watch = BlockWatch("0", "landscape/", judging=False, max_samples=None)
    for step, X in enumerate(samples):
        with riding(net) as ride:
            loss = net(X).square().mean()
            ride.board(loss)
            loss.backward()
            (seen,) = ride.end()
        watch.add(seen, step, loss.item(), (X,))
        watch.add_up()
    return watch


def test_neurons_silent_on_a_few_samples_are_not_called_dead_for_good() -> None:
    assert watched([-torch.rand(64, 1)]).advice().endswith("dead on 64 samples, too few to call them dead for good")


def test_neurons_silent_on_many_samples_are() -> None:
    assert watched([-torch.rand(500, 1), -torch.rand(500, 1)]).advice() == (
        "0: 3 of 4 neurons dead on 1,000 samples: lower the rate or revive them"
    )


def test_a_neuron_that_spoke_in_one_of_the_last_reports_is_living() -> None:
    assert watched([torch.rand(64, 1), -torch.rand(64, 1)]).advice().startswith("0: 4 of 4 neurons living")


def test_what_was_long_ago_counts_no_more() -> None:
    assert "3 of 4 neurons dead" in watched([torch.rand(64, 1), -torch.rand(1000, 1)]).advice()


def test_a_few_samples_hold_no_loss_back() -> None:
    few, many = watched([-torch.rand(64, 1)]), watched([-torch.rand(1000, 1)])
    assert few.many_dead
    assert not few.dead_for_good
    assert many.dead_for_good
