"""Decide whether training is over, by the verdict on its weights and the forecast of an escape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from relu_diag.functional.verdict import NO_MINIMUM
from relu_diag.training.examination import Examination
from relu_diag.training.judge import MINIMA


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to stop training.

    Attributes:
        stop: True: stop; False: wait.
        reason: Why, in words.
        wait_until: Step until which to wait for an escape that is forecast, or None.

    Example:
        >>> Decision(stop=True, reason="near a local minimum").wait_until
    """

    stop: bool
    reason: str
    wait_until: float | None = None


def stop_or_wait(
    examinations: Sequence[Examination] | None,
    nothing: str,
    wait_until: float | None,
    margin: float,
    last: bool = False,
) -> Decision:
    """Stop at a minimum, or if nothing can change or the loss falls anyway; wait at a saddle until its escape is due.

    Args:
        examinations: The blocks, examined, the one that says most about the loss first; None if weights or loss are not
            finite.
        nothing: Why there is no examination.
        wait_until: Step until which an earlier decision waited for an escape, or None.
        margin: Fraction by which to wait longer than forecast.
        last: Whether it has waited long enough where nothing says until when.

    Returns:
        The decision.

    Example:
        >>> stop_or_wait(None, nothing="", wait_until=None, margin=0.5)
        Decision(stop=True, reason='the loss is not finite', wait_until=None)
        >>> stop_or_wait([], nothing="no step has been seen yet", wait_until=None, margin=0.5).stop
        False
    """
    decision = _by_verdict(examinations, nothing, wait_until, margin)
    if last and not decision.stop and decision.wait_until is None:
        return Decision(True, f"it has waited long enough; {decision.reason}")
    return decision


def _by_verdict(
    examinations: Sequence[Examination] | None, nothing: str, wait_until: float | None, margin: float
) -> Decision:
    """The decision by the verdict and the forecast alone."""
    if examinations is None:
        return Decision(True, "the loss is not finite", wait_until)
    if not examinations:
        return Decision(False, f"nothing is certain ({nothing})")
    dead = next((one for one in examinations if one.dead), None)
    if dead is not None:
        return Decision(True, f"nothing can change any more: {dead.all_dead}", wait_until)
    examination = examinations[0]
    verdict = examination.verdict
    if verdict.kind in MINIMA:
        return Decision(True, f"near a {verdict.kind}", wait_until)
    if verdict.reason.startswith(NO_MINIMUM) or _falls(examination):
        reason = f"no saddle is near, and the metric does not follow the loss: {verdict.reason}"
        return Decision(True, reason, wait_until)
    if verdict.kind != "saddle":
        return Decision(False, examination.fact or f"nothing is certain ({verdict.kind}: {verdict.reason})")
    if wait_until is not None:
        reason = f"still near a saddle, whose escape was forecast and awaited until {wait_until:,.0f}"
        return Decision(True, reason, wait_until)
    if examination.forecast is None:
        return Decision(False, f"near a saddle; no forecast: {examination.no_forecast}")
    steps = examination.forecast.steps
    if not math.isfinite(steps):
        return Decision(True, "near a saddle that no step leaves at the learning rates to come")
    until = examination.step + (1 + margin) * steps
    end = examination.step + steps
    return Decision(False, f"near a saddle; escape forecast at step {end:,.0f}, awaited until {until:,.0f}", until)


def _falls(examination: Examination) -> bool:
    """Whether the loss falls as it does far from any saddle, so that no escape is to be waited for."""
    descent = examination.descent
    if descent is None or examination.verdict.kind != "not stationary":
        return False
    return descent.is_taken and examination.verdict.reason == str(descent)
