"""LandscapeMonitor: watch the blocks of a module while it trains, without changing anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from relu_diag.callbacks._page import write_page
from relu_diag.callbacks._passenger import Rides
from relu_diag.callbacks._resting import SAMPLED, UNUSED
from relu_diag.callbacks._watched import WatchedBlocks
from relu_diag.capture import Sighting
from relu_diag.training import (
    BlockWatch,
    Careful,
    Look,
    LossFunction,
    Rider,
    agree,
    check_block,
    check_callable,
    check_count,
    check_flag,
    check_iterable,
    first_few,
    is_epoch_of_all,
    samples_of,
    say,
    steps_logged,
)

# Sampled steps that make a report at least, at the end of an epoch; more where blocks have many weights.
_SAMPLES_AN_EPOCH = 2
_SAMPLES_IF_LARGE = 4
_LARGE = 2**17
# By how many steps samples are shifted in turn, where they are rare.
_SHIFTS = 5
_RARE = 50


class LandscapeMonitor(WatchedBlocks, Rides):
    """Watches every Linear -> ReLU-like -> Linear block of a module: counts, slopes, effective neurons, a figure.

    It rides along on sampled training steps: hooks on the graph of the user's own loss note what passes by. Nothing of
    the user's runs twice, and training goes on as if nobody had looked: weights, optimizer states, random numbers,
    buffers, logged metrics, the samples drawn and the number of calls are the same to the bit.

    The sampled steps since the last report add up to one, at the end of an epoch once there are two of them (four where
    the blocks have more than 131,072 weights), and after every 20: "dead" is silent on each of the samples seen, slopes
    are means over them: once the gradients of 128 rows were read, over those of every sixth step, and the others are
    only asked for silent neurons. A batch that is the whole data set is reported at each sampled step, and exactly.

    At the first step it warns where the inputs of a block are so far from zero that random neurons are born dead.

    Logged to every logger at each report and put into ``trainer.callback_metrics``, prefix ``landscape/`` (for several
    blocks ``landscape/<first layer>/``): ``loss``, ``samples``; the scalars of `relu_diag.metrics.landscape_scalars`:
    ``dead``, ``brink``, ``linear``, ``small_living``, ``dormant``, ``on_kink``, ``effective``, ``largest_amplitude``,
    ``total_amplitude``, ``steepest_slope``, ``slope_to_noise`` (about 1: noise, whatever the slope),
    ``largest_radial``, ``largest_output_gradient``, ``pull`` (growth rate of the small neuron that is pulled most);
    ``escape``, the number of escape neurons, and ``gap``, the loss above that of the point or, with weight decay that
    is part of it, above the best of any width (`relu_diag.functional.optimality_gap`), wherever ``verdict`` found a
    stationary point; and ``balancedness_drift``, the largest change of ``||w_i||^2 - ||h_i||^2`` since the first
    report. For several blocks also ``landscape/dead_share`` of the worst one. Histograms where the logger has them
    (TensorBoard, W&B): ``amplitude``, ``angle``, ``slope``. Figures: ``training``, and ``function`` for two inputs.
    Texts: ``watching``, at the end ``found``; in TensorBoard rows of the table ``timeline``, with every change of the
    verdict.

    TensorBoard's page is laid out in its custom scalars, and shows of these what is drawn there: the numbers of a block
    and of its plateaus have 20 tags at most, whatever the width.

    Args:
        every_n_steps: Ride along on one of so many optimizer steps.
        block: Name of the first layer of a block, a pattern (``encoder.*``), or several of them; None: all blocks.
        verdict: "nearby": say at each report what stationary point is near, if the loss is recognised as a convex one
            of the block's output, from the rows of one epoch; after 20 reports when the run is a tenth longer than at
            the last verdict, and at the end. Logged as text, as the integer ``verdict``
            (`relu_diag.training.VERDICT_CODES`).
            Where the optimizer descends another loss (the decay of AdamW is no part of one) it is "undecided", and says
            what the point is of the loss alone.
        exact: Make a pass over the data at fixed weights at every sampled step, in eval mode, in place of riding along.
            The loss of a batch is ``loss(module, batch)``, or ``module.batch_loss(batch)``. A module with a method
            ``batch_loss`` asks for it.
        dataloader: Data of that pass; None: the training data set, in order.
        loss: Loss of that pass.
        max_samples: Judge, or make the pass, on no more than so many samples; None: all.
        report: Write ``report.html`` into the folder of the logs when training ends: the story of a `PlateauMonitor` of
            the trainer, verdict, figures, neurons by group, environment, in one file to send.

    Attributes:
        reports: The last report of every block, `BlockReport`, by name of its first layer.
        geometry: One-sided derivatives of the worst block, `NeuronGeometry`; None before the first report.
        states: Its neuron states, `NeuronStates`.
        parameters: Its weights, `ShallowBlock`.
        step: Step of its last sample.
        loss_value: Mean loss over the sampled steps of the last report.
        off: Why the monitor has switched itself off; empty while it is on.

    Raises:
        MisconfigurationException: If an argument is not what it should be.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LandscapeMonitor()], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 200,
        block: str | Sequence[str] | None = None,
        verdict: Literal["nearby"] | None = None,
        exact: bool = False,
        dataloader: Iterable[Any] | None = None,
        loss: LossFunction | None = None,
        max_samples: int | None = None,
        report: bool = False,
    ) -> None:
        super().__init__()
        self.every_n_steps = check_count("every_n_steps", every_n_steps)
        self.max_samples = None if max_samples is None else check_count("max_samples", max_samples)
        if verdict not in {None, "nearby"}:
            raise MisconfigurationException(f"`verdict` must be 'nearby' or None; got {verdict!r}.")
        check_block(block)
        self.block = block
        self.report = check_flag("report", report)
        # Lightning asks for it at every hook of every step.
        self._state_key = self._generate_state_key(block=block)
        self.verdict = verdict
        self.exact = exact or dataloader is not None or loss is not None
        self.dataloader = check_iterable("dataloader", dataloader)
        self.loss = check_callable("loss", loss)
        self._begin()

    def _begin(self) -> None:
        """Forget every run before."""
        self.loss_value: float | None = None
        self.step: int | None = None
        self.watched: dict[str, BlockWatch] = {}
        self._careful = Careful(type(self).__name__)
        self._rider = Rider(self.block, self._careful, at_once=True)
        self._batch: Any = None
        self._alone = False  # whether the batch is the only one of its epoch
        self._seen: list[Sighting] | None = None
        self._losses: list[tuple[float, int]] = []
        self._sampled: int | None = None
        self._rests_until = 0  # the step before which none is ridden
        self._meets = False  # whether the present step is one that every rank samples
        self._named: set[str] | None = None  # blocks that were said to be watched; None before anything was said
        self._absent: Set[str] = frozenset()  # blocks that the last step sampled had no part in
        self._folder: str | None = None
        self._state: dict[str, Any] = {}
        self._look: Look | None = None

    @property
    def state_key(self) -> str:
        """Two monitors of one run are told apart by what they watch.

        Returns:
            Key of this callback's state in checkpoints.
        """
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: the figures and the drift go on where they were.

        Returns:
            Plain numbers and tensors.
        """
        return {"step": self.step, "blocks": {name: watch.state_dict() for name, watch in self.watched.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self.step = state_dict["step"]
        self._state = dict(state_dict["blocks"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the run before.

        Args:
            trainer: Unused.
            pl_module: Unused.
            stage: What the trainer is about to do.
        """
        if stage == "fit":
            self._begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the block, where passes at fixed weights are asked for.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Raises:
            MisconfigurationException: If the pass has no loss, no data, or not the one block.
        """
        self._rest(trainer, (*UNUSED, *SAMPLED))
        if not self.exact and not hasattr(pl_module, "batch_loss"):
            return
        if self.block is not None and not isinstance(self.block, str):
            raise MisconfigurationException(f"A pass at fixed weights looks at one block; got block={self.block!r}.")
        self._look = Look(type(self).__name__, self.block, self.dataloader, self.max_samples, self.loss)
        self._look.find(trainer, pl_module)
        self._watch(self._look.location.hidden, named=self.block is not None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ride along, where a sample is due.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: The batch.
            batch_idx: Unused.
        """
        # The step that loggers use; what the module logs in this very step lands on the same one.
        step = steps_logged(trainer)
        if step < self._rests_until or not self._due(step):
            return
        self._wake(SAMPLED)
        self._sampled = step
        if self._look is not None:
            self._pass_over(trainer, pl_module, self._look, step)
        elif not self.off:
            self._batch = batch
            self._alone = trainer.num_training_batches == 1
            enough = bool(self.watched) and not self._alone and all(watch.glances for watch in self.watched.values())
            if not enough or not self._rider.glance(pl_module, self.watched):
                self._rider.begin(pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in a step that is ridden, before the optimizer moves.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        if self._rider.riding:
            super().on_after_backward(trainer, pl_module)
            if self._rider.taken and self._rider.glancing:
                self._take_glimpses()
            elif self._rider.taken:
                self._take_in()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report, where it is time.

        Args:
            trainer: The trainer.
            pl_module: Unused.
            outputs: Unused.
            batch: Unused.
            batch_idx: Unused.
        """
        self._rest(trainer, SAMPLED)
        if self._rider.glancing:
            self._take_glimpses()
        elif self._rider.riding:
            self._take_in()
        seen = self._seen
        if seen is None and not self._meets:
            return
        self._seen = None
        if seen is not None and not self.off and self._rider.finite:
            with self._careful:
                self._say_what_is_new(trainer, seen)
        if self._look is None and (self._meets if trainer.world_size > 1 else seen is not None):
            self._report(trainer, any(watch.due for watch in self.watched.values()))
        self._meets = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, no more often than the trainer logs.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        if self._rider.riding:  # the step has ended the epoch before it ran: the next one is sampled in its place
            self._rider.leave()
            self._sampled = None
            self._rests_until = 0
        for watch in self.watched.values():
            watch.rows.finish(complete=is_epoch_of_all(trainer))
        if self._look is not None:
            return
        large = sum(watch.weights for watch in self.watched.values()) > _LARGE
        samples = _SAMPLES_IF_LARGE if large else _SAMPLES_AN_EPOCH
        least = max(trainer.log_every_n_steps, samples * self.every_n_steps)  # type: ignore[attr-defined]
        self._report(trainer, self.step is None or steps_logged(trainer) - self.step >= least)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what is left, say what was found, write the figures.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        step = steps_logged(trainer)
        self._folder = trainer.log_dir  # Lightning broadcasts it: every rank must ask.
        if self._look is not None and step != self.step:
            self._pass_over(trainer, pl_module, self._look, step)
        self._report(trainer, due=True)
        names = agree(self._careful, {name: watch.shapes for name, watch in self.watched.items() if watch.last})
        for watch in [self.watched[name] for name in names]:
            # Each begins with what all ranks do together, whatever becomes of the block before.
            with self._careful:
                watch.judge_now(trainer, step)
            with self._careful:
                watch.write_figures(trainer)
        if self.off:
            return
        with self._careful:
            found = [watch for watch in self.watched.values() if watch.last is not None]
            found.sort(key=lambda watch: -watch.last.dead_share if watch.last else 0.0)
            if found and self.loss_value is not None:
                found[0].log_final_loss(trainer, step, self.loss_value)
            if found:
                several = len(found) > 1
                lines = [self._advice(trainer, watch, several and watch is found[0]) for watch in found]
                say(trainer, "landscape/found", first_few(lines))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page, once every monitor has judged the end.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        if self.report and not self.off:
            with self._careful:
                write_page(trainer, self._folder, self.nearby, list(self.watched.values()))

    def _due(self, step: int) -> bool:
        """Whether a step is ridden: the first, one of so many, and all while rows are kept."""
        number, past = divmod(step, self.every_n_steps)
        # Networks that take turns from step to step are to be seen all: not every sample is of an even step.
        shift = number % _SHIFTS if self.every_n_steps > _RARE else 0
        self._meets = self._sampled is None or (number > self._sampled // self.every_n_steps and past >= shift)
        if self._meets or any(watch.wants_rows or watch.suspects for watch in self.watched.values()):
            return True
        self._rests_until = step - past + (shift if past < shift else self.every_n_steps)
        return False

    def _say_what_is_new(self, trainer: Trainer, seen: list[Sighting]) -> None:
        """Say what is watched: that there is nothing, once, and each block when it takes part, as layers thaw."""
        first = self._named is None
        named = self._named or set()
        new = [one for one in seen if one.hidden not in named]
        self._named = named | {one.hidden for one in new}
        if new or first:
            say(trainer, "landscape/watching", self._rider.watching(new))
        warnings = [self.watched[one.hidden].born_dead() for one in new if self._sampled == 0]
        for words in filter(None, warnings):
            say(trainer, "landscape/warning", f"warning: {words}")

    def _pass_over(self, trainer: Trainer, module: LightningModule, look: Look, step: int) -> None:
        """A pass at fixed weights, and its report."""
        watch = self.watched[look.location.hidden]
        agree(self._careful, {})
        if not self.off:
            with self._careful:
                self._losses = [(watch.look(look.sightings(trainer, module), step, everything=not look.sampled), 1)]
        self._report(trainer, due=True)

    def _take_in(self) -> None:
        """Take in a step that was ridden."""
        with self._careful:
            seen = self._rider.end()
            if self._rider.loss is not None and seen:
                self._losses.append((self._rider.loss, seen[0].count))
            named = self.block is not None or len(seen) > 1 or len(self.watched) > 1
            for one in seen:
                if one.hidden not in self.watched:
                    self._watch(one.hidden, named)
                self.watched[one.hidden].add(one, self._sampled or 0, self._rider.loss, self._batch, self._alone)
            self._seen = seen
            self._absent = self.watched.keys() - {one.hidden for one in seen}
            for name in self._rider.refuted & self._absent:
                del self.watched[name]
        self._batch = None
        self._rider.leave()

    def _take_glimpses(self) -> None:
        """Take in a step that was glanced at."""
        with self._careful:
            seen = self._rider.glimpses()
            if self._rider.loss is not None and seen:
                self._losses.append((self._rider.loss, seen[0].count))
            for one in seen:
                self.watched[one.hidden].glance(one, self._sampled or 0, self._batch)
            self._seen = []
        self._batch = None
        self._rider.leave()

    def _advice(self, trainer: Trainer, watch: BlockWatch, worst: bool) -> str:
        """What was found of a block, and when it was seen last where that is long ago."""
        size = samples_of(trainer) * trainer.world_size
        batch_size = (getattr(trainer.train_dataloader, "batch_size", None) or 0) if size else 0
        words = watch.advice(size, batch_size, worst)
        if not words or watch.last is None or watch.hidden not in self._absent:
            return words
        since = (self._sampled or 0) - watch.last.step
        return f"{words} (last seen at step {watch.last.step:,})" if since > self.every_n_steps else words

    def _watch(self, hidden: str, named: bool) -> None:
        prefix = f"landscape/{hidden}/" if named else "landscape/"
        self.watched[hidden] = BlockWatch(hidden, prefix, self.verdict is not None, self.max_samples)
        if hidden in self._state:
            self.watched[hidden].load_state_dict(self._state.pop(hidden))

    def _report(self, trainer: Trainer, due: bool) -> None:
        """Report every block that every rank has seen since its last report, where that is due on one of them."""
        if trainer.world_size > 1:
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if not due:
            return
        names = agree(self._careful, {name: watch.shapes for name, watch in self.watched.items() if watch.sightings})
        with self._careful:
            for name in names:
                self.watched[name].prepare()
        names = agree(self._careful, dict.fromkeys(names))
        if names:
            with self._careful:
                self._report_of(trainer, names)

    def _report_of(self, trainer: Trainer, names: list[str]) -> None:
        """Report blocks. What all ranks do together comes first: an error of one rank then leaves none waiting."""
        watches = [self.watched[name] for name in names]
        for watch in watches:
            watch.gather()
        reports = [watch.add_up() for watch in watches]
        rows = sum(count for _, count in self._losses)
        loss = sum(count * loss for loss, count in self._losses) / rows if rows else None
        for watch in watches:
            watch.report(trainer, loss)
        self._losses.clear()
        self.loss_value = self.loss_value if loss is None else loss
        self.step = max(found.step for found in reports)
        if len(self.watched) > 1 and self.worst is not None:
            trainer.callback_metrics["landscape/dead_share"] = torch.tensor(self.worst.dead_share)
            for logger in trainer.loggers:
                logger.log_metrics({"landscape/dead_share": self.worst.dead_share}, step=self.step)
