"""What is known of the blocks that a monitor watches."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException

from relu_diag.figures import TrainingHistory
from relu_diag.functional import NearbyStationaryPoint, NeuronGeometry, NeuronStates, ShallowBlock
from relu_diag.training import BlockReport, BlockWatch, Careful


class WatchedBlocks:
    """Reports, verdicts and history of the blocks in ``watched``, by the names of their first layers."""

    watched: dict[str, BlockWatch]
    _careful: Careful

    @property
    def off(self) -> str:
        """Why the monitor has switched itself off; empty while it is on."""
        return self._careful.off

    def __repr__(self) -> str:
        words = f"off: {self.off}" if self.off else ", ".join(self.watched) or "nothing seen yet"
        return f"{type(self).__name__}({words})"

    @property
    def reports(self) -> dict[str, BlockReport]:
        """The last report of every block.

        Returns:
            Reports by name of the first layer.
        """
        return {hidden: watch.last for hidden, watch in self.watched.items() if watch.last is not None}

    @property
    def block_prefixes(self) -> list[str]:
        """What the names of the scalars of each block begin with: ``landscape/`` where there is one."""
        return [watch.prefix for watch in self.watched.values()]

    @property
    def worst(self) -> BlockReport | None:
        """The report of the block with the largest share of dead neurons; of several such, the first.

        Returns:
            The report; None before the first.
        """
        return max(self.reports.values(), key=lambda report: report.dead_share, default=None)

    @property
    def geometry(self) -> NeuronGeometry | None:
        """One-sided derivatives of the worst block; None before the first report."""
        return None if self.worst is None else self.worst.geometry

    @property
    def states(self) -> NeuronStates | None:
        """Neuron states of the worst block; None before the first report."""
        return None if self.worst is None else self.worst.states

    @property
    def parameters(self) -> ShallowBlock | None:
        """Weights of the worst block, as its last sample had them; None before the first report."""
        return None if self.worst is None else self.worst.block

    @property
    def nearby(self) -> NearbyStationaryPoint | None:
        """The stationary point near the weights of the first block that has one.

        Returns:
            The point, with its verdict; None where there is none.
        """
        return next((watch.nearby for watch in self.watched.values() if watch.nearby is not None), None)

    @property
    def judged_step(self) -> int | None:
        """Step of the last verdict that was asked for; None before the first."""
        steps = [watch.judged_step for watch in self.watched.values() if watch.judged_step is not None]
        return max(steps, default=None)

    @property
    def history(self) -> TrainingHistory:
        """The run of the first block so far, as `relu_diag.figures.training_figure` draws it.

        Returns:
            History, grouped as at the last report.

        Raises:
            MisconfigurationException: If nothing was seen yet.
        """
        seen = [watch for watch in self.watched.values() if watch.last is not None]
        if not seen:
            raise MisconfigurationException("Nothing was seen yet: fit with this callback first.")
        return seen[0].history
