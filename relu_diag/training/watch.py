"""One block in training: its window, its history, what stationary point it is near, and where all that is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import MeanMetric

from relu_diag.capture import Glimpse, Sighting
from relu_diag.figures import TrainingHistory
from relu_diag.functional import NearbyStationaryPoint, NotFiniteError, ShallowBlock, WeightDecay
from relu_diag.functional.local import target_scale
from relu_diag.functional.tables import counted
from relu_diag.metrics import landscape_scalars
from relu_diag.training._data import tensors_of
from relu_diag.training._dead import born_dead_words
from relu_diag.training._trained_as import trained_as
from relu_diag.training._training_data import TrainingData
from relu_diag.training.gap import gap_with_decay
from relu_diag.training.history import HistoryRecorder, Moment
from relu_diag.training.judge import UNSETTLED, VERDICT_CODES, escape_count, judge, verdict_in_training
from relu_diag.training.look import targets_of
from relu_diag.training.penalty import penalty_on
from relu_diag.training.report import Report
from relu_diag.training.rows import NOT_SEEN, KeptRows
from relu_diag.training.window import BlockReport, Window

# A share of dead neurons worth a word, and a share of small ones.
_MANY = 0.25
# Sampled steps that make a report where an epoch is longer.
_SAMPLES_A_REPORT = 20
# Reports with a verdict each; then one is looked for when the run is so many times as long as at the last verdict.
_JUDGED = 20
_AGAIN = 1.1
# The line of a point says how far below its loss is: none is too far.
_ANY_DROP = 1e300
# Samples on which a neuron is to be silent before anyone is told to do something about it.
_ENOUGH = 1000


class BlockWatch:
    """What a monitor keeps of one block.

    Args:
        hidden: Name of its first layer.
        prefix: Put before every name that is logged.
        judging: Whether to say what stationary point is near.
        max_samples: Judge on no more samples than that.

    Attributes:
        last: The last report, or None.
        nearby: The stationary point near the weights at the last report that had one, or None.
        judged_step: Step of that report, or None.
        rows: Rows that the verdict is about.

    Example:
        >>> BlockWatch("encoder", "landscape/", judging=False, max_samples=None).sightings
        0
    """

    def __init__(self, hidden: str, prefix: str, judging: bool, max_samples: int | None) -> None:
        self.hidden = hidden
        self.judging = judging
        self.last: BlockReport | None = None
        self.nearby: NearbyStationaryPoint | None = None
        self.judged_step: int | None = None
        self.rows = KeptRows(max_samples)
        self.recorder = HistoryRecorder()
        self.balancedness: Tensor | None = None
        self.prefix = prefix
        self._report = Report(prefix)
        self._window = Window(hidden)
        self._seen: Sighting | None = None
        self._data: TrainingData | None = None
        self._dead: list[tuple[Tensor, int]] = []
        # Number of verdicts, and neurons at the last one.
        self._verdicts = 0
        self._judged_width = 0

    @property
    def whole(self) -> bool:
        """Whether the last step's batch was the whole data set."""
        return self._window.whole

    @property
    def suspects(self) -> bool:
        """Whether the step to come would tell that a batch is the whole data set."""
        return self._window.suspects

    @property
    def due(self) -> bool:
        """Whether a report is due before the epoch ends."""
        return self.whole or self.sightings >= _SAMPLES_A_REPORT

    @property
    def sightings(self) -> int:
        """Number of sampled steps since the last report."""
        return self._window.sightings

    @property
    def wants_rows(self) -> bool:
        """Whether every step is to be ridden, until the rows of an epoch are kept."""
        return self.judging and not self.rows.full and self.rows.reason in {"", NOT_SEEN}

    def add(self, seen: Sighting, step: int, loss: float | None, batch: Any, alone: bool = False) -> None:
        """Add what a step saw.

        Args:
            seen: The block.
            step: The step.
            loss: Its loss.
            batch: Its batch.
            alone: Whether its epoch has no other batch.
        """
        targets = targets_of(batch)
        scale = 1.0 if targets is None else target_scale(targets)
        self._window.add(seen, step, scale, alone, tensors_of(batch))
        if seen.inputs == 2:
            self._report.keep_data(seen.block, seen.signal.X, batch)
        self._seen = seen
        if self.judging:
            if self.whole:
                self.rows.finish(complete=True)
            self.rows.confirm(seen, loss, batch)
            self.rows.keep(seen, loss, batch)

    @property
    def glances(self) -> bool:
        """Whether a glance at the step to come is enough."""
        return self._window.glances and not self.wants_rows

    def glance(self, seen: Glimpse, step: int, batch: Any) -> None:
        """Add what a glance at a step has shown.

        Args:
            seen: The block, as the glance saw it.
            step: The step.
            batch: Its batch.
        """
        self._window.glance(seen, step, tensors_of(batch))

    def look(self, seen: Iterable[tuple[Sighting, Tensor, Any]], step: int, everything: bool) -> float:
        """Take a pass at fixed weights in place of sampled steps.

        Args:
            seen: The block on every batch of the pass, its loss, and the batch.
            step: The step.
            everything: Whether the pass goes over all data.

        Returns:
            Mean loss of the pass, over the samples of all ranks.
        """
        mean = MeanMetric()
        self.rows = KeptRows(None)
        self._window = Window(self.hidden, one_pass=True)
        for one, loss, batch in seen:
            self.add(one, step, float(loss), batch)
            mean.to(loss.device).update(loss, weight=one.count)
        if everything:
            self.rows.finish(complete=True)
            self._window.whole = True
        return float(mean.compute())

    @property
    def shapes(self) -> tuple[int, ...]:
        """Inputs, neurons and outputs of the block as they were last seen."""
        return () if self._seen is None else (self._seen.inputs, self._seen.neurons, self._seen.outputs)

    @property
    def weights(self) -> int:
        """Number of weights of the block as it was last seen."""
        inputs, neurons, outputs = self.shapes or (0, 0, 0)
        return neurons * (inputs + outputs)

    def prepare(self) -> None:
        """Add up what this rank has seen."""
        self._window.prepare()

    def gather(self) -> None:
        """Add up the windows, and join the rows of a verdict, of all ranks. A collective: every rank must call it."""
        self._window.gather()
        self._data = self.rows.data() if self.judging else None

    def add_up(self) -> BlockReport:
        """What the window holds.

        Returns:
            The report.
        """
        self.last = self._window.report()
        self._remember_dead(self.last)
        return self.last

    def _remember_dead(self, report: BlockReport) -> None:
        """Keep which neurons were dead in the last reports, as many as see enough samples."""
        # Reports on all data are of the same samples.
        if report.exact or (self._dead and len(self._dead[-1][0]) != len(report.states.dead)):
            self._dead.clear()
        self._dead.append((report.states.dead, report.samples))
        while sum(samples for _, samples in self._dead[1:]) >= _ENOUGH:
            del self._dead[0]

    def report(self, trainer: Trainer, loss: float | None) -> None:
        """Log what was added up.

        Args:
            trainer: The trainer.
            loss: Mean loss of the steps of the window.
        """
        found = self.last
        assert found is not None
        X, Z = (None, None) if self._seen is None else (self._seen.signal.X, self._seen.signal.Z)
        self.recorder.add(found.step, loss or 0.0, found.block, found.states, X, Z)
        scalars = self._scalars(found, loss)
        if self.judging and self._is_time(found):
            scalars |= self._judge(trainer, found)
        self._report.log(trainer, found.step, scalars, found.slopes.steepest, found.states)
        if self._report.due():
            self._report.send_figures(trainer, found.step, self.figures)

    def judge_now(self, trainer: Trainer, step: int) -> None:
        """Say once more what stationary point is near, at the weights of now.

        Args:
            trainer: The trainer.
            step: Steps done.
        """
        if not self.judging or self.last is None:
            return
        self._data = self.rows.data()
        if self._seen is not None and self._seen.live is not None:
            try:
                block = self._seen.live()
            except NotFiniteError:  # training has diverged, and its last reports say how
                return
            self._report.log_scalars(trainer, step, self._judge(trainer, replace(self.last, block=block, step=step)))

    def log_final_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Show the loss at the end of a run where TensorBoard compares runs.

        Args:
            trainer: The trainer.
            step: Steps done.
            loss: The loss.
        """
        self._report.log_final_loss(trainer, step, loss)

    def write_figures(self, trainer: Trainer) -> None:
        """Send the figures, and write them beside the logs.

        Args:
            trainer: The trainer.
        """
        if self.last is not None:
            self._report.write_figures(trainer, self.last.step, self.figures)

    @property
    def pictures(self) -> Mapping[str, bytes]:
        """The figures that were written, as contents of PNG files."""
        return self._report.pictures

    def figures(self) -> dict[str, Figure]:
        """The figures of the run so far.

        Returns:
            Figures by name.
        """
        assert self.last is not None
        return self._report.landscape_figures(self.history, self.last.block)

    @property
    def history(self) -> TrainingHistory:
        """The run so far, grouped as at the last report."""
        assert self.last is not None
        return self.recorder.finished(self.last.states, self._report.dead_sector(self.last.block))

    def born_dead(self) -> str:
        """That inputs far from zero kill random neurons, and the cure.

        Returns:
            A warning; empty where few neurons are born dead.
        """
        return "" if self._seen is None else born_dead_words(self._seen)

    @property
    def many_dead(self) -> bool:
        """Whether many neurons were silent on all samples seen."""
        return self.last is not None and self._silent >= _MANY * len(self.last.states.dead)

    @property
    def dead_for_good(self) -> bool:
        """Whether these samples are so many that the neurons are dead, and hold the loss back."""
        return self.many_dead and (self.whole or sum(samples for _, samples in self._dead) >= _ENOUGH)

    @property
    def _silent(self) -> int:
        """Number of neurons that were silent on all samples of the last reports."""
        return int(torch.stack([dead for dead, _ in self._dead]).all(dim=0).sum())

    def advice(self, samples_of_data: int = 0, batch_size: int = 0, worst: bool = False) -> str:
        """What was found of the block, and what to do about it.

        Args:
            samples_of_data: Number of samples of the data set, some of which may have been seen twice; 0: not known.
            batch_size: Number of samples of a batch. A block with more rows than that sees parts of samples.
            worst: Whether it is the worst of several: if its neurons are dead for good, it holds the loss back.

        Returns:
            A sentence; empty where there is nothing to say.
        """
        if self.last is None:
            return ""
        states, count = self.last.states, len(self.last.states.dead)
        samples = sum(samples for _, samples in self._dead)
        dead = self._silent
        small = int(states.small_living.sum())
        where = f"{self.last.name}{' holds the loss back' if worst and self.dead_for_good else ''}: "
        if self.many_dead:
            share = "all" if dead == count else f"{dead} of"
            seen = f"{where}{share} {count} neurons dead on {counted(samples, 'sample')}"
            if samples > samples_of_data and self._seen is not None and self._seen.count <= batch_size:
                seen += f" drawn from {samples_of_data:,}"
            if not self.dead_for_good:
                return f"{seen}, too few to call them dead for good"
            return f"{seen}: {'start again at a lower rate' if dead == count else 'lower the rate or revive them'}"
        if small >= _MANY * count:
            return f"{where}{small} of {count} neurons have not grown yet: what they will add is still to come"
        living = f"{where}{count - dead} of {count} neurons living"
        # Groups are those of the last report.
        return living if dead != int(states.dead.sum()) else f"{living}, {len(states.group_amplitude)} of them distinct"

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            Plain numbers and tensors.
        """
        return {
            "balancedness": self.balancedness,
            "moments": [tuple(moment) for moment in self.recorder.moments],
            "stride": self.recorder.stride,
            "offered": self.recorder.offered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self.balancedness = state["balancedness"]
        moments = [Moment(*moment) for moment in state["moments"]]
        self.recorder = HistoryRecorder(moments, state["stride"], state["offered"])

    def _scalars(self, found: BlockReport, loss: float | None) -> dict[str, float]:
        now = found.states.balancedness
        if self.balancedness is None or self.balancedness.shape != now.shape:
            self.balancedness = now
        drift = (now - self.balancedness.to(now.device)).abs().max()
        scalars = {**landscape_scalars(found.slopes, found.states), "balancedness_drift": drift}
        numbers = torch.stack([value.double().to(now.device) for value in scalars.values()]).tolist()
        named = {"samples": float(found.samples), **dict(zip(scalars, numbers, strict=True))}
        return named if loss is None else {"loss": loss, **named}

    def _is_time(self, found: BlockReport) -> bool:
        """Whether to look for the point nearby again, which takes as long as many steps; no clock says so."""
        if self._verdicts < _JUDGED or self.nearby is None or len(found.block.W) != self._judged_width:
            return True
        return found.step >= _AGAIN * (self.judged_step or 0)

    def _judge(self, trainer: Trainer, found: BlockReport) -> dict[str, float]:
        """Judge and log the verdict; its integer, and the number of escape neurons."""
        self.nearby = self._near(trainer, found.block)
        self.judged_step = found.step
        self._judged_width = len(found.block.W)
        self._verdicts += 1
        text = _words(self.nearby) if self.nearby else f"undecided: {self.rows.reason}"
        kind = self.nearby.verdict.kind if self.nearby else "undecided"
        self._report.log_text(trainer, found.step, "timeline", text, kind)
        scalars: dict[str, float] = {"verdict": VERDICT_CODES[kind]}
        if self.nearby is None:
            return scalars
        scalars["gap"] = self._gap(trainer, found.block, self.nearby)
        escape = escape_count(self.nearby.verdict)
        return scalars if escape is None else scalars | {"escape": escape}

    def _penalty(self, trainer: Trainer) -> WeightDecay | None:
        """The weight decay that is part of the block's loss; None where it is part of none."""
        live = None if self._seen is None else self._seen.live
        return None if live is None else penalty_on(trainer, live)

    def _gap(self, trainer: Trainer, block: ShallowBlock, nearby: NearbyStationaryPoint) -> float:
        """How far the loss is above the best of any width where its decay bounds that, else above the point nearby."""
        data, penalty = self._data, self._penalty(trainer)
        best = None if data is None or penalty is None else gap_with_decay(block, data, penalty)
        return nearby.loss_gap if best is None else best.gap

    def _near(self, trainer: Trainer, block: ShallowBlock) -> NearbyStationaryPoint | None:
        """The point near a block, with the verdict that holds for its optimizer; None where the loss is not known."""
        seen, data = self._seen, self._data
        if seen is None or data is None:
            return None
        penalty = self._penalty(trainer)
        nearby = judge(block, data, penalty)
        if nearby is None:
            return None
        training = trained_as(trainer, seen.parameters, block, data, penalty, seen.from_data, _ANY_DROP)
        return replace(nearby, verdict=verdict_in_training(nearby, "", training))


def _words(nearby: NearbyStationaryPoint) -> str:
    """A point in a line, and why its verdict is not that of the point where it settles nothing."""
    why = nearby.verdict.reason if nearby.verdict.kind in UNSETTLED else ""
    return f"{nearby}; {why}" if why and why not in str(nearby) else str(nearby)
