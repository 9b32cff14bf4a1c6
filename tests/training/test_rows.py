"""The rows that are kept for a verdict: as many as asked for, spread over the data, with the loss of their mean."""

import pytest
from support.five_points import Five, fit, points
from torch.testing import assert_close

from relu_diag.callbacks import PlateauMonitor


@pytest.mark.parametrize("copies", [1, 40], ids=["an epoch of one batch", "an epoch of the same batch"])
def test_a_whole_batch_is_kept_up_to_the_number_of_samples_asked_for(copies: int) -> None:
    monitor = PlateauMonitor(max_samples=3)
    fit(Five(lr=0.0), monitor, loader=points(copies, 5), max_steps=4)
    assert monitor.final is not None
    data = monitor.final.data
    assert data is not None
    assert not data.complete
    X, Y = points().dataset.tensors
    assert_close(data.X, X[[0, 1, 3]])
    expected = (Y[[0, 1, 3]] - monitor.final.block(data.X)).square().mean()
    assert data.loss_of(monitor.final.block) == pytest.approx(float(expected))
