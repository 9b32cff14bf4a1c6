"""Where the loss falls as far from any saddle, and the metric does not, there is no escape to wait for."""

from dataclasses import replace

import pytest
import torch

from relu_diag.functional import ShallowBlock, Verdict
from relu_diag.functional.assumptions import Assumptions
from relu_diag.training import Examination, stop_or_wait
from relu_diag.training.descent import Descent

SLIDES = Descent(fall=0.1, rate=0.03, product=0.4, early=0.52)


def examined(descent: Descent, reason: str) -> Examination:
    nobody = torch.empty(0, dtype=torch.long)
    verdict = Verdict("not stationary", nobody, None, Assumptions({}), reason=reason)
    block = ShallowBlock(torch.ones(1, 1), torch.ones(1, 1))
    return Examination(10, "net.0", None, block, 1.0, verdict, None, None, None, "", dead=False, descent=descent)


@pytest.mark.parametrize(
    ("descent", "stop"),
    [
        (SLIDES, True),
        (replace(SLIDES, early=0.3), False),  # as when a saddle is left
        (replace(SLIDES, product=3.0), False),  # a lower rate would do something about it
        (replace(SLIDES, product=1e-3), False),  # a higher one
        (replace(SLIDES, rate=0.0, product=0.0), False),  # it is not known how the optimizer steps
    ],
)
def test_it_stops_where_the_optimizer_takes_the_descent_and_the_metric_does_not_follow(
    descent: Descent, stop: bool
) -> None:
    decision = stop_or_wait([examined(descent, str(descent))], "", None, margin=0.2)
    assert decision.stop == stop
    if stop:
        assert decision.reason == f"no saddle is near, and the metric does not follow the loss: {descent}"


def test_a_run_on_its_way_to_a_point_is_waited_for() -> None:
    assert not stop_or_wait([examined(SLIDES, "on the way to a saddle (loss 0.9, 10% below)")], "", None, 0.2).stop
