"""What a growth in training was, for a line, a checkpoint and a figure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from relu_diag.training.examination import Examination
from relu_diag.training.widening_choice import WideningChoice


@dataclass(frozen=True, slots=True)
class Growth:
    """A block made wider in the middle of training.

    Attributes:
        step: Gradient steps done.
        block: Qualified name of the block's first Linear.
        before: Width before.
        after: Width after.
        embedding: What was done, one line for each new neuron.
        verdict_before: Verdict on the weights before; "undecided" at a given step, where none is asked for.
        verdict_after: Verdict on the weights after.
        function_change: Largest change of an output on the data.
        predicted_drop: First-order prediction of the immediate drop of the loss.
        measured_drop: Immediate drop of the loss, evaluated.

    Example:
        >>> growth = Growth(9000, "net.0", 50, 51, ("replication",), "local minimum", "saddle", 0.0, 0.0021, 0.002)
        >>> growth.step, growth.after, growth.measured_drop
        (9000, 51, 0.002)
    """

    step: int
    block: str
    before: int
    after: int
    embedding: tuple[str, ...]
    verdict_before: str
    verdict_after: str
    function_change: float
    predicted_drop: float
    measured_drop: float

    @classmethod
    def of(cls, examination: Examination, choice: WideningChoice) -> Growth:
        """The growth of a block by what was chosen for it.

        Args:
            examination: The block, examined.
            choice: The neurons.

        Returns:
            The growth.
        """
        width = len(examination.block.W)
        return cls(
            step=examination.step,
            block=examination.name,
            before=width,
            after=width + choice.units,
            embedding=choice.embedding,
            verdict_before=examination.verdict.kind,
            verdict_after=choice.verdict,
            function_change=choice.function_change,
            predicted_drop=choice.predicted_drop,
            measured_drop=choice.measured_drop,
        )

    def __str__(self) -> str:
        counts = Counter(self.embedding)
        lines = [line if count == 1 else f"{count} times {line}" for line, count in counts.items()]
        known = {self.verdict_before, self.verdict_after} != {"undecided"}
        verdicts = f"{self.verdict_before} before, {self.verdict_after} after; " if known else ""
        return (
            f"step {self.step:,} {self.block or 'block'} grows from {self.before} to {self.after} neurons: "
            f"{'; '.join(lines)}; {verdicts}{self._drop}"
        )

    @property
    def _drop(self) -> str:
        """The drop in words, with the prediction where it says something else."""
        measured = f"drop {self.measured_drop:.2g}"
        predicted = f"{self.predicted_drop:.2g}"
        return measured if measured.endswith(f" {predicted}") else f"{measured}, {predicted} to first order"
