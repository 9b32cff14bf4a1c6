"""Whether to stop: a table of all cases, by examinations made by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from relu_diag.functional import ShallowBlock, Verdict
from relu_diag.functional.assumptions import Assumptions
from relu_diag.functional.verdict import NO_MINIMUM
from relu_diag.training import Examination, stop_or_wait


def examined(kind: str, steps: float | None = None, dead: bool = False) -> Examination:
    """At step 1,000, with an escape forecast in so many steps."""
    nobody = torch.empty(0, dtype=torch.long)
    forecast: Any = None if steps is None else SimpleNamespace(steps=steps)
    return Examination(
        step=1000,
        name="net.0",
        location=None,
        block=ShallowBlock(torch.ones(1, 1), torch.ones(1, 1)),
        loss=1.0,
        verdict=Verdict(kind, nobody, None, Assumptions({}), reason="a reason"),  # type: ignore[arg-type]
        nearby=None,
        data=None,
        forecast=forecast,
        no_forecast="" if forecast else "another reason",
        dead=dead,
    )


@pytest.mark.parametrize(
    ("examination", "waited_until", "stop", "reason"),
    [
        (None, None, True, "the loss is not finite"),
        (examined("undecided", dead=True), None, True, "nothing can change any more: the neuron of net.0 is dead"),
        (examined("local minimum"), None, True, "near a local minimum"),
        (examined("global minimum"), None, True, "near a global minimum"),
        (examined("undecided"), None, False, "nothing is certain (undecided: a reason)"),
        (examined("not stationary"), 900.0, False, "nothing is certain (not stationary: a reason)"),
        (
            replace(examined("not stationary"), verdict=replace(examined("not stationary").verdict, reason=NO_MINIMUM)),
            None,
            True,
            "no saddle is near, and the metric does not follow the loss: the loss has no minimum",
        ),
        (examined("saddle"), None, False, "near a saddle; no forecast: another reason"),
        (examined("saddle", math.inf), None, True, "near a saddle that no step leaves at the learning rates to come"),
        (examined("saddle", 500.0), None, False, "escape forecast at step 1,500, awaited until 1,600"),
        (examined("saddle", 500.0), 900.0, True, "still near a saddle"),
    ],
)
def test_training_stops_at_minima_and_after_an_escape_that_did_not_come(
    examination: Examination | None, waited_until: float | None, stop: bool, reason: str
) -> None:
    decision = stop_or_wait(None if examination is None else [examination], "", waited_until, margin=0.2)
    assert decision.stop == stop
    assert reason in decision.reason


def test_the_step_to_wait_for_is_the_forecast_and_a_margin() -> None:
    assert stop_or_wait([examined("saddle", 500.0)], "", None, margin=0.2).wait_until == 1600.0
    assert stop_or_wait([examined("saddle", 500.0)], "", None, margin=0.0).wait_until == 1500.0
    # An undecided verdict in between forgets the escape: the next saddle is waited for.
    undecided = stop_or_wait([examined("undecided")], "", 900.0, margin=0.2)
    assert undecided.wait_until is None
    assert not stop_or_wait([replace(examined("saddle", 500.0))], "", undecided.wait_until, margin=0.2).stop
