"""What callbacks that ride along have in common: the hooks of a ridden step, and runs that begin anew."""

from __future__ import annotations

import copy
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.callbacks._resting import RIDDEN, UNUSED, Rests
from relu_diag.training import CallbackOfBoth, Examiner, Rider

# The hook that begins to ride.
_BEGINNING = "on_train_batch_start"


class BeginsAnew(CallbackOfBoth):
    """A callback that begins every run in the state it was made in: one object may serve many folds."""

    _fresh: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the run before, unless the trainer goes on with it; a checkpoint is loaded after this.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            stage: What the trainer is about to do.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or trainer.global_step > 0:
            return
        if self._fresh is None:
            self._fresh = copy.deepcopy(self.state_dict())
        else:
            self.load_state_dict(copy.deepcopy(self._fresh))


class Rides(Rests):
    """A callback that lets its rider see the steps it has begun to ride on."""

    _rider: Rider

    @property
    def rider(self) -> Rider:
        """What sees the steps.

        Returns:
            The rider.
        """
        return self._rider

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Refuse Fabric, which has no hooks of a Trainer, where it sets a module up.

        Args:
            fabric: Unused.
            module: Unused.

        Raises:
            MisconfigurationException: Always.
        """
        raise MisconfigurationException(
            f"{type(self).__name__} is a callback of Lightning's Trainer, and Fabric runs a loop of your own: ride "
            "along on it with relu_diag.capture.riding (docs/howto/loop.md)."
        )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the gradients of a step that is ridden.

        Args:
            trainer: The trainer.
            pl_module: Unused.
            loss: The loss.
        """
        rider = self.rider
        if rider.riding:
            rider.board(trainer, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the graph of a step that is ridden.

        Args:
            trainer: Unused.
            pl_module: Unused.
        """
        rider = self.rider
        if rider.riding:
            rider.after_backward()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind.

        Args:
            trainer: Unused.
            pl_module: Unused.
            exception: Unused.
        """
        super().on_exception(trainer, pl_module, exception)
        self.rider.leave()


class Passenger(Rides, BeginsAnew):
    """A callback with an examiner that rides along.

    Attributes:
        examiner: Keeps the rows of steps, and examines the blocks.
    """

    examiner: Examiner
    # Hooks that rest in steps that are not ridden.
    _of_a_ride: tuple[str, ...] = RIDDEN

    @property
    def rider(self) -> Rider:
        """What sees the steps.

        Returns:
            The rider.
        """
        return self.examiner.rider

    @property
    def off(self) -> str:
        """Why the callback has switched itself off.

        Returns:
            The reason; empty while it is on.
        """
        return self.examiner.careful.off

    def __repr__(self) -> str:
        words = f"off: {self.off}" if self.off else ", ".join(self.examiner.seen) or "nothing seen yet"
        return f"{type(self).__name__}({words})"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew; find the block of a pass, where one is asked for.

        Args:
            trainer: The trainer.
            pl_module: Its module.
        """
        self.examiner.begin_fit(trainer, pl_module)
        # Of steps that optimize by hand, which may return no loss, losses are noted before their backward passes.
        self._of_a_ride = RIDDEN if pl_module.automatic_optimization else RIDDEN[1:]
        self._rest(trainer, (*UNUSED, *self._of_a_ride))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ride along on the step, if its rows are needed.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: The batch.
            batch_idx: Number of the batch in its epoch.
        """
        self.examiner.step_begins(trainer, pl_module, batch, batch_idx)
        if self.examiner.rider.riding:
            self._wake(self._of_a_ride)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the rows of a step that was ridden.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: Result of the training step, empty where it skips the batch.
            batch: The batch.
            batch_idx: Number of the batch in its epoch.
        """
        examiner = self.examiner
        if examiner.rider.riding:
            self._rest(trainer, self._of_a_ride)
        examiner.step_ended(trainer, batch, skipped=pl_module.automatic_optimization and not outputs)
        rests = examiner.rests(trainer, batch_idx)
        if rests is (_BEGINNING in self.__dict__):
            return
        if rests:
            self._rest(trainer, (_BEGINNING,))
        else:
            self._wake((_BEGINNING,))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rows of an epoch are kept, if its steps were ridden.

        Args:
            trainer: The trainer.
            pl_module: Unused.
        """
        self.examiner.epoch_ended(trainer)
        self._wake((_BEGINNING,))

    def _want(self) -> None:
        """Ask for a verdict."""
        self.examiner.want()
        self._wake((_BEGINNING,))
