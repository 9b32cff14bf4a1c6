"""The answer: what a point is, why, and a direction anyone can check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from relu_diag.functional.assumptions import Assumptions
from relu_diag.functional.tables import html_table, summary_of
from relu_diag.functional.verdict.direction import Direction

Kind = Literal["not stationary", "saddle", "local minimum", "global minimum", "type-2 candidate", "undecided"]
# Why a point of a loss such as cross-entropy is at nothing: labels that are separable, say.
DESCENT = "a first-order descent exists"
NO_MINIMUM = "the loss has no minimum in this cell: it falls for ever as weights grow"

_NAMED = 8


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What the parameters are a point of, and why.

    Attributes:
        kind: "not stationary"; "saddle" (stationary, and the loss falls along ``direction``); "local minimum";
            "global minimum"; "type-2 candidate" (stationary with escape neurons, and no fall was found; several outputs
            only); "undecided" (``reason`` says why).
        neurons: The descending or escape neurons, long, shape ``(n,)``.
        direction: Where the loss was evaluated and lower; None at minima, and where only a signal was given.
        assumptions: What the theorem assumes, each "holds", "broken", or "assumed" where only the caller can know.
        theorem: The statement the verdict rests on.
        reason: What it rests on here, or what is missing.
        loss: The loss at the point, nan where only a signal was given.
        margins: The numbers behind the decision; violations and pulls are relative to their natural scale.

    Example:
        >>> import torch
        >>> from relu_diag import ShallowBlock
        >>> from relu_diag.functional.verdict import classify
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> verdict = classify(ShallowBlock(0 * X[:1], 0 * X[:1, :1]), X, X[:, :1])
        >>> verdict.kind, verdict.neurons.tolist(), verdict.assumptions["full data set"]
        ('saddle', [0], 'assumed')
    """

    kind: Kind
    neurons: Tensor
    direction: Direction | None
    assumptions: Assumptions
    theorem: str = ""
    reason: str = ""
    loss: float = float("nan")
    margins: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts: list[str] = [self.kind]
        if len(self.neurons):
            word = "neuron" if len(self.neurons) == 1 else "neurons"
            parts.append(f"{word} {self._named}")
        parts += [str(text) for text in (self.direction, self.reason) if text]
        parts += [f"{name}: broken" for name in self.assumptions.broken]
        return "; ".join(parts) + (f" ({self.theorem})" if self.theorem else "")

    def summary(self) -> str:
        """The verdict as a table.

        Returns:
            Text, one fact a line.
        """
        rows: list[tuple[str, str]] = [("verdict", self.kind), ("loss", f"{self.loss:.6g}"), ("neurons", self._named)]
        rows += [("direction", str(self.direction or "none")), ("rests on", self.theorem), ("because", self.reason)]
        rows += [(name, f"{value:.3g}") for name, value in self.margins.items()]
        rows += [(f"assumes {name}", state) for name, state in self.assumptions.items()]
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    @property
    def _named(self) -> str:
        """The first of its neurons, and how many more there are."""
        named = ", ".join(str(i) for i in self.neurons[:_NAMED].tolist()) or "none"
        more = len(self.neurons) - _NAMED
        return f"{named} and {more} more" if more > 0 else named
