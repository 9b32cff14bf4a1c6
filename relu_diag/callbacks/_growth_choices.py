"""When and how a network grows, as its user says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException

from relu_diag.training import VERDICT_CODES

Embedding = Literal["best", "replication", "inactive propagation"]


def check_choices(at_steps: Sequence[int], embedding: str, verdicts: Sequence[str]) -> None:
    """Refuse what is no list of steps, no embedding, or no kind of verdict.

    Raises:
        MisconfigurationException: If there is one.
    """
    counts = isinstance(at_steps, Sequence) and all(type(step) is int and step >= 1 for step in at_steps)
    if not counts:
        raise MisconfigurationException(f"`at_steps` must be a list of gradient steps, 1 or more; got {at_steps!r}.")
    if embedding not in get_args(Embedding):
        raise MisconfigurationException(f"`embedding` must be one of {get_args(Embedding)}; got {embedding!r}.")
    listed = isinstance(verdicts, Sequence) and not isinstance(verdicts, str) and len(verdicts) > 0
    if not listed or set(verdicts) - set(VERDICT_CODES):
        unknown = sorted(set(verdicts) - set(VERDICT_CODES)) if listed else verdicts
        raise MisconfigurationException(f"`verdicts` must be among {[*VERDICT_CODES]}; got {unknown!r}.")
