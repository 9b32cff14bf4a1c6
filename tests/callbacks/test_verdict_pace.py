"""A verdict at every report: twenty of them, then the steps between two grow with the run."""

from typing import Any
from unittest.mock import patch

from support.five_points import Five, fit

from relu_diag.callbacks import LandscapeMonitor
from relu_diag.training import watch

STEPS = 200


def test_after_twenty_verdicts_a_run_is_judged_when_it_is_a_tenth_longer_and_at_its_end() -> None:
    found: list[Any] = []

    def judged_once(*arguments: Any) -> Any:
        found.append(found[-1] if found else judge(*arguments))
        return found[-1]

    judge = watch.judge
    monitor = LandscapeMonitor(every_n_steps=1, verdict="nearby")
    with patch.object(watch, "judge", judged_once):
        fit(Five(lr=0.0), monitor, max_steps=STEPS)
    assert 20 < len(found) < 60
    assert monitor.judged_step == STEPS
